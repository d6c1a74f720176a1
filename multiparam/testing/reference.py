"""The truth for built networks: every layer of mp.nn written out in numpy, in float64, by its definition.

Nothing here comes from the rest of multiparam but the descriptions of the layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import nn

State = Mapping[str, np.ndarray]


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, element by element."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def forward(layer: nn.Layer, state: State, x: np.ndarray, name: str = "", train: bool = False) -> np.ndarray:
    """The output of a network whose parameters are ``state``, by canonical name."""

    def at(leaf: str) -> np.ndarray:
        return state[f"{name}.{leaf}" if name else leaf]

    match layer:
        case nn.Sequential():
            for child_name, child in zip(layer.names, layer.layers, strict=True):
                x = forward(child, state, x, f"{name}.{child_name}" if name else child_name, train)
            return x
        case nn.Residual():
            return x + forward(layer.body, state, x, f"{name}.body" if name else "body", train)
        case nn.Join():
            branches = zip(layer.names, layer.layers, strict=True)
            outputs = [
                forward(child, state, x, f"{name}.{branch}" if name else branch, train) for branch, child in branches
            ]
            return np.sum(outputs, axis=0) if isinstance(layer, nn.Add) else np.concatenate(outputs, axis=1)
        case nn.Linear():
            y = x @ at("weight").T
            return y + at("bias") if layer.bias else y
        case nn.Conv():
            y = _conv(layer, x, at("weight"))
            return y + at("bias").reshape(-1, *[1] * (x.ndim - 2)) if layer.bias else y
        case nn.MaxPool():
            return _pool(layer, x, -np.inf, np.max)
        case nn.AvgPool():
            return _pool(layer, x, 0.0, np.mean)
        case nn.BatchNorm():
            axes = (0, *range(2, x.ndim))
            shape = (1, -1, *[1] * (x.ndim - 2))
            mean = x.mean(axes) if train else at("running_mean")
            variance = x.var(axes) if train else at("running_var")
            y = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + layer.eps)
            return y * at("weight").reshape(shape) + at("bias").reshape(shape)
        case nn.LayerNorm():
            centred = x - x.mean(-1, keepdims=True)
            return centred / np.sqrt(x.var(-1, keepdims=True) + layer.eps) * at("weight") + at("bias")
        case nn.Embedding():
            return at("weight")[x]
        case nn.Dropout():
            return x
        case nn.Flatten():
            return x.reshape(len(x), -1)
        case nn.ReLU():
            return np.maximum(x, 0)
        case nn.Tanh():
            return np.tanh(x)
        case nn.Sigmoid():
            return 1 / (1 + np.exp(-x))
        case nn.GELU():
            if layer.approximate == "tanh":
                return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            return 0.5 * x * (1 + erf(x / math.sqrt(2)))
        case nn.Softmax():
            e = np.exp(x - x.max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)
    return _further(layer, at, x)


def _further(layer: nn.Layer, at: Callable[[str], np.ndarray], x: np.ndarray) -> np.ndarray:
    match layer:
        case nn.Identity():
            return x
        case nn.GlobalAvgPool():
            return x.mean(tuple(range(2, x.ndim)))
        case nn.GlobalMaxPool():
            return x.max(tuple(range(2, x.ndim)))
        case nn.Tokens():
            return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
        case nn.ConvTranspose():
            y = _conv_transpose(layer, x, at("weight"))
            return y + at("bias").reshape(-1, *[1] * (x.ndim - 2)) if layer.bias else y
        case nn.GroupNorm() | nn.InstanceNorm():
            groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
            split = x.reshape(len(x), groups, -1)
            centred = split - split.mean(-1, keepdims=True)
            y = (centred / np.sqrt(split.var(-1, keepdims=True) + layer.eps)).reshape(x.shape)
            shape = (1, -1, *[1] * (x.ndim - 2))
            return y * at("weight").reshape(shape) + at("bias").reshape(shape)
        case nn.RMSNorm():
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.eps) * at("weight")
    raise TypeError(type(layer))


def _windows(x: np.ndarray, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> np.ndarray:
    """(N, C, *positions, *kernel): what each position of a sliding window sees."""
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    y = np.empty((*x.shape[:2], *out, *kernel))
    for offset in itertools.product(*map(range, kernel)):
        rows = tuple(
            slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in zip(offset, dilation, stride, out, strict=True)
        )
        y[(..., *offset)] = x[(slice(None), slice(None), *rows)]
    return y


def _padded(x: np.ndarray, padding: tuple[int, ...], value: float) -> np.ndarray:
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=value)


def _all(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else value


def _conv(layer: nn.Conv, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    n = x.ndim - 2
    windows = _windows(
        _padded(x, _all(layer.padding, n), 0.0), weight.shape[2:], _all(layer.stride, n), _all(layer.dilation, n)
    )
    inputs, outputs = x.shape[1] // layer.groups, len(weight) // layer.groups
    space, kernel = "abc"[:n], "xyz"[:n]
    parts = [
        np.einsum(
            f"ni{space}{kernel},oi{kernel}->no{space}",
            windows[:, g * inputs : (g + 1) * inputs],
            weight[g * outputs : (g + 1) * outputs],
        )
        for g in range(layer.groups)
    ]
    return np.concatenate(parts, axis=1)


def _conv_transpose(layer: nn.ConvTranspose, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Each input position adds the kernel, times its value, to the output from stride times the position on."""
    n = x.ndim - 2
    stride, kernel = _all(layer.stride, n), weight.shape[2:]
    space = [(size - 1) * d + k for size, d, k in zip(x.shape[2:], stride, kernel, strict=True)]
    y = np.zeros((len(x), weight.shape[1], *space))
    for position in np.ndindex(*x.shape[2:]):
        rows = tuple(slice(i * d, i * d + k) for i, d, k in zip(position, stride, kernel, strict=True))
        here: Any = (slice(None), slice(None), *position)
        y[(slice(None), slice(None), *rows)] += np.einsum("ni,io...->no...", x[here], weight)
    cut = tuple(slice(p, size - p) for p, size in zip(_all(layer.padding, n), y.shape[2:], strict=True))
    return y[(slice(None), slice(None), *cut)]


