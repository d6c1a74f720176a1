"""Low-rank updates (LoRA): pairs of small matrices whose product a layer adds to its weight, times a scale.

Where a target has no such pairs, those of the source are merged into the weight beside them: a layer's ``base_layer``
is then the layer itself. A pair can be merged where its scale is known: the model's adapter tells it, or the state has
``alpha``, which counts by rank. What cannot be merged stays apart, goes nowhere, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .. import paths
from ..core.layers import KINDS
from .manifest import Entry, Manifest
from .packing import LeafMove, Shapes
from .rename import RenamedLayers

# lora_A.default.weight, lora.lora_a, lora_kernel_b, lora_down.weight, lora_embedding_A.default
FACTOR = re.compile(
    r"(?:(?P<base>.+?)\.)??(?:lora\.)?lora_(?:kernel_|embeddings?_)?(?P<which>a|b|down|up)"
    r"(?:\.(?P<adapter>\w+?))??(?:\.(?:weight|kernel))?",
    re.IGNORECASE,
)
BASES = frozenset({"base_layer", "base_module"})  # what holds the layer that an update is beside
A, B, ALPHA = "lora_A", "lora_B", "lora_alpha"  # what the leaves of a pair are called beside the weight


class _Pair(NamedTuple):
    """The places (layer, leaf) of a low-rank update."""

    a: tuple[str, str]
    b: tuple[str, str]


def factor(name: str) -> tuple[str, str, str] | None:
    """The layer that a low-rank factor is for, which factor it is, and of which adapter; None for other names.

    >>> factor("h.0.fc.lora_A.default.weight"), factor("fc.lora.lora_b"), factor("fc.weight")
    (('h.0.fc', 'a', 'default'), ('fc', 'b', ''), None)
    """
    match = FACTOR.fullmatch(name)
    if match is None:
        return None
    which = {"down": "a", "up": "b"}.get(match["which"].lower(), match["which"].lower())
    return match["base"] or "", which, match["adapter"] or ""


def merge_low_rank(source: Manifest, renamed: RenamedLayers, target: Manifest) -> RenamedLayers:
    """Show low-rank updates of a source as leaves of the layers that they change, where their scale is known.

    Args:
        source: The manifest of the source.
        renamed: Its layers after the rules.
        target: The manifest of the target; one that has low-rank updates itself takes them as they are.

    Returns:
        The source's layers; as they were where there is nothing to merge.
    """
    pairs = _pairs(renamed.layers)
    if not pairs or any(factor(entry.name) for entry in target.entries().values()):
        return renamed
    layers: dict[str, dict[str, Entry]] = {}
    for layer, leaves in renamed.layers.items():
        parent, last = paths.split(layer)
        unwrapped = parent if last in BASES and parent in pairs else layer
        layers.setdefault(unwrapped, {}).update(leaves)
    kinds, scales = dict(renamed.kinds), dict(renamed.scales)
    for layer, of_layer in pairs.items():
        if len(of_layer) == 1 and "weight" in layers.get(layer, {}):
            _merge(source, layers, layer, of_layer[0], kinds, scales)
    return renamed._replace(layers={k: v for k, v in layers.items() if v}, kinds=kinds, scales=scales)


def _pairs(layers: Mapping[str, Mapping[str, Entry]]) -> dict[str, list[_Pair]]:
    """The low-rank pairs of each layer."""
    places: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    for layer, leaves in layers.items():
        for leaf in leaves:
            known = factor(f"{layer}.{leaf}" if layer else leaf)
            if known:
                places.setdefault((known[0], known[2]), {})[known[1]] = layer, leaf
    pairs: dict[str, list[_Pair]] = {}
    for (base, _), factors in places.items():
        if factors.keys() == {"a", "b"}:
            pairs.setdefault(base, []).append(_Pair(factors["a"], factors["b"]))
    return pairs


def _merge(
    source: Manifest,
    layers: dict[str, dict[str, Entry]],
    layer: str,
    pair: _Pair,
    kinds: dict[str, str],
    scales: dict[str, float],
) -> None:
    """Put one pair among the leaves of its layer, if its scale and what it comes to are known."""
    first, second = (layers[at][leaf] for at, leaf in pair)
    weight, alpha = layers[layer]["weight"], layers[layer].get("alpha")
    kind = source.kinds.get(paths.split(weight.name), "")
    known = kind or ("embedding" if "embedding" in first.name else "linear")  # PEFT's names say so
    more = any(at != layer and len(layers[at]) > 1 + ("lora_b" in layers[at]) for at, _ in pair)  # as a bias
    if known not in KINDS or more or product(first.spec.shape, second.spec.shape, weight.spec.shape, known) is None:
        return
    if first.name in source.scales:
        scales[layer] = source.scales[first.name]
        layers[layer].pop("alpha", None)
    elif alpha is not None and alpha.spec.shape in ((), (1,)):
        layers[layer][ALPHA] = layers[layer].pop("alpha")
    else:
        return
    for (at, leaf), name in zip(pair, (A, B), strict=True):
        layers[layer][name] = layers[at].pop(leaf)
    kinds[layer] = known


def product(
    a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...], kind: str
) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """What two factors of these shapes come to as an update of a weight; None where they come to none, or to several.

    Factors are matrices that multiply from the left, ``b @ a``, as PyTorch's packages have them, or from the right,
    ``a @ b``, as JAX's and Keras' do; of a convolution ``a`` has the kernel's positions.

    >>> product((2, 4), (3, 2), (3, 4), "linear")(np.ones((2, 4)), np.ones((3, 2))).shape
    (3, 4)
    >>> product((4, 2), (2, 3), (3, 4), "linear")(np.ones((4, 2)), np.ones((2, 3))).shape
    (3, 4)
    """
    table = kind == "embedding"  # its rows are its inputs; those of other weights are outputs
    if len(a) != len(weight):
        return None
    left = b[1:2] == a[:1] and all(n == 1 for n in b[2:]) and len(b) in (2, len(a))
    right = len(b) == 2 and a[-1] == b[0]
    ways: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = []
    if left and ((b[0], *a[1:]) == weight if not table else (a[1], b[0]) == weight):
        ways.append(_from_left if not table else lambda a, b: _from_left(a, b).T)
    if right and ((b[1], a[-2], *a[:-2]) == weight if not table else (*a[:-1], b[1]) == weight):
        ways.append(_from_right if not table else np.matmul)
    return ways[0] if len(ways) == 1 else None


def _from_left(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result: np.ndarray = (b.reshape(b.shape[:2]) @ a.reshape(a.shape[0], -1)).reshape(b.shape[0], *a.shape[1:])
    return result


def _from_right(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """From (positions..., in, out) to (out, in, positions...)."""
    return np.moveaxis(a @ b, (-1, -2), (0, 1))


def low_rank_moves(source: Shapes, target: Shapes, kind: str, scale: float | None) -> list[LeafMove]:
    """The move of a weight and the update that its layer adds to it.

    Args:
        source: The source's leaves and their shapes.
        target: The target's.
        kind: The kind of layer.
        scale: What the product of the factors is multiplied with; None where the leaf ``lora_alpha`` says.

    Returns:
        One move, or none where there is no such pair. It is made in float64, since a product rounds.

    >>> shapes = {"weight": (3, 4), "lora_A": (2, 4), "lora_B": (3, 2)}
    >>> low_rank_moves(shapes, {"weight": (3, 4)}, "linear", 0.5)[0].sources
    ('weight', 'lora_A', 'lora_B')
    """
    if A not in source or B not in source or "weight" not in source or target.get("weight") != source["weight"]:
        return []
    multiply = product(source[A], source[B], source["weight"], kind)
    if multiply is None:
        return []
    rank = source[A][0] if source[A][0] in source[B][1:2] else source[A][-1]

    def make(weight: np.ndarray, a: np.ndarray, b: np.ndarray, *alpha: np.ndarray) -> np.ndarray:
        times = float(alpha[0].reshape(())) / rank if alpha else float(scale or 0.0)
        wide = np.complex128 if weight.dtype.kind == "c" else np.float64
        merged: np.ndarray = weight.astype(wide) + times * multiply(a.astype(wide), b.astype(wide))
        return merged.astype(weight.dtype)

    sources = ("weight", A, B, *([ALPHA] if ALPHA in source else []))
    # The gradient of the merged weight is that of the base weight.
    return [LeafMove("weight", sources, make, f"low-rank update of rank {rank} merged", lambda weight, *_: weight)]
