"""What Gluon's blocks are called, and what a SymbolBlock's variables are.

The truth is Gluon itself: ``collect_params`` by identity, and what the network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp

mx = pytest.importorskip("multiparam_mxnet.load").load()
gluon = mx.gluon
nn = gluon.nn

pytestmark = [pytest.mark.needs("mxnet"), pytest.mark.xdist_group("mxnet")]
X = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(2, 2, 8, 8)).astype("float32")


def wrap(native: Any, inputs: np.ndarray = X) -> mp.Model:
    native.initialize(mx.init.Xavier())
    return mp.wrap(native, inputs)


def listed(make: Callable[[], Any], inputs: np.ndarray = X) -> list[str]:
    """The names of a network: each of Gluon's parameters once, and the same for two that are made the same way."""
    nets = [wrap(make(), inputs) for _ in range(2)]
    for net in nets:
        ours = [*net.parameters().values(), *net.buffers().values()]
        assert sorted(id(p.native) for p in ours) == sorted(map(id, net.native.collect_params().values()))
    first, second = ([*net.parameters(), *net.buffers()] for net in nets)
    assert first == second
    return first


def both(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


# -- names


class Registered(nn.HybridBlock):  # type: ignore[misc,name-defined]
    """Children under the names that Gluon gives them, some of which the user chose."""

    def __init__(self, scoped: bool) -> None:
        super().__init__()
        layers = [lambda: nn.Dense(4), lambda: nn.Dense(4, prefix="middle_"), lambda: nn.Dense(2)]
        self.ordered = []
        for layer in layers:
            if scoped:
                with self.name_scope():
                    made = layer()
            else:
                made = layer()
            self.ordered.append(made)
            self.register_child(made, made.name)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        for layer in self.ordered:
            x = layer(x)
        return x


@pytest.mark.parametrize("scoped", [True, False])
def test_names_that_count_blocks_are_positions_and_a_users_prefix_is_a_name(scoped: bool) -> None:
    assert listed(lambda: Registered(scoped)) == both("0", "middle", "2")


def test_keys_that_begin_with_the_parents_counter_show_what_comes_behind_it() -> None:
    class Net(nn.HybridSequential):  # type: ignore[misc,name-defined]
        def add(self, *blocks: Any) -> None:
            for block in blocks:
                self.register_child(block, f"{self.prefix}part{len(self._children)}")

    def make() -> Any:
        net = Net()
        net.add(nn.Dense(4), nn.Dense(2))
        return net

    assert listed(make) == both("part0", "part1")


def test_attributes_and_keys_that_look_like_counters_are_the_users() -> None:
    class Net(nn.HybridBlock):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.dense0, self.last = nn.Dense(4), nn.Dense(2)
            self.other = [nn.Dense(2)]
            self.register_child(self.other[0], "dense1")

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.other[0](self.last(self.dense0(x)))

    assert listed(Net) == both("dense0", "last", "dense1")


def test_a_position_in_the_place_of_a_name_does_not_clash() -> None:
    class Net(nn.HybridSequential):  # type: ignore[misc,name-defined]
        pass

    def make() -> Any:
        net, layers = Net(), [nn.Dense(4), nn.Dense(2)]
        net.register_child(layers[0], "1")
        net.register_child(layers[1], layers[1].name)
        return net

    assert listed(make) == both("1", "1_dense")


def test_parameters_in_no_attribute_have_the_name_they_were_asked_for() -> None:
    class Net(nn.Block):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.params.get("scale", shape=(4,), init="ones")
            self.params.get("more", shape=(4,), init="ones")
            self.out = nn.Dense(1)

        def forward(self, x: Any) -> Any:
            return self.out(x * self.params.get("scale").data())

    assert listed(Net) == [*both("out"), "scale", "more"]
    net = wrap(Net())
    net["scale"].assign(np.zeros(4, "float32"))
    np.testing.assert_array_equal(mp.to_numpy(net(X)), np.zeros((2, 1)))
    with pytest.raises(mp.errors.Unsupported, match="in no attribute"):
        net.tie("scale", "more")


def test_a_block_under_two_attributes_blocks_nothing() -> None:
    class Net(nn.HybridBlock):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = self.again = nn.Dense(4)
            self.out = nn.Dense(2)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.out(self.again(self.embed(x)))

    class Once(Net):
        def __init__(self) -> None:
            nn.HybridBlock.__init__(self)
            self.embed, self.out = nn.Dense(4), nn.Dense(2)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.out(self.embed(self.embed(x)))

    for classes in ((Net, Once), (Once, Net), (Net, Net)):
        source, target = (wrap(cls()) for cls in classes)
        assert list(source.parameters()) == both("embed", "out")
        plan = mp.plan(source, target)
        assert plan.complete
        assert not (plan.guesses or plan.unused or plan.ties)
        assert mp.transfer(source, target, verify=X).agrees
        assert mp.compare({"reference": source, "candidate": target}, X).agrees


# -- gamma that counts as ones


def test_a_batchnorm_without_scale_says_so() -> None:
    net = nn.HybridSequential()
    net.add(nn.BatchNorm(scale=False, in_channels=4), nn.BatchNorm(in_channels=4), nn.LayerNorm(scale=False))
    options = wrap(net).options()
    assert options["0"]["scale"] is False
    assert "scale" not in options["1"]
    assert "scale" not in options["2"]  # its operator multiplies by gamma all the same
    gamma = net[0].gamma
    gamma.set_data(mx.nd.array([2, 2, 2, 2]))
    assert not np.allclose(mp.to_numpy(net[0](mx.nd.array(X))), 2 * X, atol=1e-2)


# -- SymbolBlock


def imported(path: Path, layers: list[Any], inputs: np.ndarray = IMAGES) -> tuple[Any, np.ndarray]:
    """A network exported and imported again, and what it computed."""
    made = nn.HybridSequential()
    made.add(*layers)
    made.initialize(mx.init.Xavier())
    made.hybridize()
    truth = made(mx.nd.array(inputs)).asnumpy()
    made.export(str(path / "net"))
    block = gluon.SymbolBlock.imports(f"{path / 'net'}-symbol.json", ["data"], f"{path / 'net'}-0000.params")
    return block, truth


def layers() -> list[Any]:
    convolution = nn.Conv2D(3, 3, strides=2, padding=1, in_channels=2)
    return [convolution, nn.BatchNorm(scale=False, epsilon=1e-3), nn.PReLU(), nn.Conv2D(4, 3), nn.Dense(2)]


NAMES = [
    *both("conv0", "batchnorm0"),
    "prelu0.weight",
    *both("conv1", "dense0"),
]


@pytest.mark.filterwarnings("ignore:Cannot decide type")
def test_a_symbol_block_is_listed_by_layer_and_its_running_statistics_are_buffers(tmp_path: Path) -> None:
    for _ in range(2):
        block, truth = imported(tmp_path, layers())
        net = mp.wrap(block, IMAGES)
        assert list(net.parameters()) == NAMES
        assert list(net.buffers()) == ["batchnorm0.running_mean", "batchnorm0.running_var"]
        np.testing.assert_allclose(mp.to_numpy(net(IMAGES)), truth, rtol=1e-5, atol=1e-6)
    kinds = [net[name].kind for name in NAMES]
    assert kinds == ["conv"] * 2 + ["batchnorm"] * 2 + ["prelu"] + ["conv"] * 2 + ["linear"] * 2
    assert net.options()["conv0"] == {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    assert net.options()["batchnorm0"] == {"eps": 1e-3, "momentum": 0.1, "scale": False}
    net["conv0.weight"].assign(np.zeros((3, 2, 3, 3), "float32"))
    assert not np.allclose(mp.to_numpy(net(IMAGES)), truth)
    with pytest.raises(mp.errors.Unsupported, match="in no attribute"):
        net.tie("conv0.bias", "batchnorm0.bias")


@pytest.mark.filterwarnings("ignore:Cannot decide type")
@pytest.mark.needs("torch")
def test_a_symbol_block_goes_into_torch_and_compares(tmp_path: Path) -> None:
    import torch

    block, _ = imported(tmp_path, [nn.Conv2D(3, 3, in_channels=2), nn.BatchNorm(), nn.Flatten(), nn.Dense(2)])
    source = mp.wrap(block, IMAGES)
    source["batchnorm0.running_mean"].assign(np.float32([1, 2, 3]))
    modules = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(108, 2)
    target = mp.wrap(torch.nn.Sequential(*modules).eval())
    assert mp.transfer(source, target, accept_guesses=True, verify=IMAGES).agrees
    assert target["1.running_mean"].numpy().tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:Cannot decide type")
def test_the_names_of_a_symbol_that_was_written_by_hand_stay(tmp_path: Path) -> None:
    x = mx.sym.var("data")
    for i in (1, 2):
        x = mx.sym.FullyConnected(x, num_hidden=4, name=f"fc{i}")
    x = mx.sym.broadcast_mul(x, mx.sym.var("head_scale", shape=(1, 4)))
    block = gluon.SymbolBlock(x, mx.sym.var("data"))
    block.initialize(mx.init.Uniform())
    block(mx.nd.array(X))
    net = mp.wrap(block)
    assert list(net.parameters()) == [*both("fc1", "fc2"), "head.scale"]
    assert net["head.scale"].kind == "broadcast_mul"
