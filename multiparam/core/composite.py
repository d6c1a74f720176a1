"""Parameters that are not one native array: several arrays below one another, or one row of an array.

Flax keeps each gate of an LSTM cell in an array of its own, PyTorch packs them; Keras keeps both biases of a GRU in one
variable.
An adapter says so with ``part`` and ``row`` of its slots, mostly by :func:`fold`; the core makes them one slot, whose
storage is a :class:`Packed` view. Gradients and updates go to the native arrays themselves, the ``bases``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import numpy as np

from ..errors import Unsupported
from .layers import KINDS, RECURRENT, rank
from .layouts import Layout, concat, join
from .protocol import Adapter, Array, Piece, Slot, Storage


class Leaf(NamedTuple):
    """What a native leaf is in canonical form.

    Attributes:
        name: The canonical leaf.
        layout: The native layout: a text with one letter an axis or, where axes alone do not tell, a function of the
            native shape; None: as the slot has it.
        part: It is this part of ``name``, which several leaves make up one below the other.
        unpacked: What it is called where the shapes of the parts differ, and each is a parameter by itself.
        row: ``name`` is this row of it only.
        kind: Where ``name`` has a layer in it, as ``out_proj.weight``: the kind of that layer.
    """

    name: str
    layout: Union[str, Callable[[tuple[int, ...]], Union[Layout, None]], None] = None
    part: int | None = None
    unpacked: str = ""
    row: int | None = None
    kind: str = "linear"


class Composite(NamedTuple):
    """A layer that keeps its parameters in layers of its own.

    Attributes:
        kind: The kind of the whole.
        leaves: A leaf's name below it, as those layers show it -> what it is of the whole, or what each of its rows is.
        within: A pattern of a name below it -> what the names of a recurrent layer there end in; the whole is of that
            layer's kind.
    """

    kind: str = ""
    leaves: Mapping[str, Union[Leaf, tuple[Leaf, ...]]] = {}
    within: Mapping[str, str] = {}


def attention(query: str, key: str, value: str, out: str) -> Composite:
    """Attention that keeps each projection in a layer of its own, with kernel (E, heads, size) and bias (heads, size).

    Args:
        query: The name of the queries' layer.
        key: That of the keys'.
        value: That of the values'.
        out: That of the projection back, with kernel (heads, size, E).

    Returns:
        The composite, of PyTorch's packed form (torch.nn.MultiheadAttention).

    >>> attention("query", "key", "value", "out").leaves["key.bias"].name
    'in_proj_bias'
    """
    leaves = {}
    for part, name in enumerate((query, key, value)):
        unpacked = f"{'qkv'[part]}_proj_"
        leaves[f"{name}.kernel"] = Leaf("in_proj_weight", heads_in, part, f"{unpacked}weight")
        leaves[f"{name}.bias"] = Leaf("in_proj_bias", heads, part, f"{unpacked}bias")
    to = {f"{out}.kernel": Leaf("out_proj.weight", heads_out), f"{out}.bias": Leaf("out_proj.bias")}
    return Composite("attention", {**leaves, **to})


def heads_in(shape: tuple[int, ...]) -> Layout:
    """A projection to heads, (E, heads, size), as (heads * size, E); layers may be stacked in front."""
    *lead, inputs, many, size = shape
    n = len(lead)
    transposed, whole = (*lead, many, size, inputs), (*lead, many * size, inputs)
    return Layout(("transpose", (*range(n), n + 1, n + 2, n)), ("reshape", transposed, whole))


def heads_out(shape: tuple[int, ...]) -> Layout:
    """The projection back, (heads, size, E), as (E, heads * size)."""
    *lead, many, size, outputs = shape
    n = len(lead)
    transposed, whole = (*lead, outputs, many, size), (*lead, outputs, many * size)
    return Layout(("transpose", (*range(n), n + 2, n, n + 1)), ("reshape", transposed, whole))


def heads(shape: tuple[int, ...]) -> Layout:
    """A bias (heads, size) as (heads * size,)."""
    *lead, many, size = shape
    return Layout(("reshape", shape, (*lead, many * size)))


def gates(kind: str, table: Mapping[str, Sequence[str]]) -> Composite:
    """A cell whose canonical leaves are made of several of its own, one gate below the other.

    Args:
        kind: The cell's kind, such as ``"lstm_cell"``.
        table: Canonical leaf -> the native leaves, in PyTorch's order of gates.

    Returns:
        The composite.

    >>> gates("lstm_cell", {"weight_ih": ("ii.kernel", "if.kernel")}).leaves["if.kernel"].part
    1
    """
    return Composite(
        kind, {leaf: Leaf(name, None, i) for name, leaves in table.items() for i, leaf in enumerate(leaves)}
    )


def fold(composite: Composite, slots: list[Slot], start: int, depth: int, options_layer: Any) -> None:
    """Replace the slots of one layer by those they are of a composite, in its order.

    Args:
        composite: What the layer is.
        slots: Those of the model so far; changed in place.
        start: Where those of the layer begin; they are the last.
        depth: How many segments the layer's path has.
        options_layer: The layer whose options the weights do not carry.
    """
    folded = [new for slot in slots[start:] for new in _folded(composite, slot, depth, options_layer)]
    layers = list(dict.fromkeys(slot.path[:-1] for slot in folded if len(slot.path) > depth + 1))

    # The composite's own leaves first, then layer by layer in order of appearance; parts in the order of the gates.
    def order(slot: Slot) -> tuple[int, int, int]:
        layer = layers.index(slot.path[:-1]) + 1 if len(slot.path) > depth + 1 else 0
        return layer, rank(slot.kind, slot.path[-1]), (slot.piece.part if slot.piece else None) or 0

    slots[start:] = sorted(folded, key=order)


def _folded(composite: Composite, slot: Slot, depth: int, options_layer: Any) -> list[Slot]:
    name = ".".join(slot.path[depth:])
    leaf = composite.leaves.get(name)
    if isinstance(leaf, Leaf):
        return [_renamed(slot, leaf, composite, depth, options_layer)]
    if leaf is not None:
        return [_renamed(slot, row, composite, depth, options_layer) for row in leaf]
    for pattern, ending in composite.within.items():
        match = re.fullmatch(rf"{pattern}\.(?P<leaf>\w+)", name)
        if match and KINDS.get(slot.kind) is RECURRENT:
            path = (*slot.path[:depth], match["leaf"] + match.expand(ending))
            return [slot.replace(path=path, positions=slot.positions[:depth], kind=slot.kind.removesuffix("_cell"))]
    return [slot]


def _renamed(slot: Slot, leaf: Leaf, composite: Composite, depth: int, options_layer: Any) -> Slot:
    *above, name = leaf.name.split(".")
    layout = slot.layout
    if callable(leaf.layout):
        shape = slot.storage.shape or ()
        # What a framework stacks is in front already, by the slot's own layout.
        shape = shape if layout is None else layout.shape(shape)
        layout = join(layout, leaf.layout(shape if leaf.row is None else shape[1:]))
    positions = slot.positions[: depth + len(above)]
    if above and len(positions) == depth:  # an array of the layer's own, which shows as one of a layer inside it
        names = [each.name for each in composite.leaves.values() if isinstance(each, Leaf)]
        layers = dict.fromkeys(name.partition(".")[0] for name in names)
        positions = (*positions, list(layers).index(above[0]))
    stacked = 0 if slot.piece is None else slot.piece.stacked
    return slot.replace(
        path=(*slot.path[:depth], *above, name),
        positions=positions,
        kind=leaf.kind if above else composite.kind,
        layout=layout,
        piece=Piece(leaf.part, leaf.unpacked, leaf.row, slot.options_layer if above else options_layer, stacked),
    )


@dataclass(slots=True, eq=False)
class PackedSlot(Slot):
    """A place of a parameter that several native arrays make up; ``pieces`` are the slots of these."""

    pieces: tuple[Slot, ...] = ()

    @property
    def parts(self) -> tuple[Slot, ...]:
        """The slots of the native arrays behind it."""
        return self.pieces


class Packed:
    """The view of one canonical array on its native ones. Reading copies; writing writes each of them."""

    def __init__(self, pieces: Sequence[Slot], axis: int, adapter: Adapter) -> None:
        self.pieces = tuple(pieces)
        self.bases: tuple[Storage, ...] = tuple(piece.storage for piece in pieces)
        self._axis = axis
        self._adapter = adapter
        shapes = [piece.shape or () for piece in pieces]
        self._cuts = np.cumsum([shape[axis] for shape in shapes])[:-1].tolist() if len(shapes) > 1 else []
        joined = list(shapes[0])
        if len(shapes) > 1:
            joined[axis] = sum(shape[axis] for shape in shapes)
        self.shape: tuple[int, ...] | None = tuple(joined)

    @property
    def native(self) -> Any:
        """The framework's object; a tuple of them where there are several."""
        natives = tuple(base.native for base in self.bases)
        return natives if len(natives) > 1 else natives[0]

    @property
    def dtype(self) -> str:
        return self.bases[0].dtype

    @property
    def trainable(self) -> bool:
        return any(base.trainable for base in self.bases)

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        for base in self.bases:
            base.trainable = flag

    def read(self) -> Array:
        return self.gather([base.read() for base in self.bases])

    def grad(self) -> Array | None:
        grads = [base.grad() for base in self.bases]
        # A part without a gradient leaves the whole without: zeros in its place would be a number nobody computed.
        return None if any(grad is None for grad in grads) else self.gather(grads)

    def hold_grad(self) -> Callable[[], None]:
        return hold_grads(self.bases)

    def gather(self, arrays: Sequence[Array], namespace: Any = None) -> Array:
        """One array of each base, native, as the canonical one; ``namespace`` has their operations, if they are not
        the framework's own."""
        xp = self._adapter.namespace(arrays[0]) if namespace is None else namespace
        shown = [_show(piece, array, xp) for piece, array in zip(self.pieces, arrays, strict=True)]
        return shown[0] if len(shown) == 1 else concat(xp, shown, self._axis)

    def scatter(self, value: np.ndarray) -> list[tuple[Slot, np.ndarray]]:
        """A canonical array as what each piece holds of it, in native layout."""
        return [
            (piece, part if (layout := piece.canonical) is None else layout.undo(part, np))
            for piece, part in self.split(value)
        ]

    def split(self, value: Array) -> list[tuple[Slot, Array]]:
        """A canonical array as what each piece shows of it: by slices, which every framework differentiates."""
        before, ends = (slice(None),) * self._axis, [*self._cuts, None]
        return [
            (piece, value[(*before, slice(start, end))] if self._cuts else value)
            for piece, start, end in zip(self.pieces, [0, *self._cuts], ends, strict=True)
        ]

    def write(self, value: np.ndarray) -> None:
        for piece, part in self.scatter(value):
            if (row := row_of(piece)) is not None:  # the storage writes whole arrays: the other rows stay as they are
                whole = np.array(self._adapter.to_numpy(piece.storage.read()))
                whole[row] = part
                part = whole
            piece.storage.write(part)


