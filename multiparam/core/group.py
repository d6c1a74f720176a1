"""Group: some parameters of a model, as the nested list it looks like."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, overload

from .. import paths
from ..errors import ParameterNotFound, WrongType
from .composite import bases, refuse_partial
from .constants import constants_below
from .filling import fill
from .loaded import Loaded
from .lookup import Selection, by_name, by_position, by_slice, not_found
from .parameter import Parameter, index_of, parameter_at, storage_of
from .selecting import Selector, chosen_slots
from .state import load_state
from .store import Store


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
        self,
        store: Store,
        prefix: paths.Path = (),
        indices: tuple[int, ...] | None = None,
        way: str | None = None,
        window: range | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        # The path that it was found by: an alias, or its name.
        self._way = paths.text(prefix) if way is None else way
        # Of slots, for the reason that Parameters hold one: a tie changes storages, not places. None: all there are.
        self._indices = indices
        self._numbering = len(store.numberings)
        self._window = window

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
    def __getitem__(self, key: int | slice) -> Group: ...
    @overload
    def __getitem__(self, key: str) -> Parameter: ...
    def __getitem__(self, key: int | slice | str) -> Parameter | Group:
        """A parameter or a group inside, by name or by position.

        Args:
            key: A full name, relative to the group; a prefix of some; a position among the children, those without
                parameters included, as in the nested list that the model looks like, from the end where it is
                negative; or a slice of positions.

        Returns:
            The Parameter of a full name, the Group of anything else. In that of a slice the names are as in this group:
            ``net[1:3]`` has ``"1.weight"``.

        Raises:
            ParameterNotFound: Nothing here has such a name; the nearest one is named, or what the framework's own name
                is called here.
            PositionError: The children there have no parameters, or there are none.
            WrongType: The key is neither a text nor an integer nor a slice of integers.

            >>> spec = mp.nn.Sequential(mp.nn.Linear(2), mp.nn.ReLU(), mp.nn.Linear(1))
            >>> net = mp.build(spec, np.ones((1, 3)), backend="torch")
            >>> list(net[-1].parameters()), list(net[1:].parameters())
            (['weight', 'bias'], ['2.weight', '2.bias'])
        """
        if isinstance(key, str):
            return self._by_name(key)
        if isinstance(key, int) and not isinstance(key, bool):
            return self._group(by_position(self._store.table, self._selection, key))
        if isinstance(key, slice):
            return self._group(by_slice(self._store.table, self._selection, key))
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
        named = by_name(self._store.table, self._selection, name)
        if named is None:
            self._store.refresh()  # native code may have added it
            named = by_name(self._store.table, self._selection, name)
        if named is None:
            if (constant := self.buffers(aliases=True, persistent=False).get(name)) is not None:
                return constant
            raise not_found(self._store.table, self._selection, name, {i: self._relative(i) for i in self._slots})
        return parameter_at(self._store, named) if isinstance(named, int) else self._group(named)

    @property
    def _selection(self) -> Selection:
        return Selection(self._prefix, self._way, self._slots, self._window)

    def _group(self, selection: Selection) -> Group:
        return Group(self._store, selection.prefix, tuple(selection.inside), selection.way, selection.window)

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
        known = {i: self._relative(i) for i in self._slots}
        inside = chosen_slots(self._store, known, selectors, kind)
        return Group(self._store, self._prefix, inside, self._way, self._window)

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
        fill(self._store, [index_of(p) for p in group], function, seed)
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

    @property
    def _title(self) -> str:
        return repr(paths.text(self._prefix)) if self._prefix else ""

    def __repr__(self) -> str:
        counts = f"{len(self)} parameters" + (f", {len(buffers)} buffers" if (buffers := self.buffers()) else "")
        title = f"{type(self).__name__} {self._title}".rstrip()
        return f"<{title}: {counts}>"


def store_of(group: Group) -> Store:
    """What is behind a model or a group of one."""
    return group._store


def named_parameters(group: Group) -> dict[str, Parameter]:
    """Every name of every parameter and buffer, relative to the group. A transposed alias has a Parameter of its own,
    with the same ``names``."""
    group._store.refresh()
    return {**group.parameters(aliases=True), **group.buffers(aliases=True)}
