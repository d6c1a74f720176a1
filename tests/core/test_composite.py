"""Recurrent layers and attention in canonical form: parameters that are several native arrays, or rows of one.

Each case is one layer in PyTorch, the truth, and its twins: the layers the libraries have for it, in float64. Numbers
are drawn per canonical name, written into PyTorch's layer by torch alone and into a twin through multiparam; then
outputs, gradients and optimizer steps must be PyTorch's.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from support.flavours import GROUPS, in_framework

import multiparam as mp

pytest.importorskip("torch")
import torch

I, H, N, T = 4, 5, 2, 3  # noqa: E741 (inputs, hidden, batch, time)
HEADS, SIZE = 2, 4
F64 = "float64"


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that nothing could mix up, and that float32 can hold."""
    return np.random.default_rng(zlib.crc32(name.encode())).uniform(-1, 1, shape).astype("float32").astype(F64)


X = drawn("x", (N, T, I))
STEP = drawn("x", (N, I))
STATE, MEMORY = drawn("h", (N, H)), drawn("c", (N, H))
KEYS, VALUES = drawn("k", (N, T + 1, I)), drawn("v", (N, T + 1, I))
KEYS5, VALUES7 = drawn("k", (N, T + 1, 5)), drawn("v", (N, T + 1, 7))


def far(value: Any, truth: Any, dtype: str = F64) -> float:
    """The normwise distance in eps."""
    value, truth = np.asarray(value), np.asarray(truth)
    assert value.shape == truth.shape and value.dtype == dtype
    return float(np.max(np.abs(value - truth)) / np.max(np.abs(truth)) / np.finfo(dtype).eps)


# -- how each library is called: the arguments it takes for PyTorch's inputs, and the output among what it returns


def whole(y: Any) -> Any:
    return y


def at(i: int) -> Callable[[Any], Any]:
    return lambda y: y[i]


Form = dict[str, tuple[Callable[..., tuple[Any, ...]], Callable[[Any], Any]]]
PLAIN: Form = dict.fromkeys(("gluon", "linen", "nnx", "keras"), (lambda x: (x,), whole))
LAYER: Form = {**PLAIN, "torch": (lambda x: (x,), at(0))}
CELL: Form = {
    "torch": (lambda x, h: (x, h), whole),
    "gluon": (lambda x, h: (x, [h]), at(0)),
    "linen": (lambda x, h: (h, x), at(1)),
    "nnx": (lambda x, h: (h, x), at(1)),
    "keras": (lambda x, h: (x, [h]), at(0)),
}
LSTM_CELL: Form = {
    "torch": (lambda x, h, c: (x, (h, c)), at(0)),
    "gluon": (lambda x, h, c: (x, [h, c]), at(0)),
    "linen": (lambda x, h, c: ((c, h), x), at(1)),
    "nnx": (lambda x, h, c: ((c, h), x), at(1)),
    "keras": (lambda x, h, c: (x, [h, c]), at(0)),
}
ATTENTION: Form = {
    "torch": (lambda q, k, v: (q, k, v), at(0)),
    "linen": (lambda q, k, v: (q, k, v), whole),
    "nnx": (lambda q, k, v: (q, k, v), whole),
    "keras": (lambda q, k, v: (q, v, k), whole),
}
SELF_ATTENTION: Form = {**PLAIN, "torch": (lambda x: (x, x, x), at(0))}


# -- the cases


@dataclass(frozen=True)
class Twin:
    """A layer of one library. ``make`` gets its module of layers; what it makes takes no more than the inputs.

    ``bias_hh`` says what it has of PyTorch's recurrent bias: "all", "none", or "n", that of a GRU's n alone. Two have
    no float64: MXNet 1.9.1 leaves memory as it was in the gradients of all but the last of several recurrent layers
    there, and the softmax of NNX's attention is in float32.
    """

    library: str
    make: Callable[[Any], Any]
    bias_hh: str = "all"
    note: str = ""
    dtype: str = F64
    only_nd: bool = False  # Gluon's cells do not take MXNet's numpy arrays
    trains: bool = True  # MXNet does not train an LSTM with projection on a CPU


@dataclass(frozen=True)
class Case:
    kind: str
    truth: Callable[[], Any]
    form: Form
    inputs: tuple[np.ndarray, ...]
    twins: tuple[Twin, ...] = field(default=())


R = torch.nn


class GruBefore(torch.nn.Module):
    """What PyTorch has not: a GRU whose reset gate acts before the recurrent product (Cho et al., 2014)."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"weight_ih_l0": (3 * H, I), "weight_hh_l0": (3 * H, H), "bias_ih_l0": (3 * H,)}
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.zeros(shape)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        h, states = x.new_zeros(len(x), H), []
        w_r, w_z, w_n = self.weight_hh_l0.chunk(3)
        for i_r, i_z, i_n in ((x[:, t] @ self.weight_ih_l0.T + self.bias_ih_l0).chunk(3, 1) for t in range(T)):
            r, z = torch.sigmoid(i_r + h @ w_r.T), torch.sigmoid(i_z + h @ w_z.T)
            h = (1 - z) * torch.tanh(i_n + (r * h) @ w_n.T) + z * h
            states.append(h)
        return (torch.stack(states, 1),)


class FromState(torch.nn.LSTM):
    """A layer that is told its state, as linen's scan makes one of a cell."""

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, (h[None], c[None]))[0]


def scanned(f: Any) -> Any:
    over_time = {"in_axes": 1, "out_axes": 1, "variable_broadcast": "params", "split_rngs": {"params": False}}
    return f.scan(f.LSTMCell, **over_time)(H, param_dtype=F64)


def linen_rnn(cell: str) -> Callable[[Any], Any]:
    return lambda f: f.RNN(getattr(f, cell)(H, param_dtype=F64))


def nnx_cell(cell: str) -> Callable[[Any], Any]:
    more = {"dtype": F64} if cell == "SimpleCell" else {}  # by default it computes in float32
    return lambda f: getattr(f, cell)(I, H, param_dtype=F64, rngs=f.Rngs(0), **more)


def nnx_rnn(cell: str) -> Callable[[Any], Any]:
    return lambda f: f.RNN(nnx_cell(cell)(f), rngs=f.Rngs(0))


