"""A file in a framework's own names and layouts, shown as a model of that framework names and lays out its parameters.

The model's host says what its framework's files call each array (:meth:`~multiparam.adapter.Host.stored_names`), in
one or several ways; the way that explains most of a file's names is taken, the canonical names among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ..core.blocks import block_of
from ..core.composite import Packed
from ..core.group import Group, store_of
from ..core.model import Model
from ..core.slots import Box, Slot
from ..core.state import ArraySpec, Source, state_block, state_spec, verify_state
from .checkpoints import weights_within
from .metadata import file_metadata

# What training leaves beside the weights, by the first segments of its names, and the state of random streams: neither
# is a parameter of any model.
TRAINING = frozenset({"optimizer", "optimizer_weights", "opt_state", "step"})
RANDOM = frozenset({"seed_generator", "rngs", "rng", "seed_generator_state"})


Naming = Mapping[int, str]  # what a file calls the arrays of a model: a slot's number -> a name in the file


def as_model_has_it(state: Mapping[str, np.ndarray], net: Group) -> Mapping[str, np.ndarray]:
    """A state under a model's canonical names and in canonical layouts, where it is one of the framework's own files.

    Args:
        state: A file, or a mapping name -> array.
        net: The model that it may be of; a group of one has no files of its own.

    Returns:
        The state itself where it says what it is (multiparam wrote it), where its names are canonical, and where the
        model's framework knows no other; else a source of the same arrays. What no parameter is called keeps its name;
        what training left beside the weights is in ``left_out``, and the state of random streams is passed over.
    """
    if not isinstance(net, Model) or file_metadata(state).parameters:
        return state
    store = store_of(net)
    parts = [part for slot in store.table.slots for part in slot.parts]
    rows = store.host.stored_names(parts)
    naming = max((_fitted({i: name for i, name in enumerate(row) if name}, state) for row in rows), key=len, default={})
    part, canonical = weights_within(state, store.table.names)
    if len(naming) < max(1, canonical):
        return part
    return NativeState(state, net, {id(parts[i]): name for i, name in naming.items()})


COUNTED = re.compile(r"([^.#]+)#(\d*)")  # a name that the framework made up, and its count


def _fitted(names: Mapping[int, str], state: Iterable[str]) -> Naming:
    """Names as a file has them; counts that the framework made up are the same in order, not in number."""
    words = {match[1] for name in names.values() for match in COUNTED.finditer(name)}
    if not words:
        return _prefixed(names, {name: name for name in state})
    either = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    counted = re.compile(rf"(?:(?<=\.)|^)({either})(?:_(\d+)|())(?=\.|$)")
    stored = _by_order(list(state), counted)
    ordered = {name: normal for normal, name in _by_order(list(names.values()), COUNTED).items()}
    return _prefixed({i: ordered[name] for i, name in names.items()}, stored)


def _by_order(names: list[str], counted: re.Pattern[str]) -> dict[str, str]:
    """Each name with its counts as their place among all counts of the same word -> the name."""
    counts: dict[str, set[int]] = {}
    for name in names:
        for match in counted.finditer(name):
            counts.setdefault(match[1], set()).add(int(match[2] or 0))
    places = {word: {n: i for i, n in enumerate(sorted(each))} for word, each in counts.items()}
    return {
        counted.sub(lambda match: f"{match[1]}#{places[match[1]][int(match[2] or 0)]}", name): name for name in names
    }


def _prefixed(names: Mapping[int, str], state: Mapping[str, str]) -> Naming:
    """Names as a file has them, which may have a prefix more, or one less: ``params.``, a model's own name. The state's
    values are the file's own names."""
    if not names:
        return {}
    first = next(iter(names.values()))
    prefixes = [known[: -len(first)] for known in state if known.endswith(first)]
    candidates = [{i: prefix + name for i, name in names.items()} for prefix in ["", *prefixes]]
    head, dot, _ = first.partition(".")
    if dot:
        start = head + dot
        candidates.append({i: name.removeprefix(start) for i, name in names.items() if name.startswith(start)})
    return max(({i: state[name] for i, name in each.items() if name in state} for each in candidates), key=len)


class NativeState(Source):
    """Arrays of a framework's own file under a model's canonical names.

    Args:
        state: The file.
        net: The model.
        stored: Of each slot that is one native array, by its identity, the name in the file.
    """

    def __init__(self, state: Mapping[str, np.ndarray], net: Model, stored: Mapping[int, str]) -> None:
        self._state = state
        self._slots: dict[str, tuple[Slot, tuple[str, ...]]] = {}
        table = store_of(net).table
        taken: set[str] = set()
        for name, slot in zip(table.names, table.slots, strict=True):
            names = tuple(stored.get(id(part), "") for part in slot.parts)
            if all(each in state for each in names):
                self._slots[name] = slot, names
                taken.update(names)
        rest = [name for name in state if name not in taken and name not in self._slots]
        trained = {name.partition(".")[0] for name in rest if name.split(".")[0] in TRAINING}
        self.left_out = (*sorted(trained), *getattr(state, "left_out", ()))
        self._rest = [name for name in rest if not _no_parameter(name)]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._slots:
            return self._state[name]
        slot, names = self._slots[name]
        arrays = [self._state[each] for each in names]
        if not _fits(slot, [array.shape for array in arrays]):
            return arrays[0]
        return _shown(slot, arrays)

    def spec(self, name: str) -> ArraySpec:
        if name not in self._slots:
            return state_spec(self._state, name)
        slot, names = self._slots[name]
        specs = [state_spec(self._state, each) for each in names]
        if not _fits(slot, [spec.shape for spec in specs]):
            return specs[0]  # which then does not fit, and the error has the file's shape
        return ArraySpec(slot.shape or (), specs[0].dtype)

    def block(self, name: str, box: Box) -> np.ndarray:
        slot, names = self._slots.get(name, (None, (name,)))
        if (
            slot is None
            or isinstance(slot.storage, Packed)
            or not _fits(slot, [state_spec(self._state, names[0]).shape])
        ):
            return super().block(name, box)
        shape = _place_shape(slot.parts[0])
        return block_of(slot.layout, shape, box, partial(state_block, self._state, names[0]))

    def verify(self, name: str) -> None:
        for each in self._slots[name][1] if name in self._slots else (name,):
            verify_state(self._state, each)

    def __iter__(self) -> Iterator[str]:
        yield from self._slots
        yield from self._rest

    def __len__(self) -> int:
        return len(self._slots) + len(self._rest)


def _no_parameter(name: str) -> bool:
    segments = name.split(".")
    return segments[0] in TRAINING or not RANDOM.isdisjoint(segments)


def _place_shape(part: Slot) -> tuple[int, ...]:
    """The shape of the array that the place itself uses, which is what its framework writes."""
    shape = part.storage.shape or ()
    return shape if part.view is None else part.view.shape(shape)


def _fits(slot: Slot, shapes: Sequence[tuple[int, ...]]) -> bool:
    return all(_place_shape(part) == tuple(shape) for part, shape in zip(slot.parts, shapes, strict=True))


def _shown(slot: Slot, arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The arrays of the places behind a slot, native, as the canonical one."""
    if isinstance(slot.storage, Packed):
        native = [
            array if part.view is None else part.view.undo(array, np)
            for part, array in zip(slot.parts, arrays, strict=True)
        ]
        gathered: np.ndarray = slot.storage.gather(native, np)
        return gathered
    (array,) = arrays
    shown: np.ndarray = array if slot.layout is None else slot.layout.apply(array, np)
    return shown
