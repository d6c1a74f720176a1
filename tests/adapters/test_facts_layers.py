"""What was measured of shapes that are not known yet, and of names: one stable path for every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

X = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)

in_torch = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]
in_mxnet = [pytest.mark.needs("mxnet"), pytest.mark.xdist_group("mxnet")]
in_jax = [pytest.mark.needs("jax"), pytest.mark.xdist_group("jax")]
in_tensorflow = [pytest.mark.needs("tensorflow"), pytest.mark.xdist_group("tensorflow")]
torch_only, mxnet_only, jax_only, tensorflow_only = (
    lambda test, marks=marks: marks[0](marks[1](test)) for marks in (in_torch, in_mxnet, in_jax, in_tensorflow)
)


def names(native: Any, *inputs: Any, **options: Any) -> list[str]:
    return list(mp.wrap(native, *inputs, **options).parameters(aliases=True))


def both(*layers: str) -> list[str]:
    return [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]


# -- shapes before the first forward


@torch_only
def test_a_lazy_torch_parameter_is_not_read_as_an_empty_one() -> None:
    """Layers, before the first forward: torch's lazy .data is silently tensor([])."""
    import torch

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = torch.nn.Linear(4, 3)
            self.later = torch.nn.LazyConv1d(2, 1)

        def forward(self, x: Any) -> Any:
            return self.later(self.known(x)[:, :, None])

    assert Half().later.weight.data.numel() == 0
    with pytest.raises(mp.errors.UnknownShapes, match=r"'later\.weight', 'later\.bias'"):
        mp.wrap(Half())
    assert mp.wrap(Half(), X)["later.weight"].numpy().shape == (2, 3, 1)


@mxnet_only
@pytest.mark.parametrize("layer", ["Dense", "Conv2D"])
def test_a_deferred_gluon_shape_is_not_read_as_a_zero_or_minus_one(mx: Any, layer: str) -> None:
    """Layers, before the first forward: Gluon's unknown dims are -1 under np, 0 under nd, and a bias may be there."""
    nn = mx.gluon.nn
    native, x, shape = {
        "Dense": (nn.Dense(3), X, (3, 4)),
        "Conv2D": (nn.Conv2D(3, 2), np.ones((1, 2, 5, 5), "float32"), (3, 2, 2, 2)),
    }[layer]
    native.initialize()
    assert native.bias.data().shape == (3,)
    with pytest.raises(mp.errors.UnknownShapes, match="'weight'"):
        mp.wrap(native)
    net = mp.wrap(native, x)
    assert net["weight"].shape == net["weight"].numpy().shape == shape


@mxnet_only
def test_set_data_before_initialize_leaves_a_shape_that_is_not_believed(mx: Any) -> None:
    """Layers: Gluon's set_data before initialize asserts, but has changed .shape already."""
    native = mx.gluon.nn.Dense(3)
    with pytest.raises(AssertionError):
        native.weight.set_data(mx.nd.array(np.ones((3, 4))))
    assert native.weight.shape == (3, 4)
    with pytest.raises(mp.errors.UnknownShapes, match="not initialised"):
        mp.wrap(native)


@jax_only
def test_wrapping_linen_with_an_input_makes_the_shapes_that_init_makes() -> None:
    """Layers: linen has nothing before init; eval_shape(init) gives the shapes."""
    import jax
    from flax import linen

    module = linen.Sequential([linen.Conv(5, (3, 2)), lambda x: x.reshape(len(x), -1), linen.Dense(2)])
    x = np.ones((1, 6, 7, 3), "float32")
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    net = mp.wrap(module, x)
    assert net["0.weight"].native.shape == shapes["layers_0"]["kernel"].shape == (3, 2, 3, 5)
    assert net["0.weight"].shape == (5, 3, 3, 2)
    assert net["2.weight"].shape == shapes["layers_2"]["kernel"].shape[::-1] == (2, 210)


