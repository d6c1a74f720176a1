"""What linen and NNX share: storages over immutable arrays, compiled steps, optax, and 64-bit scopes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from multiparam.core import layers as layer_kinds
from multiparam.core import layouts
from multiparam.core.arrays import contiguous
from multiparam.core.composite import Composite, Leaf, attention, gates

NORM = {"scale": ("weight", "C"), "bias": ("bias", "C")}


def _kernel(module: Any) -> tuple[int, ...]:
    return (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)


def _spatial(name: str) -> Callable[[Any], tuple[int, ...]]:
    return lambda module: layer_kinds.per_axis(getattr(module, name), len(_kernel(module)))


CONV: dict[str, Any] = {
    "stride": _spatial("strides"),
    "padding": lambda module: layer_kinds.padding(
        module.padding, _kernel(module), _spatial("strides")(module), _spatial("kernel_dilation")(module)
    ),
    "dilation": _spatial("kernel_dilation"),
    "groups": "feature_group_count",
}
GATED: dict[str, Any] = {
    "activation": lambda cell: cell.activation_fn.__name__,
    "recurrent_activation": lambda cell: cell.gate_fn.__name__,
}


def _flipped(shape: tuple[int, ...]) -> layouts.Layout:
    """A transposed convolution's kernel (*k, I, O), which flax applies spatially reversed."""
    n = len(shape) - 2
    return layouts.Layout(("flip", tuple(range(n))), ("transpose", (n, n + 1, *range(n))))


RECURRENT = {
    linen.SimpleCell: "rnn_cell",
    linen.LSTMCell: "lstm_cell",
    linen.OptimizedLSTMCell: "lstm_cell",
    linen.GRUCell: "gru_cell",
    linen.MultiHeadDotProductAttention: "attention",
    nnx.SimpleCell: "rnn_cell",
    nnx.LSTMCell: "lstm_cell",
    nnx.OptimizedLSTMCell: "lstm_cell",
    nnx.GRUCell: "gru_cell",
    nnx.MultiHeadAttention: "attention",
}
LAYERS = layer_kinds.Layers(
    {
        linen.Dense: "linear",
        **RECURRENT,
        linen.recurrent.DenseParams: "linear",  # a gate of OptimizedLSTMCell
        linen.Conv: "conv",
        linen.ConvTranspose: "conv_transpose",
        linen.Embed: "embedding",
        linen.PReLU: "prelu",
        linen.LayerNorm: "layernorm",
        linen.RMSNorm: "rmsnorm",
        linen.GroupNorm: "groupnorm",
        linen.InstanceNorm: "instancenorm",
        linen.BatchNorm: "batchnorm",
        nnx.Linear: "linear",
        nnx.Conv: "conv",
        nnx.ConvTranspose: "conv_transpose",
        nnx.Embed: "embedding",
        nnx.PReLU: "prelu",
        nnx.LayerNorm: "layernorm",
        nnx.RMSNorm: "rmsnorm",
        nnx.GroupNorm: "groupnorm",
        nnx.InstanceNorm: "instancenorm",
        nnx.BatchNorm: "batchnorm",
    },
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "conv_transpose": {"kernel": ("weight", _flipped), "bias": ("bias", "O")},
        "embedding": {"embedding": ("weight", "VD")},
        "prelu": {"negative_slope": ("weight", lambda shape: layouts.Layout(("reshape", shape, (1,))))},
        "layernorm": {"scale": ("weight", "*"), "bias": ("bias", "*")},
        "rmsnorm": {"scale": ("weight", "*")},
        "groupnorm": NORM,
        "instancenorm": NORM,
        "batchnorm": {**NORM, "mean": ("running_mean", "C"), "var": ("running_var", "C")},
    },
    {
        "conv": CONV,
        "conv_transpose": {name: CONV[name] for name in ("stride", "padding", "dilation")},
        "layernorm": {"eps": "epsilon"},
        "rmsnorm": {"eps": "epsilon"},
        "groupnorm": {"eps": "epsilon", "groups": "num_groups"},
        "instancenorm": {"eps": "epsilon"},
        "batchnorm": {"eps": "epsilon", "momentum": lambda module: layer_kinds.momentum_from_decay(module.momentum)},
        "rnn_cell": {"activation": lambda cell: cell.activation_fn.__name__},
        "lstm_cell": GATED,
        "gru_cell": GATED,
        "attention": {"heads": "num_heads"},
    },
)


ATTENTION = attention("query", "key", "value", "out")
SEQUENCE = Composite(within={"cell": "_l0"})
BOTH_WAYS = Composite(within={"forward_rnn": "", "backward_rnn": "_reverse"})


