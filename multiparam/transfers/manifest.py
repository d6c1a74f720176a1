"""What a transfer knows of one side, a model or a file, before any value is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import paths
from ..core.arrays import numpy_dtype, to_numpy
from ..core.group import store_of
from ..core.lazy import LazyArray
from ..core.model import Model
from ..core.parameter import Parameter, peek, whole
from ..core.slots import Box
from ..core.state import ArraySpec, Source, state_block, state_spec
from ..errors import WrongType
from ..weights.formats import read
from ..weights.metadata import FileMetadata, file_metadata
from ..weights.native_files import as_model_has_it


class Entry(NamedTuple):
    """One name of one side. ``key`` is the same for names of one storage, ``view`` for those that show it alike."""

    name: str
    spec: ArraySpec
    key: Any
    buffer: bool = False
    view: Any = None


@dataclass
class Manifest:
    """What a plan needs to know of a model or a file."""

    title: str
    layers: dict[str, dict[str, Entry]]  # layer -> leaf -> entry, in the order of definition
    kinds: dict[tuple[str, str], str]  # (layer, leaf) -> kind of layer
    read: Callable[[str], np.ndarray]  # the values of a name, in canonical form
    options: Mapping[str, Mapping[str, Any]]
    order: str | None = None  # "first" or "last": where data has its channels when it is flattened
    own_layouts: bool = False  # a file of a framework's own, whose arrays are not in canonical form
    virtual: frozenset[str] = frozenset()  # layers that are none of its own: several of these, or parts of one
    left_out: tuple[str, ...] = ()  # what else a file holds
    outputs_first: frozenset[str] = frozenset()  # names so transposed: right for linear layers and convolutions
    scales: Mapping[str, float] = field(default_factory=dict)  # name of a low-rank factor -> its update's scale
    read_block: Callable[[str, Box], np.ndarray] | None = None  # where a part of the values can be read alone

    def block(self, name: str, box: Box) -> np.ndarray:
        """A block of the values of a name, of which no more is read where that can be."""
        return self.read(name)[box] if self.read_block is None else self.read_block(name, box)

    def kind(self, layer: str) -> str:
        """The kind of a layer; nothing where a file does not say."""
        return next((self.kinds[layer, leaf] for leaf in self.layers.get(layer, ()) if (layer, leaf) in self.kinds), "")

    def lazy(self, entry: Entry) -> LazyArray:
        """The values of one of its names, read by blocks and when they are asked for."""
        dtype = numpy_dtype(entry.spec.dtype)
        return LazyArray(entry.spec.shape, dtype, lambda box: self.block(entry.name, box))

    def entries(self) -> dict[str, Entry]:
        """Every entry by its name."""
        return {entry.name: entry for layer in self.layers.values() for entry in layer.values()}

    def ties(self) -> list[list[str]]:
        """The names of each storage that has several."""
        names: dict[Any, list[str]] = {}
        for name, entry in self.entries().items():
            names.setdefault(entry.key, []).append(name)
        return [tied for tied in names.values() if len(tied) > 1]


def manifest_of(side: Any, gather: bool = False) -> Manifest:
    """The manifest of a model, a weight file by its path, an open one, or a mapping name -> array.

    With ``gather`` a model's sharded arrays are put together when they are read, which is a collective.
    """
    if isinstance(side, Manifest):
        return side
    if isinstance(side, Model):
        return _manifest_of_model(side, whole if gather else peek)
    if isinstance(side, (str, Path)):
        return _manifest_of_state(read(side), str(side))
    if isinstance(side, Mapping):
        return _manifest_of_state(side, "state")
    raise WrongType(f"A transfer is from a model, a file or a state, not from a {type(side).__name__}.")


def source_manifest(source: Any, target: Any, rules: Any = None) -> Manifest:
    """The manifest of a transfer's source. A framework's own file is shown as the target has its parameters, where it
    is of that framework; not under rules, which speak of the file's names."""
    if rules is not None or not isinstance(target, Model) or not isinstance(source, (str, Path, Mapping)):
        return manifest_of(source)
    state, title = (source, "state") if isinstance(source, Mapping) else (read(source), str(source))
    return _manifest_of_state(as_model_has_it(state, target), title)


