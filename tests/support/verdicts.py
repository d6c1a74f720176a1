"""One residual network written in PyTorch and, by other operations, in four ways more, with a mistake planted in some.

Who judges has to call equal what is, and see each mistake: in float32, in half precision, and with a softmax that is
taken in float32 whatever comes in. The same experiment over PyTorch alone has been the prototype of the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import multiparam as mp

WIDTH, DEPTH, OUT, ROWS = 16, 3, 5, 12


class Case(NamedTuple):
    """A mistake of the candidate, or none."""

    name: str
    same: bool
    scale: float = 1.0
    tanh: bool = False
    eps: float = 1e-5
    bias: bool = True


CASES = (
    Case("same, other operations", True),
    Case("output x 1.01", False, scale=1.01),
    Case("output x 1.003", False, scale=1.003),
    Case("tanh's gelu", False, tanh=True),
    Case("norm eps 1e-3, not 1e-5", False, eps=1e-3),
    Case("norm eps 1e-6, not 1e-5", False, eps=1e-6),
    Case("last bias left out", False, bias=False),
)
# What a candidate is written in, and in which setting -> how many weights and inputs the tests judge each mistake with.
CANDIDATES: Mapping[tuple[str, str, bool], int] = {
    ("torch", "float32", False): 12,
    ("torch", "float16", False): 12,
    ("torch", "bfloat16", False): 12,
    ("torch", "float32", True): 3,
    ("torch", "bfloat16", True): 3,
    ("linen", "float32", False): 1,
    ("keras", "float32", False): 1,
    ("gluon", "float32", False): 1,
}


class Verdict(NamedTuple):
    """One of the experiment's: what was compared, and whether it was judged as it is."""

    framework: str
    dtype: str
    island: bool
    case: str
    seed: int
    right: bool
    report: str


def inputs(seed: int, dtype: str) -> np.ndarray:
    """What both are run on: numbers that the dtype has, as float32."""
    import torch

    x = np.random.default_rng(seed + 100).normal(size=(ROWS, WIDTH))
    return np.asarray(torch.tensor(x).to(getattr(torch, dtype)).float())


def values(seed: int) -> dict[str, np.ndarray]:
    """Weights as float32."""
    rng, found = np.random.default_rng(seed), {}
    for i in range(DEPTH):
        found[f"l{i}.weight"] = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
        found[f"l{i}.bias"] = rng.normal(size=WIDTH) / 4
        found[f"n{i}.weight"] = 1 + rng.normal(size=WIDTH) / 8
        found[f"n{i}.bias"] = rng.normal(size=WIDTH) / 8
    found["o.weight"], found["o.bias"] = rng.normal(size=(OUT, WIDTH)) / WIDTH**0.5, rng.normal(size=OUT) / 4
    return {name: value.astype(np.float32) for name, value in found.items()}


