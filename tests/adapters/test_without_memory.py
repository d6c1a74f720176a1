"""Models made without memory have shapes; reads and writes say so, until they are given memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.interpreter import python

import multiparam as mp
from multiparam import errors

X = np.ones((2, 4), "float32")


def torch_model(memory: bool) -> mp.Model:
    import torch

    with torch.device("cpu" if memory else "meta"):
        native = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    return mp.wrap(native)


def linen_model(memory: bool) -> mp.Model:
    import jax
    from flax import linen

    module = linen.Sequential([linen.Dense(3), linen.BatchNorm(use_running_average=True), linen.Dense(3)])
    make: Callable[..., Any] = module.init if memory else lambda *inputs: jax.eval_shape(module.init, *inputs)
    return mp.wrap(module, X, variables=make(jax.random.key(0), X))


def nnx_model(memory: bool) -> mp.Model:
    from flax import nnx

    def make() -> Any:
        rngs = nnx.Rngs(0)
        return nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs))

    return mp.wrap(make() if memory else nnx.eval_shape(make))


MODELS = [
    pytest.param(torch_model, marks=[pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]),
    pytest.param(linen_model, marks=[pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]),
    pytest.param(nnx_model, marks=[pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]),
]
every_model = pytest.mark.parametrize("model", MODELS)
VERBS: dict[str, Callable[[mp.Model, Path], Any]] = {
    "numpy": lambda net, path: net["0.weight"].numpy(),
    "value": lambda net, path: net["0.weight"].value,
    "element": lambda net, path: net["0.weight"][0, 0],
    "assign": lambda net, path: net["0.weight"].assign(np.ones((3, 4), "float32")),
    "set": lambda net, path: net.__setitem__("0.bias", np.ones(3, "float32")),
    "add": lambda net, path: net["0.bias"].__iadd__(1),
    "init": lambda net, path: net.init(mp.init.zeros()),
    "init by a function": lambda net, path: net.init(lambda shape, rng: np.zeros(shape)),
    "state_dict": lambda net, path: net.state_dict(),
    "load_state_dict": lambda net, path: net.load_state_dict(dict(mp.read(path))),
    "save": lambda net, path: mp.save(net, path.with_name("other.safetensors")),
    "load": lambda net, path: mp.load(net, path),
    "transfer": lambda net, path: mp.transfer(path, net),
    "gradients": lambda net, path: net.value_and_grad(mp.losses.mse)(X, np.zeros((2, 3), "float32")),
    "forward": lambda net, path: net(X),
}


@every_model
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_is_a_silent_no_op(tmp_path: Path, model: Callable[[bool], mp.Model], verb: str) -> None:
    path = mp.save(model(True), tmp_path / "w.safetensors")
    with pytest.raises(errors.NoValues, match=r"values.*made without memory.*materialise=True"):
        VERBS[verb](model(False), path)
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


@every_model
def test_shapes_ties_and_plans_need_no_memory(model: Callable[[bool], mp.Model]) -> None:
    bare, whole = model(False), model(True)
    assert {n: (p.shape, p.dtype) for n, p in bare.parameters().items()} == {
        n: (p.shape, p.dtype) for n, p in whole.parameters().items()
    }
    assert mp.plan(whole, bare).complete
    assert mp.plan(bare, whole).complete
    bare.tie("2.bias", "0.bias")
    assert bare.ties() == [("0.bias", "2.bias")] and "0.bias" in str(bare.summary())


@every_model
@pytest.mark.parametrize("by", ["load", "transfer"])
def test_it_is_given_memory_with_its_values(tmp_path: Path, model: Callable[[bool], mp.Model], by: str) -> None:
    whole, bare = model(True), model(False)
    whole.init(mp.init.normal())
    whole["2.bias"] = whole["0.bias"].numpy()
    bare.tie("2.bias", "0.bias")
    bare.freeze("0.weight")
    held = bare["0.weight"]
    if by == "load":
        mp.load(bare, mp.save(whole, tmp_path / "w.safetensors"), materialise=True)
    else:
        mp.transfer(whole, bare, materialise=True)
    for name, value in whole.state_dict().items():
        assert (bare[name].numpy() == value).all()
    assert (held.numpy() == whole["0.weight"].numpy()).all() and not held.trainable and bare["2.weight"].trainable
    assert bare.ties() == [("0.bias", "2.bias")] and bare.check() == []
    assert (bare.to_numpy(bare(X)) == whole.to_numpy(whole(X))).all()
    bare.value_and_grad(mp.losses.mse)(X, np.zeros((2, 3), "float32"))


@every_model
def test_a_refused_load_gives_no_memory(tmp_path: Path, model: Callable[[bool], mp.Model]) -> None:
    bare = model(False)
    path = mp.save({"0.weight": np.zeros((9, 9), "float32")}, tmp_path / "w.safetensors")
    with pytest.raises(errors.StateError):
        mp.load(bare, path, materialise=True)
    with pytest.raises(errors.NoValues):
        bare["0.weight"].numpy()
    part = mp.save({"0.bias": np.ones(3, "float32")}, tmp_path / "part.safetensors")
    mp.load(bare, part, strict=False, materialise=True)
    assert bare["0.bias"].numpy().tolist() == [1, 1, 1]
    with pytest.raises(errors.NoValues, match=r"0\.weight"):
        bare["0.weight"].numpy()


@every_model
def test_materialise_gives_zeros_that_can_be_initialised(model: Callable[[bool], mp.Model]) -> None:
    bare, whole = model(False).materialise(), model(True)
    assert all(not p.numpy().any() for p in bare.parameters().values())
    for net in (bare, whole):
        net.init(mp.init.xavier_uniform(), "*.weight", kind="linear", seed=3)
    assert (bare["2.weight"].numpy() == whole["2.weight"].numpy()).all()
    before = whole["2.weight"].numpy()
    assert (whole.materialise()["2.weight"].numpy() == before).all()


@pytest.mark.needs("torch")
def test_a_buffer_that_no_file_has_is_named() -> None:
    import torch

    class Rotary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)
            self.register_buffer("inv_freq", torch.ones(2), persistent=False)

    with torch.device("meta"):
        native = Rotary()
    with pytest.warns(mp.MultiparamWarning, match=r"'inv_freq' has a shape and no values: the model's own code"):
        mp.wrap(native).materialise()
    assert native.inv_freq.is_meta and not native.linear.weight.is_meta


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_two_gigabytes_load_with_one_array_more(tmp_path: Path) -> None:
    code = f"""
import resource, torch, numpy as np, multiparam as mp
def model(): return torch.nn.ModuleList(torch.nn.Linear(4096, 4096, bias=False) for _ in range(30))
with torch.device("meta"): net = mp.wrap(model())
from multiparam.weights.safetensors import Tensor, write_safetensors
path = {str(tmp_path / "w.safetensors")!r}
with open(path, "wb") as file:
    make = lambda i: lambda: np.full((4096, 4096), i, "float32")
    write_safetensors(file, [Tensor(f"{{i}}.weight", (4096, 4096), "float32", make(i)) for i in range(30)], {{}})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mp.load(net, path, materialise=True)
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(used, float(net["29.weight"][0, 0]))
"""
    used, last = map(float, python(code).split())
    assert last == 29
    assert used < 30 * 64 + 64 + 32  # MiB: the model, one array, and what the frameworks need
