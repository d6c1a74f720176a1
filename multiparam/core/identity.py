"""What adapters need to walk models: the layers with their paths, one storage per native object, and layers' names.

Identity is what ties: two places that hold one native object are one parameter, since frameworks update the object.
Equal values say nothing, as any two zeros are equal. So the core compares storages with ``is``, and an adapter hands
out the same storage for the same object at each listing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

from .. import paths
from .slots import Activation, OnEnter, Slot

S = TypeVar("S")
Place = tuple[paths.Path, tuple[int, ...], Any]  # path, positions, layer


def walk(layer: Any, children: Callable[[Any], Iterable[tuple[str, Any]]]) -> Iterator[Place]:
    """Every use of every layer below one, itself first, in definition order; a layer used twice comes twice.

    Args:
        layer: The root, whose path is empty.
        children: ``children(layer)`` gives each child's name and the child; None in its place counts as a position,
            and is not walked.

    Yields:
        Path, positions and layer of each place.

    >>> tree = {"a": {}, "b": None, "c": {"d": {}}}
    >>> [(path, positions) for path, positions, _ in walk(tree, dict.items)]
    [((), ()), (('a',), (0,)), (('c',), (2,)), (('c', 'd'), (2, 0))]
    """
    stack: list[Place] = [((), (), layer)]
    while stack:
        path, positions, layer = stack.pop()
        yield path, positions, layer
        named = enumerate(children(layer))
        below = [((*path, name), (*positions, i), child) for i, (name, child) in named if child is not None]
        below.reverse()
        stack += below


class Storages(Generic[S]):
    """The storages a host has made, by the identity of their ``native``.

    *The same native array, the same storage object* is what makes two slots a tie: an adapter asks here for each.

    >>> class Box:
    ...     def __init__(self, native): self.native = native
    >>> storages, native = Storages(), [1.0]
    >>> storages.of(native, Box) is storages.of(native, Box)
    True
    """

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def of(self, native: Any, make: Callable[..., S], *arguments: Any) -> S:
        """The storage of a native object.

        Args:
            native: The framework's object, which the storage has as its ``native``.
            make: The storage's class: ``make(native, *arguments)`` is called the first time.
            arguments: What else it takes.

        Returns:
            The same storage at each call for one object.
        """
        storage = self._known.get(id(native))
        if storage is None or storage.native is not native:  # a freed object's id is used again
            storage = self._known[id(native)] = make(native, *arguments)
        return storage

    def add(self, storage: S) -> S:
        """Know a storage made elsewhere, by another host of the same model.

        Args:
            storage: It, with its ``native``.

        Returns:
            The storage.
        """
        self._known[id(storage.native)] = storage  # type: ignore[attr-defined]
        return storage

    def keep(self, slots: Iterable[Slot]) -> None:
        """Forget those that no slot uses any more.

        Args:
            slots: All slots of the host, as :meth:`~multiparam.adapter.Host.slots` lists them.
        """
        used = {id(slot.storage) for slot in slots}
        self._known = {key: storage for key, storage in self._known.items() if id(storage) in used}

    def __iter__(self) -> Iterator[S]:
        return iter(self._known.values())


class Holders:
    """Where each layer of a model is held, as it was listed, to be asked whether it still is there.

    Cheap, since it is asked at each read and write: one look-up for each layer above.

    >>> inner = {}
    >>> model = {"a": inner}
    >>> holders = Holders(model)
    >>> holders.add(("a",), (), inner, dict.get, model, "a")
    >>> holders.lead_to(("a",), inner)
    True
    >>> model["a"] = {}
    >>> holders.lead_to(("a",), inner)
    False
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._links: dict[paths.Path, tuple[paths.Path, Any, Callable[..., Any], tuple[Any, ...]]] = {}
        self._home: dict[int, paths.Path] = {}

    def add(self, path: paths.Path, above: paths.Path, layer: Any, look: Callable[..., Any], *arguments: Any) -> None:
        """A layer and where it is.

        Args:
            path: Of the layer.
            above: The path of what holds it; ``()`` for the root.
            layer: It.
            look: ``look(*arguments)`` gives what is there at any later time.
            *arguments: What that takes.
        """
        self._links[path] = above, layer, look, arguments
        self._home[id(layer)] = path

    def lead_to(self, path: paths.Path, layer: Any) -> bool:
        """Whether a layer is where it was, and so is all above it.

        Args:
            path: Its path, as a slot of it has it; of the parts of a composite layer, any.
            layer: What was there when the model was listed.

        Returns:
            Whether it is there now.
        """
        link = self._links.get(path)
        if link is None or link[1] is not layer:  # the root, or a part of a composite layer, under that one's path
            if layer is self._root:
                return True
            link = self._links.get(self._home.get(id(layer), path))
            if link is None or link[1] is not layer:
                return False
        while link is not None:
            above, layer, look, arguments = link
            if look(*arguments) is not layer:
                return False
            link = self._links.get(above)
        return True


