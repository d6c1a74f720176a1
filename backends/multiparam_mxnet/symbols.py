"""A ``gluon.SymbolBlock``: one block whose parameters are the variables of a symbol, a graph of operators.

The operator that takes a variable says what kind of layer it is of, which leaf, and the options.
"""

from __future__ import annotations

import ast
import json
import re
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from multiparam.adapter import KINDS, Layout, momentum_from_decay, permutation

from .load import load

mx = load()
SymbolBlock = mx.gluon.SymbolBlock

# Operator -> kind, and the leaves in the order of its inputs, behind the data.
NORM = ("weight", "bias")
OPERATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "FullyConnected": ("linear", ("weight", "bias")),
    "Convolution": ("conv", ("weight", "bias")),
    "Deconvolution": ("conv_transpose", ("weight", "bias")),
    "Embedding": ("embedding", ("weight",)),
    "BatchNorm": ("batchnorm", (*NORM, "running_mean", "running_var")),
    "LayerNorm": ("layernorm", NORM),
    "InstanceNorm": ("instancenorm", NORM),
    "LeakyReLU": ("prelu", ("weight",)),
}
CHANNELS_LAST = {"conv": "O*I", "conv_transpose": "I*O"}
# Of MXNet 1.9.1's operators; an exported symbol leaves out what is as here.
EPS = {"batchnorm": 1e-3, "layernorm": 1e-5, "instancenorm": 1e-3}


class Variable(NamedTuple):
    """What a parameter of a SymbolBlock is: the layer that has it, and its number, kind and options."""

    layer: str
    number: int
    leaf: str
    kind: str
    layout: str
    options: Mapping[str, Any]

    def canonical(self, shape: tuple[int, ...]) -> Layout | None:
        """How it shows in canonical form."""
        form = KINDS.get(self.kind, {}).get(self.leaf)
        return permutation(self.layout, form, len(shape)) if self.layout and form else None


_known: weakref.WeakKeyDictionary[Any, dict[str, Variable]] = weakref.WeakKeyDictionary()


def variables(block: Any) -> dict[str, Variable]:
    """Each parameter of a SymbolBlock by its own name, in the order of the graph. The graph never changes."""
    if block not in _known:
        _known[block] = _read(json.loads(block._cached_graph[1].tojson())["nodes"], set(block._params.keys()))
    return _known[block]


def auxiliary(block: Any) -> set[str]:
    """The names of the parameters that operators write themselves: running statistics."""
    return set(block._cached_graph[1].list_auxiliary_states())


def _read(nodes: list[dict[str, Any]], parameters: set[str]) -> dict[str, Variable]:
    variables: dict[str, Variable] = {}
    made_by_gluon: set[str] = set()
    numbers: dict[str, int] = {}
    for node in nodes:
        names = [nodes[source[0]]["name"] for source in node["inputs"]]
        kind, leaves = OPERATORS.get(node["op"], (node["op"], ()))
        taken = [(leaf, name) for leaf, name in zip(leaves, names[1:], strict=False) if name in parameters]
        rest = [name for name in names if name in parameters and name not in dict(map(reversed, taken))]  # type: ignore[arg-type]
        attributes = node.get("attrs", node.get("param", {}))
        layer = _shared_tokens([name for _, name in taken]) or node["name"].removesuffix("_fwd")
        for leaf, name in [*taken, *((None, name) for name in rest)]:
            above, _, last = name.rpartition("_")
            where = layer if leaf else above
            if node["name"] == f"{where}_fwd":
                made_by_gluon.add(where)
            number = numbers.setdefault(where, len(numbers))
            options = _options(kind, attributes) if leaf else {}
            last_axis = leaf == "weight" and str(attributes.get("layout", "")).endswith("C")
            layout = CHANNELS_LAST.get(kind, "") if last_axis else ""
            variables.setdefault(name, Variable(where, number, leaf or last, kind, layout, options))
    short = _without_counters(list(numbers), made_by_gluon)
    return {name: variable._replace(layer=short[variable.layer]) for name, variable in variables.items()}


def _shared_tokens(names: list[str]) -> str:
    """What stands before the leaf in all names of one layer's parameters."""
    tokens = [name.split("_") for name in names]
    if len(tokens) == 1:
        return "_".join(tokens[0][:-1])
    return "_".join(_shared(tokens))


def _shared(tokens: list[list[str]]) -> list[str]:
    shared = []
    for each in zip(*tokens, strict=False):
        if len(set(each)) > 1:
            break
        shared.append(each[0])
    return shared


def _without_counters(layers: list[str], made_by_gluon: Iterable[str]) -> dict[str, str]:
    """The names of layers without what counts the blocks of the process that exported the symbol: the scope that all
    are in, or else the number behind the first word, in the place of which it is counted here. What a user called
    a node, and numbers inside a scope, stay."""
    tokens = {layer: layer.split("_") for layer in layers}
    by_gluon = set(made_by_gluon)
    if not by_gluon:
        return {layer: layer for layer in layers}
    inside = len(_shared([each[:-1] for each in tokens.values()])) if len(layers) > 1 else 0
    if inside:
        return {layer: "_".join(each[inside:]) for layer, each in tokens.items()}
    counted: dict[str, dict[str, int]] = {}
    names = {}
    for layer, (first, *rest) in tokens.items():
        match = re.fullmatch(r"(.*\D)(\d+)", first)
        if match and layer in by_gluon:
            of_word = counted.setdefault(match[1], {})
            first = f"{match[1]}{of_word.setdefault(match[2], len(of_word))}"
        names[layer] = "_".join([first, *rest])
    return names if len(set(names.values())) == len(names) else {layer: layer for layer in layers}


def _options(kind: str, attributes: Mapping[str, str]) -> dict[str, Any]:
    """What weights do not carry, from an operator's attributes, which are texts."""

    def value(name: str, default: Any) -> Any:
        return ast.literal_eval(attributes[name]) if name in attributes else default

    options: dict[str, Any] = {}
    if kind in CHANNELS_LAST:
        n = len(value("kernel", ()))
        for name, native, default in (("stride", "stride", 1), ("padding", "pad", 0), ("dilation", "dilate", 1)):
            options[name] = tuple(value(native, None) or (default,) * n)
        options["groups"] = value("num_group", 1)
    if kind == "conv_transpose":
        options["output_padding"] = tuple(value("adj", None) or (0,) * n)
    if kind in EPS:
        options["eps"] = value("eps", EPS[kind])
    if kind == "batchnorm":
        options["momentum"] = momentum_from_decay(value("momentum", 0.9))
        if value("fix_gamma", True):
            options["scale"] = False
    return options
