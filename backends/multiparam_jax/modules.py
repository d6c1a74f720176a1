"""The linen modules ``mp.build`` makes: flax's own layers in a chain that knows its names and its data order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from multiparam import nn

Axes = tuple[int, ...] | None


class Chain(linen.Module):
    """Layers one after another, as ``flax.linen.Sequential``, with data-order changes between them.

    ``names[i]`` is the canonical name of ``layers[i]``; None for one that adds no level of its own.
    ``before[i]`` is the permutation the data needs before it; ``after`` the last one.
    """

    layers: tuple[Any, ...]
    names: tuple[str | None, ...]
    before: tuple[Axes, ...]
    after: Axes = None

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for layer, axes in zip(self.layers, self.before, strict=True):
            x = _run(layer, _permute(x, axes), train)
        return _permute(x, self.after)


class Residual(linen.Module):
    """``x + body(x)``."""

    body: Any
    before: Axes = None
    after: Axes = None

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return x + _permute(_run(self.body, _permute(x, self.before), train), self.after)


class BatchNorm(linen.BatchNorm):
    """flax's BatchNorm with PyTorch's running variance, the unbiased one: n / (n - 1) times the batch's."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:  # type: ignore[override]
        before = self.get_variable("batch_stats", "var")
        y = super().__call__(x, use_running_average=use_running_average)
        if not use_running_average and before is not None and not self.is_initializing():
            n = x.size // x.shape[-1]
            kept = self.momentum * before
            moved = self.get_variable("batch_stats", "var") - kept
            self.put_variable("batch_stats", "var", kept + moved * (n / (n - 1)))
        return y


def _permute(x: jax.Array, axes: Axes) -> jax.Array:
    return x if axes is None else jnp.transpose(x, axes)


def _run(layer: Any, x: jax.Array, train: bool) -> jax.Array:
    if isinstance(layer, (Chain, Residual)):
        return layer(x, train=train)
    if isinstance(layer, linen.BatchNorm):
        return layer(x, use_running_average=not train)
    if isinstance(layer, linen.Dropout):
        return layer(x, deterministic=not train)
    return layer(x)  # type: ignore[no-any-return]


def chain(architecture: nn.Architecture, dtype: str) -> Chain:
    """An architecture as a Chain, whatever its root is."""
    made: dict[int, Any] = {}
    root = architecture.root
    module = _build(root, made, dtype)
    if isinstance(module, Chain):
        return module
    after = nn.convert(root.shape, root.after) if root.after and not root.children else None
    return Chain((module,), (None,), (_axes(root),), after)


def _axes(node: nn.Node) -> Axes:
    return None if node.convert is None else nn.convert(node.input, node.convert)


def _build(node: nn.Node, made: dict[int, Any], dtype: str) -> Any:
    known = made.get(id(node.layer))
    if known is None:
        known = made[id(node.layer)] = _make(node, made, dtype)
    return known


def _make(node: nn.Node, made: dict[int, Any], dtype: str) -> Any:
    layer, n = node.layer, len(node.input) - 1
    after = None if node.after is None else nn.convert(node.shape, node.after)
    match layer:
        case nn.Sequential():
            children = tuple(_build(child, made, dtype) for child in node.children)
            return Chain(children, layer.names, tuple(_axes(child) for child in node.children), after)
        case nn.Residual():
            return Residual(_build(node.children[0], made, dtype), _axes(node.children[0]), after)
        case nn.Linear():
            return linen.Dense(layer.out_features, layer.bias, param_dtype=jnp.dtype(dtype))
        case nn.Conv():
            return linen.Conv(
                layer.out_channels, nn.sizes(layer.kernel_size, n), nn.sizes(layer.stride, n),
                [(p, p) for p in nn.sizes(layer.padding, n)], kernel_dilation=nn.sizes(layer.dilation, n),
                feature_group_count=layer.groups, use_bias=layer.bias, param_dtype=jnp.dtype(dtype),
            )  # fmt: skip
        case nn.MaxPool() | nn.AvgPool():
            pool = linen.max_pool if isinstance(layer, nn.MaxPool) else linen.avg_pool
            kernel, stride, padding = layer.windows(n)
            return lambda x: pool(x, kernel, stride, [(p, p) for p in padding])
        case nn.BatchNorm():
            return BatchNorm(
                momentum=1 - layer.momentum, epsilon=layer.eps, param_dtype=jnp.dtype(dtype), use_fast_variance=False
            )
        case nn.LayerNorm():
            return linen.LayerNorm(layer.eps, param_dtype=jnp.dtype(dtype), use_fast_variance=False)
        case nn.Embedding():
            return linen.Embed(layer.num_embeddings, layer.embedding_dim, param_dtype=jnp.dtype(dtype))
        case nn.Dropout():
            return linen.Dropout(layer.p)
        case nn.Flatten():
            return lambda x: x.reshape(x.shape[0], -1)
        case nn.GELU():
            tanh = layer.approximate == "tanh"
            return lambda x: linen.gelu(x, approximate=tanh)
        case nn.Softmax():
            return linen.softmax
        case _:
            return {nn.ReLU: linen.relu, nn.Tanh: linen.tanh, nn.Sigmoid: linen.sigmoid}[type(layer)]
