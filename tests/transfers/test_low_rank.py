"""Low-rank updates: merged where their scale is known, else named. The truth is what the source's own pass gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
N = torch.nn
D, OUT, R = 4, 3, 2
X = np.random.default_rng(0).normal(size=(5, D)).astype("float32")


class Adapted(N.Module):
    """A layer with updates beside it, as packages build them: factors by adapter, and a scale for each."""

    def __init__(self, base: N.Module, a: N.Module, b: N.Module, scale: float = 0.5, adapter: str = "default") -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = N.ModuleDict({adapter: a}), N.ModuleDict({adapter: b})
        self.scaling = {adapter: scale}
        self.active_adapters = [adapter]
        self.merged = False

    def forward(self, x: Any) -> Any:
        y = self.base_layer(x)
        for name in self.active_adapters:
            y = y + self.scaling[name] * self.lora_B[name](self.lora_A[name](x))
        return y


def adapted_linear(out: int = OUT, **options: Any) -> Adapted:
    return Adapted(N.Linear(D, out), N.Linear(D, R, bias=False), N.Linear(R, out, bias=False), **options)


@pytest.mark.parametrize("out", [OUT, D])
def test_an_update_of_a_model_is_merged(out: int) -> None:
    """A square weight too, where a shape does not tell what is transposed."""
    source = mp.wrap(N.Sequential(adapted_linear(out), N.ReLU(), N.Linear(out, 2)))
    target = mp.wrap(N.Sequential(N.Linear(D, out), N.ReLU(), N.Linear(out, 2)))
    report = mp.transfer(source, target, verify=X)
    assert report.agrees and not report.plan.unused and not report.plan.guesses
    move = next(move for move in report.plan.moves if move.target == "0.weight")
    assert move.sources == ("0.base_layer.weight", "0.lora_A.default.weight", "0.lora_B.default.weight")
    assert "rank 2 merged" in move.change


def test_an_update_of_a_convolution_is_merged() -> None:
    a, b = N.Conv2d(D, R, 3, bias=False), N.Conv2d(R, OUT, 1, bias=False)
    source = mp.wrap(N.Sequential(Adapted(N.Conv2d(D, OUT, 3), a, b, scale=2.0)))
    x = np.random.default_rng(1).normal(size=(2, D, 6, 6)).astype("float32")
    assert mp.transfer(source, mp.wrap(N.Sequential(N.Conv2d(D, OUT, 3))), verify=x).agrees


@pytest.mark.parametrize("why", ["merged", "inactive", "more", "a bias"])
def test_what_does_not_add_up_is_left_behind_and_named(why: str) -> None:
    layer = adapted_linear()
    if why == "merged":
        layer.merged = True
    elif why == "inactive":
        layer.active_adapters = []
    elif why == "more":
        layer.lora_magnitude_vector = {"default": None}
    else:
        layer.lora_B["default"] = N.Linear(R, OUT)
    target = mp.wrap(N.Sequential(N.Linear(D, OUT)))
    report = mp.transfer(mp.wrap(N.Sequential(layer)), target)
    assert np.array_equal(target["0.weight"].numpy(), layer.base_layer.weight.detach().numpy())
    assert {"0.lora_A.default.weight", "0.lora_B.default.weight"} <= set(report.plan.unused)
    assert "Left behind, nothing in the target takes them: 0.lora_A.default.weight" in str(report)


def test_a_state_without_a_scale_is_named_and_one_with_alpha_merged() -> None:
    layer = adapted_linear()
    state = {f"model.0.{name}": value.detach().numpy() for name, value in layer.state_dict().items()}
    target = mp.wrap(N.Sequential(N.Linear(D, OUT)))
    assert mp.plan(state, target).unused == ["model.0.lora_A.default.weight", "model.0.lora_B.default.weight"]
    state["model.0.alpha"] = np.array(R / 2, "float32")
    assert not mp.plan(state, target).unused
    mp.transfer(state, target)
    with torch.no_grad():
        np.testing.assert_allclose(target(X), layer(torch.from_numpy(X)), rtol=1e-5, atol=1e-6)


def test_two_updates_of_one_layer_are_left_behind() -> None:
    layer = adapted_linear()
    layer.lora_A["other"], layer.lora_B["other"] = N.Linear(D, R, bias=False), N.Linear(R, OUT, bias=False)
    plan = mp.plan(mp.wrap(N.Sequential(layer)), mp.wrap(N.Sequential(N.Linear(D, OUT))))
    assert len(plan.unused) == 4 and plan.complete


def test_a_target_that_has_updates_takes_them_as_they_are() -> None:
    report = mp.transfer(mp.wrap(N.Sequential(adapted_linear())), mp.wrap(N.Sequential(adapted_linear())), verify=X)
    assert report.agrees and len(report.plan.moves) == 4


def test_what_is_left_behind_is_named_briefly() -> None:
    names = [f"gone.{i}.weight" for i in range(12)]
    state = {**{name: np.zeros((2, 2), "float32") for name in names}, "weight": np.ones((3, 4), "float32")}
    report = mp.transfer(state, mp.wrap(N.Linear(D, OUT, bias=False)))
    assert "gone.7.weight and 4 more." in str(report)


def test_jax_adds_its_factors_as_they_are() -> None:
    nnx = pytest.importorskip("flax.nnx")
    layer = nnx.LoRALinear(D, D, lora_rank=R, rngs=nnx.Rngs(0))
    net = mp.wrap(layer)
    net.init(mp.init.normal(std=0.5), seed=0)
    assert mp.transfer(net, mp.wrap(N.Linear(D, D)), verify=X).agrees
    wrapped = mp.wrap(nnx.LoRA(D, R, OUT, base_module=nnx.Linear(D, OUT, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)))
    wrapped.init(mp.init.normal(std=0.5), seed=0)
    assert mp.transfer(wrapped, mp.wrap(N.Linear(D, OUT)), verify=X).agrees


def test_keras_scales_by_rank() -> None:
    keras = pytest.importorskip("keras")
    dense, table = keras.layers.Dense(6), keras.layers.Embedding(5, 6)
    native = keras.Sequential([keras.Input((D,), dtype="int32"), table, dense])
    dense.enable_lora(R, lora_alpha=6)
    table.enable_lora(R, lora_alpha=1)
    net = mp.wrap(native)
    net.init(mp.init.normal(std=0.5), seed=0)
    target = mp.wrap(N.Sequential(N.Embedding(5, 6), N.Linear(6, 6)))
    assert mp.transfer(net, target, verify=np.array([[0, 1, 4, 2]], "int32")).agrees