def both_ways(rnn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Flax's Bidirectional."""
    return lambda f: f.Bidirectional(rnn(f), rnn(f), **({"rngs": f.Rngs(0)} if hasattr(f, "Rngs") else {}))


def nnx_attention(f: Any) -> Any:
    return f.MultiHeadAttention(HEADS, HEADS * SIZE, decode=False, rngs=f.Rngs(0))


def torch_attention(**options: Any) -> Any:
    return torch.nn.MultiheadAttention(HEADS * SIZE, HEADS, batch_first=True, **options)


SERIES = {"return_sequences": True, "dtype": F64}
GLUON = {"layout": "NTC", "input_size": I}
WIDE = tuple(drawn(name, (N, length, HEADS * SIZE)) for name, length in (("q", T), ("k", T + 1), ("v", T + 1)))
MIXED = (WIDE[0], KEYS5, VALUES7)


def stacked(k: Any, cell: Any) -> Any:
    return k.RNN(k.StackedRNNCells([cell(H, dtype=F64) for _ in range(2)], dtype=F64), **SERIES)


CASES = {
    "rnn": Case(
        "rnn",
        lambda: R.RNN(I, H, batch_first=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.RNN(H, activation="tanh", **GLUON)),
            Twin("linen", linen_rnn("SimpleCell"), "none"),
            Twin("nnx", nnx_rnn("SimpleCell"), "none"),
            Twin("keras", lambda k: k.SimpleRNN(H, **SERIES), "none"),
        ),
    ),
    "rnn both ways": Case(
        "rnn",
        lambda: R.RNN(I, H, batch_first=True, bidirectional=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.RNN(H, activation="tanh", bidirectional=True, **GLUON)),
            Twin("linen", both_ways(linen_rnn("SimpleCell")), "none"),
            Twin("nnx", both_ways(nnx_rnn("SimpleCell")), "none"),
            Twin("keras", lambda k: k.Bidirectional(k.SimpleRNN(H, **SERIES), dtype=F64), "none"),
        ),
    ),
    "lstm": Case(
        "lstm",
        lambda: R.LSTM(I, H, batch_first=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.LSTM(H, **GLUON)),
            Twin("linen", linen_rnn("LSTMCell"), "none"),
            Twin("linen", linen_rnn("OptimizedLSTMCell"), "none", "optimized"),
            Twin("nnx", nnx_rnn("LSTMCell"), "none"),
            Twin("nnx", nnx_rnn("OptimizedLSTMCell"), "none", "optimized"),
            Twin("keras", lambda k: k.LSTM(H, **SERIES), "none"),
        ),
    ),
    "lstm without bias": Case(
        "lstm",
        lambda: R.LSTM(I, H, batch_first=True, bias=False),
        LAYER,
        (X,),
        (Twin("keras", lambda k: k.LSTM(H, use_bias=False, **SERIES)),),
    ),
    "lstm both ways": Case(
        "lstm",
        lambda: R.LSTM(I, H, batch_first=True, bidirectional=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.LSTM(H, bidirectional=True, **GLUON)),
            Twin("linen", both_ways(linen_rnn("LSTMCell")), "none"),
            Twin("linen", both_ways(linen_rnn("OptimizedLSTMCell")), "none", "optimized"),
            Twin("nnx", both_ways(nnx_rnn("LSTMCell")), "none"),
            Twin("nnx", both_ways(nnx_rnn("OptimizedLSTMCell")), "none", "optimized"),
            Twin("keras", lambda k: k.Bidirectional(k.LSTM(H, **SERIES), dtype=F64), "none"),
        ),
    ),
    "lstm of two layers": Case(
        "lstm",
        lambda: R.LSTM(I, H, 2, batch_first=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.LSTM(H, 2, **GLUON), dtype="float32"),
            Twin("keras", lambda k: stacked(k, k.LSTMCell), "none"),
        ),
    ),
    "lstm of two layers both ways": Case(
        "lstm",
        lambda: R.LSTM(I, H, 2, batch_first=True, bidirectional=True),
        LAYER,
        (X,),
        (Twin("gluon", lambda g: g.LSTM(H, 2, bidirectional=True, **GLUON), dtype="float32"),),
    ),
    "lstm with projection": Case(
        "lstm",
        lambda: R.LSTM(I, H, batch_first=True, proj_size=3),
        LAYER,
        (X,),
        (Twin("gluon", lambda g: g.LSTM(H, projection_size=3, **GLUON), trains=False),),
    ),
    "gru": Case(
        "gru",
        lambda: R.GRU(I, H, batch_first=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.GRU(H, **GLUON)),
            Twin("linen", linen_rnn("GRUCell"), "n"),
            Twin("nnx", nnx_rnn("GRUCell"), "none"),
            Twin("keras", lambda k: k.GRU(H, **SERIES)),
        ),
    ),
    "gru both ways": Case(
        "gru",
        lambda: R.GRU(I, H, batch_first=True, bidirectional=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.GRU(H, bidirectional=True, **GLUON)),
            Twin("linen", both_ways(linen_rnn("GRUCell")), "n"),
            Twin("nnx", both_ways(nnx_rnn("GRUCell")), "none"),
            Twin("keras", lambda k: k.Bidirectional(k.GRU(H, **SERIES), dtype=F64)),
        ),
    ),
    "gru of two layers": Case(
        "gru",
        lambda: R.GRU(I, H, 2, batch_first=True),
        LAYER,
        (X,),
        (
            Twin("gluon", lambda g: g.GRU(H, 2, **GLUON), dtype="float32"),
            Twin("keras", lambda k: stacked(k, k.GRUCell)),
        ),
    ),
    "gru that resets before": Case(
        "gru_before",
        GruBefore,
        LAYER,
        (X,),
        (Twin("keras", lambda k: k.GRU(H, reset_after=False, **SERIES)),),
    ),
    "rnn cell": Case(
        "rnn_cell",
        lambda: R.RNNCell(I, H),
        CELL,
        (STEP, STATE),
        (
            Twin("gluon", lambda g: g.RNNCell(H, activation="tanh", input_size=I), only_nd=True),
            Twin("linen", lambda f: f.SimpleCell(H, param_dtype=F64), "none"),
            Twin("nnx", nnx_cell("SimpleCell"), "none"),
            Twin("keras", lambda k: k.SimpleRNNCell(H, dtype=F64), "none"),
        ),
    ),
    "lstm cell": Case(
        "lstm_cell",
        lambda: R.LSTMCell(I, H),
        LSTM_CELL,
        (STEP, STATE, MEMORY),
        (
            Twin("gluon", lambda g: g.LSTMCell(H, input_size=I), only_nd=True),
            Twin("linen", lambda f: f.LSTMCell(H, param_dtype=F64), "none"),
            Twin("linen", lambda f: f.OptimizedLSTMCell(H, param_dtype=F64), "none", "optimized"),
            Twin("nnx", nnx_cell("LSTMCell"), "none"),
            Twin("nnx", nnx_cell("OptimizedLSTMCell"), "none", "optimized"),
            Twin("keras", lambda k: k.LSTMCell(H, dtype=F64), "none"),
        ),
    ),
    "lstm cell over time": Case(
        "lstm",
        lambda: FromState(I, H, batch_first=True),
        {"torch": (lambda x, h, c: (x, h, c), whole), "linen": (lambda x, h, c: ((c, h), x), at(1))},
        (X, STATE, MEMORY),
        (Twin("linen", scanned, "none"),),
    ),
    "gru cell": Case(
        "gru_cell",
        lambda: R.GRUCell(I, H),
        CELL,
        (STEP, STATE),
        (
            Twin("gluon", lambda g: g.GRUCell(H, input_size=I), only_nd=True),
            Twin("linen", lambda f: f.GRUCell(H, param_dtype=F64), "n"),
            Twin("nnx", nnx_cell("GRUCell"), "none"),
            Twin("keras", lambda k: k.GRUCell(H, dtype=F64)),
        ),
    ),
    "attention": Case(
        "attention",
        torch_attention,
        ATTENTION,
        WIDE,
        (
            Twin("linen", lambda f: f.MultiHeadDotProductAttention(HEADS, param_dtype=F64)),
            Twin("nnx", nnx_attention, dtype="float32"),
            Twin("keras", lambda k: k.MultiHeadAttention(HEADS, SIZE, dtype=F64)),
        ),
    ),
    "attention without bias": Case(
        "attention",
        lambda: torch_attention(bias=False),
        ATTENTION,
        WIDE,
        (
            Twin("linen", lambda f: f.MultiHeadDotProductAttention(HEADS, use_bias=False, param_dtype=F64)),
            Twin("keras", lambda k: k.MultiHeadAttention(HEADS, SIZE, use_bias=False, dtype=F64)),
        ),
    ),
    "attention of mixed sizes": Case(
        "attention",
        lambda: torch_attention(kdim=5, vdim=7),
        ATTENTION,
        MIXED,
        (
            Twin("linen", lambda f: f.MultiHeadDotProductAttention(HEADS, param_dtype=F64)),
            Twin("keras", lambda k: k.MultiHeadAttention(HEADS, SIZE, dtype=F64)),
        ),
    ),
    "self-attention": Case(
        "attention",
        torch_attention,
        SELF_ATTENTION,
        WIDE[:1],
        (
            Twin("linen", lambda f: f.SelfAttention(HEADS, param_dtype=F64)),
            Twin("nnx", nnx_attention, dtype="float32"),
        ),
    ),
}
CASES = {
    name: Case(case.kind, case.truth, case.form, case.inputs, (Twin("torch", lambda _, t=case.truth: t()), *case.twins))
    if case.kind != "gru_before" and name != "lstm cell over time"
    else case
    for name, case in CASES.items()
}


# -- making them


def x64() -> Any:
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def numbers(array: np.ndarray, flavour: str, dtype: str = F64) -> Any:
    """An input as the library's own array."""
    array = array.astype(dtype)
    if flavour == "torch":
        return torch.from_numpy(array)
    if flavour.startswith("gluon"):
        mx = mxnet()
        return (mx.np if mx.util.is_np_array() else mx.nd).array(array, dtype=dtype)
    if flavour in ("linen", "nnx"):
        import jax.numpy as jnp

        with x64():
            return jnp.asarray(array)
    import tensorflow as tf

    return tf.constant(array)


