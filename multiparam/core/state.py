"""States: arrays by name. A state is checked against a model as a whole before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import StateError, WrongType
from ..paths import split
from . import codes
from .arrays import castable, contiguous, dtype_kind, numpy_dtype, overflows, to_numpy
from .layers import BOOKKEEPING
from .loaded import Loaded
from .misfits import listed, report
from .parameter import Parameter, give_memory, memory_of, needed_block, overlapping, require_memory, write_blocks
from .slots import Box

if TYPE_CHECKING:
    from types import TracebackType


class ArraySpec(NamedTuple):
    """What is known of an array before it is read. ``dtype`` is numpy's name."""

    shape: tuple[int, ...]
    dtype: str


class Source(Mapping[str, np.ndarray]):
    """Arrays by name that are read when asked for, one at a time: what readers of files derive from.

    A context manager, where something is to be closed; it closes by itself when nobody uses it any more.

    Example:
        >>> import tempfile, pathlib
        >>> path = mp.save({"w": np.ones((2, 3))}, pathlib.Path(tempfile.mkdtemp()) / "w.safetensors")
        >>> with mp.read(path) as source:
        ...     list(source), source.spec("w"), float(source["w"].sum())
        (['w'], ArraySpec(shape=(2, 3), dtype='float64'), 6.0)
    """

    own_layouts = False
    """Whether the format is a framework's own and holds arrays in that one's layouts."""
    groups: tuple[str, ...] = ()
    """First segments of names that are mappings of their own in the file, such as ``"state_dict"``."""
    left_out: tuple[str, ...] = ()
    """What else the file holds and this mapping does not, such as ``"epoch"``."""

    def spec(self, name: str) -> ArraySpec:
        """Shape and dtype of an array; where the format has them beside its values, without reading those.

        Args:
            name: One of the names of this mapping.

        Returns:
            The shape, and the dtype by numpy's name (``"bfloat16"`` and others by ml_dtypes').

        Raises:
            KeyError: For an unknown name.
        """
        return spec(self[name])

    def verify(self, name: str) -> None:
        """Read an array for nothing but to see that it can be read and is as it was written.

        Args:
            name: One of the names of this mapping.

        Raises:
            KeyError: For an unknown name.
            FileError: Where the file is damaged, or its checksum of the array is another.
        """
        self[name]

    def block(self, name: str, box: Box) -> np.ndarray:
        """A part of an array; where the format allows, without reading the rest.

        Args:
            name: One of the names of this mapping.
            box: Start and stop on each axis, as :attr:`Parameter.sharding` has them.

        Returns:
            The part, independent of the file.

        Raises:
            KeyError: For an unknown name.
            FileError: Where the file is damaged.

        Example:
            >>> import tempfile, pathlib
            >>> path = mp.save({"w": np.arange(6).reshape(2, 3)}, pathlib.Path(tempfile.mkdtemp()) / "w.safetensors")
            >>> mp.read(path).block("w", (slice(1, 2), slice(0, 2))).tolist()
            [[3, 4]]
        """
        return contiguous(self[name][box])

    def verify_block(self, name: str, box: Box) -> None:
        """:meth:`verify`, where a part is going to be read: a format whose checksums are of whole arrays reads all.

        Args:
            name: One of the names of this mapping.
            box: The part.

        Raises:
            KeyError: For an unknown name.
            FileError: Where the file is damaged.
        """
        self.verify(name)

    def read_into(self, name: str, out: np.ndarray) -> bool:
        """Read an array into memory that is there, where the source can: the format has its bytes as they are.

        Args:
            name: One of the names of this mapping.
            out: A contiguous array of its shape and dtype. After an error it holds a part of the values.

        Returns:
            Whether it was read; False leaves ``out`` as it was.

        Raises:
            KeyError: For an unknown name.
            FileError: Where the file is damaged.
        """
        return False

    def close(self) -> None:
        """Let go of the file. Reading again is an error."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return any(name == each for each in self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} arrays>"


def spec(array: Any) -> ArraySpec:
    """Shape and dtype of any framework's array.

    >>> spec(np.zeros((2, 3), ">f4"))
    ArraySpec(shape=(2, 3), dtype='float32')
    """
    array = to_numpy(array)
    return ArraySpec(tuple(array.shape), array.dtype.name)


def state_spec(state: Mapping[str, Any], name: str) -> ArraySpec:
    """Shape and dtype of an array of a state: a file says them without reading its values.

    >>> state_spec({"w": np.zeros((2, 3))}, "w")
    ArraySpec(shape=(2, 3), dtype='float64')
    """
    return state.spec(name) if isinstance(state, Source) else spec(state[name])


def verify_state(state: Mapping[str, Any], name: str) -> None:
    """See that an array of a state can be read, and is as it was written: only a file can fail that.

    >>> verify_state({"w": np.zeros((2, 3))}, "w")
    """
    if isinstance(state, Source):
        state.verify(name)


def state_block(state: Mapping[str, Any], name: str, box: Box) -> np.ndarray:
    """A part of an array of a state.

    >>> state_block({"w": np.arange(6).reshape(2, 3)}, "w", (slice(0, 2), slice(1, 2))).tolist()
    [[1], [4]]
    """
    return state.block(name, box) if isinstance(state, Source) else to_numpy(state[name])[box]


def load_state(
    known: Mapping[str, Parameter],
    state: Mapping[str, Any],
    *,
    strict: bool = True,
    cast: bool = False,
    verify: bool = True,
    materialise: bool = False,
    ready: Callable[[], None] | None = None,
    constants: Mapping[str, Parameter] = MappingProxyType({}),
) -> Loaded:
    """Write a state into parameters by name, aliases included: see :meth:`Group.load_state_dict`.

    Values are held one at a time, so a file larger than the memory left loads. Nothing is kept to undo with: instead
    all of the state is read through before the first write, unless ``verify=False``. ``ready`` is called between, and
    with ``materialise`` what has no memory is given some then. The ``constants`` are not written; a state from before
    they were such may have them, if their values are the same.
    """
    _require_mapping(state)
    # Each parameter by all its names: a transposed alias is another Parameter, but to be written once only.
    chosen: dict[tuple[str, ...], list[str]] = {p.names: [] for p in known.values()}
    firsts: dict[tuple[str, ...], str] = {}
    for name, p in known.items():
        firsts.setdefault(p.names, name)
    for name in state:
        if name in known:
            chosen[known[name].names].append(name)
    missing = tuple(firsts[key] for key, names in chosen.items() if not names and not _bookkeeping(firsts[key]))
    unexpected = tuple(
        name
        for name in state
        if name not in known and not _bookkeeping(name) and not _is_constant(state, name, constants)
    )
    specs = {name: state_spec(state, name) for names in chosen.values() for name in names}
    misfits = {name: text for name, each in specs.items() if (text := _misfit(known[name], name, each, cast, state))}
    conflicts = _all_conflicts(state, [n for n in chosen.values() if not misfits.keys() & set(n)], known)
    lines = report(known, missing if strict else (), unexpected if strict else (), misfits, conflicts)
    # Reads whole arrays, so only where all else fits.
    if not lines and cast:
        lines = listed("misfits", [text for name in specs if (text := _overflow(state, name, specs, known[name]))])
    if lines:
        raise StateError("\n".join(["The state does not fit the model, which is unchanged.", *lines]))
    written = [known[names[0]] for names in chosen.values() if names]
    if not materialise:
        require_memory(written)
    # A file can fail at its last byte, when half of the model is written; arrays in memory cannot.
    for name in specs if verify else ():
        _verify(state, name, known[name])
    if ready is not None:
        ready()
    if materialise:
        give_memory(written + counters(known))
    _write(state, [names[0] for names in chosen.values() if names], known, cast)
    return Loaded(missing, unexpected)


def _require_mapping(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise WrongType(f"A state is a mapping name -> array; this is a {type(state).__name__}.")


def _verify(state: Mapping[str, Any], name: str, p: Parameter) -> None:
    box = needed_block(p)
    if box is not None and isinstance(state, Source):
        state.verify_block(name, box)
    else:
        verify_state(state, name)


def _write(state: Mapping[str, Any], names: list[str], known: Mapping[str, Parameter], cast: bool) -> None:
    for done, name in enumerate(names):
        try:
            if needed_block(known[name]) is None:
                if not _read_into(known[name], state, name):
                    known[name].assign(_value(state, name), cast=cast)
            else:
                write_blocks(known[name], partial(state_block, state, name))
        except BaseException as error:  # the disk fails after all was read, or the user interrupts
            error.add_note(f"{done} of {len(names)} parameters have their new values, the others the old. Load again.")
            raise


def _read_into(p: Parameter, state: Mapping[str, Any], name: str) -> bool:
    """Read an array straight into a parameter's own memory, where source and framework can."""
    if not isinstance(state, Source) or state.spec(name) != (p.shape, p.dtype):
        return False
    memory = memory_of(p)
    return memory is not None and state.read_into(name, memory)


