"""The linen modules ``mp.build`` makes: flax's own layers in a chain that knows its names and its data order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from multiparam import nn
from multiparam.adapter import Architecture, Node, data_permutation

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


class Join(Chain):
    """Branches of one input, each brought into one order by ``rejoin``; added, or concatenated along ``axis``."""

    rejoin: tuple[Axes, ...] = ()
    axis: int | None = None

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branches = zip(self.layers, self.before, self.rejoin, strict=True)
        outputs = [_permute(_run(layer, _permute(x, before), train), rejoin) for layer, before, rejoin in branches]
        y = sum(outputs[1:], outputs[0]) if self.axis is None else jnp.concatenate(outputs, self.axis)
        return _permute(y, self.after)


class ConvTranspose(linen.ConvTranspose):
    """flax's, of which ``cut`` is left of each spatial axis: PyTorch's padding."""

    cut: tuple[tuple[int, int], ...] = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        y: jax.Array = super().__call__(x)
        return y[(slice(None), *(slice(*each) for each in self.cut))]


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
        before: Any = self.get_variable("batch_stats", "var")
        y: jax.Array = super().__call__(x, use_running_average=use_running_average)
        if not use_running_average and before is not None and not self.is_initializing():
            n = x.size // x.shape[-1]
            old = self.momentum * before
            new = self.get_variable("batch_stats", "var") - old
            self.put_variable("batch_stats", "var", old + new * (n / (n - 1)))
        return y


def _permute(x: jax.Array, axes: Axes) -> jax.Array:
    return x if axes is None else jnp.transpose(x, axes)


def _run(layer: Any, x: jax.Array, train: bool) -> jax.Array:
    modes = {}
    if isinstance(layer, (Chain, Residual)):
        modes = {"train": train}
    elif isinstance(layer, linen.BatchNorm):
        modes = {"use_running_average": not train}
    elif isinstance(layer, linen.Dropout):
        modes = {"deterministic": not train}
    y: jax.Array = layer(x, **modes)
    return y


def _over_space(reduce: Callable[..., jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: reduce(x, axis=tuple(range(1, x.ndim - 1)))


FUNCTIONS: dict[type, Callable[..., jax.Array]] = {
    nn.ReLU: linen.relu,
    nn.Tanh: linen.tanh,
    nn.Sigmoid: linen.sigmoid,
    nn.Identity: lambda x: x,
    nn.GlobalAvgPool: _over_space(jnp.mean),
    nn.GlobalMaxPool: _over_space(jnp.max),
    nn.Tokens: lambda x: x.reshape(*x.shape[:2], -1).swapaxes(1, 2),
}


def chain(architecture: Architecture, dtype: str) -> Chain:
    """An architecture as a Chain, whatever its root is."""
    root = architecture.root
    module = architecture.assemble(lambda node, build: _make(node, build, jnp.dtype(dtype)))
    return module if isinstance(module, Chain) else Chain((module,), (None,), (_before(root),), _after(root))


def _before(node: Node) -> Axes:
    return None if node.convert is None else data_permutation(node.input, node.convert)


def _after(node: Node) -> Axes:
    return None if node.after is None else data_permutation(node.shape, node.after)


def _rejoin(node: Node) -> Axes:
    return None if node.rejoin is None else data_permutation(node.shape, node.rejoin)


def _make(node: Node, build: Callable[[Node], Any], dtype: Any) -> Any:
    """The flax layer of one of ours, or a plain function of the data."""
    layer, n = node.layer, len(node.input) - 1
    match layer:
        case nn.Sequential():
            children = tuple(map(build, node.children))
            return Chain(children, layer.names, tuple(map(_before, node.children)), _after(node))
        case nn.Residual():
            return Residual(build(node.children[0]), _before(node.children[0]), _after(node))
        case nn.Join():
            parts = layer.names, tuple(map(_before, node.children)), _after(node), tuple(map(_rejoin, node.children))
            return Join(tuple(map(build, node.children)), *parts, None if isinstance(layer, nn.Add) else node.axis)
        case nn.Linear():
            return linen.Dense(layer.out_features, layer.bias, param_dtype=dtype)
        case nn.Conv():
            return linen.Conv(
                layer.out_channels, nn.sizes(layer.kernel_size, n), nn.sizes(layer.stride, n),
                [(p, p) for p in nn.sizes(layer.padding, n)], kernel_dilation=nn.sizes(layer.dilation, n),
                feature_group_count=layer.groups, use_bias=layer.bias, param_dtype=dtype,
            )  # fmt: skip
        case nn.ConvTranspose():
            kernel, stride, padding = layer.windows(n)
            cut = tuple((p, p + size) for p, size in zip(padding, node.shape[1:], strict=True))
            options = {"use_bias": layer.bias, "param_dtype": dtype, "cut": cut}
            return ConvTranspose(layer.out_channels, kernel, stride, "VALID", **options)
        case nn.MaxPool() | nn.AvgPool():
            pool: Any = linen.max_pool if isinstance(layer, nn.MaxPool) else linen.avg_pool
            kernel, stride, padding = layer.windows(n)
            return lambda x: pool(x, kernel, stride, [(p, p) for p in padding])
        # flax 0.12's fast variance, E[x²] - E[x]², cancels in float32 where the mean is large
        case nn.BatchNorm():
            return BatchNorm(momentum=1 - layer.momentum, epsilon=layer.eps, param_dtype=dtype, use_fast_variance=False)
        case nn.LayerNorm():
            return linen.LayerNorm(layer.eps, param_dtype=dtype, use_fast_variance=False)
        case nn.GroupNorm():
            return linen.GroupNorm(layer.num_groups, None, layer.eps, param_dtype=dtype, use_fast_variance=False)
        case nn.InstanceNorm():
            return linen.InstanceNorm(epsilon=layer.eps, param_dtype=dtype, use_fast_variance=False)
        case nn.RMSNorm():
            return linen.RMSNorm(layer.eps, param_dtype=dtype)
        case nn.Embedding():
            return linen.Embed(layer.num_embeddings, layer.embedding_dim, param_dtype=dtype)
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
            return FUNCTIONS[type(layer)]