def mxnet() -> Any:
    from multiparam_mxnet.load import load

    return load()


def wrapped(native: Any, flavour: str, arguments: tuple[Any, ...] = (), dtype: str = F64) -> mp.Model:
    """A model of that dtype, its parameters made."""
    if flavour == "torch":
        return mp.wrap(native.double())
    if flavour.startswith("gluon"):
        native.cast(dtype)
        native.initialize(mxnet().init.Zero())  # MXNet's random ones fail for float64
        native.hybridize()
        return mp.wrap(native, *arguments)
    if flavour == "nnx":
        return mp.wrap(native)
    with x64() if flavour == "linen" else contextlib.nullcontext():
        return mp.wrap(native, *arguments)


def library(flavour: str) -> Any:
    """The module that has a library's layers; for linen's and NNX's, the module itself."""
    from importlib import import_module

    if flavour.startswith("gluon"):
        return mxnet().gluon.rnn
    names = {"torch": "torch.nn", "linen": "flax.linen", "nnx": "flax.nnx", "keras": "keras", "tf_keras": "tf_keras"}
    module = import_module(names[flavour])
    return module.layers if "keras" in flavour else module


@dataclass(frozen=True)
class Pair:
    """A case and one flavour of one of its twins."""

    name: str
    twin: Twin
    flavour: str

    @property
    def case(self) -> Case:
        return CASES[self.name]

    @property
    def id(self) -> str:
        return "-".join(filter(None, (self.flavour, self.twin.note, self.name)))

    def net(self) -> mp.Model:
        arguments, _ = self.case.form[self.twin.library]
        with x64() if self.flavour == "nnx" else contextlib.nullcontext():
            native = self.twin.make(library(self.flavour))
        return wrapped(native, self.flavour, arguments(*self.inputs()), self.twin.dtype)

    def inputs(self) -> list[Any]:
        return [numbers(x, self.flavour, self.twin.dtype) for x in self.case.inputs]

    def run(self, net: mp.Model, *inputs: Any) -> Any:
        arguments, output = self.case.form[self.twin.library]
        return output(net(*arguments(*inputs)))

    def output(self, net: mp.Model) -> np.ndarray:
        return mp.to_numpy(self.run(net, *self.inputs()))

    def loss(self, net: mp.Model, *batch: Any) -> Any:
        return net.adapter.mse(self.run(net, *batch[:-1]), batch[-1])

    def names(self, truth: Mapping[str, Any]) -> list[str]:
        """The names the twin must have, in order."""
        keep = {"all": "bias_hh", "none": "", "n": "bias_hn"}[self.twin.bias_hh]
        return [n.replace("bias_hh", keep) for n in truth if keep or not n.startswith("bias_hh")]

    def theirs(self, name: str, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """What a parameter of the twin is of PyTorch's."""
        if name.startswith("bias_hn"):
            return state[name.replace("bias_hn", "bias_hh")][2 * H :]
        return state[name]

    def fill(self, net: mp.Model, state: Mapping[str, np.ndarray]) -> None:
        for name, p in net.parameters().items():
            p.assign(self.theirs(name, state).astype(self.twin.dtype))


def cut(name: str, bias_hh: str, value: np.ndarray) -> np.ndarray:
    """PyTorch's numbers, of a recurrent bias only what the twin has of it."""
    if name.startswith("bias_hh") and bias_hh != "all":
        value = value.copy()
        value[: 2 * H if bias_hh == "n" else None] = 0
    return value


def truth_for(pair: Pair) -> Any:
    """PyTorch's layer with numbers that nothing could mix up, written by PyTorch."""
    truth = pair.case.truth().double()
    with torch.no_grad():
        for name, p in truth.named_parameters():
            p.copy_(torch.from_numpy(cut(name, pair.twin.bias_hh, drawn(name, tuple(p.shape)))))
    return truth


def state_of(truth: Any) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in truth.named_parameters()}


def truth_output(pair: Pair, truth: Any) -> Any:
    arguments, output = pair.case.form["torch"]
    return output(truth(*arguments(*map(torch.from_numpy, pair.case.inputs))))


def both(pair: Pair) -> tuple[Any, mp.Model]:
    """The truth and the twin with its numbers."""
    truth, net = truth_for(pair), pair.net()
    pair.fill(net, state_of(truth))
    return truth, net


def param(pair: Pair, *more: Any, id: str | None = None, slow: bool = False) -> Any:
    need = GROUPS.get(pair.twin.library, "")
    needs = ("tf_keras", need) if pair.flavour == "tf_keras" else (need,)
    marks = [pytest.mark.needs(*needs), pytest.mark.xdist_group(need), *([pytest.mark.slow] if slow else [])]
    return pytest.param(pair, *more, id=id or pair.id, marks=marks)


FLAVOURS = {"gluon": ("gluon", "gluon np"), "keras": ("keras", "tf_keras")}
ALL = [
    Pair(name, twin, flavour)
    for name, case in CASES.items()
    for twin in case.twins
    for flavour in FLAVOURS.get(twin.library, (twin.library,))
    if not (twin.only_nd and flavour == "gluon np")
]
BY_ID = {pair.id: pair for pair in ALL}


EVERY = [
    param(pair, slow=pair.flavour in ("linen", "nnx", "tf_keras") and ("ways" in pair.name or bool(pair.twin.note)))
    for pair in ALL
]


def pairs(*ids: str, slow: tuple[str, ...] = ()) -> list[Any]:
    return [param(BY_ID[id], slow=id in slow) for id in (*ids, *slow)]


@functools.cache
def kept(pair: Pair) -> mp.Model:
    """One net of each for the tests that write every number first, and freeze and tie nothing."""
    return pair.net()