def row_of(slot: Slot) -> int | None:
    """The row of its native array that a slot is; None for the whole."""
    return None if slot.piece is None else slot.piece.row


def _show(piece: Slot, array: Array, namespace: Any) -> Array:
    row, layout = row_of(piece), piece.canonical
    array = array if row is None else array[row]
    return array if layout is None else layout.apply(array, namespace)


def hold_grads(storages: Iterable[Storage]) -> Callable[[], None]:
    """Keep the gradients of now: what is given puts them all back."""
    put_back = [storage.hold_grad() for storage in storages]

    def put_all() -> None:
        for put in put_back:
            put()

    return put_all


def bases(storage: Storage) -> tuple[Storage, ...]:
    """The native arrays behind a storage: itself, unless it is a view."""
    return storage.bases if isinstance(storage, Packed) else (storage,)


def pack(slots: list[Slot], adapter: Adapter, known: dict[Any, Packed]) -> list[Slot]:
    """Slots with parts and rows made whole. ``known`` keeps each view the same as long as its bases are."""
    if not any(map(_is_piece, slots)):
        known.clear()
        return slots
    whole: list[Slot] = []
    used: dict[Any, Packed] = {}
    at = 0
    while at < len(slots):
        end = at + 1
        while end < len(slots) and slots[end].path == slots[at].path and _is_part(slots[end]):
            end += 1
        whole += _whole(slots[at:end], adapter, known, used)
        at = end
    # Only what is in use now: the views are compared by identity, as storages are, so each must stay the same object as
    # long as its bases do, and no longer.
    known.clear()
    known.update(used)
    return whole


