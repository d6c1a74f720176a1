"""Parameter: one storage under its names, in canonical form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import DtypeError, PositionError, ShapeError, Unsupported
from .arrays import contiguous, to_numpy
from .blocks import block_of, cover, keeps_blocks
from .composite import bases
from .filling import fill
from .materialise import materialise, require_values
from .slots import Box, Slot, Storage
from .store import Store
from .values import canonical_shape, in_dtype, memory_of_slot, write_canonical, write_native


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

    __slots__ = ("_store", "_index")
    __array_priority__ = 1000  # numpy arrays on the left leave arithmetic to us

    def __init__(self, store: Store, index: int) -> None:
        self._store = store
        # The index of a slot, not the slot and not its storage: the model is the truth and the table a cache that is
        # read again after a tie or a change from outside. The place in it stays, so a Parameter that a user holds shows
        # what is there now.
        self._index = index

    @property
    def _slot(self) -> Slot:
        return self._store.slot(self._index)

    @property
    def _storage(self) -> Storage:
        return self._store.slot(self._index).storage

    def move(self, index: int) -> None:
        """Be the slot of another number, since native code has changed what the model holds. The store calls it.

        Args:
            index: The slot's number in today's table; -1: it is gone from the model.
        """
        self._index = index

    @property
    def name(self) -> str:
        """The first of its names, in definition order, that shows it in this shape: see :meth:`Model.tie`."""
        self._store.slot(self._index)
        return self._store.table.names[self._index]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name: more than one when the parameter is tied."""
        return self._store.table.names_of(self._storage)

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
        """The canonical shape.

        Raises:
            UnknownShapes: The framework does not know it before the first forward pass.
        """
        slot = self._store.slot(self._index)
        return canonical_shape(slot, self._store.table.names[self._index])

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
        # Reading may give the model's own memory, which the next step overwrites; detaching copies.
        require_values(self._store, self._slot)
        array = self._canonical(self._storage.read())
        return array if self._store.tracing else self._store.adapter.detach(array)

    def numpy(self, *, gather: bool = False) -> np.ndarray:
        """The values as numpy.

        Args:
            gather: Whether to put an array together that several processes hold in pieces, which each of them must
                call; of another one it changes nothing.

        Returns:
            An independent, writable numpy array in canonical layout.

        Raises:
            ShardError: This process holds a part only, unless ``gather``.
            NoValues: The model was made without memory.
        """
        return contiguous(whole(self) if gather else peek(self))

    @property
    def sharding(self) -> Box | None:
        """The block of it that this process holds, start and stop on each canonical axis; None where it is all of it.

        Raises:
            Unsupported: Its layout here is another one than the framework's, in which the block would be none.
        """
        return local_box(self)

    @property
    def grad(self) -> Any | None:
        """The gradient the last backward left, in canonical layout; None before the first, and where frozen.

        For tied parameters it is the sum over all uses. It may alias the framework's own gradient.
        """
        if not self.trainable:  # one from before the freeze would pass for the last backward's
            return None
        grad = self._storage.grad()
        return None if grad is None else self._canonical(grad)

    def _canonical(self, array: Any) -> Any:
        layout = self._slot.canonical
        return array if layout is None else layout.apply(array, self._store.adapter.namespace(array))

    def assign(self, array: Any, *, cast: bool = False) -> Parameter:
        """Replace all values.

        Args:
            array: Any framework's array of exactly this shape and dtype; plain Python numbers fit any dtype.
            cast: Whether to convert the dtype, where no fraction and no imaginary part is lost.

        Returns:
            The parameter itself.

        Raises:
            ShapeError: The shape is another one; the parameter is then unchanged.
            DtypeError: The dtype is another one, or cannot be converted; likewise.
        """
        if not write_native(self._store, self._slot, array):
            write(self, self._checked(array, cast))
        return self

    def init(self, function: Any, *, seed: int = 0) -> Parameter:
        """Fill it with numbers: :meth:`Group.init` of this one alone, with the same numbers.

        Args:
            function: An initialiser, as there.
            seed: The seed.

        Returns:
            The parameter itself.

        Raises:
            ShapeError: The initialiser has no meaning for the shape, or gives another one.
            DtypeError: The parameter cannot hold the numbers. An error leaves it as it was.

            >>> net = mp.build(mp.nn.Linear(2), np.ones((1, 3)), backend="torch")
            >>> net["bias"].init(mp.init.constant(0.5)).numpy().tolist()
            [0.5, 0.5]
        """
        self._store.refresh()
        fill(self._store, [self._index], function, seed)
        return self

    def _checked(self, array: Any, cast: bool) -> np.ndarray:
        plain = isinstance(array, (int, float, list, tuple))  # these have no dtype that somebody chose
        value = to_numpy(array)
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
        return cast_to(self, value)

    def __getitem__(self, key: Any) -> Any:
        """Some of the values.

        Args:
            key: An index by numpy's rules.

        Returns:
            numpy, independent of the model; inside an objective, a part of the tracked array, in the framework's own.
        """
        return self.value[key] if self._store.tracing else self.numpy()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to some elements, by numpy's rules of indexing, broadcasting and same-kind casting.

        The whole array is written, since not every framework can write a part; an error leaves it as it was.
        """
        new = self.numpy()
        source = cast_to(self, to_numpy(value))
        try:  # on a copy, so that an error leaves the parameter as it was
            new[key] = source
        except ValueError as error:
            raise ShapeError(f"{self.name!r}[{key!r}]: {error}") from None
        except IndexError as error:
            raise PositionError(f"{self.name!r} has shape {self.shape}: {error}") from None
        write(self, new)

    def __iadd__(self, other: Any) -> Parameter:
        self[...] = self.numpy() + to_numpy(other)
        return self

    def __isub__(self, other: Any) -> Parameter:
        self[...] = self.numpy() - to_numpy(other)
        return self

    def __imul__(self, other: Any) -> Parameter:
        self[...] = self.numpy() * to_numpy(other)
        return self

    def __itruediv__(self, other: Any) -> Parameter:
        self[...] = self.numpy() / to_numpy(other)
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


# -- for the rest of multiparam: what users have no need of


def parameter_at(store: Store, index: int) -> Parameter:
    """The Parameter of a slot, by the slot's index: the same object for all that show one storage in one layout.

    So ``net["head.weight"] is net["embed.weight"]`` says that two are tied, as it does in the frameworks.
    """
    index = store.table.view(index)
    # Kept for the store's life: ``is`` then tells whether two names are tied, and users' references stay good.
    parameter: Parameter | None = store.views.get(index)
    if parameter is None:
        parameter = store.views[index] = Parameter(store, index)
    return parameter


def index_of(parameter: Parameter) -> int:
    """The index of that slot in today's table."""
    return parameter._index