def _cell(kind: str, input: Sequence[str], hidden: Sequence[str], biased: Mapping[str, Sequence[str]]) -> Composite:
    """A cell with a Dense per gate; ``biased``: which of them hold the canonical biases."""
    table = {"weight_ih": [f"{n}.weight" for n in input], "weight_hh": [f"{n}.weight" for n in hidden]}
    return gates(kind, {**table, **{name: [f"{n}.bias" for n in of] for name, of in biased.items()}})


def _lstm(i: str, f: str, g: str, o: str) -> Composite:
    hidden = ("hi", "hf", "hg", "ho")
    return _cell("lstm_cell", (i, f, g, o), hidden, {"bias_ih": hidden})


def _one(kind: str, input: str, hidden: str) -> Composite:
    """A cell with all gates in one Dense of the inputs and one of the state; the bias is the one that is there."""
    weights = {f"{input}.weight": Leaf("weight_ih"), f"{hidden}.weight": Leaf("weight_hh")}
    return Composite(kind, {**weights, f"{input}.bias": Leaf("bias_ih"), f"{hidden}.bias": Leaf("bias_ih")})


GRU_HIDDEN = {"bias_ih": ("ir", "iz", "in"), "bias_hn": ("hn",)}
COMPOSITES: layer_kinds.ByClass[Composite] = layer_kinds.ByClass(
    {
        linen.MultiHeadDotProductAttention: ATTENTION,
        linen.LSTMCell: _lstm("ii", "if", "ig", "io"),
        linen.OptimizedLSTMCell: _lstm("ii", "if", "ig", "io"),
        linen.GRUCell: _cell("gru_cell", ("ir", "iz", "in"), ("hr", "hz", "hn"), GRU_HIDDEN),
        linen.SimpleCell: _one("rnn_cell", "i", "h"),
        linen.RNN: SEQUENCE,
        linen.Bidirectional: BOTH_WAYS,
        nnx.MultiHeadAttention: ATTENTION,
        nnx.LSTMCell: _lstm("ii", "if_", "ig", "io"),
        nnx.OptimizedLSTMCell: _one("lstm_cell", "dense_i", "dense_h"),
        nnx.GRUCell: _one("gru_cell", "dense_i", "dense_h"),
        nnx.SimpleCell: _one("rnn_cell", "dense_i", "dense_h"),
        nnx.RNN: SEQUENCE,
        nnx.Bidirectional: BOTH_WAYS,
    }
)


def leaves_of(module: Any) -> layer_kinds.LeafNames | None:
    """The leaves of one module where its options change their layout: ``transpose_kernel`` reverses nothing."""
    if getattr(module, "transpose_kernel", False):
        return {"kernel": ("weight", "*OI"), "bias": ("bias", "O")}
    return None


def x64() -> AbstractContextManager[Any]:
    """A scope in which JAX keeps 64-bit numbers, whatever ``jax_enable_x64`` says outside."""
    if jax.config.jax_enable_x64:
        return nullcontext()
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)  # type: ignore[no-any-return]
    from jax.experimental import enable_x64

    return enable_x64()  # type: ignore[no-any-return]


def scope(dtypes: Iterable[Any]) -> AbstractContextManager[Any]:
    """:func:`x64` where one of the dtypes needs it, else nothing."""
    wide = any(np.dtype(dtype).kind in "fc" and np.dtype(dtype).name in ("float64", "complex128") for dtype in dtypes)
    return x64() if wide else nullcontext()


def from_numpy(array: np.ndarray) -> jax.Array:
    """A copy. JAX may adopt numpy memory, or copy it later: so it gets memory that nobody else can write to."""
    with scope([array.dtype]):
        if array.flags.c_contiguous:
            return jnp.asarray(contiguous(array))
        # XLA is quicker at changing the order than numpy. It may work on after the call, so wait for it.
        return jax.block_until_ready(jnp.asarray(array))


class Namespace:
    """jax.numpy, in the precision of the arrays: outside of a scope, float64 arrays come out as float32."""

    @staticmethod
    def permute_dims(array: Any, axes: tuple[int, ...]) -> Any:
        with scope([array.dtype]):
            return jnp.permute_dims(array, axes)

    @staticmethod
    def reshape(array: Any, shape: tuple[int, ...]) -> Any:
        with scope([array.dtype]):
            return jnp.reshape(array, shape)

    @staticmethod
    def flip(array: Any, axes: tuple[int, ...]) -> Any:
        with scope([array.dtype]):
            return jnp.flip(array, axes)

    @staticmethod
    def concat(arrays: Sequence[Any], axis: int) -> Any:
        with scope([array.dtype for array in arrays]):
            return jnp.concat(arrays, axis=axis)


