"""Arrays of any framework as numpy, and what can be written into which dtype."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from ..errors import PackageMissing, WrongType
from . import registry


def to_numpy(array: Any) -> np.ndarray:
    """Any framework's array as numpy.

    Args:
        array: An array, gradient-tracked or not, a Parameter, or plain numbers.

    Returns:
        The same numbers and dtype (those of ml_dtypes too); they may alias the array's memory.

    Raises:
        PackageMissing: The dtype needs ml_dtypes, which is not installed.
        WrongType: It is no array.

    >>> to_numpy([1, 2]).tolist()
    [1, 2]
    """
    if isinstance(array, (np.ndarray, np.generic, int, float, list, tuple)):
        return np.asarray(array)
    known = registry.detect_array(array)
    try:
        converted = np.asarray(array) if known is None else known.load().to_numpy(array)
    except (AttributeError, ValueError) as error:
        if hasattr(array, "shape") and hasattr(array, "dtype"):
            raise
        raise WrongType(f"An array is asked for; this is a {type(array).__qualname__}.") from error
    if converted.dtype == object and not isinstance(array, np.ndarray):
        raise WrongType(f"An array is asked for; this is a {type(array).__qualname__}.")
    return converted


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype by name, those of ml_dtypes too.

    Args:
        name: Such as ``"float32"`` or ``"bfloat16"``.

    Returns:
        The dtype.

    Raises:
        PackageMissing: Only ml_dtypes has it, and that is not installed.

    >>> numpy_dtype("float32")
    dtype('float32')
    """
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16 and the float8 kinds are numpy dtypes only through ml_dtypes
        try:
            import ml_dtypes
        except ImportError:
            raise PackageMissing(f"numpy knows no {name} without ml_dtypes. Try: pip install ml_dtypes") from None

        return np.dtype(getattr(ml_dtypes, name))


# By name, since numpy's own ``kind`` of an ml_dtypes dtype is "V", as if it were no number.
KINDS_OF_NUMBERS = {"bool": "b", "int": "i", "uint": "u", "float": "f", "bfloat": "f", "complex": "c"}


def dtype_kind(dtype: str) -> str:
    """numpy's letter for the kind of number a dtype is, by its name; for ml_dtypes' too, which numpy takes for none.

    >>> dtype_kind("bfloat16"), dtype_kind("uint8"), dtype_kind("str96")
    ('f', 'u', '')
    """
    return KINDS_OF_NUMBERS.get(re.sub("[0-9].*", "", dtype), "")


def dtype_name(dtype: Any) -> str:
    """numpy's name of any framework's dtype: an object that has the name, a class, or ``torch.float32``.

    >>> dtype_name(np.dtype("float32")), dtype_name(np.float32), dtype_name("torch.int64")
    ('float32', 'float32', 'int64')
    """
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def castable(source: str, target: str) -> bool:
    """Whether numbers of one dtype can stand in another: nothing loses a fraction or an imaginary part.

    >>> castable("float64", "bfloat16"), castable("float32", "int64")
    (True, False)
    """
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "c": "biufc"}
    return source == target or (dtype_kind(source) != "" and dtype_kind(source) in kinds.get(dtype_kind(target), ""))


def overflows(value: np.ndarray, target: np.dtype[Any]) -> bool:
    """Whether whole numbers would wrap round in another whole dtype.

    >>> overflows(np.array([300]), np.dtype("uint8")), overflows(np.array([3]), np.dtype("uint8"))
    (True, False)
    """
    if value.dtype == target or value.dtype.kind not in "iu" or target.kind not in "iu" or not value.size:
        return False
    limits = np.iinfo(target)
    return int(value.min()) < limits.min or int(value.max()) > limits.max


def contiguous(array: np.ndarray) -> np.ndarray:
    """A copy in C order, aligned as frameworks want memory they adopt.

    Args:
        array: Any numpy array, in any order.

    Returns:
        The same numbers in memory of its own.

    >>> contiguous(np.arange(6).reshape(2, 3).T).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    space = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    out: np.ndarray = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    if array.nbytes < LARGE or array.ndim == 0 or len(array) < 2:
        _copy(out, array)
        return out
    # Weights are transposed on nearly every way between frameworks, so this copy is most of the time of a transfer.
    from concurrent.futures import ThreadPoolExecutor

    workers = min(4, os.cpu_count() or 1)  # numpy copies without the interpreter's lock
    cuts = [len(array) * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda a, b: _copy(out[a:b], array[a:b]), cuts[:-1], cuts[1:]))
    return out


def _copy(out: np.ndarray, array: np.ndarray) -> None:
    # A transposed matrix is copied a few columns at a time: each cache line is then read and written once, which is two
    # to three times as fast as numpy's own copy.
    if array.ndim == 2 and array.strides[0] < array.strides[1] and array.size > 1 << 14:
        for i in range(0, array.shape[1], STRIP):
            out[:, i : i + STRIP] = array[:, i : i + STRIP]
    else:
        out[...] = array


LARGE = 1 << 24  # bytes, from which threads are worth their start
ALIGNMENT = 64  # bytes: a cache line; XLA adopts memory without a copy only where it is aligned
STRIP = 64  # columns: 256 bytes of float32, some cache lines