def slot_of(parameter: Parameter) -> Slot:
    """The first slot that shows it."""
    return parameter._slot


def storage_of(parameter: Parameter) -> Storage:
    """The storage it is now."""
    return parameter._storage


def peek(parameter: Parameter) -> np.ndarray:
    """The values in canonical layout, for reading at once: it may alias the model's memory."""
    require_values(parameter._store, parameter._slot)
    return _shown(parameter, parameter._storage.read())


def whole(parameter: Parameter) -> np.ndarray:
    """All values in canonical layout, put together where several processes hold them: a collective. It may alias."""
    store, storage = parameter._store, parameter._storage
    require_values(store, parameter._slot)
    return _shown(parameter, store.host.gather(storage.read()))


def _shown(parameter: Parameter, native: Any) -> np.ndarray:
    array, layout = parameter._store.adapter.to_numpy(native), parameter._slot.canonical
    shown: np.ndarray = array if layout is None else layout.apply(array, np)
    return shown


def require_memory(parameters: Iterable[Parameter]) -> None:
    """See that parameters of one model have values, before the first is written. Raises NoValues."""
    parameters = list(parameters)
    for parameter in parameters[:1]:
        require_values(parameter._store, *(each._slot for each in parameters))


def give_memory(parameters: Iterable[Parameter]) -> None:
    """Give memory to those parameters of one model that have only shapes."""
    parameters = list(parameters)
    for parameter in parameters[:1]:
        materialise(parameter._store, [each._slot for each in parameters])


def overlapping(parameters: Mapping[str, Parameter]) -> list[tuple[str, str, bool]]:
    """Names of parameters of one model that lie in one memory and are not tied; whether they are the same numbers."""
    storages: dict[Storage, str] = {}
    for name, p in parameters.items():
        if len(bases(p._storage)) == 1:
            storages.setdefault(p._storage, name)
    names = list(storages.values())
    stores = [p._store for p in parameters.values()][:1]
    return [(names[i], names[j], whole) for each in stores for i, j, whole in each.host.overlaps(list(storages))]


def local_box(parameter: Parameter) -> Box | None:
    """The block that this process holds, on canonical axes. Raises Unsupported where a layout makes it none."""
    boxes = [parameter._store.host.sharding(base) for base in bases(parameter._storage)]
    if all(box is None for box in boxes):
        return None
    layout = parameter._slot.canonical
    if len(boxes) > 1 or boxes[0] is None or not keeps_blocks(layout):
        raise Unsupported(f"{parameter.name!r} is sharded, and shown in a layout in which its block is none.")
    return boxes[0] if layout is None else cover(layout.inverse, parameter.shape, boxes[0])


def needed_block(parameter: Parameter) -> Box | None:
    """The block that a write into this process' part needs, on canonical axes; None where it is all of it."""
    storages = bases(parameter._storage)
    box = parameter._store.host.sharding(storages[0]) if len(storages) == 1 else None
    layout = parameter._slot.canonical
    return box if box is None or layout is None else cover(layout.inverse, parameter.shape, box)


def write_blocks(parameter: Parameter, read: Callable[[Box], np.ndarray]) -> None:
    """Write the blocks that this process holds, in the parameter's dtype; ``read`` gives blocks on canonical axes."""
    store, slot = parameter._store, parameter._slot
    require_values(store, slot)
    layout, shape, name = slot.canonical, parameter.shape, parameter.name

    def make(box: Box) -> np.ndarray:
        return block_of(None if layout is None else layout.inverse, shape, box, lambda b: in_dtype(slot, name, read(b)))

    store.host.fill(slot.storage, make)


def memory_of(parameter: Parameter) -> np.ndarray | None:
    """The parameter's own memory, where its framework lets others write into that, and in canonical layout."""
    return memory_of_slot(parameter._store, parameter._slot)


def cast_to(parameter: Parameter, value: np.ndarray) -> np.ndarray:
    """An array in a parameter's dtype, unless that would lose its kind: no fraction, no imaginary part."""
    return in_dtype(parameter._slot, parameter.name, value)


def write(parameter: Parameter, value: np.ndarray) -> None:
    """Write a canonical array of the right shape and dtype."""
    write_canonical(parameter._store, parameter._slot, value)