def _pool(layer: nn.MaxPool | nn.AvgPool, x: np.ndarray, pad: float, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    n = x.ndim - 2
    kernel = _all(layer.kernel_size, n)
    stride = kernel if layer.stride is None else _all(layer.stride, n)
    windows = _windows(_padded(x, _all(layer.padding, n), pad), kernel, stride, (1,) * n)
    return reduce(windows, axis=tuple(range(-n, 0)))


def mse(layer: nn.Layer, state: State, x: np.ndarray, y: np.ndarray) -> float:
    """The mean squared error in training mode."""
    return float(np.mean((forward(layer, state, x, train=True) - y) ** 2))


def slope(layer: nn.Layer, state: State, direction: State, x: np.ndarray, y: np.ndarray, h: float = 1e-6) -> float:
    """The derivative of :func:`mse` along a direction in parameter space, by central differences."""

    def moved(t: float) -> dict[str, np.ndarray]:
        return {name: value + t * direction[name] if name in direction else value for name, value in state.items()}

    return (mse(layer, moved(h), x, y) - mse(layer, moved(-h), x, y)) / (2 * h)


def gradients(layer: nn.Sequential, state: State, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Backpropagation of :func:`mse` through Linear and Tanh layers, to rounding: each name by itself, as if untied."""
    outputs = [x]
    for name, child in zip(layer.names, layer.layers, strict=True):
        outputs.append(forward(child, state, outputs[-1], name))
    grads: dict[str, np.ndarray] = {}
    delta = 2 * (outputs[-1] - y) / y.size
    for i in reversed(range(len(layer.layers))):
        if isinstance(layer.layers[i], nn.Tanh):
            delta = delta * (1 - outputs[i + 1] ** 2)
            continue
        name = layer.names[i]
        grads[f"{name}.weight"] = delta.T @ outputs[i]
        grads[f"{name}.bias"] = delta.sum(0)
        delta = delta @ state[f"{name}.weight"]
    return grads