@pytest.fixture(autouse=True)
def arrays(request: pytest.FixtureRequest) -> None:
    """MXNet's numpy arrays where the flavour says so."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    if any(getattr(value, "flavour", value) == "gluon np" for value in params.values()):
        request.getfixturevalue("mx_np")


# -- every number the library keeps, found by the library's own means


def natives(net: mp.Model) -> list[np.ndarray]:
    native = net.native
    if net.backend == "torch":
        return [p.detach().numpy() for p in native.parameters()]
    if net.backend == "mxnet":
        return [p.data().asnumpy() for p in native.collect_params().values()]
    if net.backend == "tensorflow":
        return [np.asarray(v.numpy()) for v in native.trainable_weights]
    import jax
    from flax import nnx

    tree = nnx.state(native, nnx.Param) if isinstance(native, nnx.Module) else net.variables["params"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def sorted_numbers(arrays: Iterator[np.ndarray] | list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.ravel(a) for a in arrays]))


# -- 1, 2, 3: the forward pass, reading and writing, gradients


@pytest.mark.parametrize("pair", EVERY)
def test_names_order_and_kinds_are_pytorchs(pair: Pair) -> None:
    net = kept(pair)
    names = pair.names(state_of(pair.case.truth()))
    assert list(net.parameters()) == list(net.state_dict()) == list(net.parameters(aliases=True)) == names
    for name, p in net.parameters().items():
        assert p.kind == ("linear" if name.startswith("out_proj.") else pair.case.kind)
    assert net.buffers() == {} and net.ties() == []


@pytest.mark.parametrize("pair", EVERY)
def test_the_same_numbers_give_pytorchs_output_and_gradients(pair: Pair) -> None:
    truth, net = both(pair)
    state, dtype = state_of(truth), pair.twin.dtype
    names = pair.names(state)
    assert net.parameters().keys() == set(names)
    for name in names:  # read back exactly, and every native number written exactly once
        p = net[name]
        assert p.numpy().tobytes() == pair.theirs(name, state).astype(dtype).tobytes()
        assert p.shape == p.numpy().shape == tuple(p.value.shape) and p.dtype == dtype and p.trainable
        np.testing.assert_array_equal(mp.to_numpy(p.value), p.numpy())
    ours = sorted_numbers([pair.theirs(name, state) for name in names])
    np.testing.assert_array_equal(sorted_numbers(natives(net)), ours)

    expected = truth_output(pair, truth)
    y = pair.output(net)
    assert far(y, expected.detach().numpy(), dtype) < 100

    if not pair.twin.trains:
        return
    target = drawn("target", y.shape)
    torch.nn.functional.mse_loss(expected, torch.from_numpy(target)).backward()
    wanted = {name: p.grad.numpy() for name, p in truth.named_parameters()}
    assert net[names[0]].grad is None
    _, grads = net.value_and_grad(pair.loss)(*pair.case.inputs, target)
    assert grads.keys() == set(names)
    for name in names:
        assert far(mp.to_numpy(grads[name]), pair.theirs(name, wanted), dtype) < 500, name
        np.testing.assert_array_equal(mp.to_numpy(net[name].grad), mp.to_numpy(grads[name]))


STEPPED = pairs(
    "torch-lstm",
    "gluon-gru",
    "linen-lstm",
    "linen-attention",
    "keras-gru",
    slow=(
        "gluon np-lstm both ways",
        "linen-gru",
        "nnx-lstm",
        "nnx-gru both ways",
        "nnx-attention",
        "tf_keras-gru",
        "keras-attention",
        "keras-attention of mixed sizes",
    ),
)
EPS = 0.01  # for Adam: the gradient of the keys' bias is zero but for rounding, and would be scaled up
TORCH_OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, eps=EPS),
}


@pytest.mark.parametrize("pair", STEPPED)
def test_optimizers_step_as_pytorchs(pair: Pair) -> None:
    """On the parameters both have: PyTorch's bias_hh is frozen where the twin has it not, or in part."""
    truth, net = both(pair)
    start = state_of(truth)
    if pair.twin.bias_hh != "all":
        for name, p in truth.named_parameters():
            p.requires_grad_(not name.startswith("bias_hh"))
    if pair.twin.bias_hh == "n":
        net.freeze("bias_hn*")
    names = [name for name, p in net.parameters().items() if p.trainable]
    assert names == [name for name, p in truth.named_parameters() if p.requires_grad]
    target = drawn("target", tuple(truth_output(pair, truth).shape))
    step = net.value_and_grad(pair.loss)

    for kind, make in TORCH_OPTIMIZERS.items():
        for given in (False, True):
            with torch.no_grad():
                for name, p in truth.named_parameters():
                    p.copy_(torch.from_numpy(start[name]))
            pair.fill(net, start)
            theirs = make([p for p in truth.parameters() if p.requires_grad])
            ours = net.optimizer(kind, lr=0.1, **({"eps": EPS} if kind == "adam" else {}))
            for _ in range(2):
                theirs.zero_grad()
                torch.nn.functional.mse_loss(truth_output(pair, truth), torch.from_numpy(target)).backward()
                theirs.step()
                _, grads = step(*pair.case.inputs, target)
                ours.step({name: mp.to_numpy(grads[name]) for name in names} if given else None)
            moved = state_of(truth)
            for name, p in net.parameters().items():
                expected = pair.theirs(name, moved)
                assert far(p.numpy(), expected, pair.twin.dtype) < (500 if name in names else 1), (kind, name)
                assert (name in names) == bool(np.any(expected != pair.theirs(name, start)))


