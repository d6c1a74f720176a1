"""Group: some parameters of a model, as the nested list it looks like."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Union, overload

from .. import paths
from ..errors import ParameterNotFound, WrongType
from .composite import bases, refuse_partial
from .constants import constants_below
from .filling import fill
from .lookup import Found, by_name, by_position
from .parameter import Parameter, parameter_at, storage_of
from .state import Loaded, load_state
from .store import Store

Selector = Union[str, "Parameter", "Group", Iterable[str], Callable[["Parameter"], bool], None]


class Group:
    """Some parameters of a model: a layer, a block, or a selection. Names are relative to the group.

    Indexing goes down by position among the children, as in the nested list the model looks like, or by name:
    a full name gives the Parameter, a prefix a Group. Iteration gives each Parameter once.

    >>> block = mp.nn.Sequential(mp.nn.Linear(2), mp.nn.ReLU(), mp.nn.Linear(1))
    >>> spec = mp.nn.Sequential(("encoder", block), ("head", mp.nn.Linear(1)))
    >>> net = mp.build(spec, np.ones((1, 3)), backend="torch")
    >>> encoder = net["encoder"]
    >>> list(encoder.parameters()), encoder[2]["weight"] is net["encoder.2.weight"]
    (['0.weight', '0.bias', '2.weight', '2.bias'], True)
    """

    def __init__(
        self, store: Store, prefix: paths.Path = (), indices: tuple[int, ...] | None = None, way: str | None = None
    ) -> None:
        self._store = store
        self._prefix = prefix
        # The path that it was found by: an alias, or its name.
        self._way = paths.text(prefix) if way is None else way
        # Of slots, for the reason that Parameters hold one: a tie changes storages, not places. None: all there are.
        self._indices = indices
        self._numbering = len(store.numberings)

    @property
    def _slots(self) -> Collection[int]:
        if self._indices is None:
            return range(len(self._store.table.slots))
        if self._numbering != len(self._store.numberings):  # native code has added or removed parameters
            self._indices = self._store.renumbered(self._indices, self._numbering - 1)
            self._numbering = len(self._store.numberings)
        return self._indices

    def _relative(self, index: int) -> str:
        path = self._store.table.slots[index].path
        return paths.text(path[len(self._prefix) :])

    @overload
    def __getitem__(self, key: int) -> Group: ...
    @overload
    def __getitem__(self, key: str) -> Parameter: ...
    def __getitem__(self, key: int | str) -> Parameter | Group:
        """A parameter or a group inside, by name or by position.

        Args:
            key: A full name, relative to the group; a prefix of some; or a position among the children, those without
                parameters included, as in the nested list that the model looks like.

        Returns:
            The Parameter of a full name, the Group of anything else.

        Raises:
            ParameterNotFound: Nothing here has such a name; the nearest one is named.
            PositionError: The child at the position has no parameters, or there is none.
            WrongType: The key is neither a text nor an integer.
        """
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
        if value is not target:  # what += gives back
            target.assign(value)

    def parameter(self, name: str) -> Parameter:
        """The parameter or buffer of a full name: ``net[name]``, of which a type checker knows what it is.

        Args:
            name: A full name, relative to the group.

        Returns:
            The same object each time.

        Raises:
            ParameterNotFound: There is no such name, or it is that of a group.

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

        Args:
            name: The first segments of some names here.

        Returns:
            What is below it, with names relative to it.

        Raises:
            ParameterNotFound: There is no such name, or it is that of a parameter.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2)), np.ones((1, 3)), backend="torch")
            >>> list(net.group("0").parameters())
            ['weight', 'bias']
        """
        group = self[name]
        if isinstance(group, Group):
            return group
        raise ParameterNotFound(f"{name!r} is a parameter, not a group.")

    def _by_name(self, name: str) -> Parameter | Group:
        found = by_name(self._store.table, Found(self._prefix, self._way, self._slots), name)
        if found is None:
            self._store.refresh()  # native code may have added it
            found = by_name(self._store.table, Found(self._prefix, self._way, self._slots), name)
        if found is None:
            if (constant := self.buffers(aliases=True, persistent=False).get(name)) is not None:
                return constant
            where = f" in {self._way!r}" if self._way else ""
            hint = paths.did_you_mean(name, [self._relative(i) for i in self._slots])
            raise ParameterNotFound(f"No parameter {name!r}{where}. {hint}")
        return parameter_at(self._store, found) if isinstance(found, int) else self._group(found)

    def _by_position(self, position: int) -> Group:
        return self._group(by_position(self._store.table, Found(self._prefix, self._way, self._slots), position))

    def _group(self, found: Found) -> Group:
        return Group(self._store, found.prefix, tuple(found.inside), found.way)

    def parameters(self, aliases: bool = False) -> Mapping[str, Parameter]:
        """The parameters by name.

        Args:
            aliases: False: each storage once, under its first name here. True: every name; tied names then share one
                Parameter, but for a transposed one, which has its own.

        Returns:
            Name, relative to the group, -> Parameter, in definition order; read-only.
        """
        self._store.refresh(listing=False)
        return self._mapping(buffers=False, aliases=aliases)

    def buffers(self, aliases: bool = False, *, persistent: bool = True) -> Mapping[str, Parameter]:
        """State that is not trained, such as running statistics, by name.

        Args:
            aliases: As for :meth:`parameters`.
            persistent: False: the constants instead, such as PyTorch's buffers of ``persistent=False``, which are no
                part of the state: not demanded by a load, not saved, not compared.

        Returns:
            Name, relative to the group, -> Parameter, in definition order; read-only.
        """
        self._store.refresh(listing=False)
        if not persistent:
            return constants_below(self._store, self._prefix, self._slots, aliases)
        return self._mapping(buffers=True, aliases=aliases)

    def _mapping(self, buffers: bool, aliases: bool) -> Mapping[str, Parameter]:
        names, slots = self._store.table.names, self._store.table.slots
        chosen, listed = dict[str, Parameter](), set[int]()  # ids of storages
        for i in self._slots:
            slot = slots[i]
            if slot.buffer is not buffers or (not aliases and id(slot.storage) in listed):
                continue
            listed.add(id(slot.storage))
            chosen[self._relative(i) if self._prefix else names[i]] = parameter_at(self._store, i)
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
        """Each distinct layer with parameters, once.

        Returns:
            All names of the layer -> its Group, in definition order. Two positions are one layer when they use the same
            storages throughout.
        """
        depth = len(self._prefix)
        layers = self._store.table.layers(self._slots)
        return MappingProxyType(
            {
                tuple(paths.text(path[depth:]) for path in uses): Group(self._store, uses[0], inside)
                for uses, inside in layers
            }
        )

    def select(self, *selectors: Selector, kind: str | None = None) -> Group:
        """The parameters that any of some selectors matches. A parameter is matched by any of its names.

        Args:
            *selectors: Globs over names (``*`` crosses dots), Parameters, Groups, lists of globs, or predicates of a
                Parameter. None at all, or ``None``: every parameter.
            kind: A glob over the kinds of layers, such as ``"linear"``; None: any kind.

        Returns:
            The parameters, without buffers, under the names they have here.

        Raises:
            ParameterNotFound: Nothing matches.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2), mp.nn.LayerNorm()), np.ones((1, 3)), backend="torch")
            >>> list(net.select("*.bias").parameters()), list(net.select(kind="layer*").parameters())
            (['0.bias', '1.bias'], ['1.weight', '1.bias'])
        """
        self._store.refresh()
        store, slots = self._store, self._store.table.slots
        predicates = [_predicate(selector) for selector in selectors] or [lambda parameter, names: True]
        # By storage first: a parameter that is tied is chosen by any of its names, and then under all it has here.
        names: dict[int, set[str]] = {}
        for i in self._slots:
            names.setdefault(id(slots[i].storage), set()).update((store.table.names[i], self._relative(i)))
        chosen = {
            key: any(test(parameter_at(store, store.table.first[key]), list(known)) for test in predicates)
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
            shown = ", ".join(map(repr, texts)) or "this selector"
            of_kind = f" of kind {kind!r}" if kind else ""
            hint = paths.did_you_mean(texts[0], [store.table.names[i] for i in self._slots]) if texts else ""
            raise ParameterNotFound(f"No parameter matches {shown}{of_kind}. {hint}".rstrip())
        return Group(store, self._prefix, inside, self._way)

    def init(self, function: Any, *selectors: Selector, kind: str | None = None, seed: int = 0) -> Group:
        """Fill parameters with numbers. Random ones depend only on ``seed`` and each parameter's name.

        Args:
            function: An initialiser of ``mp.init``; a function ``f(shape, rng) -> array`` of the canonical shape and a
                ``numpy.random.Generator``; or one of the framework's own initialisers, which sees the native layout
                and draws from the framework's generator, seeded from ``seed`` and the name.
            *selectors: Which parameters, as for :meth:`select`; none at all: all of the group.
            kind: Those of one kind of layer only, as for :meth:`select`.
            seed: The same seed gives the same bits in every framework, but for native initialisers.

        Returns:
            The parameters filled.

        Raises:
            ParameterNotFound: Nothing matches.
            ShapeError: The initialiser has no meaning for a shape, or gives another one.
            DtypeError: A parameter cannot hold the numbers. Everything is checked, or drawn, before anything is
                written, so an error leaves the model as it was.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> _ = net.init(mp.init.normal(std=0.01), "*.weight", "weight", seed=1)
            >>> _ = net.init(mp.init.constant(1), kind="linear")
        """
        self._store.refresh()
        group = self.select(*selectors, kind=kind) if selectors or kind else self
        fill(self._store, list(group), function, seed)
        return group

    def freeze(self, *selectors: Selector, kind: str | None = None) -> Group:
        """Keep gradient steps from changing parameters.

        Args:
            *selectors: Which, as for :meth:`select`; none at all: all of the group.
            kind: Those of one kind of layer only.

        Returns:
            The parameters frozen.

        Raises:
            ParameterNotFound: Nothing matches.
            Unsupported: One native array holds such a parameter and another one.
        """
        return self._set_trainable(False, selectors, kind)

    def unfreeze(self, *selectors: Selector, kind: str | None = None) -> Group:
        """Undo :meth:`freeze`.

        Args:
            *selectors: As for :meth:`freeze`.
            kind: As for :meth:`freeze`.

        Returns:
            The parameters that gradient steps change again.
        """
        return self._set_trainable(True, selectors, kind)

    def _set_trainable(self, flag: bool, selectors: tuple[Selector, ...], kind: str | None) -> Group:
        self._store.refresh()
        group = self.select(*selectors, kind=kind) if selectors or kind else self
        store, chosen = self._store, [storage_of(p) for p in group]
        # Frameworks freeze whole native arrays: where one holds several parameters, all of them or none.
        refuse_partial(chosen, zip(store.table.names, store.table.slots, strict=True))
        store.host.set_trainable(list(dict.fromkeys(base for s in chosen for base in bases(s))), flag)
        store.changed()  # compiled steps differentiate by what was trainable when they were compiled
        return group

    def state_dict(self, native: bool = False) -> dict[str, Any]:
        """All values by name: each storage once, then the buffers.

        Args:
            native: Whether to give the framework's arrays; they are in canonical layout too.

        Returns:
            Name, relative to the group, -> an array independent of the model, in canonical layout.
        """
        self._store.refresh()
        return {n: p.value if native else p.numpy() for n, p in {**self.parameters(), **self.buffers()}.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, *, cast: bool = False) -> Loaded:
        """Write arrays by name, parameters and buffers. Everything is checked before anything is written.

        Args:
            state: Name -> array, numpy's or any framework's, in canonical layout; a tied parameter by any of its names.
            strict: Whether every parameter must be there, and nothing else. Counts that only some frameworks keep
                (``num_batches_tracked``) may be missing or left over, and constants left over that are equal.
            cast: Whether to convert dtypes, where nothing loses a fraction or an imaginary part.

        Returns:
            The names left out: ``missing``, which the state does not have, and ``unexpected``, which the model does
            not have; without ``strict`` the rest is loaded.

        Raises:
            StateError: Lists all that does not fit: shapes, dtypes, different values for one parameter, and, with
                ``strict``, names. The model is unchanged.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> net.load_state_dict({"weight": np.ones((2, 3), "float32")}, strict=False)
            Loaded(missing=('bias',), unexpected=())
        """
        known, constants = named_parameters(self), self.buffers(aliases=True, persistent=False)
        return load_state(known, state, strict=strict, cast=cast, constants=constants)

    def __repr__(self) -> str:
        title = type(self).__name__ + (f" {paths.text(self._prefix)!r}" if self._prefix else "")
        return "\n".join([f"<{title}: {len(self)} parameters", *(f"  {parameter!r}" for parameter in self)]) + ">"


def _predicate(selector: Selector) -> Callable[[Parameter, list[str]], bool]:
    """A selector as a test of a Parameter and all its names."""
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


def store_of(group: Group) -> Store:
    """What is behind a model or a group of one."""
    return group._store


def named_parameters(group: Group) -> dict[str, Parameter]:
    """Every name of every parameter and buffer, relative to the group. A transposed alias has a Parameter of its own,
    with the same ``names``."""
    group._store.refresh()
    return {**group.parameters(aliases=True), **group.buffers(aliases=True)}