def _is_part(slot: Slot) -> bool:
    return slot.piece is not None and slot.piece.part is not None


def _is_piece(slot: Slot) -> bool:
    return slot.piece is not None and (slot.piece.part is not None or slot.piece.row is not None)


def _whole(pieces: list[Slot], adapter: Adapter, known: Mapping[Any, Packed], used: dict[Any, Packed]) -> list[Slot]:
    first = pieces[0]
    if first.piece is None or not _is_piece(first):
        return pieces
    # Queries, keys and values of different widths: PyTorch keeps each by itself then, and so does the canonical form.
    if len({piece.shape for piece in pieces}) > 1 or (len(pieces) == 1 and first.piece.unpacked):
        return [
            slot.replace(path=(*slot.path[:-1], slot.piece.unpacked), piece=Piece(options_layer=slot.options_layer))
            for slot in pieces
            if slot.piece is not None
        ]
    key = tuple((id(piece.storage), piece.canonical, row_of(piece)) for piece in pieces)
    # Gates stand below one another along the first axis of the canonical form; stacked layers may stand before it.
    form = KINDS.get(first.kind, {}).get(first.path[-1].partition("_l")[0], "")
    packed = used.get(key) or known.get(key) or Packed(pieces, len(first.shape or ()) - max(len(form), 1), adapter)
    packed.pieces = tuple(pieces)
    used[key] = packed
    leaf = " ".join(p.leaf if (row := row_of(p)) is None else f"{p.leaf}[{row}]" for p in pieces)
    piece = Piece(options_layer=first.options_layer)
    return [
        PackedSlot(
            first.path,
            first.positions,
            first.kind,
            packed,
            None,
            first.owner,
            leaf,
            first.buffer,
            None,
            piece,
            tuple(pieces),
        )
    ]


def refuse_partial(chosen: Iterable[Storage], slots: Iterable[tuple[str, Slot]]) -> None:
    """Raises Unsupported where native arrays of ``chosen`` hold rows of a parameter that is not chosen."""
    ids = {id(storage) for storage in chosen}
    inside = {id(base) for storage in chosen for base in bases(storage)}
    for name, slot in slots:
        if id(slot.storage) not in ids and any(id(base) in inside for base in bases(slot.storage)):
            raise Unsupported(f"One native array holds {name!r} and a parameter named here: name both.")