class ArrayStorage:
    """A storage over an immutable array that somebody holds: a leaf of ours, or an NNX Variable."""

    gradient: jax.Array | None = None
    _trainable = True

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self._trainable = flag
        if not flag:
            self.gradient = None

    def get(self) -> Any:
        """The current array, or a tracer."""
        raise NotImplementedError

    def set(self, array: Any) -> None:
        """Hold another array."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...] | None:
        return tuple(self.get().shape)

    @property
    def dtype(self) -> str:
        return str(np.dtype(self.get().dtype).name)

    def read(self) -> Any:
        return self.get()

    def write(self, value: np.ndarray) -> None:
        with x64():  # or 64-bit integers would be cut to 32
            self.set(from_numpy(value))

    def grad(self) -> jax.Array | None:
        return self.gradient


FLOAT32 = jnp.dtype("float32")  # equal to each of the ways to say it


def in_float64(storages: Sequence[ArrayStorage]) -> AbstractContextManager[None] | None:
    """float32 arrays as float64 ones for a while; None where others are among them."""
    if any(storage.dtype not in ("float32", "int32", "uint32") for storage in storages):
        return None
    return _widened([storage for storage in storages if storage.dtype == "float32"])


@contextmanager
def _widened(storages: Sequence[ArrayStorage]) -> Iterator[None]:
    before = [storage.get() for storage in storages]
    with x64():
        for storage, array in zip(storages, before, strict=True):
            storage.set(array.astype("float64"))
        try:
            yield
        finally:
            for storage, array in zip(storages, before, strict=True):
                storage.set(array)


def compiled_step(
    view: Callable[[list[Any], list[Any], Any], Any],
    run: Callable[..., Any],
    wanted: Sequence[ArrayStorage],
    rest: Sequence[ArrayStorage],
) -> Callable[..., tuple[Any, list[Any]]]:
    """A jitted gradient step. ``view(wanted, rest, count)`` makes a host over traced values inside the trace and
    says how to read ``rest`` back afterwards; what the objective changed there is written to the model."""
    changed: list[int] = []

    def loss(values: list[Any], others: list[Any], count: Any, batch: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        host, after = view(values, others, count)
        result = run(host, *batch)
        now = after()
        changed[:] = [i for i, (old, new) in enumerate(zip(others, now, strict=True)) if old is not new]
        return result, [now[i] for i in changed]

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    count = np.zeros((), np.uint32)
    dtypes = {storage.dtype for storage in wanted}

    def step(*batch: Any) -> tuple[Any, list[Any]]:
        nonlocal count
        with scope(dtypes):
            values = [storage.get() for storage in wanted]
            (value, updated), grads = compiled(values, [storage.get() for storage in rest], count, batch)
        count = count + np.uint32(1)
        for i, array in zip(changed, updated, strict=True):
            rest[i].set(array)
        for storage, grad in zip(wanted, grads, strict=True):
            storage.gradient = grad
        return value, grads

    return step


class OptaxOptimizer:
    """An optax transformation, with one state per storage so that any subset can be updated."""

    def __init__(self, name: str, options: Mapping[str, Any], storages: Sequence[ArrayStorage]) -> None:
        if name == "adam":
            self.native = optax.adam(1.0, options["beta1"], options["beta2"], options["eps"])
        elif name == "momentum":
            self.native = optax.sgd(1.0, options["momentum"], bool(options["nesterov"]))
        else:
            self.native = optax.sgd(1.0)
        self.lr = options["lr"]
        with x64():
            self._states = {id(storage): self.native.init(storage.get()) for storage in storages}

        def update(grads: list[Any], states: list[Any], values: list[Any], lr: Any) -> tuple[list[Any], list[Any]]:
            pairs = [self.native.update(*each) for each in zip(grads, states, values, strict=True)]
            new = [value + lr * step for value, (step, _) in zip(values, pairs, strict=True)]
            return new, [state for _, state in pairs]

        self._update = jax.jit(update)

    def apply(self, storages: Sequence[Any], grads: Sequence[Any]) -> None:
        with x64():  # optax then computes Adam's 1 - beta ** t in float64: in float32 it is off by up to 6e-5
            states = [self._states[id(storage)] for storage in storages]
            values, states = self._update(list(grads), states, [s.get() for s in storages], self.lr)
        for storage, value, state in zip(storages, values, states, strict=True):
            storage.set(value)
            self._states[id(storage)] = state