def torch_model(case: Case, island: bool, plain: bool) -> Any:
    """By torch's own operations, or by others that round elsewhere."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(DEPTH):
                setattr(self, f"l{i}", nn.Linear(WIDTH, WIDTH))
                setattr(self, f"n{i}", nn.LayerNorm(WIDTH, case.eps if plain else 1e-5))
            self.o = nn.Linear(WIDTH, OUT)

        def forward(self, x: Any) -> Any:
            for i in range(DEPTH):
                linear, norm = getattr(self, f"l{i}"), getattr(self, f"n{i}")
                if plain:
                    h = norm(linear(x))
                else:
                    w, half = linear.weight, WIDTH // 2
                    h = x[..., :half] @ w[:, :half].T + (x[..., half:] @ w[:, half:].T + linear.bias)
                    m = h.mean(-1, keepdim=True)
                    v = ((h - m) ** 2).mean(-1, keepdim=True)
                    h = (h - m) / torch.sqrt(v + case.eps) * norm.weight + norm.bias
                if island and i == 1:
                    g = h.float()
                    e = torch.exp(g - g.max(-1, keepdim=True).values)
                    t = e.sum(-1, keepdim=True) if plain else e.flip(-1).cumsum(-1)[..., -1:]
                    h = (WIDTH * (e / t)).to(h.dtype)
                x = x + F.gelu(h, approximate="tanh" if case.tanh else "none")
            return case.scale * F.linear(x, self.o.weight, self.o.bias if case.bias else None)

    return Net().eval()


def in_torch(case: Case, island: bool, dtype: str, x: np.ndarray, plain: bool = False) -> mp.Model:
    import torch

    return mp.wrap(torch_model(case, island, plain).to(getattr(torch, dtype)))


def in_linen(case: Case, island: bool, dtype: str, x: np.ndarray) -> mp.Model:
    import jax
    import jax.numpy as jnp
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            for i in range(DEPTH):
                h = linen.Dense(WIDTH, name=f"l{i}", param_dtype=dtype)(x)
                h = linen.LayerNorm(case.eps, name=f"n{i}", param_dtype=dtype)(h)
                if island and i == 1:
                    h = (WIDTH * jax.nn.softmax(h.astype(jnp.float32))).astype(h.dtype)
                x = x + jax.nn.gelu(h, approximate=case.tanh)
            head = linen.Dense(OUT, name="o", param_dtype=dtype)
            y = head(x)
            return case.scale * (y if case.bias else y - head.variables["params"]["bias"])

    return mp.wrap(Net(), x.astype(dtype))


def in_keras(case: Case, island: bool, dtype: str, x: np.ndarray) -> mp.Model:
    import keras

    h = first = keras.Input((WIDTH,), dtype=dtype)
    for i in range(DEPTH):
        y = keras.layers.Dense(WIDTH, name=f"l{i}", dtype=dtype)(h)
        y = keras.layers.LayerNormalization(epsilon=case.eps, name=f"n{i}", dtype=dtype)(y)
        h = h + keras.ops.gelu(y, approximate=case.tanh)
    head = keras.layers.Dense(OUT, name="o", dtype=dtype)
    y = head(h)
    return mp.wrap(keras.Model(first, case.scale * (y if case.bias else y - head.bias)))


def in_gluon(case: Case, island: bool, dtype: str, x: np.ndarray) -> mp.Model:
    from multiparam_mxnet.load import load

    mx = load()

    class Net(mx.gluon.nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__(prefix="")
            with self.name_scope():
                for i in range(DEPTH):
                    setattr(self, f"l{i}", mx.gluon.nn.Dense(WIDTH, in_units=WIDTH, flatten=False))
                    setattr(self, f"n{i}", mx.gluon.nn.LayerNorm(in_channels=WIDTH, epsilon=case.eps))
                self.o = mx.gluon.nn.Dense(OUT, in_units=WIDTH, flatten=False)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            for i in range(DEPTH):
                h = getattr(self, f"n{i}")(getattr(self, f"l{i}")(x))
                if case.tanh:
                    x = x + 0.5 * h * (1 + F.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h * h * h)))
                else:
                    x = x + F.LeakyReLU(h, act_type="gelu")
            y = self.o(x)
            bias = self.o.bias.data() if F is mx.nd else self.o.bias.var()
            return case.scale * (y if case.bias else F.broadcast_sub(y, bias.expand_dims(0)))

    net = Net()
    net.initialize()
    return mp.wrap(net)


MAKE: Mapping[str, Callable[..., mp.Model]] = {
    "torch": in_torch, "linen": in_linen, "keras": in_keras, "gluon": in_gluon,
}  # fmt: skip


@cache
def reference(island: bool, dtype: str) -> mp.Model:
    """In PyTorch, by its own operations."""
    return in_torch(CASES[0], island, dtype, inputs(0, dtype), plain=True)


def judged(framework: str, dtype: str, island: bool, seeds: Iterable[int]) -> Iterator[Verdict]:
    """The verdicts of one setting: each mistake, with the weights and inputs of each seed."""
    for case in CASES:
        x = inputs(0, dtype)
        candidate = MAKE[framework](case, island, dtype, x)
        for seed in seeds:
            x, one = inputs(seed, dtype), reference(island, dtype)
            one.load_state_dict({name: value.astype(one[name].numpy().dtype) for name, value in values(seed).items()})
            candidate.load_state_dict(one.state_dict())
            found = mp.compare({"reference": one, "candidate": candidate}, x)
            numeric = [check.agrees for check in found.checks if check.check == "outputs"]
            right = found.agrees == case.same and all(numeric) == case.same
            yield Verdict(framework, dtype, island, case.name, seed, right, str(found))