@pytest.mark.parametrize(
    ("pair", "chosen"),
    [
        param(BY_ID["linen-lstm"], "weight_hh_l0"),
        param(BY_ID["nnx-lstm"], "bias_ih_l0"),
        param(BY_ID["keras-gru"], "weight_ih_l0"),
        param(BY_ID["keras-attention"], "in_proj_weight"),
        param(BY_ID["linen-attention"], "in_proj_bias"),
        param(BY_ID["gluon-lstm"], "weight_hh_l0"),
    ],
)
def test_a_step_by_some_gradients_moves_those_alone(pair: Pair, chosen: str) -> None:
    _, net = both(pair)
    before = net.state_dict()
    gradient = drawn("gradient", net[chosen].shape)
    net.optimizer("sgd", lr=0.5).step({chosen: gradient})
    for name, value in net.state_dict().items():
        expected = before[name] - 0.5 * gradient if name == chosen else before[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.mark.parametrize("pair", pairs("keras-gru", "tf_keras-gru", "keras-gru both ways", "keras-gru cell"))
def test_a_step_by_one_row_of_a_native_array_is_refused(pair: Pair) -> None:
    _, net = both(pair)
    before = net.state_dict()
    ih, hh = (next(name for name in net.parameters() if name.startswith(bias)) for bias in ("bias_ih", "bias_hh"))
    optimizer = net.optimizer("sgd", lr=0.5)
    ones = np.ones(3 * H)
    for one in (ih, hh):
        with pytest.raises(mp.errors.InvalidArgument, match=one):
            optimizer.step({one: ones})
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    optimizer.step({ih: ones, hh: 2 * ones})
    np.testing.assert_array_equal(net[ih].numpy(), before[ih] - 0.5)
    np.testing.assert_array_equal(net[hh].numpy(), before[hh] - 1.0)


# -- where the numbers lie, by hand


def params(*path: str) -> Callable[[mp.Model], Any]:
    """One array of linen's variables."""

    def find(net: mp.Model) -> Any:
        node = net.variables["params"]
        for segment in path:
            node = node[segment]
        return np.asarray(node)

    return find


def attribute(path: str) -> Callable[[mp.Model], Any]:
    """One array of an object's attributes, as the library's own user would read it."""

    def find(net: mp.Model) -> Any:
        node = net.native
        for name in path.split("."):
            node = getattr(node, name)
        return mp.to_numpy(node.data() if net.backend == "mxnet" else node)

    return find


# canonical name and index -> the native array and the index in it
SPOTS = [
    ("torch-lstm", "weight_hh_l0", (7, 2), attribute("weight_hh_l0"), (7, 2)),
    ("gluon-lstm both ways", "weight_ih_l0_reverse", (7, 2), attribute("r0_i2h_weight"), (7, 2)),
    ("gluon-lstm with projection", "weight_hr_l0", (2, 4), attribute("l0_h2r_weight"), (2, 4)),
    ("gluon-gru cell", "bias_hh", (11,), attribute("h2h_bias"), (11,)),
    ("linen-lstm", "weight_ih_l0", (0, 1), params("cell", "ii", "kernel"), (1, 0)),
    ("linen-lstm", "weight_ih_l0", (H + 1, 2), params("cell", "if", "kernel"), (2, 1)),
    ("linen-lstm", "weight_hh_l0", (2 * H + 1, 3), params("cell", "hg", "kernel"), (3, 1)),
    ("linen-optimized-lstm", "bias_ih_l0", (3 * H + 4,), params("cell", "ho", "bias"), (4,)),
    ("linen-lstm both ways", "bias_ih_l0_reverse", (H,), params("backward_rnn", "cell", "hf", "bias"), (0,)),
    ("linen-lstm cell over time", "weight_hh_l0", (H, 1), params("hf", "kernel"), (1, 0)),
    ("linen-gru", "weight_ih_l0", (2 * H + 1, 3), params("cell", "in", "kernel"), (3, 1)),
    ("linen-gru", "bias_ih_l0", (H + 1,), params("cell", "iz", "bias"), (1,)),
    ("linen-gru cell", "bias_hn", (2,), params("hn", "bias"), (2,)),
    ("linen-rnn", "weight_hh_l0", (1, 2), params("cell", "h", "kernel"), (2, 1)),
    ("nnx-lstm", "weight_ih_l0", (H + 1, 2), attribute("cell.if_.kernel"), (2, 1)),
    ("nnx-optimized-lstm", "weight_ih_l0", (H + 1, 2), attribute("cell.dense_i.kernel"), (2, H + 1)),
    ("nnx-gru both ways", "weight_hh_l0_reverse", (H, 2), attribute("backward_rnn.cell.dense_h.kernel"), (2, H)),
    ("keras-lstm", "weight_ih_l0", (H + 1, 2), attribute("cell.kernel"), (2, H + 1)),
    ("keras-gru", "weight_ih_l0", (0, 1), attribute("cell.kernel"), (1, H)),  # r is the second of z r h
    ("keras-gru", "weight_hh_l0", (H, 1), attribute("cell.recurrent_kernel"), (1, 0)),
    ("keras-gru", "bias_ih_l0", (2 * H + 2,), attribute("cell.bias"), (0, 2 * H + 2)),
    ("keras-gru", "bias_hh_l0", (1,), attribute("cell.bias"), (1, H + 1)),
    ("keras-gru both ways", "bias_hh_l0_reverse", (1,), attribute("backward_layer.cell.bias"), (1, H + 1)),
    ("keras-gru that resets before", "bias_ih_l0", (1,), attribute("cell.bias"), (H + 1,)),
    ("tf_keras-gru", "bias_hh_l0", (1,), attribute("cell.bias"), (1, H + 1)),
    ("linen-attention", "in_proj_weight", (8 + 5, 2), params("key", "kernel"), (2, 1, 1)),
    ("linen-attention", "in_proj_bias", (16 + 3,), params("value", "bias"), (0, 3)),
    ("linen-attention", "out_proj.weight", (6, 5), params("out", "kernel"), (1, 1, 6)),
    ("linen-attention of mixed sizes", "v_proj_weight", (5, 6), params("value", "kernel"), (6, 1, 1)),
    ("nnx-attention", "in_proj_weight", (8 + 5, 2), attribute("key.kernel"), (2, 1, 1)),
    ("keras-attention", "in_proj_weight", (8 + 5, 2), attribute("_key_dense._kernel"), (2, 1, 1)),
    ("keras-attention", "out_proj.bias", (6,), attribute("_output_dense.bias"), (6,)),
    ("tf_keras-attention", "in_proj_weight", (16 + 5, 2), attribute("_value_dense.kernel"), (2, 1, 1)),
]


@pytest.mark.parametrize(
    ("pair", "name", "index", "native", "where"),
    [param(BY_ID[id], *rest, id=f"{id} {rest[0]}{list(rest[1])}") for id, *rest in SPOTS],
)
def test_a_number_written_lands_in_its_native_place_alone(
    pair: Pair, name: str, index: tuple[int, ...], native: Callable[[mp.Model], Any], where: tuple[int, ...]
) -> None:
    net = kept(pair)
    for i, p in enumerate(net):
        p.assign(np.arange(p.size).reshape(p.shape).astype(p.dtype) / 2**10 + i)
    before = sorted_numbers(natives(net))
    assert native(net)[where] == net[name].numpy()[index] == net[name][index]
    net[name][index] = 42
    assert native(net)[where] == net[name].numpy()[index] == 42
    after = sorted_numbers(natives(net))
    assert np.count_nonzero(after == 42) == 1 and len(np.setdiff1d(before, after)) == 1


@pytest.mark.parametrize(
    ("pair", "name", "pieces"),
    [
        param(BY_ID["linen-lstm"], "weight_hh_l0", 4),
        param(BY_ID["nnx-lstm"], "bias_ih_l0", 4),
        param(BY_ID["linen-gru"], "weight_ih_l0", 3),
        param(BY_ID["keras-attention"], "in_proj_bias", 3),
        param(BY_ID["keras-gru"], "bias_hh_l0", None),
        param(BY_ID["keras-gru"], "weight_hh_l0", None),
    ],
)
def test_native_is_the_frameworks_own(pair: Pair, name: str, pieces: int | None) -> None:
    """Several arrays: a tuple of them. Writing to them writes to the parameter."""
    net = kept(pair)
    native = net[name].native
    assert (len(native) if isinstance(native, tuple) else None) == pieces
    shapes = [tuple(each.shape) for each in (native if pieces else (native,))]
    assert all(shape in [a.shape for a in natives(net)] for shape in shapes)
    value = net[name].value  # a snapshot
    net[name] += 1
    np.testing.assert_array_equal(net[name].numpy(), mp.to_numpy(value) + 1)
    assert net[name] is net[name] and net[name].names == (name,)


@pytest.mark.parametrize("pair", pairs("linen-lstm", "nnx-lstm", "keras-gru", "tf_keras-gru", "keras-attention"))
def test_a_failed_write_changes_nothing(pair: Pair) -> None:
    net = kept(pair)
    before = net.state_dict()
    for name, p in net.parameters().items():
        with pytest.raises(mp.errors.ShapeError, match=name):
            p.assign(np.zeros((p.shape[0] + 1, *p.shape[1:])))
        with pytest.raises(mp.errors.DtypeError, match=name):
            p.assign(np.zeros(p.shape, "float32"))
        with pytest.raises(mp.errors.PositionError, match=name):
            p[p.shape[0]] = 1
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


PENALISED = pairs(
    "gluon-gru", "linen-attention", "keras-gru", slow=("linen-lstm", "nnx-lstm", "tf_keras-gru", "keras-attention")
)


@pytest.mark.parametrize("pair", PENALISED)
def test_a_penalty_on_a_parameter_has_its_gradient(pair: Pair) -> None:
    """Inside an objective a value is the tracked array, in pieces or not."""
    _, net = both(pair)
    chosen = [name for name in net.parameters() if name.startswith(("bias_", "in_proj_", "weight_hh"))]

    def penalty(net: mp.Model, zero: Any) -> Any:
        terms = [net.adapter.mse(net[name].value - zero, zero) for name in chosen]
        return sum(terms[1:], terms[0])

    loss, grads = net.value_and_grad(penalty)(np.zeros(1)) if pair.flavour != "gluon" else (None, None)
    if grads is None:  # MXNet's older arrays broadcast by other functions
        loss, grads = net.value_and_grad(lambda net, _: sum(net[n].value.square().mean() for n in chosen))(np.zeros(1))
    values = net.state_dict()
    assert np.isclose(np.ravel(mp.to_numpy(loss))[0], sum((values[n] ** 2).mean() for n in chosen), rtol=1e-14)
    for name, value in values.items():
        expected = 2 * value / value.size if name in chosen else 0 * value
        np.testing.assert_allclose(mp.to_numpy(grads[name]), expected, rtol=1e-14, err_msg=name)


# -- states, initialisation, selection


@pytest.mark.parametrize("pair", pairs("gluon-gru both ways", "keras-gru both ways", "linen-attention", "tf_keras-gru"))
def test_a_state_of_pytorchs_layer_loads_as_it_is(pair: Pair) -> None:
    truth, net = truth_for(pair), kept(pair)
    net.load_state_dict(truth.state_dict())
    for name, value in net.state_dict().items():
        assert value.tobytes() == truth.state_dict()[name].numpy().tobytes()
    with pytest.raises(mp.errors.StateError, match="weight"):
        net.load_state_dict({n: v for n, v in truth.state_dict().items() if "weight" not in n})


SEEDED = [
    pair
    for pair in ALL
    if pair.name in ("lstm", "gru", "gru both ways", "attention of mixed sizes") and pair.flavour != "torch"
]


@pytest.mark.parametrize("pair", [param(pair, slow="ways" in pair.name and pair.flavour != "keras") for pair in SEEDED])
def test_one_seed_gives_the_same_bits_as_in_pytorch(pair: Pair) -> None:
    truth, net = mp.wrap(pair.case.truth().double()), kept(pair)
    for function in (mp.init.normal(), mp.init.xavier_uniform(), mp.init.orthogonal()):
        for each in (truth, net):
            each.init(mp.init.constant(0.5))
            each.init(function, "*weight*", seed=3)
            each.init(mp.init.uniform(), "*bias_ih*", "in_proj_bias", seed=4)
        for name, p in net.parameters().items():
            if not name.startswith("bias_hn"):
                assert p.numpy().tobytes() == truth[name].numpy().tobytes(), (function, name)
                untouched = name.startswith("bias_hh") or name == "out_proj.bias"
                assert (p.numpy() == 0.5).all() == untouched


def native_initialiser(flavour: str) -> Any:
    """Draws from U(0, 1)."""
    if flavour == "torch":
        return torch.nn.init.uniform_
    if flavour.startswith("gluon"):
        return mxnet().init.Uniform(1.0)
    if flavour in ("linen", "nnx"):
        import jax

        return jax.nn.initializers.uniform(1.0)
    from importlib import import_module

    return import_module(flavour).initializers.RandomUniform(0, 1)


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        param(BY_ID["torch-lstm"], "weight_hh_l0"),
        param(BY_ID["linen-lstm"], "weight_hh_l0"),
        param(BY_ID["nnx-lstm"], "weight_hh_l0"),
        param(BY_ID["keras-lstm"], "weight_hh_l0"),
        param(BY_ID["keras-gru"], "bias_hh_l0"),
        param(BY_ID["keras-gru"], "bias_ih_l0"),
        param(BY_ID["tf_keras-gru"], "bias_ih_l0"),
        param(BY_ID["keras-attention"], "in_proj_weight"),
        param(BY_ID["tf_keras-attention"], "in_proj_bias"),
    ],
)
def test_a_native_initialiser_fills_what_is_named_alone(pair: Pair, name: str) -> None:
    """Each native array by itself, from a seed of its own; a row alone or, where that cannot be, a refusal."""
    net = kept(pair)
    net.init(mp.init.constant(-1))
    function, refused = native_initialiser(pair.flavour), False
    try:
        net.init(function, name, seed=5)
    except mp.errors.Unsupported:
        refused = True
    for other, p in net.parameters().items():
        assert (p.numpy() == -1).all() == (refused or other != name), other
    assert not (refused and isinstance(net[name].native, tuple))
    if not refused:
        value = net[name].numpy()
        assert (value >= 0).all() and len(np.unique(value)) == value.size
        net.init(mp.init.zeros(), name)
        net.init(function, name, seed=5)
        np.testing.assert_array_equal(net[name].numpy(), value)
        net.init(function, name, seed=6)
        assert (net[name].numpy() != value).all()


