"""Keras models of half precision are judged in float64, however they are put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam.core.group import store_of

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

pytestmark = pytest.mark.needs("torch", "tensorflow")
X = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")


class Twin(torch.nn.Module):
    """The reference, as PyTorch's users write it."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8, 1e-5), torch.nn.Linear(8, 4)
        self.to(dtype)

    def forward(self, x: Any) -> Any:
        return self.b(self.n(torch.nn.functional.gelu(self.a(x))))


def keras_model(how: str, dtype: str, eps: float = 1e-5, tanh: bool = False, scale: float = 1.0) -> Any:
    layers, policy = keras.layers, keras.DTypePolicy(dtype)
    a, b = layers.Dense(8, name="a", dtype=policy), layers.Dense(4, name="b", dtype=policy)
    n = layers.LayerNormalization(epsilon=eps, name="n", dtype=policy)

    def gelu(y: Any) -> Any:
        return keras.ops.gelu(y, approximate=tanh) * scale

    act = layers.Lambda(gelu, name="act", dtype=policy)
    x, h = keras.Input((8,)), keras.Input((8,), dtype=policy.compute_dtype)
    if how == "functional":
        return keras.Model(x, b(n(act(a(x)))))
    if how == "nested":
        return keras.Model(x, b(keras.Model(h, n(act(h)))(a(x))))
    if how == "sequential":
        return keras.Sequential([a, act, n, b])

    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype=policy)
            self.a, self.act, self.n, self.b = a, act, n, b

        def call(self, y: Any) -> Any:
            return self.b(self.n(self.act(self.a(y))))

    return Subclassed()


WAYS = ("functional", "nested", "sequential", "subclassed")
DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
QUICK = {("functional", "bfloat16"), ("functional", "mixed_bfloat16")}
CASES = [
    pytest.param(how, dtype, marks=() if (how, dtype) in QUICK else pytest.mark.slow)
    for how in WAYS
    for dtype in DTYPES
]


def compared(how: str, dtype: str, **mistake: Any) -> Any:
    source = Twin(torch.float32 if dtype.startswith("mixed") else getattr(torch, dtype))
    return mp.compare({"torch": source, "keras": keras_model(how, dtype, **mistake)}, X, sync="torch")


def in_float64(found: Any) -> Any:
    return next(check for check in found.checks if check.check == "outputs" and check.dtype == "float64")


@pytest.mark.parametrize(("how", "dtype"), CASES)
def test_a_twin_agrees_in_float64(how: str, dtype: str) -> None:
    found = compared(how, dtype)
    check = in_float64(found)
    assert found.agrees, str(found)
    assert check.distance < 64 and check.floor is None


@pytest.mark.parametrize(("how", "dtype"), CASES)
def test_a_scale_of_a_thousandth_is_seen(how: str, dtype: str) -> None:
    found = compared(how, dtype, scale=1.001)
    check = in_float64(found)
    assert not found.agrees and check.distance > 1e7 and check.bound < 1e6, str(found)
    assert "between layers a and n" in found.pairs[0].parted


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [{"eps": 1e-6}, {"tanh": True}])
@pytest.mark.parametrize(("how", "dtype"), CASES)
def test_mistakes_are_seen(how: str, dtype: str, mistake: dict[str, Any]) -> None:
    assert not compared(how, dtype, **mistake).agrees


def test_a_model_that_takes_tokens_computes_in_float64_and_is_left_as_it_was() -> None:
    tokens = keras.Input((4,), dtype="int32")
    embedded = keras.layers.Embedding(5, 3, dtype="bfloat16")(tokens)
    native = keras.Model(tokens, keras.layers.Dense(3, dtype="bfloat16")(embedded))
    net = mp.wrap(native, np.ones((2, 4), "int32"))
    wide = store_of(net).host.in_float64()
    given = store_of(net).from_numpy(np.array([[0, 3, 1, 4]], "int32"))
    before, floatx = native(given), keras.config.floatx()
    assert wide is not None
    with wide:
        assert net(given).dtype == "float64" and keras.config.floatx() == "float64"
    assert keras.config.floatx() == floatx
    np.testing.assert_array_equal(np.asarray(native(given), "float32"), np.asarray(before, "float32"))