class LayerNames:
    """The names of layers by identity; one that is used at several positions has several, given out in turn.

    >>> layer = object()
    >>> names = LayerNames([("0", layer), ("2", layer)])
    >>> names.next(layer), names.next(layer), names.next(layer)
    ('0', '2', '0')
    """

    def __init__(self, layers: Iterable[tuple[str, Any]]) -> None:
        self._names: dict[int, list[str]] = {}
        layers_by_id: dict[int, Any] = {}
        for name, layer in layers:
            self._names.setdefault(id(layer), []).append(name)
            layers_by_id[id(layer)] = layer
        self.layers = list(layers_by_id.values())  # held, so that no id here is given to another object
        self._count: dict[int, int] = {}

    @classmethod
    def of_slots(cls, slots: Iterable[Slot], places: Iterable[Place]) -> LayerNames:
        """The names of those layers that hold slots.

        Args:
            slots: The slots of a host.
            places: All its layers, as :func:`walk` yields them.

        Returns:
            The names, in the order of the places.
        """
        holders = {slot.path[:-1] for slot in slots}
        return cls((paths.text(path), layer) for path, _, layer in places if path in holders)

    def __contains__(self, layer: object) -> bool:
        return id(layer) in self._names

    def next(self, layer: Any) -> str:
        """The name of a layer's next use.

        Args:
            layer: A layer that is in here.

        Returns:
            Its name; after the last of several, the first again.
        """
        names, at = self._names[id(layer)], self._count.get(id(layer), 0)
        self._count[id(layer)] = at + 1
        return names[at % len(names)]


@contextmanager
def hook_calls(
    names: LayerNames, on_call: Callable[[Activation], Any], on_enter: OnEnter | None = None
) -> Iterator[None]:
    """Show the calls of layers that have ``register_forward_hook``, whose handles are context managers.

    Args:
        names: The layers, and what they are called.
        on_call: Is given each call inside the context, in order of execution.
        on_enter: Is given each call before it is made: see :meth:`~multiparam.adapter.Host.watch`. It needs hooks whose
            results replace inputs and outputs, as PyTorch's do.

    Yields:
        None; behind the context, the hooks are gone.
    """
    entered: dict[int, list[str]] = {}

    def hook(layer: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        name = names.next(layer) if on_enter is None else entered[id(layer)].pop()
        return on_call(Activation(name, inputs, output))

    def pre_hook(layer: Any, inputs: tuple[Any, ...]) -> Any:
        entered.setdefault(id(layer), []).append(names.next(layer))
        return on_enter and on_enter(entered[id(layer)][-1], inputs)

    with ExitStack() as stack:
        for layer in names.layers:
            stack.enter_context(layer.register_forward_hook(hook))
            if on_enter is not None:
                stack.enter_context(layer.register_forward_pre_hook(pre_hook))
        yield


@contextmanager
def temporarily(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes of layers set to other values for a while, whatever happens inside.

    Args:
        changes: The object, the attribute's name and its value inside.

    Yields:
        None; behind the context, the attributes are as they were.

        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(training=False)
        >>> with temporarily([(layer, "training", True)]):
        ...     layer.training
        True
        >>> layer.training
        False
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        for item, name, value in changes:
            before.append((item, name, getattr(item, name)))
            setattr(item, name, value)
        yield
    finally:
        for item, name, value in reversed(before):
            setattr(item, name, value)


@contextmanager
def watch_calls(
    names: LayerNames, on_call: Callable[[Activation], Any], on_enter: OnEnter | None = None
) -> Iterator[None]:
    """Show the calls of layers whose hooks change nothing, or that have none: inside the context, by another
    ``__call__`` of their classes.

    Args:
        names: The layers, and what they are called.
        on_call: Is given each call inside the context, in order of execution.
        on_enter: Is given each call before it is made: see :meth:`~multiparam.adapter.Host.watch`.

    Yields:
        None; behind the context, the classes are as before.
    """
    inside: set[int] = set()

    def watching(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self not in names or id(self) in inside:  # inside: the call of a base class
                return original(self, *args, **kwargs)
            name = "" if on_enter is None else names.next(self)
            args = args if on_enter is None else on_enter(name, args)
            inside.add(id(self))
            try:
                output = original(self, *args, **kwargs)
            finally:
                inside.discard(id(self))
            given = on_call(Activation(names.next(self) if on_enter is None else name, args, output))
            return output if given is None else given

        return call

    classes = {type(layer) for layer in names.layers}
    before = {cls: vars(cls).get("__call__") for cls in classes}
    originals = {cls: cls.__call__ for cls in classes}
    try:
        for cls in classes:
            cls.__call__ = watching(originals[cls])
        yield
    finally:
        for cls, own in before.items():
            if own is None:
                del cls.__call__
            else:
                cls.__call__ = own