def _is_constant(state: Mapping[str, Any], name: str, constants: Mapping[str, Parameter]) -> bool:
    p = constants.get(name)
    return p is not None and state_spec(state, name).shape == p.shape and np.array_equal(_value(state, name), p.numpy())


def counters(known: Mapping[str, Parameter]) -> list[Parameter]:
    """Buffers that count steps, which a state need not have: they begin at zero."""
    return [p for name, p in known.items() if _bookkeeping(name)]


def _bookkeeping(name: str) -> bool:
    return split(name)[1] in BOOKKEEPING


def _value(state: Mapping[str, Any], name: str) -> np.ndarray:
    return to_numpy(state[name])


def _misfit(p: Parameter, name: str, spec: ArraySpec, cast: bool, state: Mapping[str, Any]) -> str:
    """What keeps an array from a parameter; nothing where it fits."""
    if spec.shape != p.shape:
        transposed = len(spec.shape) > 1 and spec.shape[::-1] == p.shape
        hint = ". It is transposed: multiparam's layout is PyTorch's, weight (out, in)" if transposed else ""
        return f"{name!r} has shape {p.shape}; the state has {spec.shape}{hint}"
    if spec.dtype == p.dtype:
        return ""
    if scale := codes.beside(name, spec.dtype, p.dtype, state):
        return codes.refusal(name, spec.dtype, scale)
    if not cast:
        return f"{name!r} is {p.dtype}; the state has {spec.dtype}. Convert it, or say cast=True"
    if not castable(spec.dtype, p.dtype):
        return f"{name!r} is {p.dtype}; {spec.dtype} values cannot be converted to it"
    return ""


