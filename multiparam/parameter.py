"""Parameter: one storage under its names. Group: some parameters of a model, as the nested list it looks like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from . import paths
from .errors import DtypeError, ParameterNotFound, PositionError, ShapeError, UnknownShapes, WrongType
from .layouts import contiguous
from .packed import bases, refuse_partial

if TYPE_CHECKING:
    from .model import Model
    from .protocol import Slot, Storage
    from .state import Loaded

Selector = Union[str, "Parameter", "Group", Iterable[str], Callable[["Parameter"], bool], None]


class Parameter:
    """One parameter or buffer of a model, in canonical form, whatever its names.

    >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
    >>> p = net["weight"]
    >>> p.name, p.shape, p.dtype, p.kind, p.trainable, p.grad
    ('weight', (2, 3), 'float32', 'linear', True, None)
    >>> p[:] = 0; p[0, 0] = 42; p += 1
    >>> p.numpy().tolist()
    [[43.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    __slots__ = ("_net", "_index")
    __array_priority__ = 1000  # numpy arrays on the left leave arithmetic to us

    def __init__(self, net: Model, index: int) -> None:
        self._net = net
        self._index = index  # of a slot: it stays the same when slots change storages

    @property
    def _slot(self) -> Slot:
        return self._net._table.slots[self._index]

    @property
    def _storage(self) -> Storage:
        return self._net._table.slots[self._index].storage

    @property
    def name(self) -> str:
        """The first of its names, in definition order, that shows it in this shape: see :meth:`Model.tie`."""
        return self._net._table.names[self._index]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name: more than one when the parameter is tied."""
        return self._net._table.names_of(self._storage)

    @property
    def kind(self) -> str:
        """The kind of layer that holds it, such as ``"linear"``; the class name for an unknown layer."""
        return self._slot.kind

    @property
    def native(self) -> Any:
        """The untouched framework object; a tuple where several make up the parameter, as the gates of a Flax LSTM.
        Writing to it writes to the model."""
        return self._storage.native

    @property
    def buffer(self) -> bool:
        """Whether it is state that is not trained, such as a running mean."""
        return self._slot.buffer

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical shape. Raises UnknownShapes where the framework does not know it yet."""
        shape = self._storage.shape
        if shape is None:
            raise UnknownShapes(f"The shape of {self.name!r} is not known yet. {UNKNOWN_CURE}")
        layout = self._slot.layout
        return shape if layout is None else layout.shape(shape)

    @property
    def dtype(self) -> str:
        """numpy's name of its dtype, such as ``"float32"``."""
        return self._storage.dtype

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def trainable(self) -> bool:
        """Whether gradient steps change it; never for a buffer."""
        return not self._slot.buffer and self._storage.trainable

    @property
    def value(self) -> Any:
        """The framework's array in canonical layout.

        A snapshot: writing to it does not write to the model, and training does not change it. Inside an
        objective it is the tracked array itself, so a penalty on it has a gradient.
        """
        array = self._canonical(self._storage.read())
        return array if self._net._tracing else self._net.adapter.detach(array)

    def numpy(self) -> np.ndarray:
        """The values as an independent, writable numpy array in canonical layout."""
        return contiguous(self._alias())

    def _alias(self) -> np.ndarray:
        """The values in canonical layout, for reading at once: it may alias the model's memory."""
        array = self._net.adapter.to_numpy(self._storage.read())
        layout = self._slot.layout
        shown: np.ndarray = array if layout is None else layout.apply(array, np)
        return shown

    @property
    def grad(self) -> Any | None:
        """The gradient the last backward left, in canonical layout; None before the first, and where frozen.

        For tied parameters it is the sum over all uses. It may alias the framework's own gradient.
        """
        if not self.trainable:
            return None
        grad = self._storage.grad()
        return None if grad is None else self._canonical(grad)

    def _canonical(self, array: Any) -> Any:
        layout = self._slot.layout
        return array if layout is None else layout.apply(array, self._net.adapter)

    def assign(self, array: Any, *, cast: bool = False) -> Parameter:
        """Replace all values by an array of exactly this shape and dtype; plain Python numbers fit any dtype.

        ``cast=True`` converts the dtype. Raises ShapeError or DtypeError; the parameter is then unchanged.
        """
        value = self._checked(array, cast)
        self._write(value)
        return self

    def _checked(self, array: Any, cast: bool) -> np.ndarray:
        plain = isinstance(array, (int, float, list, tuple))
        value = self._net.to_numpy(array)
        if value.shape != self.shape:
            hint = ""
            if value.ndim > 1 and value.shape[::-1] == self.shape:
                hint = " It is transposed: multiparam's layout is PyTorch's, weight (out, in)."
            raise ShapeError(f"{self.name!r} has shape {self.shape}; the array has {value.shape}.{hint}")
        if value.dtype != self.dtype and not cast and not plain:
            raise DtypeError(
                f"{self.name!r} is {self.dtype}; the array is {value.dtype}. "
                f"Convert it, or say assign(array, cast=True)."
            )
        return self._cast(value)

    def _cast(self, value: np.ndarray) -> np.ndarray:
        """An array in this parameter's dtype, unless that would lose its kind: no fraction, no imaginary part."""
        target = _numpy_dtype(self.dtype)
        if value.dtype != target and not castable(value.dtype.name, self.dtype):
            raise DtypeError(f"{self.name!r} is {self.dtype}; {value.dtype} values cannot be written into it.")
        if overflows(value, target):
            raise DtypeError(f"{self.name!r} is {self.dtype}; the values go beyond its range.")
        return value.astype(target, copy=False)

    def _write(self, value: np.ndarray) -> None:
        """Write a checked canonical array."""
        layout = self._slot.layout
        self._storage.write(value if layout is None else layout.undo(value, np))

    def __getitem__(self, key: Any) -> Any:
        """Some of the values as numpy, independent of the model; inside an objective, of the tracked array."""
        return self.value[key] if self._net._tracing else self.numpy()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to some elements, by numpy's rules of indexing, broadcasting and same-kind casting."""
        new = self.numpy()
        source = self._cast(self._net.to_numpy(value))
        try:
            new[key] = source
        except ValueError as error:
            raise ShapeError(f"{self.name!r}[{key!r}]: {error}") from None
        except IndexError as error:
            raise PositionError(f"{self.name!r} has shape {self.shape}: {error}") from None
        self._write(new)

    def __iadd__(self, other: Any) -> Parameter:
        self[...] = self.numpy() + self._net.to_numpy(other)
        return self

    def __isub__(self, other: Any) -> Parameter:
        self[...] = self.numpy() - self._net.to_numpy(other)
        return self

    def __imul__(self, other: Any) -> Parameter:
        self[...] = self.numpy() * self._net.to_numpy(other)
        return self

    def __itruediv__(self, other: Any) -> Parameter:
        self[...] = self.numpy() / self._net.to_numpy(other)
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        shape = "unknown" if self._storage.shape is None else str(self.shape)
        aliases = f", also {', '.join(n for n in self.names if n != self.name)}" if len(self.names) > 1 else ""
        state = "buffer" if self.buffer else "trainable" if self.trainable else "frozen"
        return f"<{self.name}: {self.kind} {shape} {self.dtype}, {state}{aliases}>"


UNKNOWN_CURE = "Pass example inputs, mp.wrap(net, X), or run the model once before wrapping it."


def _numpy_dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16 and the float8 kinds are numpy dtypes only through ml_dtypes
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


KINDS_OF_NUMBERS = {"bool": "b", "int": "i", "uint": "u", "float": "f", "bfloat": "f", "complex": "c"}


def kind_of(dtype: str) -> str:
    """numpy's letter for the kind of number a dtype is, by its name; for ml_dtypes' too, which numpy takes for none.

    >>> kind_of("bfloat16"), kind_of("uint8"), kind_of("str96")
    ('f', 'u', '')
    """
    return KINDS_OF_NUMBERS.get(re.sub("[0-9].*", "", dtype), "")


def castable(source: str, target: str) -> bool:
    """Whether numbers of one dtype can stand in another: nothing loses a fraction or an imaginary part.

    >>> castable("float64", "bfloat16"), castable("float32", "int64")
    (True, False)
    """
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "c": "biufc"}
    return source == target or (kind_of(source) != "" and kind_of(source) in kinds.get(kind_of(target), ""))


def overflows(value: np.ndarray, target: np.dtype[Any]) -> bool:
    """Whether whole numbers would wrap round in another whole dtype.

    >>> overflows(np.array([300]), np.dtype("uint8")), overflows(np.array([3]), np.dtype("uint8"))
    (True, False)
    """
    if value.dtype == target or value.dtype.kind not in "iu" or target.kind not in "iu" or not value.size:
        return False
    limits = np.iinfo(target)
    return int(value.min()) < limits.min or int(value.max()) > limits.max


class Group:
    """Some parameters of a model: a layer, a block, or a selection. Names are relative to the group.

    Indexing goes down by position among the children, as in the nested list the model looks like, or by name:
    a full name gives the Parameter, a prefix a Group. Iteration gives each Parameter once.
    """

    def __init__(self, net: Model | None, prefix: paths.Path, indices: tuple[int, ...] | None) -> None:
        self._net_or_none = net
        self._prefix = prefix
        self._indices = indices

    @property
    def _net(self) -> Model:
        assert self._net_or_none is not None
        return self._net_or_none

    @property
    def _slots(self) -> Iterable[int]:
        return range(len(self._net._table.slots)) if self._indices is None else self._indices

    def _relative(self, index: int) -> str:
        path = self._net._table.slots[index].path
        return paths.text(path[len(self._prefix) :])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._by_name(key)
        if isinstance(key, int) and not isinstance(key, bool):
            return self._by_position(key)
        raise WrongType(f"Index by name or by position, not by {type(key).__name__}")

    def __setitem__(self, key: str, value: Any) -> None:
        """``net["0.weight"] = array`` assigns; ``net["0.weight"] += 1`` has written already when it comes here."""
        target = self[key]
        if not isinstance(target, Parameter):
            raise WrongType(f"{key!r} is a group; assign to one of its parameters, or use init.")
        if value is not target:
            target.assign(value)

    def _by_name(self, name: str) -> Parameter | Group:
        table = self._net._table
        full = name if not self._prefix else f"{paths.text(self._prefix)}.{name}"
        index = table.by_name.get(full)
        if index is not None and (self._indices is None or index in self._indices):
            return self._net._parameter(index)
        inside = tuple(i for i in self._slots if table.names[i].startswith(full + "."))
        if inside:
            depth = len(self._prefix) + 1
            path = table.slots[inside[0]].path
            while depth < len(path) and paths.text(path[:depth]) != full:
                depth += 1
            return Group(self._net, path[:depth], inside)
        where = f" in {paths.text(self._prefix)!r}" if self._prefix else ""
        known = [self._relative(i) for i in self._slots]
        raise ParameterNotFound(f"No parameter {name!r}{where}. {paths.did_you_mean(name, known)}")

    def _by_position(self, position: int) -> Group:
        depth = len(self._prefix)
        slots = self._net._table.slots
        inside = tuple(
            i for i in self._slots if len(slots[i].positions) > depth and slots[i].positions[depth] == position
        )
        if inside:
            return Group(self._net, slots[inside[0]].path[: depth + 1], inside)
        there = sorted({slots[i].positions[depth] for i in self._slots if len(slots[i].positions) > depth})
        where = f"{paths.text(self._prefix)!r}" if self._prefix else "the model"
        raise PositionError(
            f"{where} has no parameters at position {position}. Positions with parameters: "
            f"{', '.join(map(str, there)) or 'none'}."
        )

    def parameters(self, aliases: bool = False) -> Mapping[str, Parameter]:
        """name -> Parameter, each storage once under its first name here, in definition order.

        With ``aliases``, every slot: tied names then share one Parameter.
        """
        return self._mapping(buffers=False, aliases=aliases)

    def buffers(self, aliases: bool = False) -> Mapping[str, Parameter]:
        """name -> Parameter for state that is not trained, such as running statistics."""
        return self._mapping(buffers=True, aliases=aliases)

    def _mapping(self, buffers: bool, aliases: bool) -> Mapping[str, Parameter]:
        net, slots = self._net, self._net._table.slots
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        plain = not self._prefix
        names = net._table.names
        for i in self._slots:
            slot = slots[i]
            if slot.buffer is not buffers or (not aliases and id(slot.storage) in seen):
                continue
            seen.add(id(slot.storage))
            found[names[i] if plain else self._relative(i)] = net._parameter(i)
        return MappingProxyType(found)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters().values())

    def __len__(self) -> int:
        return len(self.parameters())

    def __contains__(self, item: object) -> bool:
        if isinstance(item, Parameter):
            return any(item is p for p in self)
        return any(self._relative(i) == item for i in self._slots)

    def layers(self) -> Mapping[tuple[str, ...], Group]:
        """Each distinct layer with parameters once: all its names -> its Group.

        Two positions are one layer when they use the same storages throughout.
        """
        table = self._net._table
        places: dict[paths.Path, list[int]] = {}
        for i in self._slots:
            places.setdefault(table.slots[i].path[:-1], []).append(i)
        found: dict[tuple[Any, ...], list[paths.Path]] = {}
        for path, inside in places.items():
            slots = [table.slots[i] for i in inside]
            key = tuple((slot.path[-1], id(slot.storage), slot.layout) for slot in slots)
            found.setdefault(key, []).append(path)
        depth = len(self._prefix)
        return MappingProxyType(
            {
                tuple(paths.text(path[depth:]) for path in same): Group(self._net, same[0], tuple(places[same[0]]))
                for same in found.values()
            }
        )

    def select(self, *selectors: Selector, kind: str | None = None) -> Group:
        """The parameters any selector matches: a glob over names, a Parameter, a Group, names, or a predicate.

        ``kind`` (a glob too) keeps those of one layer kind. A parameter is found by any of its names.
        Raises ParameterNotFound when nothing matches.
        """
        net, slots = self._net, self._net._table.slots
        wanted = [_predicate(selector) for selector in selectors] or [lambda parameter, names: True]
        names: dict[int, set[str]] = {}
        for i in self._slots:
            names.setdefault(id(slots[i].storage), set()).update((net._table.names[i], self._relative(i)))
        chosen = {
            key: any(test(net._parameter_of(key), list(found)) for test in wanted) for key, found in names.items()
        }
        inside = tuple(
            i
            for i in self._slots
            if not slots[i].buffer
            and chosen[id(slots[i].storage)]
            and (kind is None or paths.matches(slots[i].kind, kind))
        )
        if not inside:
            texts = [s for s in selectors if isinstance(s, str)]
            asked = ", ".join(map(repr, texts)) or "this selector"
            of_kind = f" of kind {kind!r}" if kind else ""
            hint = paths.did_you_mean(texts[0], [net._table.names[i] for i in self._slots]) if texts else ""
            raise ParameterNotFound(f"No parameter matches {asked}{of_kind}. {hint}".rstrip())
        return Group(net, self._prefix, inside)

    def init(self, function: Any, *selectors: Selector, kind: str | None = None, seed: int = 0) -> Group:
        """Fill parameters with an initialiser: one of ``mp.init``, a function ``f(shape, rng)``, or a native one.

        Random numbers depend only on ``seed`` and each parameter's name. Everything is drawn before anything is
        written, so an error leaves the model as it was. Native initialisers see the native layout and draw from
        the framework's own generator, seeded from ``seed`` and the name.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> _ = net.init(mp.init.normal(std=0.01), "*.weight", "weight", seed=1)
            >>> _ = net.init(mp.init.constant(1), kind="linear")
        """
        from .initializers import Initializer, draw

        group = self.select(*selectors, kind=kind) if selectors or kind else self
        chosen = list(group)
        fill = self._net.adapter.initializer(function)
        if fill is not None:
            natives = {
                base: np.array(self._net.adapter.to_numpy(base.read())) for p in chosen for base in bases(p._storage)
            }
            try:
                for p in chosen:
                    _fill(fill, p, seed)
            except Exception:
                for base, old in natives.items():
                    base.write(old)
                raise
            return group
        if isinstance(function, Initializer):
            for p in chosen:
                try:
                    function.check(p.shape)
                except ShapeError as error:
                    raise ShapeError(f"{function} cannot fill {p.name!r}: {error}") from None
            for p in chosen:  # nothing can fail from here on, so one array at a time is enough memory
                p._write(p._cast(draw(function, p.shape, seed=seed, name=p.name)))
            return group
        drawn = [p._cast(draw(function, p.shape, seed=seed, name=p.name)) for p in chosen]
        for p, value in zip(chosen, drawn, strict=True):
            p._write(value)
        return group

    def freeze(self, *selectors: Selector, kind: str | None = None) -> Group:
        """Keep gradient steps from changing these parameters. Raises ParameterNotFound when nothing matches."""
        return self._set_trainable(False, selectors, kind)

    def unfreeze(self, *selectors: Selector, kind: str | None = None) -> Group:
        """Undo :meth:`freeze`."""
        return self._set_trainable(True, selectors, kind)

    def _set_trainable(self, flag: bool, selectors: tuple[Selector, ...], kind: str | None) -> Group:
        group = self.select(*selectors, kind=kind) if selectors or kind else self
        net, chosen = self._net, [p._storage for p in group]
        refuse_partial(chosen, zip(net._table.names, net._table.slots, strict=True))
        net._host.set_trainable(list(dict.fromkeys(base for s in chosen for base in bases(s))), flag)
        net._changed()
        return group

    def state_dict(self, native: bool = False) -> dict[str, Any]:
        """name -> independent numpy array in canonical layout: each storage once, then the buffers.

        With ``native``, the framework's arrays, in canonical layout too.
        """
        held = {**self.parameters(), **self.buffers()}
        return {name: p.value if native else p.numpy() for name, p in held.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, *, cast: bool = False) -> Loaded:
        """Write arrays by name: numpy's or any framework's, in canonical layout; a tied parameter by any of its names.

        Everything is checked before anything is written. Raises StateError, which lists all that does not fit:
        shapes, dtypes (unless ``cast=True``), different values for one parameter, and, when ``strict``, names missing
        or unexpected. Without ``strict``, what fits by name is loaded, and the names left out are returned. Counts
        that only some frameworks keep (``num_batches_tracked``) may be missing or left over.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> net.load_state_dict({"weight": np.ones((2, 3), "float32")}, strict=False)
            Loaded(missing=('bias',), unexpected=())
        """
        from .state import load_state

        return load_state(self, state, strict=strict, cast=cast)

    def __repr__(self) -> str:
        title = type(self).__name__ + (f" {paths.text(self._prefix)!r}" if self._prefix else "")
        lines = [f"  {parameter!r}" for parameter in self]
        return "\n".join([f"<{title}: {len(lines)} parameters", *lines]) + ">"


