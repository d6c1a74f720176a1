"""Networks nobody here wrote: every native parameter is reached once, written exactly, and differentiated right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam.core.parameter import slot_of

IMAGE = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype("float32")


def written_and_read_back(net: mp.Model) -> None:
    """Every parameter, in canonical layout, bit for bit, leaving no other changed."""
    rng = np.random.default_rng(1)
    new = {name: rng.normal(size=p.shape).astype(p.dtype) for name, p in net.parameters().items()}
    for name, value in new.items():
        net[name].assign(value)
    for name, value in new.items():
        np.testing.assert_array_equal(net[name].numpy(), value, err_msg=name)


# -- MXNet's model zoo


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
@pytest.mark.parametrize("name", ["resnet18_v1", "mobilenet0_25", "vgg11_bn"])
def test_gluons_model_zoo(name: str) -> None:
    from multiparam_mxnet.load import load

    mx = load()
    native = getattr(mx.gluon.model_zoo.vision, name)(classes=10)
    native.initialize(mx.init.Xavier())
    native.hybridize()
    net = mp.wrap(native, IMAGE)
    collected = native.collect_params()
    trained = {p.name for p in collected.values() if p.grad_req != "null"}
    assert {p.native.name for p in net} == trained
    assert {p.native.name for p in net.buffers().values()} == set(collected) - trained
    assert len(net) == len(trained)
    assert sum(p.size for p in net) == sum(int(np.prod(collected[n].shape)) for n in trained)
    assert not any(
        char.isdigit() and prefix in p.name for p in net for prefix in ("resnetv1", "vgg") for char in p.name
    )

    x = mx.nd.array(IMAGE)
    # in training mode: MXNet's own gradients of BatchNorm in inference mode differ from one run to the next
    mx.random.seed(0)
    _, grads = net.value_and_grad(lambda net, x: (net(x) ** 2).mean())(IMAGE)
    mine = {p.native.name: np.array(mp.to_numpy(grads[p.name])) for p in net}
    mx.random.seed(0)
    with mx.autograd.record():
        loss = (native(x) ** 2).mean()
    loss.backward()
    for name_, g in mine.items():
        np.testing.assert_array_equal(g, collected[name_].grad().asnumpy(), err_msg=name_)
    written_and_read_back(net)


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
def test_a_gluon_network_built_twice_has_the_same_names() -> None:
    from multiparam_mxnet.load import load

    mx = load()
    names = []
    for _ in range(2):
        native = mx.gluon.model_zoo.vision.resnet18_v1(classes=10)
        native.initialize()
        names.append(list(mp.wrap(native, IMAGE).parameters()))
    assert names[0] == names[1]


# -- keras.applications


def keras_network(module: Any, name: str) -> Any:
    return getattr(module.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10)


@pytest.mark.xdist_group("tensorflow")
@pytest.mark.parametrize(
    ("generation", "name"),
    [
        pytest.param("keras", "MobileNetV2", marks=pytest.mark.needs("tensorflow")),
        pytest.param("tf_keras", "MobileNetV2", marks=pytest.mark.needs("tf_keras")),
        pytest.param("keras", "ResNet50", marks=[pytest.mark.needs("tensorflow"), pytest.mark.slow]),
        pytest.param("keras", "DenseNet121", marks=[pytest.mark.needs("tensorflow"), pytest.mark.slow]),
    ],
)
def test_keras_applications(generation: str, name: str) -> None:
    module = pytest.importorskip(generation)
    import tensorflow as tf

    native = keras_network(module, name)
    net = mp.wrap(native)
    assert {id(p.native) for p in net} == {id(v) for v in native.trainable_variables}
    assert {id(p.native) for p in net.buffers().values()} == {id(v) for v in native.non_trainable_variables}
    assert sum(p.size for p in net) == sum(int(np.prod(v.shape)) for v in native.trainable_variables)
    assert list(mp.wrap(keras_network(module, name)).parameters()) == list(net.parameters())

    x = tf.constant(np.moveaxis(IMAGE, 1, -1))
    _, grads = net.value_and_grad(lambda net, x: tf.reduce_mean(net(x) ** 2), train=False)(x)
    variables = [v if isinstance(v, tf.Variable) else v.value for v in native.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(native(x, training=False) ** 2)
    truth = {id(v): g for v, g in zip(native.trainable_variables, tape.gradient(loss, variables), strict=True)}
    for p in net:
        mine, own = mp.to_numpy(grads[p.name]), truth[id(p.native)].numpy()
        own = own if slot_of(p).canonical is None else slot_of(p).canonical.apply(own, np)
        scale = max(float(np.abs(own).max()), 1e-12)
        assert float(np.abs(mine - own).max()) <= 1e-3 * scale, p.name
    written_and_read_back(net)


@pytest.mark.needs("tensorflow")
@pytest.mark.xdist_group("tensorflow")
def test_attention_keeps_its_layers_private_and_they_are_reached() -> None:
    import keras

    layer = keras.layers.MultiHeadAttention(2, 4)
    x = np.ones((2, 3, 4), "float32")
    layer(x, x)
    net = mp.wrap(layer)
    natives = [v for p in net for v in (p.native if isinstance(p.native, tuple) else (p.native,))]
    assert {id(v) for v in natives} == {id(v) for v in layer.trainable_variables} and len(natives) == 8
    assert list(net.parameters()) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]


# -- PyTorch


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_torchs_transformer() -> None:
    import torch

    native = torch.nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
    net = mp.wrap(native)
    assert list(net.parameters()) == [name for name, _ in native.named_parameters()]
    x = torch.ones(2, 3, 16)
    _, grads = net.value_and_grad(lambda net, x: net(x, x).square().mean())(x)
    native.zero_grad()
    native(x, x).square().mean().backward()
    for name, p in native.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, msg=name)
    written_and_read_back(net)


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_a_torch_language_model_with_a_tied_head() -> None:
    import torch

    class Language(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(20, 8)
            self.rnn = torch.nn.LSTM(8, 8, 2, batch_first=True)
            self.head = torch.nn.Linear(8, 20)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(self.embed(x))[0])

    native = Language()
    net = mp.wrap(native)
    assert net.ties() == [("embed.weight", "head.weight")]
    assert len(net) == len(list(native.parameters()))
    x = np.arange(6).reshape(2, 3)
    _, grads = net.value_and_grad(lambda net, x: net(x).square().mean())(x)
    native.zero_grad()
    native(torch.tensor(x)).square().mean().backward()
    torch.testing.assert_close(grads["embed.weight"], native.embed.weight.grad)


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_containers_parametrizations_and_compiled_modules_in_torch() -> None:
    import torch

    native = torch.nn.ModuleDict(
        {
            "list": torch.nn.ModuleList([torch.nn.Linear(3, 4)]),
            "normed": torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 2)),
        }
    )
    native.register_parameter("scale", torch.nn.Parameter(torch.ones(2)))
    native.register_buffer("kept", torch.zeros(1))
    native.register_buffer("passing", torch.zeros(1), persistent=False)
    net = mp.wrap(native)
    assert list(net.parameters()) == [name for name, _ in native.named_parameters()]
    assert list(net.buffers()) == ["kept"]
    assert list(net.buffers(persistent=False)) == ["passing"]
    compiled = mp.wrap(torch.compile(torch.nn.Linear(3, 2)))
    assert list(compiled.parameters()) == ["weight", "bias"]


@pytest.mark.needs("torch")
@pytest.mark.xdist_group("torch")
def test_bfloat16_in_torch() -> None:
    import torch

    net = mp.wrap(torch.nn.Linear(3, 2).bfloat16())
    p = net["weight"]
    assert p.dtype == "bfloat16" and p.numpy().dtype.name == "bfloat16"
    p.assign(np.full((2, 3), 0.1), cast=True)
    assert torch.equal(net.native.weight, torch.full((2, 3), 0.1, dtype=torch.bfloat16))
    p[0, 0] = 42
    assert net.native.weight[0, 0].item() == 42


# -- Flax


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_a_linen_transformer_block_with_a_shared_embedding() -> None:
    import jax
    from flax import linen, traverse_util

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            y = linen.LayerNorm()(x)
            x = x + linen.MultiHeadDotProductAttention(2)(y, y)
            return x + linen.Dense(8)(linen.relu(linen.Dense(16)(x)))

    class Language(linen.Module):
        def setup(self) -> None:
            self.embed = linen.Embed(10, 8)
            self.blocks = [Block() for _ in range(2)]

        def __call__(self, x: Any) -> Any:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return self.embed.attend(x)

    module, x = Language(), np.arange(6).reshape(2, 3)
    variables = module.init(jax.random.key(0), x)
    net = mp.wrap(module, x, variables=variables)
    flat = traverse_util.flatten_dict(variables["params"])
    assert len(net) == len(flat) - 2 * 4  # queries, keys and values of each block are one weight and one bias
    assert sum(p.size for p in net) == sum(a.size for a in flat.values())
    assert "blocks_0.Dense_0.weight" in net.parameters() and net["embed.weight"].shape == (10, 8)

    _, grads = net.value_and_grad(lambda net, x: (net(x) ** 2).mean())(x)
    truth = jax.grad(lambda v: (module.apply(v, x) ** 2).mean())(variables)["params"]
    np.testing.assert_allclose(grads["embed.weight"], truth["embed"]["embedding"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        grads["blocks_1.Dense_1.weight"], truth["blocks_1"]["Dense_1"]["kernel"].T, rtol=1e-5, atol=1e-7
    )
    written_and_read_back(net)


@pytest.mark.needs("jax")
@pytest.mark.xdist_group("jax")
def test_layers_that_linen_scans_over_are_stacked_in_front() -> None:
    from flax import linen

    class Cell(linen.Module):
        @linen.compact
        def __call__(self, carry: Any, _: Any) -> Any:
            return linen.Dense(5)(linen.Dense(4)(carry))[:, :4], None

    class Deep(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            cells = linen.scan(linen.remat(Cell), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return cells(name="cells")(x, None)[0]

    net = mp.wrap(Deep(), np.ones((2, 4), "float32"))
    name = next(name for name in net.parameters() if name.endswith(("Dense_0.weight", "Dense_1.weight")))
    assert net[name].shape[0] == 3 and set(net[name].shape[1:]) <= {4, 5}
    written_and_read_back(net)
