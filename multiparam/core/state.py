"""States: arrays by name. A state is checked against a model as a whole before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import StateError
from ..paths import did_you_mean, split
from .arrays import castable, dtype_kind, numpy_dtype, overflows, to_numpy
from .layers import BOOKKEEPING
from .parameter import Parameter

if TYPE_CHECKING:
    from types import TracebackType

LINES = 10  # of each sort of misfit that an error lists


class Loaded(NamedTuple):
    """What a load left out.

    Attributes:
        missing: Names of parameters and buffers that the state does not have; they are as they were.
        unexpected: Names of the state that the model does not have; they were not read.

    Example:
        >>> Loaded(missing=("head.bias",)).unexpected
        ()
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


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


def load_state(
    known: Mapping[str, Parameter],
    state: Mapping[str, Any],
    *,
    strict: bool = True,
    cast: bool = False,
    verify: bool = True,
    ready: Callable[[], None] | None = None,
    constants: Mapping[str, Parameter] = MappingProxyType({}),
) -> Loaded:
    """Write a state into parameters by name, aliases included: see :meth:`Group.load_state_dict`.

    Values are held one at a time, so a file larger than the memory left loads. Nothing is kept to undo with: instead
    all of the state is read through before the first write, unless ``verify=False``. ``ready`` is called between. The
    ``constants`` are not written; a state from before they were such may have them, if their values are the same.
    """
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
    misfits = {name: text for name, each in specs.items() if (text := _misfit(known[name], name, each, cast))}
    conflicts = [
        text
        for names in chosen.values()
        if len(names) > 1 and not misfits.keys() & set(names)
        for text in _conflicts(state, names, known)
    ]
    report = _report(known, missing if strict else (), unexpected if strict else (), misfits, conflicts)
    # Reads whole arrays, so only where all else fits.
    if not report and cast:
        report = _listed("misfits", [text for name in specs if (text := _overflow(state, name, specs, known[name]))])
    if report:
        raise StateError("\n".join(["The state does not fit the model, which is unchanged.", *report]))
    # A file can fail at its last byte, when half of the model is written; arrays in memory cannot.
    if verify and isinstance(state, Source):
        for name in specs:
            state.verify(name)
    if ready is not None:
        ready()
    _write(state, [names[0] for names in chosen.values() if names], known, cast)
    return Loaded(missing, unexpected)


def _write(state: Mapping[str, Any], names: list[str], known: Mapping[str, Parameter], cast: bool) -> None:
    for done, name in enumerate(names):
        try:
            known[name].assign(_value(state, name), cast=cast)
        except BaseException as error:  # the disk fails after all was read, or the user interrupts
            error.add_note(f"{done} of {len(names)} parameters have their new values, the others the old. Load again.")
            raise


def _is_constant(state: Mapping[str, Any], name: str, constants: Mapping[str, Parameter]) -> bool:
    p = constants.get(name)
    return p is not None and state_spec(state, name).shape == p.shape and np.array_equal(_value(state, name), p.numpy())


def _bookkeeping(name: str) -> bool:
    return split(name)[1] in BOOKKEEPING


def _value(state: Mapping[str, Any], name: str) -> np.ndarray:
    return to_numpy(state[name])


def _misfit(p: Parameter, name: str, spec: ArraySpec, cast: bool) -> str:
    """What keeps an array from a parameter; nothing where it fits."""
    if spec.shape != p.shape:
        transposed = len(spec.shape) > 1 and spec.shape[::-1] == p.shape
        hint = ". It is transposed: multiparam's layout is PyTorch's, weight (out, in)" if transposed else ""
        return f"{name!r} has shape {p.shape}; the state has {spec.shape}{hint}"
    if spec.dtype == p.dtype:
        return ""
    if not cast:
        return f"{name!r} is {p.dtype}; the state has {spec.dtype}. Convert it, or say cast=True"
    if not castable(spec.dtype, p.dtype):
        return f"{name!r} is {p.dtype}; {spec.dtype} values cannot be converted to it"
    return ""


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


def _report(
    known: Mapping[str, Parameter],
    missing: Iterable[str],
    unexpected: Iterable[str],
    misfits: Mapping[str, str],
    conflicts: list[str],
) -> list[str]:
    """All that is wrong, so much of each sort."""
    missing, unexpected = list(missing), list(unexpected)
    wanted = [f"{name!r}, {known[name].shape} {known[name].dtype}" for name in missing[:LINES]]
    near = missing or list(known)
    strange = [f"{name!r}{_hint(name, near)}" for name in unexpected[:LINES]]
    return [
        *_listed("missing", wanted, len(missing)),
        *_listed("unexpected", strange, len(unexpected)),
        *_listed("misfits", list(misfits.values())),
        *_listed("conflicts", conflicts),
    ]


def _hint(name: str, known: list[str]) -> str:
    """A near name; no list of others, since there is one line for each name."""
    suggestion = did_you_mean(name, known)
    return f". {suggestion}" if suggestion.startswith("Did") else ""


def _listed(title: str, lines: list[str], count: int | None = None) -> list[str]:
    count = len(lines) if count is None else count
    if not count:
        return []
    more = [f"  ... and {count - LINES} more"] if count > LINES else []
    return [f"{title} ({count}):", *(f"  {line}" for line in lines[:LINES]), *more]