def _fill(fill: Callable[[Storage, int], None], p: Parameter, seed: int) -> None:
    """Let a native initialiser fill a parameter; where that is one row of a native array, only this row."""
    to_numpy = p._net.adapter.to_numpy
    for i, base in enumerate(bases(p._storage)):
        row = p._slot.pieces[i].row if p._slot.pieces else None
        before = None if row is None else np.array(to_numpy(base.read()))
        fill(base, _small_seed(seed, f"{p.name} {i}" if i else p.name))
        if before is not None:
            before[row] = to_numpy(base.read())[row]
            base.write(before)


def _predicate(selector: Selector) -> Callable[[Parameter, list[str]], bool]:
    if selector is None:
        return lambda parameter, names: True
    if isinstance(selector, str):
        return lambda parameter, names: any(paths.matches(name, selector) for name in names)
    if isinstance(selector, Parameter):
        return lambda parameter, names: parameter._storage is selector._storage
    if isinstance(selector, Group):
        chosen = {id(p._storage) for p in selector}
        return lambda parameter, names: id(parameter._storage) in chosen
    if callable(selector):
        return lambda parameter, names: bool(selector(parameter))
    patterns = list(selector)
    return lambda parameter, names: any(paths.matches(name, pattern) for name in names for pattern in patterns)


def _small_seed(seed: int, name: str) -> int:
    """A 31-bit seed for the framework's own generator."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=4).digest(), "little") >> 1