# -- freezing

FROZEN = [
    ("linen-lstm", "weight_ih_l0", False),
    ("linen-gru", "bias_ih_l0", True),
    ("nnx-lstm", "weight_hh_l0", True),
    ("nnx-attention", "in_proj_bias", True),
    ("gluon-lstm", "weight_hh_l0", False),
    ("keras-gru", "weight_hh_l0", True),
    ("keras-gru", "bias_*", False),
    ("keras-attention", "in_proj_weight", True),
    ("tf_keras-lstm", "*", False),
    ("tf_keras-gru both ways", "*_l0", True),
]


@pytest.mark.parametrize(
    ("pair", "pattern"),
    [param(BY_ID[id], pattern, id=f"{id} {pattern}", slow=slow) for id, pattern, slow in FROZEN],
)
def test_a_frozen_parameter_has_no_gradient_and_stays(pair: Pair, pattern: str) -> None:
    _, net = both(pair)
    target = drawn("target", pair.output(net).shape)
    names = list(net.parameters())
    frozen = [p.name for p in net.select(pattern)]
    step = net.value_and_grad(pair.loss)
    step(*pair.case.inputs, target)
    assert [p.name for p in net.freeze(pattern)] == frozen
    assert [name for name in names if not net[name].trainable] == frozen
    assert all(net[name].grad is None for name in frozen)
    before = net.state_dict()
    if frozen != names:
        _, grads = step(*pair.case.inputs, target)
        assert list(grads) == [name for name in names if name not in frozen]
        assert all(net[name].grad is None for name in frozen)
        net.optimizer("adam", lr=0.1, eps=1e-30).step()
    else:
        with pytest.raises(mp.errors.InvalidArgument, match="trainable"):
            step(*pair.case.inputs, target)
    for name, value in net.state_dict().items():
        assert np.array_equal(value, before[name]) == (name in frozen), name
    net.unfreeze(pattern)
    _, grads = step(*pair.case.inputs, target)
    assert list(grads) == names
    net.optimizer("sgd", lr=0.1).step()
    assert all((net[name].numpy() != before[name]).any() for name in frozen)


@pytest.mark.parametrize("pair", pairs("keras-gru", "keras-gru both ways", "tf_keras-gru", "keras-gru cell"))
def test_a_row_of_a_native_array_is_not_frozen_alone(pair: Pair) -> None:
    net = pair.net()
    ih, hh = (next(name for name in net.parameters() if name.startswith(bias)) for bias in ("bias_ih", "bias_hh"))
    for one, other in ((ih, hh), (hh, ih)):
        for change in (net.freeze, net.unfreeze):
            with pytest.raises(mp.errors.Unsupported, match=other):
                change(one)
        assert all(p.trainable for p in net)
    net.freeze("*")
    assert not any(p.trainable for p in net)
    with pytest.raises(mp.errors.Unsupported, match=hh):
        net.unfreeze("weight_ih*", ih)
    assert not any(p.trainable for p in net)
    net.unfreeze("*")
    assert all(p.trainable for p in net)


# -- ties


