"""Gradients in evaluation through max pooling, which MXNet 1.9.1 makes of memory that nobody has written.

Its oneDNN kernel notes where each maximum was only in a forward pass of training, and its backward pass reads the notes
all the same. So while such a gradient is taken, poolings run as in training: they compute the same there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from multiparam.adapter import Unsupported, temporarily

from .layers import blocks
from .load import load
from .symbols import SymbolBlock

mx = load()
# All names of the operator that is called array by array.
OPERATORS = (
    (mx.nd, "Pooling"),
    (mx.nd.op, "Pooling"),
    (mx.npx, "pooling"),
    (mx.ndarray.numpy_extension, "pooling"),
)


def _as_in_training(operator: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        with mx.autograd.train_mode():
            return operator(*inputs, **options)

    return run


@contextmanager
def differentiable_poolings(native: Any) -> Iterator[None]:
    """Inside, poolings of an evaluation can be differentiated.

    Raises Unsupported for an exported graph with max pooling, whose operators nobody can reach.
    """
    for block in blocks(native, SymbolBlock):
        for node in json.loads(block._cached_graph[1].tojson())["nodes"] if block._cached_graph else ():
            if node["op"] == "Pooling" and node.get("attrs", {}).get("pool_type", "max") == "max":
                raise Unsupported(
                    f"{node['name']!r} is max pooling in an exported graph, and MXNet 1.9.1 computes gradients of it "
                    "in evaluation from memory that it never wrote. Take them with train=True."
                )
    active = [
        (block, "_active", False) for block in blocks(native, mx.gluon.HybridBlock)
    ]  # a graph hides its operators
    poolings = [(module, name, _as_in_training(getattr(module, name))) for module, name in OPERATORS]
    with temporarily([*active, *poolings]):
        yield