@tensorflow_only
def test_a_keras_model_whose_inner_layer_is_not_built_is_not_taken_for_an_empty_one(lib: Any) -> None:
    """Layers, before the first forward: Keras 3 .weights == [], tf_keras raises ValueError."""

    class Outer(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lib.Sequential([lib.layers.Dense(3), lib.layers.Dense(1)])
            self.built = True

        def call(self, x: Any) -> Any:
            return self.inner(x)

    with pytest.raises(mp.errors.UnknownShapes, match="example inputs"):
        mp.wrap(Outer())
    assert names(Outer(), X) == both("inner.0", "inner.1")


@tensorflow_only
@pytest.mark.filterwarnings("ignore:.*build")
def test_a_called_keras_model_with_a_layer_it_never_uses_can_be_wrapped(lib: Any) -> None:
    """Layers: what no call reaches has no variables, neither before the first forward nor after it."""

    class Spare(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = lib.layers.Dense(2), lib.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.used(x)

    native = Spare()
    native(X)
    assert names(native, X) == both("used")


# -- layouts


@mxnet_only
def test_a_gluon_conv_is_canonical_whatever_its_layout(mx: Any) -> None:
    """Layers: layout (out, in, ...) in torch and Gluon; NHWC turns the weight too."""
    make = mx.gluon.nn.Conv2D
    first, last = make(5, (2, 3), in_channels=4), make(5, (2, 3), in_channels=4, layout="NHWC")
    for native in (first, last):
        native.initialize()
    assert first.weight.shape == (5, 4, 2, 3) and last.weight.shape == (5, 2, 3, 4)
    values = np.random.default_rng(0).normal(size=(5, 4, 2, 3)).astype("float32")
    mp.wrap(first)["weight"].assign(values)
    mp.wrap(last)["weight"].assign(values)
    np.testing.assert_array_equal(first.weight.data().asnumpy(), values)
    np.testing.assert_array_equal(last.weight.data().asnumpy(), values.transpose(0, 2, 3, 1))


@jax_only
def test_a_lifted_linen_layer_keeps_the_axis_it_was_lifted_over() -> None:
    """Layers: (in, out) in Flax is turned; linen.vmap and scan stack kernels, which have one axis more."""
    import jax
    from flax import linen

    class Heads(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            lifted = linen.vmap(
                linen.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
            )
            return lifted(2)(x)

    variables = Heads().init(jax.random.key(0), X)
    kernel = variables["params"]["VmapDense_0"]["kernel"]
    net = mp.wrap(Heads(), X, variables=variables)
    weight = next(p for p in net if p.native is kernel)
    assert kernel.shape == (3, 4, 2)
    assert weight.size == 24
    assert weight.numpy().size == 24
    weight[:] = 0
    assert not np.asarray(net.variables["params"]["VmapDense_0"]["kernel"]).any()


# -- paths: names users give


@mxnet_only
def test_gluon_children_may_have_dots_and_spaces_in_their_names(mx: Any) -> None:
    """Paths: names hold dots and spaces, and joined text would be ambiguous."""
    nn = mx.gluon.nn
    native, inner = nn.HybridSequential(), nn.HybridSequential()
    inner.register_child(nn.Dense(3, in_units=4), "b")
    native.register_child(inner, "a")
    native.register_child(nn.Dense(4, in_units=3), "a.b")
    native.register_child(nn.Dense(2, in_units=4), "block 0")
    native.initialize()
    net = mp.wrap(native)
    assert list(net.parameters()) == both("a.b", r"a\.b", "block 0")
    assert net["a.b.weight"].native is inner._children["b"].weight
    assert net[r"a\.b.weight"].native is native._children["a.b"].weight
    assert net[r"a\.b"]["bias"] is net[1]["bias"]
    assert net["block 0.weight"].shape == (2, 4)


@torch_only
def test_torch_names_may_have_spaces_and_lists_and_dicts_are_levels() -> None:
    """Paths: walk _modules and _parameters; a name holds spaces."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items_ = nn.ModuleList([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)])
            self.heads = nn.ModuleDict({"left eye": nn.Linear(4, 1), "weight": nn.Linear(4, 1)})
            self.raw = nn.ParameterList([nn.Parameter(self.items_[0].weight.detach().clone())])
            self._hidden = nn.Linear(4, 2)

    native = Net()
    net = mp.wrap(native)
    assert list(net.parameters()) == list(native.state_dict())
    assert net["heads"]["left eye"]["weight"].native is native.heads["left eye"].weight
    assert net["items_"][2]["bias"] is net["items_.2.bias"]


@jax_only
def test_linen_names_may_have_dots_and_spaces() -> None:
    """Paths: tree path, names holding dots and spaces."""
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(1, name="head.b")(linen.Dense(3, name="block 0")(x))

    net = mp.wrap(Net(), X)
    assert list(net.parameters()) == both("block 0", r"head\.b")
    assert net[r"head\.b"]["weight"].shape == (1, 3)


@jax_only
def test_linens_lists_and_dicts_are_named_as_in_the_tree_and_found_as_levels() -> None:
    """Paths: linen's tree says blocks_0 and layers_2: the first is a scope's name, the second a position."""
    import jax
    from flax import linen

    class Net(linen.Module):
        def setup(self) -> None:
            self.blocks = [linen.Dense(4) for _ in range(2)]
            self.heads = {"left eye": linen.Dense(1), "a.b": linen.Dense(1)}
            self.tail = linen.Sequential([linen.Dense(3), linen.relu, linen.Dense(2)])
            self._last = linen.Dense(2)

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return self._last(self.tail(self.heads["left eye"](x) + self.heads["a.b"](x)))

    variables = Net().init(jax.random.key(0), X)
    assert {"blocks_0", "heads_a.b", "tail", "_last"} <= set(variables["params"])
    net = mp.wrap(Net(), X, variables=variables)
    heads = both("heads_left eye", r"heads_a\.b")
    assert list(net.parameters()) == [*both("blocks_0", "blocks_1"), *heads, *both("tail.0", "tail.2", "_last")]
    assert net["tail"][2]["weight"].native is variables["params"]["tail"]["layers_2"]["kernel"]
    bias = net["blocks_1.bias"]
    assert bias.native is variables["params"]["blocks_1"]["bias"] and bias.name == "blocks_1.bias"
    assert net["blocks.1.bias"] is net["blocks"][1]["bias"] is net[0][1]["bias"] is net["blocks"]["1.bias"] is bias
    assert list(net["blocks"].parameters()) == both("blocks_0", "blocks_1")
    assert net[r"heads.a\.b.weight"] is net[r"heads_a\.b.weight"] is net["heads"][1]["weight"]
    assert net[2][2]["weight"] is net["tail.2.weight"]


# -- paths: every parameter has one


@mxnet_only
def test_a_gluon_parameter_is_listed_or_refused_but_never_lost(mx: Any) -> None:
    """Paths: Gluon's _reg_params hold what an attribute holds; collect_params() holds more."""

    class Scale(mx.gluon.Block):
        def __init__(self) -> None:
            super().__init__()
            self.params.get("factor", shape=(1, 4))

        def forward(self, x: Any) -> Any:
            return x * self.params.get("factor").data()

    native = Scale()
    native.initialize()
    try:
        net = mp.wrap(native)
    except mp.MultiparamError:
        return
    assert {id(p.native) for p in net} == {id(p) for p in native.collect_params().values()}


def _private(lib: Any) -> Any:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self._hidden, self.hidden, self.out = (lib.layers.Dense(n) for n in (3, 3, 1))
            self._more = [lib.layers.Dense(3), {"a": lib.layers.Dense(3)}]

        def call(self, x: Any) -> Any:
            return self.out(self._more[1]["a"](self._more[0](self.hidden(self._hidden(x)))))

    return Net()


def _functional_subclass(lib: Any) -> Any:
    class Net(lib.Model):
        def __init__(self) -> None:
            x = lib.Input((4,))
            hidden = lib.layers.Dense(3)
            super().__init__(x, lib.layers.Dense(1)(hidden(x)))
            self.first = hidden

    return Net()


def _sequential_subclass(lib: Any) -> Any:
    class Net(lib.Sequential):
        def __init__(self) -> None:
            super().__init__([lib.layers.Dense(3), lib.layers.Dense(1)])

    return Net()


def _attention(lib: Any) -> Any:
    x = lib.Input((4,))
    sequence = lib.layers.Reshape((2, 2))(x)
    return lib.Model(x, lib.layers.MultiHeadAttention(2, 3)(sequence, sequence))


def _recurrent(lib: Any) -> Any:
    layers = lib.layers
    return lib.Sequential(
        [
            layers.Reshape((2, 2)),
            layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(3)),
            layers.RNN([layers.GRUCell(2), layers.SimpleRNNCell(2)]),
        ]
    )


@tensorflow_only
@pytest.mark.parametrize("make", [_private, _functional_subclass, _sequential_subclass, _attention, _recurrent])
def test_every_keras_variable_has_a_name(lib: Any, make: Callable[[Any], Any]) -> None:
    """Paths, Keras: the reverse look-up by identity is complete in both generations."""
    native = make(lib)
    native(X)
    net = mp.wrap(native, X)
    natives = (p.native if isinstance(p.native, tuple) else (p.native,) for p in net)  # several where packed
    listed = {id(native) for each in natives for native in each}
    assert [w.name for w in native.trainable_weights if id(w) not in listed] == []
    assert len(listed) == len(native.trainable_weights)


@jax_only
def test_every_nnx_param_has_a_name() -> None:
    """Paths, NNX: the flat-state path holds private attributes too."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self._hidden, self.out = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
            self._scale = nnx.Param(np.ones(3, "float32"))

        def __call__(self, x: Any) -> Any:
            return self.out(self._hidden(x) * self._scale[...])

    native = Net(nnx.Rngs(0))
    params = (native._hidden.kernel, native._hidden.bias, native.out.kernel, native.out.bias, native._scale)
    assert {id(p.native) for p in mp.wrap(native)} == {id(p) for p in params}


# -- paths: the counters of the process never show


@mxnet_only
def test_gluons_counters_never_show(mx: Any) -> None:
    """Paths, Gluon: never the dense0_ names, which count up in the process."""
    nn = mx.gluon.nn

    class Net(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.body, self.head = nn.HybridSequential(), nn.Dense(1)
                self.body.add(nn.Dense(4), nn.BatchNorm(), nn.Dense(3))

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.head(self.body(x))

    natives = [Net(), Net()]
    for native in natives:
        native.initialize()
    first, second = (names(native, X) for native in natives)
    assert list(natives[0].collect_params()) != list(natives[1].collect_params())
    assert first == second
    assert [n for n in first if "running" not in n] == both("body.0", "body.1", "body.2", "head")


def _auto(lib: Any) -> Any:
    layers = lib.layers
    x = lib.Input((6, 6, 2))
    y = layers.Conv2D(3, 3)(x)
    y = layers.BatchNormalization()(y)
    y = layers.Dense(4, name="my dense" if lib.__name__ == "keras" else "my_dense")(layers.Flatten()(y))
    return lib.Model(x, layers.Dense(1)(layers.Dense(2)(y)))


def _nested(lib: Any) -> Any:
    """A Functional model in a Functional model, beside a Sequential."""
    layers = lib.layers
    x, z = lib.Input((4,)), lib.Input((4,))
    inner = lib.Model(z, layers.Dense(3)(lib.Sequential([layers.Dense(5), layers.Dense(4)])(z)))
    return lib.Model(x, layers.Dense(1)(inner(x)))


def _lists(lib: Any) -> Any:
    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [lib.layers.Dense(3), [lib.layers.Dense(4), lib.layers.Dense(5)]]
            self.heads = {"a.b": lib.layers.Dense(2), "left eye": lib.layers.Dense(2)}
            self.pair = (lib.layers.Dense(1),)

        def call(self, x: Any) -> Any:
            x = self.blocks[1][1](self.blocks[1][0](self.blocks[0](x)))
            return self.pair[0](self.heads["a.b"](x) + self.heads["left eye"](x))

    return Net()


def _reused(lib: Any) -> Any:
    x = lib.Input((4,))
    shared = lib.layers.Dense(4)
    return lib.Model(x, lib.layers.Dense(1)(shared(shared(x))))


KERAS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], list[str]]] = {
    "functional": (
        _auto,
        (2, 6, 6, 2),
        both("conv2d", "batch_normalization", "my dense", "dense", "dense_1"),
    ),
    "sequential": (
        lambda lib: lib.Sequential([lib.layers.Dense(3), lib.Sequential([lib.layers.Dense(2)]), lib.layers.Dense(1)]),
        (2, 4),
        both("0", "1.0", "2"),
    ),
    "lists and dicts": (
        _lists,
        (2, 4),
        both("blocks.0", "blocks.1.0", "blocks.1.1", r"heads.a\.b", "heads.left eye", "pair.0"),
    ),
    "a layer used twice": (_reused, (2, 4), both("dense", "dense_1")),
}


@tensorflow_only
@pytest.mark.parametrize("case", KERAS)
def test_kerass_counters_never_show(lib: Any, case: str) -> None:
    """Paths, Keras: name and path are neither unique nor stable; a Sequential's index, a Functional layer's name."""
    make, shape, expected = KERAS[case]
    lib.layers.Dense(1), lib.layers.Conv2D(1, 1)  # the counters have moved on
    x = np.ones(shape, "float32")
    for native in (make(lib), make(lib)):
        found = list(mp.wrap(native, x).parameters())
        assert [n.replace("my_dense", "my dense") for n in found] == expected


@tensorflow_only
def test_a_nested_functional_model_has_the_same_names_each_time(lib: Any) -> None:
    """Paths, Keras: the counter in a nested model's own name must not show either."""
    first, second = names(_nested(lib)), names(_nested(lib))
    assert first == second
    assert len(first) == 8
    assert first[-2:] == both("dense")


@tensorflow_only
def test_a_functional_layer_named_like_another_class_of_layer_does_not_clash(lib: Any) -> None:
    """Paths, Keras: names are not unique across classes once the counter is taken off."""
    layers = lib.layers
    layers.Embedding(2, 2)
    x = lib.Input((4,), dtype="int32")
    rows = layers.Flatten()(layers.Embedding(10, 3, name="embedding_7")(x))
    native = lib.Model(x, layers.Dense(2, name="embedding")(rows))
    found = names(native)
    assert len(set(found)) == len(native.weights) == 3
    assert mp.wrap(native).select(kind="embedding").parameters().keys() <= set(found)


@tensorflow_only
def test_a_keras_layers_position_counts_the_layers_without_parameters(lib: Any) -> None:
    """Paths, Keras: a Sequential's index is what its user counts."""
    layers = lib.layers
    native = lib.Sequential([lib.Input((2, 2)), layers.Flatten(), layers.Dense(3), layers.ReLU(), layers.Dense(1)])
    net = mp.wrap(native)
    assert list(net.parameters()) == both("1", "3")
    assert net[3]["weight"].native is native.layers[3].kernel


@tensorflow_only
def test_dots_in_keras_names_stay_apart_from_levels(lib: Any) -> None:
    """Paths: joined text is ambiguous where a segment holds a dot."""

    class Net(lib.Model):
        def __init__(self) -> None:
            super().__init__()
            self.a = {"b.c": lib.layers.Dense(2), "b": {"c": lib.layers.Dense(2)}}

        def call(self, x: Any) -> Any:
            return self.a["b.c"](x) + self.a["b"]["c"](x)

    native = Net()
    net = mp.wrap(native, X)
    assert sorted(net.parameters()) == sorted(both(r"a.b\.c", "a.b.c"))
    assert net[r"a.b\.c.weight"].native is native.a["b.c"].kernel
    assert net["a.b.c.weight"].native is native.a["b"]["c"].kernel