def _all_conflicts(state: Mapping[str, Any], chosen: list[list[str]], known: Mapping[str, Parameter]) -> list[str]:
    """What comes with different values and can have one only; of each parameter that fits the names in the state."""
    fitting = [names for names in chosen if names]
    tied = [text for names in fitting if len(names) > 1 for text in _conflicts(state, names, known)]
    return tied + [
        f"{a!r} and {b!r} share memory; the state has values for both, and one would change the other"
        for a, b, whole in overlapping({names[0]: known[names[0]] for names in fitting})
        if not whole or not same(_value(state, a), _value(state, b))
    ]


def _conflicts(state: Mapping[str, Any], names: list[str], known: Mapping[str, Parameter]) -> list[str]:
    """Names of one parameter that come with different values."""
    first, *aliases = names
    value = _value(state, first)
    conflicts = []
    for name in aliases:
        again = _value(state, name)
        again = again if known[name] is known[first] else again.T  # two Parameters of one storage: a transposed tie
        if not same(value, again):
            conflicts.append(f"{first!r} and {name!r} are one parameter; the state has different values for them")
    return conflicts


def _overflow(state: Mapping[str, Any], name: str, specs: Mapping[str, ArraySpec], p: Parameter) -> str:
    """Whole numbers that a smaller dtype would wrap round; looked for only where that can be."""
    kinds = {dtype_kind(p.dtype), dtype_kind(specs[name].dtype)}
    if specs[name].dtype == p.dtype or not kinds <= {"i", "u"}:
        return ""
    value = _value(state, name)
    if overflows(value, numpy_dtype(p.dtype)):
        return f"{name!r} is {p.dtype}; the state has {value.dtype} values beyond its range"
    return ""


def options_equal(a: Any, b: Any) -> bool:
    """Whether two options of layers are the same; numbers to float32's rounding, in which some frameworks keep them.

    >>> options_equal((1, 1), [1, 1]), options_equal(1e-5, float(np.float32(1e-5))), options_equal(1e-5, 1e-6)
    (True, True, False)
    """
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(options_equal, a, b))
    if isinstance(a, Real) and isinstance(b, Real):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bits; any NaN is as good as any other.

    >>> same(np.array([0.0, np.nan]), np.array([0.0, -np.nan])), same(np.array(0.0), np.array(-0.0))
    (True, False)
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = (np.ascontiguousarray(each).reshape(-1) for each in (a, b))
    if x.dtype.kind == "c":
        x, y = x.view(x.real.dtype), y.view(y.real.dtype)
    # Bits, not ==: it would take -0.0 for 0.0, and no NaN for itself.
    bits = f"u{x.itemsize}"
    differ = x.view(bits) != y.view(bits)
    return not differ.any() or bool(((x != x) & (y != y))[differ].all())
