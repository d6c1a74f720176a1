"""Group: some parameters of a model, as the nested list it looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Union, overload

import numpy as np

from .. import paths
from ..errors import ParameterNotFound, PositionError, ShapeError, WrongType
from ..initializers import Initializer, draw
from .arrays import to_numpy
from .composite import bases, refuse_partial, row_of
from .parameter import Parameter, cast_to, parameter_at, slot_of, storage_of, write
from .protocol import Storage
from .state import Loaded, load_state
from .store import Store

Selector = Union[str, "Parameter", "Group", Iterable[str], Callable[["Parameter"], bool], None]


class Group:
    """Some parameters of a model: a layer, a block, or a selection. Names are relative to the group.

    Indexing goes down by position among the children, as in the nested list the model looks like, or by name:
    a full name gives the Parameter, a prefix a Group. Iteration gives each Parameter once.
    """

    def __init__(self, store: Store, prefix: paths.Path = (), indices: tuple[int, ...] | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._indices = indices  # None: all of the model's

    @property
    def _slots(self) -> Iterable[int]:
        return range(len(self._store.table.slots)) if self._indices is None else self._indices

    def _relative(self, index: int) -> str:
        path = self._store.table.slots[index].path
        return paths.text(path[len(self._prefix) :])

    @overload
    def __getitem__(self, key: int) -> Group: ...
    @overload
    def __getitem__(self, key: str) -> Parameter: ...
    def __getitem__(self, key: int | str) -> Parameter | Group:
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

    def parameter(self, name: str) -> Parameter:
        """The parameter or buffer of a full name: ``net[name]``, of which a type checker knows what it is.

        Raises ParameterNotFound for no name, and for that of a group.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> net.parameter("weight").shape
            (2, 3)
        """
        parameter = self[name]
        if isinstance(parameter, Parameter):
            return parameter
        inside = ", ".join(repr(f"{name}.{each}") for each in list(parameter.parameters())[:4])
        raise ParameterNotFound(f"{name!r} is a group, not a parameter. It has: {inside}.")

    def group(self, name: str) -> Group:
        """The group of a prefix: ``net[name]``, of which a type checker knows what it is.

        Raises ParameterNotFound for no name, and for that of a parameter.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2)), np.ones((1, 3)), backend="torch")
            >>> list(net.group("0").parameters())
            ['weight', 'bias']
        """
        group = self[name]
        if isinstance(group, Group):
            return group
        raise ParameterNotFound(f"{name!r} is a parameter, not a group.")

    def _by_name(self, name: str) -> Parameter | Group:
        table = self._store.table
        full = name if not self._prefix else f"{paths.text(self._prefix)}.{name}"
        index = table.by_name.get(full)
        if index is not None and (self._indices is None or index in self._indices):
            return parameter_at(self._store, index)
        inside = tuple(i for i in self._slots if table.names[i].startswith(full + "."))
        if inside:
            depth = len(self._prefix) + 1
            path = table.slots[inside[0]].path
            while depth < len(path) and paths.text(path[:depth]) != full:
                depth += 1
            return Group(self._store, path[:depth], inside)
        where = f" in {paths.text(self._prefix)!r}" if self._prefix else ""
        known = [self._relative(i) for i in self._slots]
        raise ParameterNotFound(f"No parameter {name!r}{where}. {paths.did_you_mean(name, known)}")

    def _by_position(self, position: int) -> Group:
        depth = len(self._prefix)
        slots = self._store.table.slots
        inside = tuple(
            i for i in self._slots if len(slots[i].positions) > depth and slots[i].positions[depth] == position
        )
        if inside:
            return Group(self._store, slots[inside[0]].path[: depth + 1], inside)
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
        names, slots = self._store.table.names, self._store.table.slots
        chosen: dict[str, Parameter] = {}
        seen: set[int] = set()
        plain = not self._prefix
        for i in self._slots:
            slot = slots[i]
            if slot.buffer is not buffers or (not aliases and id(slot.storage) in seen):
                continue
            seen.add(id(slot.storage))
            chosen[names[i] if plain else self._relative(i)] = parameter_at(self._store, i)
        return MappingProxyType(chosen)

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
        table = self._store.table
        places: dict[paths.Path, list[int]] = {}
        for i in self._slots:
            places.setdefault(table.slots[i].path[:-1], []).append(i)
        same_layer: dict[tuple[Any, ...], list[paths.Path]] = {}
        for path, inside in places.items():
            slots = [table.slots[i] for i in inside]
            key = tuple((slot.path[-1], id(slot.storage), slot.canonical) for slot in slots)
            same_layer.setdefault(key, []).append(path)
        depth = len(self._prefix)
        return MappingProxyType(
            {
                tuple(paths.text(path[depth:]) for path in same): Group(self._store, same[0], tuple(places[same[0]]))
                for same in same_layer.values()
            }
        )

    def select(self, *selectors: Selector, kind: str | None = None) -> Group:
        """The parameters any selector matches: a glob over names, a Parameter, a Group, names, or a predicate.

        ``kind`` (a glob too) keeps those of one layer kind. A parameter is found by any of its names.
        Raises ParameterNotFound when nothing matches.
        """
        store, slots = self._store, self._store.table.slots
        wanted = [_predicate(selector) for selector in selectors] or [lambda parameter, names: True]
        names: dict[int, set[str]] = {}
        for i in self._slots:
            names.setdefault(id(slots[i].storage), set()).update((store.table.names[i], self._relative(i)))
        chosen = {
            key: any(test(parameter_at(store, store.table.first[key]), list(known)) for test in wanted)
            for key, known in names.items()
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
            hint = paths.did_you_mean(texts[0], [store.table.names[i] for i in self._slots]) if texts else ""
            raise ParameterNotFound(f"No parameter matches {asked}{of_kind}. {hint}".rstrip())
        return Group(store, self._prefix, inside)

    def init(self, function: Any, *selectors: Selector, kind: str | None = None, seed: int = 0) -> Group:
        """Fill parameters with an initialiser: one of ``mp.init``, a function ``f(shape, rng)``, or a native one.

        Random numbers depend only on ``seed`` and each parameter's name. Everything is drawn before anything is
        written, so an error leaves the model as it was. Native initialisers see the native layout and draw from
        the framework's own generator, seeded from ``seed`` and the name.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> _ = net.init(mp.init.normal(std=0.01), "*.weight", "weight", seed=1)
            >>> _ = net.init(mp.init.constant(1), kind="linear")
        """

        group = self.select(*selectors, kind=kind) if selectors or kind else self
        chosen = list(group)
        fill = self._store.adapter.initializer(function)
        if fill is not None:
            natives = {base: np.array(to_numpy(base.read())) for p in chosen for base in bases(storage_of(p))}
            try:
                for p in chosen:
                    _fill(fill, self._store, p, seed)
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
                write(p, cast_to(p, draw(function, p.shape, seed=seed, name=p.name)))
            return group
        drawn = [cast_to(p, draw(function, p.shape, seed=seed, name=p.name)) for p in chosen]
        for p, value in zip(chosen, drawn, strict=True):
            write(p, value)
        return group

    def freeze(self, *selectors: Selector, kind: str | None = None) -> Group:
        """Keep gradient steps from changing these parameters. Raises ParameterNotFound when nothing matches."""
        return self._set_trainable(False, selectors, kind)

    def unfreeze(self, *selectors: Selector, kind: str | None = None) -> Group:
        """Undo :meth:`freeze`."""
        return self._set_trainable(True, selectors, kind)

    def _set_trainable(self, flag: bool, selectors: tuple[Selector, ...], kind: str | None) -> Group:
        group = self.select(*selectors, kind=kind) if selectors or kind else self
        store, chosen = self._store, [storage_of(p) for p in group]
        refuse_partial(chosen, zip(store.table.names, store.table.slots, strict=True))
        store.host.set_trainable(list(dict.fromkeys(base for s in chosen for base in bases(s))), flag)
        store.changed()
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
        return load_state(named_parameters(self), state, strict=strict, cast=cast)

    def __repr__(self) -> str:
        title = type(self).__name__ + (f" {paths.text(self._prefix)!r}" if self._prefix else "")
        lines = [f"  {parameter!r}" for parameter in self]
        return "\n".join([f"<{title}: {len(lines)} parameters", *lines]) + ">"


def _fill(fill: Callable[[Storage, int], None], store: Store, p: Parameter, seed: int) -> None:
    """Let a native initialiser fill a parameter; where that is one row of a native array, only this row."""
    to_numpy = store.adapter.to_numpy
    for i, (base, part) in enumerate(zip(bases(storage_of(p)), slot_of(p).parts, strict=True)):
        row = row_of(part)
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
        return lambda parameter, names: storage_of(parameter) is storage_of(selector)
    if isinstance(selector, Group):
        chosen = {id(storage_of(p)) for p in selector}
        return lambda parameter, names: id(storage_of(parameter)) in chosen
    if callable(selector):
        return lambda parameter, names: bool(selector(parameter))
    patterns = list(selector)
    return lambda parameter, names: any(paths.matches(name, pattern) for name in names for pattern in patterns)


def _small_seed(seed: int, name: str) -> int:
    """A 31-bit seed for the framework's own generator."""
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=4).digest(), "little") >> 1


def store_of(group: Group) -> Store:
    """What is behind a model or a group of one."""
    return group._store


def named_parameters(group: Group) -> dict[str, Parameter]:
    """Every name of every parameter and buffer, relative to the group. A transposed alias has a Parameter of its own,
    with the same ``names``."""
    return {**group.parameters(aliases=True), **group.buffers(aliases=True)}
