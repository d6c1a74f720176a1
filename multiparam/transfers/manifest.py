"""What a transfer knows of one side, a model or a file, before any value is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import paths
from ..core.arrays import to_numpy
from ..core.group import store_of
from ..core.model import Model
from ..core.parameter import peek
from ..core.state import ArraySpec, Source, state_spec
from ..errors import WrongType
from ..weights.formats import read
from ..weights.metadata import FileMetadata, file_metadata


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

    def kind(self, layer: str) -> str:
        """The kind of a layer; nothing where a file does not say."""
        return next((self.kinds[layer, leaf] for leaf in self.layers.get(layer, ()) if (layer, leaf) in self.kinds), "")

    def entries(self) -> dict[str, Entry]:
        """Every entry by its name."""
        return {entry.name: entry for layer in self.layers.values() for entry in layer.values()}

    def ties(self) -> list[list[str]]:
        """The names of each storage that has several."""
        names: dict[Any, list[str]] = {}
        for name, entry in self.entries().items():
            names.setdefault(entry.key, []).append(name)
        return [tied for tied in names.values() if len(tied) > 1]


def manifest_of(thing: Any) -> Manifest:
    """The manifest of a model, a weight file by its path, an open one, or a mapping name -> array."""
    if isinstance(thing, Manifest):
        return thing
    if isinstance(thing, Model):
        return _manifest_of_model(thing)
    if isinstance(thing, (str, Path)):
        return _manifest_of_state(read(thing), str(thing))
    if isinstance(thing, Mapping):
        return _manifest_of_state(thing, "state")
    raise WrongType(f"A transfer is from a model, a file or a state, not from a {type(thing).__name__}.")


def _manifest_of_model(net: Model) -> Manifest:
    store = store_of(net)
    layers: dict[str, dict[str, Entry]] = {}
    kinds: dict[tuple[str, str], str] = {}
    for name, slot in zip(store.table.names, store.table.slots, strict=True):
        layer, leaf = paths.text(slot.path[:-1]), paths.text(slot.path[-1:])
        p = net[name]
        spec = ArraySpec(p.shape, p.dtype)
        layers.setdefault(layer, {})[leaf] = Entry(name, spec, id(slot.storage), slot.buffer, id(p))
        kinds[layer, leaf] = slot.kind
    title = f"{net.backend} {type(net.native).__name__}"
    _name_weight_norms(layers, kinds)
    return Manifest(title, layers, kinds, lambda name: peek(net.parameter(name)), net.options(), store.host.data_order)


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
    return manifest_of_arrays(state, title, file_metadata(state))


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

    own = isinstance(state, Source) and state.own_layouts
    _name_weight_norms(layers, kinds)
    return Manifest(title, layers, kinds, read_entry, document.layers, order, own)