class Chain(torch.nn.Sequential):
    """Layers one after another, of whose outputs the first counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x, x, x)[0] if isinstance(layer, torch.nn.MultiheadAttention) else layer(x)[0]
        return x


def chain(flavour: str, make: Callable[[Any], Any], shared: bool = False) -> mp.Model:
    """Two layers, or one used twice, named 0 and 1, from I numbers to I."""
    with x64() if flavour == "nnx" else contextlib.nullcontext():
        first = make(library(flavour))
        layers = [first, first if shared else make(library(flavour))]
        if flavour == "torch":
            native = Chain(*layers)
        elif flavour == "gluon":
            native = mxnet().gluon.nn.HybridSequential()
            native.add(*layers)
        elif "keras" in flavour:
            native = keras_chain(library(flavour), layers)
        else:
            library_ = library(flavour)
            native = library_.Sequential(*layers) if flavour == "nnx" else library_.Sequential(layers)
    net = wrapped(native, flavour, (numbers(X, flavour),))
    for name, p in net.parameters().items():
        p.assign(drawn(name, p.shape))
    return net


def keras_chain(k: Any, layers: list[Any]) -> Any:
    class KerasChain(k.Layer):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(dtype=F64)
            for i, layer in enumerate(layers):
                setattr(self, str(i), layer)

        def call(self, x: Any) -> Any:
            for i in range(2):
                layer = getattr(self, str(i))
                x = layer(x, x) if "Attention" in type(layer).__name__ else layer(x)
            return x

    return KerasChain()


TYING: dict[str, tuple[str, Callable[[Any], Any], tuple[str, ...]]] = {
    "torch lstm": ("torch", lambda t: t.LSTM(I, I, batch_first=True), ("weight_ih_l0", "bias_hh_l0")),
    "torch attention": ("torch", lambda t: t.MultiheadAttention(I, 2, batch_first=True), ("in_proj_weight",)),
    "gluon gru": ("gluon", lambda g: g.GRU(I, layout="NTC", input_size=I), ("weight_ih_l0", "bias_hh_l0")),
    "linen lstm": ("linen", lambda f: f.RNN(f.LSTMCell(I, param_dtype=F64)), ("weight_ih_l0", "bias_ih_l0")),
    "linen gru": ("linen", lambda f: f.RNN(f.GRUCell(I, param_dtype=F64)), ("weight_hh_l0", "bias_hn_l0")),
    "linen attention": ("linen", lambda f: f.SelfAttention(2, param_dtype=F64), ("in_proj_weight", "out_proj.weight")),
    "nnx lstm": (
        "nnx",
        lambda f: f.RNN(f.LSTMCell(I, I, param_dtype=F64, rngs=f.Rngs(0)), rngs=f.Rngs(0)),
        ("weight_ih_l0", "bias_ih_l0"),
    ),
    "keras gru": ("keras", lambda k: k.GRU(I, **SERIES), ("weight_ih_l0",)),
    "tf_keras lstm": ("tf_keras", lambda k: k.LSTM(I, **SERIES), ("weight_hh_l0", "bias_ih_l0")),
    "keras attention": ("keras", lambda k: k.MultiHeadAttention(1, I, dtype=F64), ("in_proj_weight", "in_proj_bias")),
    "tf_keras attention": ("tf_keras", lambda k: k.MultiHeadAttention(1, I, dtype=F64), ("in_proj_weight",)),
}


def flavoured(name: str, *more: Any, slow: bool = False) -> Any:
    flavour, make, _ = TYING[name]
    marks = param(Pair("", Twin(flavour.removeprefix("tf_"), make), flavour), slow=slow).marks
    return pytest.param(flavour, make, *more, id=name, marks=marks)


TIES = [
    flavoured(name, leaves, slow=name in ("linen lstm", "linen gru", "nnx lstm", "keras gru", "tf_keras lstm"))
    for name, (_, _, leaves) in TYING.items()
]
Stepper = Callable[[], tuple[np.ndarray, dict[str, np.ndarray]]]


def stepper(net: mp.Model) -> Stepper:
    """The loss, by which outputs are told apart, and the gradients, by name."""
    step = net.value_and_grad(mp.losses.mse)

    def run() -> tuple[np.ndarray, dict[str, np.ndarray]]:
        loss, grads = step(X, drawn("target", X.shape))
        return np.ravel(mp.to_numpy(loss)), {name: mp.to_numpy(grads[name]) for name in grads}

    return run


def agree(ours: Stepper, theirs: Stepper, tied: Mapping[str, str]) -> None:
    """Losses are the same; so are gradients, those of ``tied`` added to the ones they are tied to."""
    (loss, grads), (truth, wanted) = ours(), theirs()
    assert far(loss, truth) < 8
    for name, other in tied.items():
        wanted[other] = wanted[other] + wanted.pop(name)
    assert grads.keys() == wanted.keys()
    for name, g in wanted.items():
        assert far(grads[name], g) < 100, name


@pytest.mark.parametrize(("flavour", "make", "leaves"), TIES)
def test_a_tie_is_one_parameter_with_the_gradient_of_both_uses(
    flavour: str, make: Callable[[Any], Any], leaves: tuple[str, ...]
) -> None:
    net, twin = chain(flavour, make), chain(flavour, make)
    ours, theirs = stepper(net), stepper(twin)
    tied = {f"1.{leaf}": f"0.{leaf}" for leaf in leaves}
    untied = list(net.parameters())
    for second, first in tied.items():
        assert net.tie(second, first) is net[first] is net[second]
        assert net[first].names == (first, second)
        twin[second].assign(twin[first].numpy())
    assert net.ties() == [(first, second) for second, first in tied.items()]
    assert list(net.parameters()) == [name for name in untied if name not in tied]
    assert list(net.parameters(aliases=True)) == untied
    if flavour != "linen":  # its variables have every use, ties expanded
        assert sum(a.size for a in natives(net)) == sum(p.size for p in net)
    agree(ours, theirs, tied)

    before, grads = net.state_dict(), ours()[1]
    net.optimizer("sgd", lr=0.5).step()
    for second, first in tied.items():
        assert far(net[second].numpy(), before[first] - 0.5 * grads[first]) < 4
        values = drawn("new", net[first].shape)
        net[second].assign(values)
        net[second][0] = values[0] = 0.25
        np.testing.assert_array_equal(net[first].numpy(), values)
    twin.load_state_dict({name: p.numpy() for name, p in net.parameters(aliases=True).items()})
    agree(ours, theirs, tied)

    for second in tied:
        net.untie(second)
    assert net.ties() == [] and list(net.parameters()) == untied
    for second, first in tied.items():
        np.testing.assert_array_equal(net[second].numpy(), net[first].numpy())
        with pytest.raises(mp.errors.TieError, match="not tied"):
            net.untie(second)
        for each in (net, twin):
            each[second].assign(before[first])
    agree(ours, theirs, {})


@pytest.mark.parametrize(("flavour", "make"), [flavoured("linen lstm", slow=True), flavoured("torch lstm")])
def test_two_parameters_of_one_layer_are_tied(flavour: str, make: Callable[[Any], Any]) -> None:
    net, twin = chain(flavour, make), chain(flavour, make)
    net.tie("0.weight_hh_l0", "0.weight_ih_l0")
    twin["0.weight_hh_l0"].assign(twin["0.weight_ih_l0"].numpy())
    agree(stepper(net), stepper(twin), {"0.weight_hh_l0": "0.weight_ih_l0"})


@pytest.mark.parametrize(("flavour", "make"), [flavoured("keras gru")])
def test_a_row_of_a_native_array_is_not_tied(flavour: str, make: Callable[[Any], Any]) -> None:
    net, twin = chain(flavour, make), chain(flavour, make)
    for target, source in (("1.bias_ih_l0", "0.bias_ih_l0"), ("0.bias_hh_l0", "0.bias_ih_l0")):
        with pytest.raises(mp.errors.TieError, match=target):
            net.tie(target, source)
        with pytest.raises(mp.errors.TieError, match="not tied"):
            net.untie(target)
    assert net.ties() == []
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, twin[name].numpy())


@in_framework("jax")
def test_arrays_cut_differently_are_not_tied() -> None:
    from flax import linen

    layers = [linen.RNN(linen.LSTMCell(I, param_dtype=F64)), linen.Dense(4 * I, param_dtype=F64), linen.Dense(I)]
    net = wrapped(linen.Sequential(layers), "linen", (numbers(X, "linen"),))
    assert net["0.weight_ih_l0"].shape == net["1.weight"].shape
    for target, source in (("1.weight", "0.weight_ih_l0"), ("0.weight_ih_l0", "1.weight")):
        with pytest.raises(mp.errors.TieError, match="cut differently"):
            net.tie(target, source)
    with pytest.raises(mp.errors.ShapeError, match="bias_ih_l0"):
        net.tie("0.bias_ih_l0", "2.bias")
    assert net.ties() == []


@pytest.mark.parametrize(
    ("flavour", "make", "leaf"),
    [
        flavoured(name, leaf, slow=name in ("linen lstm", "nnx lstm", "keras gru", "tf_keras lstm"))
        for name, leaf in {
            "torch lstm": "weight_ih_l0",
            "gluon gru": "weight_hh_l0",
            "linen lstm": "weight_ih_l0",
            "linen attention": "in_proj_weight",
            "nnx lstm": "bias_ih_l0",
            "keras gru": "bias_hh_l0",
            "tf_keras lstm": "weight_ih_l0",
            "keras attention": "in_proj_bias",
        }.items()
    ],
)
def test_a_layer_used_twice_shows_as_tied(flavour: str, make: Callable[[Any], Any], leaf: str) -> None:
    net, twin = chain(flavour, make, shared=True), chain(flavour, make)
    names = [name for name in twin.parameters() if name.startswith("0.")]
    assert list(net.parameters()) == names
    if flavour == "linen":  # one scope and one name, which the other place is an alias of
        assert net.ties() == [] and all(net[f"1.{name[2:]}"] is net[name] for name in names)
    else:
        assert net.ties() == [(name, f"1.{name[2:]}") for name in names]
    for name in names:
        twin[f"1.{name[2:]}"].assign(twin[name].numpy())
    agree(stepper(net), stepper(twin), {f"1.{name[2:]}": name for name in names})
    net[f"1.{leaf}"] += 1
    np.testing.assert_array_equal(net[f"0.{leaf}"].numpy(), twin[f"0.{leaf}"].numpy() + 1)
    with pytest.raises(mp.errors.TieError):
        net.untie(f"1.{leaf}")


# -- inside bigger models

LSTM_ONE_BIAS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
LSTM_NAMES = [*LSTM_ONE_BIAS, "bias_hh_l0"]
ATTENTION_NAMES = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]


def under(prefix: str, *leaves: str) -> list[str]:
    return [f"{prefix}.{leaf}" for leaf in leaves]


def keras_functional(lib: Any) -> Any:
    """Every sort of packed layer in one graph."""
    k, x = lib.layers, lib.Input((T,), dtype="int32")
    h = k.Embedding(10, I)(x)
    h = k.LSTM(H, return_sequences=True)(h)
    h = k.Bidirectional(k.LSTM(H, return_sequences=True))(h)
    h = k.MultiHeadAttention(HEADS, SIZE)(h, h)
    h = k.RNN([k.LSTMCell(H), k.LSTMCell(I)], return_sequences=True)(h)
    h = k.LSTM(H, name="last")(h)
    return lib.Model(x, k.Dense(10)(h))


def keras_sequential(lib: Any) -> Any:
    k = lib.layers
    native = lib.Sequential(
        [k.Embedding(10, I), k.GRU(H, return_sequences=True), k.Dropout(0.5), k.LSTM(H), k.Dense(2)]
    )
    native(np.ones((N, T), "int32"))
    return native


@pytest.mark.needs("tensorflow")
@pytest.mark.xdist_group("tensorflow")
def test_names_inside_keras_models(lib: Any) -> None:
    tokens = np.ones((N, T), "int32")
    functional = [
        "embedding.weight",
        *under("lstm", *LSTM_ONE_BIAS),
        *under("bidirectional", *LSTM_ONE_BIAS, *(f"{n}_reverse" for n in LSTM_ONE_BIAS)),
        *under("multi_head_attention", *ATTENTION_NAMES),
        *under("rnn", *LSTM_ONE_BIAS, *(n.replace("_l0", "_l1") for n in LSTM_ONE_BIAS)),
        *under("last", *LSTM_ONE_BIAS),
        *under("dense", "weight", "bias"),
    ]
    sequential = ["0.weight", *under("1", *LSTM_NAMES), *under("3", *LSTM_ONE_BIAS), "4.weight", "4.bias"]
    for make, names in ((keras_functional, functional), (keras_sequential, sequential)):
        net, again = mp.wrap(make(lib), tokens), mp.wrap(make(lib), tokens)
        assert list(net.parameters()) == list(again.parameters()) == names
        assert sum(p.size for p in net) == net.native.count_params()
        chosen = [p.name for p in net.select(kind="lstm")]
        assert chosen == [n for n in names if n.startswith(("lstm.", "bidirectional.", "rnn.", "last.", "3."))]
    assert [p.name for p in net[1]] == under("1", *LSTM_NAMES)
    assert [p.name for p in net[3]] == under("3", *LSTM_ONE_BIAS)
    assert net["1"]["bias_hh_l0"] is net["1.bias_hh_l0"]


@pytest.mark.needs("tf_keras")
@pytest.mark.xdist_group("tensorflow")
def test_a_built_bidirectional_model_needs_no_inputs(lib: Any) -> None:
    """tf_keras keeps the layer that was handed to Bidirectional, unbuilt and unused, beside the two it runs."""
    x = lib.Input((T, I))
    net = mp.wrap(lib.Model(x, lib.layers.Bidirectional(lib.layers.LSTM(H))(x)))
    assert list(net.parameters()) == under(
        "bidirectional", *LSTM_ONE_BIAS, *(f"{name}_reverse" for name in LSTM_ONE_BIAS)
    )


@in_framework("tensorflow")
def test_grouped_query_attention_is_named_apart() -> None:
    """Its keys and values have fewer heads, so nothing is packed."""
    import keras

    layer = keras.layers.GroupQueryAttention(3, 4, 2)
    layer(X, X)
    net = mp.wrap(layer)
    shapes = {name: p.shape for name, p in net.parameters().items()}
    assert shapes == {
        "q_proj_weight": (12, I),
        "k_proj_weight": (6, I),
        "v_proj_weight": (6, I),
        "q_proj_bias": (12,),
        "k_proj_bias": (6,),
        "v_proj_bias": (6,),
        "out_proj.weight": (I, 12),
        "out_proj.bias": (I,),
    }
    assert list(shapes)[-2:] == ["out_proj.weight", "out_proj.bias"]
    assert {p.kind for p in net.select("?_proj_*")} == {"attention"}


@in_framework("torch")
def test_names_inside_torch_models() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    native = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.TransformerEncoder(layer, 2), torch.nn.GRU(8, 3))
    net = mp.wrap(native)
    assert list(net.parameters()) == list(native.state_dict()) == list(net.state_dict())
    assert net["1.layers.1.self_attn.in_proj_weight"].kind == "attention"
    assert net["1.layers.1.self_attn.out_proj.weight"].kind == "linear"
    assert [p.name for p in net.select(kind="gru")] == under("2", *LSTM_NAMES)
    assert len(net.select(kind="attention")) == 4


@in_framework("mxnet")
def test_names_inside_gluon_models(mx: Any) -> None:
    def make() -> mp.Model:
        rnn, native = mx.gluon.rnn, mx.gluon.nn.HybridSequential()
        native.add(mx.gluon.nn.Embedding(10, I), rnn.LSTM(H, 2, layout="NTC", bidirectional=True))
        native.add(rnn.GRU(H, layout="NTC"), mx.gluon.nn.Dense(2))
        native.initialize()
        net = mp.wrap(native, np.ones((N, T), "int32"))  # the sizes are known from here on
        native.hybridize()
        return net

    net = make()
    stacked = [f"{name[:-1]}{i}{way}" for i in (0, 1) for way in ("", "_reverse") for name in LSTM_NAMES]
    names = ["0.weight", *under("1", *stacked), *under("2", *LSTM_NAMES), "3.weight", "3.bias"]
    assert list(net.parameters()) == list(make().parameters()) == names
    assert net["1.weight_ih_l1_reverse"].shape == (4 * H, 2 * H) and net["2.weight_ih_l0"].shape == (3 * H, 2 * H)
    assert [p.name for p in net.select(kind="lstm")] == under("1", *stacked)


@in_framework("jax")
def test_names_inside_linen_models() -> None:
    from flax import linen as nn

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Embed(10, I)(x)
            x = nn.RNN(nn.OptimizedLSTMCell(H), name="rnn")(x)
            x = nn.SelfAttention(1)(x)
            x = nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H)), name="ways")(x)
            return nn.Dense(2, name="head")(x)

    class Setup(nn.Module):
        def setup(self) -> None:
            self.embed = nn.Embed(10, I)
            self.rnn = nn.RNN(nn.LSTMCell(H))
            self.attention = nn.MultiHeadDotProductAttention(1)

        def __call__(self, x: Any) -> Any:
            x = self.rnn(self.embed(x))
            return self.attention(x, x)

    tokens = np.ones((N, T), "int32")
    gru = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hn_l0"]
    expected = {
        Compact: [
            "Embed_0.weight",
            *under("rnn", *LSTM_ONE_BIAS),
            *under("SelfAttention_0", *ATTENTION_NAMES),
            *under("ways", *gru, *(f"{name}_reverse" for name in gru)),
            *under("head", "weight", "bias"),
        ],
        Setup: ["embed.weight", *under("rnn", *LSTM_ONE_BIAS), *under("attention", *ATTENTION_NAMES)],
    }
    for module, names in expected.items():
        net = mp.wrap(module(), tokens)
        assert list(net.parameters()) == names
        assert [p.name for p in net.select(kind="lstm")] == under("rnn", *LSTM_ONE_BIAS)
        assert sum(a.size for a in natives(net)) == sum(p.size for p in net)
    assert list(mp.wrap(module(), tokens).parameters()) == names


@in_framework("jax")
def test_names_inside_nnx_models() -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.embed = nnx.Embed(10, I, rngs=rngs)
            self.rnn = nnx.RNN(nnx.LSTMCell(I, H, rngs=rngs), rngs=rngs)
            self.attention = nnx.MultiHeadAttention(1, H, rngs=rngs, decode=False)
            self.cell = nnx.GRUCell(H, I, rngs=rngs)

    names = [
        "embed.weight",
        *under("rnn", *LSTM_ONE_BIAS),
        *under("attention", *ATTENTION_NAMES),
        *under("cell", "weight_ih", "weight_hh", "bias_ih"),
    ]
    net = mp.wrap(Net())
    assert list(net.parameters()) == list(mp.wrap(Net()).parameters()) == names
    assert {p.kind for p in net} == {"embedding", "lstm", "attention", "linear", "gru_cell"}


@pytest.mark.parametrize(
    ("kind", "layer", "parts"),
    [
        ("lstm_cell", "LSTMCell", {"weight_hh": ("hi", "hf", "hg", "ho")}),
        ("attention", "SelfAttention", {"in_proj_weight": ("query", "key", "value")}),
    ],
)
@in_framework("jax")
def test_linens_scan_over_layers_stacks_packed_parameters(
    kind: str, layer: str, parts: dict[str, tuple[str, ...]]
) -> None:
    """``nn.scan`` over depth keeps each array once, with the layers in front."""
    import jax.numpy as jnp
    from flax import linen as nn

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            if layer == "LSTMCell":
                return nn.LSTMCell(I, name="layer")((x, x), x)[1], None
            return nn.SelfAttention(2, name="layer")(x), None

    stack = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    net = mp.wrap(stack, jnp.ones((N, T, I)), None)
    ((name, gates),) = parts.items()
    p = net[f"layer.{name}"]
    kernels = [np.asarray(net.variables["params"]["layer"][gate]["kernel"]) for gate in gates]
    assert p.kind == kind and p.shape == (3, len(gates) * I, I)
    for i in range(3):
        rows = [kernel[i].reshape(I, I).T for kernel in kernels]
        np.testing.assert_array_equal(p.numpy()[i], np.concatenate(rows))
    p[2, I + 1, 3] = 42
    kernel = np.asarray(net.variables["params"]["layer"][gates[1]]["kernel"])
    assert kernel[2].reshape(I, I)[3, 1] == 42 and np.count_nonzero(kernel == 42) == 1
