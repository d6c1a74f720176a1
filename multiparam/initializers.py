"""Initialisers: what to fill a parameter with, the same bits in every framework.

Numbers are drawn by numpy's Philox generator (Salmon et al., 2011) keyed by (seed, canonical name), on the canonical
layout, in float32 (orthogonal: float64), then converted to the parameter's dtype. So a result depends on neither the
framework nor the order of parameters nor the number of threads, and a float64 twin holds the same numbers.

Complex parameters get complex numbers around the same mean, whose variance, the mean of |z - mean|^2, is that of the
real ones: half in each part, independently, as PyTorch has it. Orthogonal matrices are unitary ones then. A parameter
that stacks layers, as ``linen.scan`` and ``nnx.vmap`` make them, is filled a layer at a time: fans and orthogonality
are one layer's, and its number is part of the seed.

Fans and gains are PyTorch's (``torch.nn.init._calculate_fan_in_and_fan_out``, ``calculate_gain``): for a weight
(O, I, *k), fan_in = I * prod(k) and fan_out = O * prod(k). Arguments have the names and defaults of ``torch.nn.init``.

Any function ``f(shape, rng) -> array`` is an initialiser too, ``rng`` being a ``numpy.random.Generator``:

    >>> def my_init(shape, rng):
    ...     w = rng.uniform(-10, 10, shape)
    ...     return w * (abs(w) >= 5)
    >>> draw(my_init, (2, 3), seed=0, name="0.weight").shape
    (2, 3)

The functions of this module that make one give an :class:`Initializer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .drawing import CHUNK, Initializer, Shape, draw, generator, real_of
from .errors import InvalidArgument, ShapeError

__all__ = ["CHUNK", "Initializer", "draw", "generator"]  # beside what __dir__ lists


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a canonical weight.

    Args:
        shape: (O, I, *k).

    Returns:
        I * prod(k) and O * prod(k).

    Raises:
        ShapeError: Below two dimensions, as PyTorch.

    >>> fans((8, 3, 5, 5))
    (75, 200)
    """
    if len(shape) < 2:
        raise ShapeError(f"fan_in and fan_out need at least two dimensions; the shape is {shape}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def gain(nonlinearity: str, slope: float | None = None) -> float:
    """PyTorch's recommended gain (``torch.nn.init.calculate_gain``).

    Args:
        nonlinearity: ``"linear"``, ``"conv"``, ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"selu"`` or ``"leaky_relu"``.
        slope: That of a leaky ReLU; None: 0.01.

    Returns:
        What the standard deviation is multiplied by.

    Raises:
        InvalidArgument: There is no such nonlinearity.

    >>> gain("relu") == 2 ** 0.5
    True
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if slope is None else slope) ** 2))
    known = {"linear": 1.0, "conv": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}
    if nonlinearity not in known:
        raise InvalidArgument(f"No gain for {nonlinearity!r}; there are {', '.join([*known, 'leaky_relu'])}")
    return known[nonlinearity]


def constant(value: float) -> Initializer:
    """Every element the same.

    Args:
        value: The number.
    """
    return Initializer(f"constant({value})", lambda out, rng, shape: out.fill(value))


def zeros() -> Initializer:
    """Every element 0."""
    return constant(0.0)


def ones() -> Initializer:
    """Every element 1."""
    return constant(1.0)


def normal(mean: float = 0.0, std: float = 1.0) -> Initializer:
    """Gaussian numbers.

    Args:
        mean: Their mean.
        std: Their standard deviation.
    """
    return Initializer(f"normal({mean}, {std})", lambda out, rng, shape: _gauss(out, rng, mean, std))


def uniform(a: float = 0.0, b: float = 1.0) -> Initializer:
    """Uniform numbers on [a, b).

    Args:
        a: The least.
        b: The bound above.
    """
    return Initializer(f"uniform({a}, {b})", lambda out, rng, shape: _flat(out, rng, a, b))


def truncated_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Initializer:
    """Gaussian numbers, redrawn until they lie in [a, b].

    Args:
        mean: The mean before truncation.
        std: The standard deviation before truncation.
        a: The least; an absolute bound, not one in standard deviations, as in ``torch.nn.init.trunc_normal_``.
        b: The greatest, likewise.

    Raises:
        InvalidArgument: No more than 1 in 1000 of the Gaussian lies within the bounds.
    """
    # The share of N(mean, std) within the bounds; redrawing takes 1 / share tries on average.
    inside = (math.erf((b - mean) / std / math.sqrt(2)) - math.erf((a - mean) / std / math.sqrt(2))) / 2
    if not inside > 1e-3:
        raise InvalidArgument(f"truncated_normal: only {inside:.1g} of a normal({mean}, {std}) lies in [{a}, {b}]")

    def fill(out: np.ndarray, rng: np.random.Generator, shape: Shape) -> None:
        if out.dtype.kind == "c":
            parts = out.view(real_of(out.dtype))
            fill(parts, rng, shape)
            parts -= mean
            parts /= math.sqrt(2)
            out += mean
            return
        _gauss(out, rng, mean, std)
        while True:
            outside = np.flatnonzero((out < a) | (out > b))
            if not outside.size:
                return
            again: np.ndarray = np.empty(outside.size, out.dtype)
            _gauss(again, rng, mean, std)
            out[outside] = again

    return Initializer(f"truncated_normal({mean}, {std}, {a}, {b})", fill)


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """U(-a, a) with a = gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Args:
        gain: See :func:`gain`.
    """
    return _flat_within(f"xavier_uniform({gain})", lambda shape: gain * math.sqrt(6 / sum(fans(shape))))


def xavier_normal(gain: float = 1.0) -> Initializer:
    """N(0, std) with std = gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Args:
        gain: See :func:`gain`.
    """
    return _gauss_of(f"xavier_normal({gain})", lambda shape: gain * math.sqrt(2 / sum(fans(shape))))


def kaiming_uniform(a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Initializer:
    """U(-b, b) with b = gain * sqrt(3 / fan) (He et al., 2015).

    Args:
        a: The slope of a leaky ReLU; of no meaning for others.
        mode: ``"fan_in"`` or ``"fan_out"``.
        nonlinearity: What :func:`gain` takes; the default with slope 0 is that of a ReLU.

    Raises:
        InvalidArgument: There is no such mode or nonlinearity.
    """
    factor, which = gain(nonlinearity, a), _mode(mode)
    name = f"kaiming_uniform({a}, {mode!r}, {nonlinearity!r})"
    return _flat_within(name, lambda shape: factor * math.sqrt(3 / fans(shape)[which]))


def kaiming_normal(a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Initializer:
    """N(0, std) with std = gain / sqrt(fan) (He et al., 2015).

    Args:
        a: As for :func:`kaiming_uniform`, as the others are.
        mode: Over which of the two sizes.
        nonlinearity: What follows the layer.

    Raises:
        InvalidArgument: As there.
    """
    factor, which = gain(nonlinearity, a), _mode(mode)
    name = f"kaiming_normal({a}, {mode!r}, {nonlinearity!r})"
    return _gauss_of(name, lambda shape: factor / math.sqrt(fans(shape)[which]))


def orthogonal(gain: float = 1.0) -> Initializer:
    """A (semi-)orthogonal matrix over (O, the rest), drawn in float64 (Saxe et al., 2013).

    Args:
        gain: What it is multiplied by.
    """

    def fill(out: np.ndarray, rng: np.random.Generator, shape: Shape) -> None:
        rows, columns = shape[0], math.prod(shape[1:])
        drawn: np.ndarray = np.empty((max(rows, columns), min(rows, columns)), out.dtype)
        _gauss(drawn.reshape(-1), rng, 0.0, 1.0)
        q, r = np.linalg.qr(drawn)
        diagonal = np.diag(r)
        q = q * np.where(diagonal == 0, 1, diagonal / np.abs(np.where(diagonal == 0, 1, diagonal)))  # makes the
        # distribution uniform, and the result unique
        out[...] = gain * (q if rows >= columns else q.conj().T).reshape(shape)

    return Initializer(f"orthogonal({gain})", fill, fans, elementwise=False, dtype=np.float64)


def default(kind: str, leaf: str, weight: Shape) -> Initializer:
    """What PyTorch's layers start from (``reset_parameters`` in torch.nn).

    Args:
        kind: The kind of layer.
        leaf: The canonical leaf.
        weight: The shape of the layer's weight, for a bias's bound.

    Returns:
        U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for linear layers and convolutions, N(0, 1) for embeddings; ones for other
        weights and running variances, zeros for the rest.
    """
    if kind in ("linear", "conv", "conv_transpose"):
        bound = 1 / math.sqrt(fans(weight)[0]) if fans(weight)[0] else 0.0
        return uniform(-bound, bound)
    if kind == "embedding":
        return normal()
    return ones() if leaf in ("weight", "running_var") else zeros()


def _mode(mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise InvalidArgument(f"mode is 'fan_in' or 'fan_out', not {mode!r}")
    return 0 if mode == "fan_in" else 1


def _flat_within(name: str, bound: Callable[[Shape], float]) -> Initializer:
    """U(-bound, bound), the bound depending on the fans of the shape."""
    return Initializer(name, lambda out, rng, shape: _flat(out, rng, -bound(shape), bound(shape)), fans)


def _gauss_of(name: str, std: Callable[[Shape], float]) -> Initializer:
    """N(0, std), the standard deviation depending on the fans of the shape."""
    return Initializer(name, lambda out, rng, shape: _gauss(out, rng, 0.0, std(shape)), fans)


# Both draw in place, in the dtype of ``out``: numpy would otherwise draw float64 and hold a second array.
def _gauss(out: np.ndarray, rng: np.random.Generator, mean: float, std: float) -> None:
    if out.dtype.kind == "c":
        _gauss(out.view(real_of(out.dtype)), rng, 0.0, std / math.sqrt(2))
        out += mean
        return
    rng.standard_normal(out=out, dtype=out.dtype)
    if std != 1:
        out *= std
    if mean:
        out += mean


def _flat(out: np.ndarray, rng: np.random.Generator, a: float, b: float) -> None:
    if out.dtype.kind == "c":
        half = (b - a) / 2 / math.sqrt(2)
        _flat(out.view(real_of(out.dtype)), rng, -half, half)
        out += (a + b) / 2
        return
    rng.random(out=out, dtype=out.dtype)
    out *= b - a
    out += a


def __dir__() -> list[str]:  # what users look for in mp.init
    named = ((name, f) for name, f in globals().items() if name[0] != "_" and name != "default")
    made = {name: getattr(f, "__annotations__", {}) for name, f in named if callable(f)}  # a module's would be made
    return [name for name, annotations in made.items() if annotations.get("return") == "Initializer"]
