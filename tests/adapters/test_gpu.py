"""Models on an accelerator: every write stays where the model is, with the numbers that a CPU has.

Run with ``CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu tests/adapters/test_gpu.py``. The truth is a twin on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import multiparam as mp

pytestmark = pytest.mark.gpu
X = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
Y = np.zeros((4, 5), "float32")


def torch_pair() -> tuple[mp.Model, mp.Model]:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no accelerator")
    torch.backends.cuda.matmul.allow_tf32 = False
    native = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
    return mp.wrap(copy.deepcopy(native).to("cuda")), mp.wrap(native)


def jax_devices() -> tuple[Any, Any]:
    import jax

    try:
        return jax.devices("gpu")[0], jax.devices("cpu")[0]
    except RuntimeError:
        pytest.skip("JAX sees no accelerator")


def nnx_pair() -> tuple[mp.Model, mp.Model]:
    import jax
    from flax import nnx

    gpu, cpu = jax_devices()
    jax.config.update("jax_default_matmul_precision", "highest")

    def network(device: Any) -> Any:
        with jax.default_device(device):
            rngs = nnx.Rngs(0)
            layers = nnx.Linear(6, 5, rngs=rngs), jax.nn.tanh, nnx.Linear(5, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)
            net = nnx.Sequential(*layers)
        nnx.update(net, jax.device_put(nnx.state(net), device))
        return net

    return mp.wrap(network(gpu)), mp.wrap(network(cpu))


def linen_pair() -> tuple[mp.Model, mp.Model]:
    import jax
    from flax import linen

    gpu, cpu = jax_devices()
    jax.config.update("jax_default_matmul_precision", "highest")
    module = linen.Sequential([linen.Dense(5), jax.nn.tanh, linen.Dense(5), linen.Dense(5)])
    variables = module.init(jax.random.key(0), X)
    return tuple(mp.wrap(module, variables=jax.device_put(variables, device)) for device in (gpu, cpu))  # type: ignore[return-value]


PAIRS: dict[str, Callable[[], tuple[mp.Model, mp.Model]]] = {
    "torch": torch_pair,
    "nnx": nnx_pair,
    "linen": linen_pair,
}


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(name if name == "torch" else "jax")) for name in PAIRS]
)
def pair(request: pytest.FixtureRequest) -> tuple[mp.Model, mp.Model]:
    return PAIRS[request.param]()


def platforms(net: mp.Model) -> set[str]:
    """Where its arrays are."""
    found = set()
    for p in net.parameters().values():
        native = getattr(p.native, "value", p.native)
        devices = [native.device] if net.backend == "torch" else native.devices()
        found |= {getattr(device, "type", getattr(device, "platform", "")) for device in devices}
    return found


def alike(net: mp.Model, twin: mp.Model, close: bool = False) -> None:
    assert platforms(net) == {"cuda" if net.backend == "torch" else "gpu"} and platforms(twin) == {"cpu"}
    for p, q in zip(net.parameters().values(), twin.parameters().values(), strict=True):
        same = np.allclose(p.numpy(), q.numpy(), atol=1e-6) if close else np.array_equal(p.numpy(), q.numpy())
        assert same, p.name


def on_device(net: mp.Model, value: np.ndarray) -> Any:
    if net.backend == "torch":
        import torch

        return torch.from_numpy(value).to("cuda")
    import jax

    return jax.device_put(value, jax.devices("gpu")[0])


@contextmanager
def no_host_copy(net: mp.Model) -> Iterator[None]:
    """Whatever makes numpy of the framework's arrays, or waits for the device, raises."""
    if net.backend == "torch":
        import torch

        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with mock.patch.object(type(net.adapter), "to_numpy", side_effect=AssertionError("a copy on the host")):
        yield


def test_verbs_leave_the_model_where_it_is(pair: tuple[mp.Model, mp.Model], tmp_path: Path) -> None:
    net, twin = pair
    for each in pair:
        each.init(mp.init.xavier_uniform(), "*weight", seed=1)
        weight, bias, *_ = each.parameters().values()
        bias.assign(np.arange(5, dtype="float32"))
        weight[0, 0] = 0.5
    alike(net, twin)
    path = mp.save(net, tmp_path / "w.safetensors")
    net.init(mp.init.zeros())
    mp.load(net, path)
    alike(net, twin)
    net.init(mp.init.zeros())
    mp.transfer(twin, net, verify=X)
    alike(net, twin)
    net.load_state_dict(twin.state_dict())
    alike(net, twin)
    assert mp.compare({"device": net, "host": twin}, X).agrees


def test_training_and_ties_are_what_they_are_on_a_cpu(pair: tuple[mp.Model, mp.Model]) -> None:
    net, twin = pair
    for each in pair:
        names = list(each.parameters())
        each.init(mp.init.normal(std=0.3), seed=2)
        each.tie(names[4], names[2])
        each.freeze(names[1])
        step, optimizer = each.value_and_grad(mp.losses.mse), each.optimizer("adam", lr=0.01)
        for _ in range(3):
            step(X, Y)
            optimizer.step()
    assert len(net.ties()) == 1
    alike(net, twin, close=True)
    assert np.allclose(net.to_numpy(net(X)), twin.to_numpy(twin(X)), atol=1e-5)
    net.untie(list(net.parameters(aliases=True))[4])
    assert platforms(net) <= {"cuda", "gpu"} and not net.ties()


def test_an_array_on_the_device_is_assigned_there(pair: tuple[mp.Model, mp.Model]) -> None:
    net, _ = pair
    p = next(iter(net.parameters().values()))
    value = np.random.default_rng(3).normal(size=p.shape).astype("float32")
    array = on_device(net, value)
    with no_host_copy(net):
        p.assign(array)
    assert np.array_equal(p.numpy(), value) and platforms(net) <= {"cuda", "gpu"}
    if net.backend == "torch":
        array.zero_()  # the parameter keeps no alias of it
    else:
        array.delete()
    assert np.array_equal(p.numpy(), value)
    with pytest.raises(mp.ShapeError):
        p.assign(on_device(net, value[:1]))


def test_a_files_arrays_go_where_the_model_is(pair: tuple[mp.Model, mp.Model], tmp_path: Path) -> None:
    net, twin = pair
    mp.save({name: np.full(p.shape, i, "float32") for i, (name, p) in enumerate(net.parameters().items())},
            tmp_path / "w.safetensors")  # fmt: skip
    for each in pair:
        mp.transfer(tmp_path / "w.safetensors", each)
    alike(net, twin)