def _manifest_of_model(net: Model, values: Callable[[Parameter], np.ndarray]) -> Manifest:
    store = store_of(net)
    layers: dict[str, dict[str, Entry]] = {}
    kinds: dict[tuple[str, str], str] = {}
    scales: dict[str, float] = {}
    for name, slot in zip(store.table.names, store.table.slots, strict=True):
        layer, leaf = paths.text(slot.path[:-1]), paths.text(slot.path[-1:])
        p = net[name]
        spec = ArraySpec(p.shape, p.dtype)
        layers.setdefault(layer, {})[leaf] = Entry(name, spec, id(slot.storage), slot.buffer, id(p))
        kinds[layer, leaf] = slot.kind
        if (scale := store.host.low_rank_scale(slot)) is not None:
            scales[name] = scale
    title = f"{net.backend} {type(net.native).__name__}"
    _name_weight_norms(layers, kinds)

    def read(name: str) -> np.ndarray:
        return values(net.parameter(name))

    return Manifest(title, layers, kinds, read, net.options(), store.host.data_order, scales=scales)


WEIGHT_NORM = re.compile(r"(?:(.*)\.)?parametrizations\.(\w+)")


def _name_weight_norms(layers: dict[str, dict[str, Entry]], kinds: dict[tuple[str, str], str]) -> None:
    """Give the two arrays of PyTorch's weight norm, a parametrization since 2.0, the names that they had before and
    have elsewhere: ``weight_g`` and ``weight_v`` of the layer itself."""
    for place in [layer for layer in layers if WEIGHT_NORM.fullmatch(layer)]:
        leaves = layers[place]
        if list(leaves) != ["original0", "original1"] or not _is_magnitude(leaves["original0"], leaves["original1"]):
            continue
        match = WEIGHT_NORM.fullmatch(place)
        assert match is not None
        layer = match[1] or ""
        for leaf, ending in (("original0", "g"), ("original1", "v")):
            name = f"{match[2]}_{ending}"
            layers.setdefault(layer, {})[name] = leaves[leaf]
            kinds[layer, name] = next((kind for (at, _), kind in kinds.items() if at == layer), "")
        del layers[place]


def _is_magnitude(g: Entry, v: Entry) -> bool:
    """Whether one array can hold the norms of another, along all axes but some."""
    pairs = list(zip(g.spec.shape, v.spec.shape, strict=False))
    return (
        len(g.spec.shape) == len(v.spec.shape) and all(a in (1, b) for a, b in pairs) and g.spec.shape != v.spec.shape
    )


def _manifest_of_state(state: Mapping[str, Any], title: str) -> Manifest:
    manifest = manifest_of_arrays(state, title, file_metadata(state))
    return replace(manifest, left_out=getattr(state, "left_out", ()))


def manifest_of_arrays(
    state: Mapping[str, Any], title: str, document: FileMetadata, order: str | None = None
) -> Manifest:
    """The manifest of arrays by name, of which a document tells the rest."""
    layers: dict[str, dict[str, Entry]] = {}
    kinds: dict[tuple[str, str], str] = {}
    stored: dict[str, tuple[str, bool]] = {}  # name -> the name its values are under, and whether transposed
    for name in state:
        about = document.parameters.get(name, {})
        spec = state_spec(state, name)
        for each in (name, *about.get("aliases", ())):
            transposed = each in about.get("transposed", ())
            layer, leaf = paths.split(each)
            shown = spec._replace(shape=spec.shape[::-1]) if transposed else spec
            layers.setdefault(layer, {})[leaf] = Entry(each, shown, name, bool(about.get("buffer")), (name, transposed))
            stored[each] = name, transposed
            if "kind" in about and each == name:
                kinds[layer, leaf] = about["kind"]

    def read_entry(name: str) -> np.ndarray:
        at, transposed = stored[name]
        array = to_numpy(state[at])
        return array.T if transposed else array

    def read_block(name: str, box: Box) -> np.ndarray:
        at, transposed = stored[name]
        box = box[::-1] if transposed else box
        if isinstance(state, Source):
            state.verify_block(at, box)
        array = state_block(state, at, box)
        return array.T if transposed else array

    own = isinstance(state, Source) and state.own_layouts
    _name_weight_norms(layers, kinds)
    return Manifest(title, layers, kinds, read_entry, document.layers, order, own, read_block=read_block)
