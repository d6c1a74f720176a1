"""The measured noise floor, over functions written by hand and over models of each framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam.comparison import noise

W = np.random.default_rng(0).normal(size=(16, 16)) / 4
X = np.random.default_rng(1).normal(size=(64, 16)).astype("float32")


def runs(function: Any) -> noise.Run:
    return lambda size, seed: {"": function(noise.moved(X, size, seed))}


def narrow(dtype: Any, where: int) -> Any:
    """Three layers, one of which computes in another dtype whatever comes in."""

    def function(x: np.ndarray) -> np.ndarray:
        for i in range(3):
            x = np.tanh(x.astype(dtype).astype(np.float64) @ W) if i == where else np.tanh(x @ W)
        return x

    return function


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize(("dtype", "unit"), [(np.float32, 2.0**-24), (np.float16, 2.0**-11)])
def test_a_part_that_rounds_coarser_is_measured(dtype: Any, unit: float, where: int) -> None:
    assert unit / 16 < noise.noise_floor(runs(narrow(dtype, where))) < unit * 16


def test_a_pass_in_float64_has_no_floor() -> None:
    assert noise.noise_floor(runs(narrow(np.float64, 0))) == 0


def test_what_is_random_or_jumps_has_no_floor() -> None:
    random = np.random.default_rng(2)
    assert noise.noise_floor(runs(lambda x: x * random.integers(0, 2, x.shape))) == 0
    assert noise.noise_floor(runs(lambda x: (x > 0).astype(int))) == 0
    assert noise.noise_floor(runs(lambda x: x * np.nan)) == 0


def torch_island(order: str, eps: float = 1e-5) -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.n, self.b = torch.nn.Linear(16, 16), torch.nn.LayerNorm(16, eps), torch.nn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            g = self.a(x).float()
            e = torch.exp(g - g.max(-1, keepdim=True).values)
            total = e.sum(-1, keepdim=True) if order == "sum" else e.flip(-1).cumsum(-1)[..., -1:]
            return self.b(self.n((e / total).to(x.dtype)))

    return Net()


def linen_island(x: Any, eps: float = 1e-5) -> Any:
    import jax.numpy as jnp
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            g = linen.Dense(16, name="a")(x).astype(jnp.float32)
            p = linen.softmax(g).astype(x.dtype)
            return linen.Dense(4, name="b")(linen.LayerNorm(eps, name="n", use_fast_variance=False)(p))

    return mp.wrap(Net(), x)


@pytest.mark.parametrize("other", ["torch", pytest.param("linen", marks=pytest.mark.needs("jax"))])
@pytest.mark.parametrize(("eps", "agrees"), [(1e-5, True), (1e-6, False), (1.2e-5, False)])
@pytest.mark.needs("torch")
def test_an_island_of_float32_is_no_false_alarm_and_hides_no_eps(other: str, eps: float, agrees: bool) -> None:
    candidate = torch_island("cumsum", eps) if other == "torch" else linen_island(X, eps)
    found = mp.compare({"a": torch_island("sum"), "b": candidate}, X, sync="a")
    computed = [check for check in found.checks if check.check in ("outputs", "gradients")]
    assert all(check.agrees for check in computed) == agrees, str(found)
    assert found.agrees == agrees


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("factor", [1.0, 1.003])
def test_models_of_half_precision_are_judged_in_float64(dtype: str, factor: float) -> None:
    import torch

    class Scaled(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.factor = torch.nn.Linear(16, 4), factor

        def forward(self, x: Any) -> Any:
            return self.body(x) * self.factor

    models = {name: Scaled(f).to(getattr(torch, dtype)) for name, f in (("a", 1.0), ("b", factor))}
    before = {name: [p.data_ptr() for p in model.parameters()] for name, model in models.items()}
    found = mp.compare(models, X)
    assert found.agrees == (factor == 1.0) and found.checks[4].dtype == "float64"
    assert {name: [p.data_ptr() for p in model.parameters()] for name, model in models.items()} == before
    assert all(str(p.dtype) == f"torch.{dtype}" for p in models["a"].parameters())
