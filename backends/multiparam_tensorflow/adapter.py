"""Keras 3 or tf_keras 2 on TensorFlow: a storage is a Keras or TensorFlow Variable; a slot, an attribute of a layer.

Keras' own names and paths are neither unique nor stable, so variables and layers are found by looking up, by identity,
which attribute holds them; a Sequential's children are named by position.
"""

from __future__ import annotations

import functools
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multiparam import nn, paths
from multiparam.core import layers as layer_kinds
from multiparam.core import layouts
from multiparam.core.arrays import contiguous
from multiparam.core.composite import Composite, Leaf, attention, fold
from multiparam.core.identity import LayerNames, Storages, watch_calls
from multiparam.core.protocol import Activation, Adapter, Host, Run, Slot
from multiparam.errors import MultiparamWarning, UnknownShapes, Unrecognised, Unsupported

from .build import functional
from .optimizers import KerasOptimizer

Place = tuple[tuple[str, ...], tuple[int, ...], Any]  # path, positions, layer

NORM = {"gamma": ("weight", "C"), "beta": ("bias", "C")}
CELL = {"kernel": ("weight_ih", "IO"), "recurrent_kernel": ("weight_hh", "IO"), "bias": ("bias_ih", "O")}


def _depthwise(shape: tuple[int, ...]) -> layouts.Layout:
    """A depthwise kernel (*k, C, m) as that of a grouped convolution, (C * m, 1, *k)."""
    *kernel, channels, multiplier = shape
    n = len(kernel)
    split = (channels, multiplier, *kernel)
    joined = (channels * multiplier, 1, *kernel)
    return layouts.Layout(("transpose", (n, n + 1, *range(n))), ("reshape", split, joined))


# Name -> kind in both generations; by name, so that tf_keras need not be imported to recognise its layers.
KINDS = {
    "Dense": "linear",
    "Conv1D": "conv",
    "Conv2D": "conv",
    "Conv3D": "conv",
    "DepthwiseConv1D": "conv",
    "DepthwiseConv2D": "conv",
    "Conv1DTranspose": "conv_transpose",
    "Conv2DTranspose": "conv_transpose",
    "Conv3DTranspose": "conv_transpose",
    "Embedding": "embedding",
    "LayerNormalization": "layernorm",
    "RMSNormalization": "rmsnorm",
    "GroupNormalization": "groupnorm",
    "BatchNormalization": "batchnorm",
    "SimpleRNNCell": "rnn_cell",
    "LSTMCell": "lstm_cell",
    "MultiHeadAttention": "attention",
}
CONV: dict[str, Any] = {
    "stride": lambda layer: tuple(layer.strides),
    "padding": lambda layer: layer_kinds.padding(layer.padding, layer.kernel_size, layer.strides, layer.dilation_rate),
    "dilation": lambda layer: tuple(layer.dilation_rate),
    "groups": lambda layer: layer.input_spec.axes[-1] if hasattr(layer, "depth_multiplier") else layer.groups,
    "activation": lambda layer: layer.activation.__name__,
}
GATED: dict[str, Any] = {
    "activation": lambda cell: cell.activation.__name__,
    "recurrent_activation": lambda cell: cell.recurrent_activation.__name__,
}
EPS: dict[str, Any] = {"eps": "epsilon"}
LAYERS = layer_kinds.Layers(
    {f"{root}.{name}": kind for root in ("keras", "tf_keras") for name, kind in KINDS.items()},
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "conv_transpose": {"kernel": ("weight", "*OI"), "bias": ("bias", "O")},
        "embedding": {"embeddings": ("weight", "VD")},
        "layernorm": {"gamma": ("weight", "*"), "beta": ("bias", "*")},
        "rmsnorm": {"scale": ("weight", "*")},
        "groupnorm": NORM,
        "rnn_cell": CELL,
        "lstm_cell": CELL,
        "batchnorm": {**NORM, "moving_mean": ("running_mean", "C"), "moving_variance": ("running_var", "C")},
    },
    {
        "linear": {"activation": lambda layer: layer.activation.__name__},
        "conv": CONV,
        "conv_transpose": {name: CONV[name] for name in ("stride", "padding", "dilation", "activation")},
        "layernorm": EPS,
        "rmsnorm": EPS,
        "groupnorm": {**EPS, "groups": "groups"},
        "batchnorm": {**EPS, "momentum": lambda layer: layer_kinds.momentum_from_decay(layer.momentum)},
        "rnn_cell": {"activation": lambda cell: cell.activation.__name__},
        **dict.fromkeys(("lstm_cell", "GRUCell"), GATED),
        "attention": {"heads": "_num_heads"},
    },
)


def _gru(shape: tuple[int, ...]) -> layouts.Layout:
    """Gates z r h of a kernel (I, 3H) or a bias (3H,) as PyTorch's r z n, one below the other."""
    *inputs, many = shape
    whole, split = (many, *inputs), (3, many // 3, *inputs)
    turn = [("transpose", (1, 0))] if inputs else []
    return layouts.Layout(*turn, ("reshape", whole, split), ("reorder", (1, 0, 2)), ("reshape", split, whole))


GRU = {"kernel": Leaf("weight_ih", _gru), "recurrent_kernel": Leaf("weight_hh", _gru)}
GRU_AFTER = Composite("gru_cell", {**GRU, "bias": (Leaf("bias_ih", _gru, row=0), Leaf("bias_hh", _gru, row=1))})
GRU_BEFORE = Composite("gru_before_cell", {**GRU, "bias": Leaf("bias_ih", _gru)})
SEQUENCE = Composite(within={r"cell\.cells\.(\d+)": r"_l\1", "cell": "_l0"})
ATTENTION = attention("query_dense", "key_dense", "value_dense", "output_dense")
COMPOSITES = {
    "MultiHeadAttention": ATTENTION,
    "GroupedQueryAttention": ATTENTION,
    "GRUCell": GRU_AFTER,
    "RNN": SEQUENCE,
    "Bidirectional": Composite(within={"forward_layer": "", "backward_layer": "_reverse"}),
}
composites = layer_kinds.ByClass(
    {f"{root}.{name}": each for root in ("keras", "tf_keras") for name, each in COMPOSITES.items()}
)


def composite_of(layer: Any) -> Composite | None:
    """How a layer made of layers shows; a GRU's reset gate acts after or before the recurrent product."""
    found = composites.of(type(layer))
    return GRU_BEFORE if found is GRU_AFTER and not layer.reset_after else found


# A depthwise convolution is a grouped one; Keras 3 and tf_keras call its kernel differently.
DEPTHWISE: layer_kinds.LeafNames = {
    "kernel": ("weight", _depthwise),
    "depthwise_kernel": ("weight", _depthwise),
    "bias": ("bias", "O"),
}

# The paths of the models mp.build made: a shared layer's second name is nowhere in a Functional model.
_built: weakref.WeakKeyDictionary[Any, list[Place]] = weakref.WeakKeyDictionary()


@functools.cache
def is_layer_class(cls: type) -> bool:
    names = {base.__name__ for base in cls.__mro__ if base.__module__.partition(".")[0] in ("keras", "tf_keras")}
    return "Layer" in names and "Metric" not in names  # tf_keras' metrics are layers too


def is_layer(obj: Any) -> bool:
    return is_layer_class(type(obj))


class VariableStorage:
    """A Keras 3 Variable, or tf_keras' tf.Variable."""

    def __init__(self, native: Any, layer: Any) -> None:
        self.native = native
        self.gradient: Any = None
        self._layer = layer

    @property
    def variable(self) -> tf.Variable:
        return self.native if isinstance(self.native, tf.Variable) else self.native._value

    @property
    def shape(self) -> tuple[int, ...] | None:
        return tuple(self.native.shape)

    @property
    def dtype(self) -> str:
        if isinstance(self.native, keras.Variable):
            return str(self.native.dtype)
        return tf.as_dtype(self.native.dtype).name

    @property
    def trainable(self) -> bool:
        if isinstance(self.native, keras.Variable):
            return bool(self.native.trainable)
        return bool(self.native.trainable and self._layer.trainable)

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        if isinstance(self.native, keras.Variable):
            self.native.trainable = flag
        else:  # tf_keras freezes by layer, and asks the layer
            self._layer.trainable = flag
        if not flag:
            self.gradient = None

    def read(self) -> Any:
        return _tensor(self.native)

    def write(self, value: np.ndarray) -> None:
        self.native.assign(contiguous(value))  # a tensor may alias what it is made of

    def grad(self) -> Any | None:
        return self.gradient


# TensorFlow's names for what the array API standard names.
TENSORS = SimpleNamespace(permute_dims=tf.transpose, reshape=tf.reshape, flip=tf.reverse, concat=tf.concat)


def namespace(array: Any) -> Any:
    """That of TensorFlow's tensors, or of another backend of Keras'."""
    return TENSORS if tf.is_tensor(array) else keras.ops


class Through:
    """What a layer's attribute holds where a transposed tie is: another variable, ``source``, in this layout.

    TensorFlow takes it for a tensor wherever it computes with it, and Keras for a variable where it saves weights.
    """

    def __init__(self, source: Any, layout: layouts.Layout) -> None:
        self.source = source
        self.view = layout

    @property
    def value(self) -> Any:
        tensor = _tensor(self.source)
        return self.view.apply(tensor, namespace(tensor))

    def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> tf.Tensor:
        value: tf.Tensor = self.value
        return value if dtype is None or value.dtype == dtype else tf.cast(value, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(_numpy(self.value), dtype)

    def __jax_array__(self) -> Any:
        return self.value

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*(a.value if isinstance(a, cls) else a for a in args), **(kwargs or {}))

    def numpy(self) -> np.ndarray:
        return np.asarray(_numpy(self.value))

    @property
    def shape(self) -> Any:
        shape = self.view.shape(tuple(self.source.shape))
        return shape if isinstance(self.source, keras.Variable) else tf.TensorShape(shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return self.source.dtype

    @property
    def name(self) -> str:
        return str(self.source.name)

    def assign(self, value: Any) -> Any:
        return self.source.assign(self.view.undo(np.asarray(_numpy(value)), np))

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]


def _tensor(variable: Any) -> Any:
    """A variable as the tensor that its backend computes with."""
    if isinstance(variable, tf.Variable) or keras.backend.backend() == "tensorflow":
        return tf.convert_to_tensor(variable)
    return variable.value


def _numpy(array: Any) -> np.ndarray:
    if isinstance(array, (tf.Tensor, tf.Variable)):
        return np.asarray(array.numpy())  # np.asarray alone fails for a scalar of bfloat16
    if not isinstance(array, keras.Variable):
        return np.asarray(array) if not hasattr(array, "detach") else keras.ops.convert_to_numpy(array)
    return np.asarray(keras.ops.convert_to_numpy(array))


def _is_foreign(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer has been built, and for other variables."""
    if optimizer is None or not getattr(optimizer, "built", getattr(optimizer, "_built", False)):
        return False
    if hasattr(optimizer, "_index_dict"):
        return optimizer._var_key(variable) not in optimizer._index_dict
    return not any(variable is known for known in optimizer._trainable_variables)


class KerasHost(Host):
    """A Keras model or layer."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._storages: Storages[VariableStorage] = Storages()
        self._training = "training" in _call_arguments(native)

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        inside: list[Open] = []  # the composite layers we are in
        for path, positions, layer in _built.get(self.native) or walk(self.native, (), (), ()):
            _leave(inside, path, found)
            composite = composite_of(layer)
            if composite is not None:
                inside.append((path, len(found), composite, layer))
            self._own(layer, path, positions, found)
        _leave(inside, None, found)
        alive = {id(slot.storage.native) for slot in found}
        lost = [variable for variable in self.native.weights if id(variable) not in alive]
        if lost:
            raise Unsupported(
                f"{lost[0].name!r} of the Keras model {self.native.name!r} is held by no attribute of any layer, "
                "so it has no stable name. Keep its layer, or the variable, in an attribute."
            )
        self._storages.keep(found)
        return found

    def _own(self, layer: Any, path: tuple[str, ...], positions: tuple[int, ...], found: list[Slot]) -> None:
        kind, own, trained = LAYERS.of(type(layer)), [], _lists(layer)[0]
        depthwise = DEPTHWISE if kind == "conv" and hasattr(layer, "depth_multiplier") else None
        for attribute, variable in variables(layer):
            storage = self._storages.of(variable, VariableStorage, layer)
            if not any(variable is v for group in _lists(storage._layer) for v in group):
                storage._layer = layer  # it was untied from the layer it was seen in first
            leaf, held = attribute.lstrip("_"), vars(layer)[attribute]
            name, layout = LAYERS.canonical(type(layer), leaf, tuple(held.shape), depthwise)
            buffer = not any(variable is v for v in trained)
            view = held.view if isinstance(held, Through) else None
            own.append(Slot((*path, name), positions, kind, storage, layout, layer, attribute, buffer, view))
        found.extend(sorted(own, key=lambda slot: layer_kinds.rank(kind, slot.path[-1])))

    @property
    def data_order(self) -> str:  # type: ignore[override]
        if self.native in _built:
            return "first"
        formats = {getattr(layer, "data_format", None) for _, _, layer in walk(self.native, (), (), ())}
        return "first" if "channels_first" in formats else "last"

    def in_float64(self) -> AbstractContextManager[None] | None:
        layers = [layer for _, _, layer in walk(self.native, (), (), ())]
        if not all(isinstance(layer, keras.layers.Layer) and layer.dtype == "float32" for layer in layers):
            return None  # tf_keras casts no variable up
        return _computing_in_float64(layers)

    def activations(self, inputs: tuple[Any, ...], on_call: Callable[[Activation], None]) -> Any:
        wanted = {slot.path[:-1] for slot in self.slots()}
        places = _built.get(self.native) or walk(self.native, (), (), ())
        with watch_calls(LayerNames((paths.text(path), layer) for path, _, layer in places if path in wanted), on_call):
            return self.call(inputs, {}, False)

    def options(self, slot: Slot) -> Mapping[str, Any]:
        return LAYERS.options(slot.options_layer)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if self._training:
            kwargs = {"training": train, **kwargs}
        return self.native(*inputs, **kwargs)

    def set_trainable(self, storages: Sequence[Any], flag: bool) -> None:
        chosen = {id(storage.native) for storage in storages}
        for storage in storages:  # tf_keras freezes by layer
            whole = [] if isinstance(storage.native, keras.Variable) else _lists(storage._layer)[0]
            if any(id(variable) not in chosen and variable.trainable for variable in whole):
                raise Unsupported(
                    f"tf_keras freezes whole layers: {storage._layer.name!r} has more parameters than the ones named. "
                    "Name all of them, or use Keras 3, which freezes each variable."
                )
        super().set_trainable(storages, flag)

    def bind(self, slots: Sequence[Slot], storage: Any, view: layouts.Layout | None = None) -> None:
        layer, attribute = slots[0].owner, slots[0].leaf
        old, new = slots[0].storage.native, storage.native
        for variables_of in _lists(layer):  # by identity: the tracker's own replacement compares values
            variables_of[:] = [new if v is old else v for v in variables_of]
        for ids in getattr(getattr(layer, "_tracker", None), "stored_ids", {}).values():
            if id(old) in ids:
                ids.remove(id(old))
                ids.add(id(new))
        layer.__dict__[attribute] = new if view is None else Through(new, view)
        if isinstance(new, tf.__internal__.tracking.Trackable):  # what tf.train.Checkpoint saves
            layer._track_trackable(new, attribute, overwrite=True)
        self._storages.add(storage)
        for _, _, model in walk(self.native, (), (), ()):
            for name in ("train_function", "test_function", "predict_function", "train_tf_function"):
                if getattr(model, name, None) is not None:  # compiled for the old variable
                    setattr(model, name, None)
        if _is_foreign(getattr(self.native, "optimizer", None), new):
            warnings.warn(
                f"The optimizer of {self.native.name!r} was built before and does not know the parameter that "
                f"{layer.name!r} has now: compile() the model again before fit().",
                MultiparamWarning,
                stacklevel=4,
            )

    def copy(self, storage: Any, view: layouts.Layout | None = None) -> VariableStorage:
        old, values = storage.native, storage.read()
        values = values if view is None else view.apply(values, namespace(values))
        if isinstance(old, keras.Variable):
            fresh = keras.Variable(_numpy(values), dtype=old.dtype, trainable=old.trainable, name=old.name)
        else:
            fresh = tf.Variable(values, trainable=old.trainable, name=old.name.partition(":")[0])
        return self._storages.of(fresh, VariableStorage, storage._layer)

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        _require_tensorflow(storages, "gradients")
        watch_calls = [storage.variable for storage in storages]

        @tf.function(autograph=False)
        def compiled(*batch: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                for variable in watch_calls:
                    tape.watch(variable)
                loss = run(self, *batch)
            grads = tape.gradient(loss, watch_calls, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return loss, [tf.convert_to_tensor(grad) for grad in grads]  # an embedding's are sparse slices

        def step(*batch: Any) -> tuple[Any, list[Any]]:
            loss, grads = compiled(*batch)
            for storage, grad in zip(storages, grads, strict=True):
                storage.gradient = grad
            return loss, grads

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> KerasOptimizer:
        _require_tensorflow(storages, "optimizers")
        return KerasOptimizer(name, options, storages)


@contextmanager
def _computing_in_float64(layers: Sequence[Any]) -> Iterator[None]:
    """Keras casts its float32 variables where a layer computes in another dtype, and up is exact."""
    policy = keras.DTypePolicy("float32")
    policy._compute_dtype = "float64"
    before = [(layer, layer.dtype_policy) for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, was in before:
            layer.dtype_policy = was


def _require_tensorflow(storages: Sequence[VariableStorage], what: str) -> None:
    backend = keras.backend.backend()
    if backend != "tensorflow" and any(isinstance(storage.native, keras.Variable) for storage in storages):
        raise Unsupported(
            f"This Keras runs on {backend}: multiparam reaches, ties and initialises its parameters but has no {what}. "
            "Set KERAS_BACKEND=tensorflow before Keras is imported, or differentiate net.native natively."
        )


Open = tuple[tuple[str, ...], int, Composite, Any]  # path, first slot, how it folds, layer


def _leave(inside: list[Open], path: Any, found: list[Slot]) -> None:
    """Fold the composite layers that end before ``path``."""
    while inside and (path is None or path[: len(inside[-1][0])] != inside[-1][0]):
        at, start, composite, layer = inside.pop()
        fold(composite, found, start, len(at), layer)


def _call_arguments(layer: Any) -> Sequence[str]:
    import inspect

    return list(inspect.signature(layer.call).parameters)


def _lists(layer: Any) -> tuple[list[Any], list[Any]]:
    """A layer's own trainable and other variables, in either generation."""
    if hasattr(layer, "_trainable_variables"):
        return layer._trainable_variables, layer._non_trainable_variables
    return layer._trainable_weights, layer._non_trainable_weights


def variables(layer: Any) -> Iterator[tuple[str, Any]]:
    """A layer's own variables with the attribute that holds each."""
    attributes = vars(layer)
    names = _holders.setdefault(type(layer), [])
    for variable in (v for group in _lists(layer) for v in group):
        name = next((name for name in names if _holds(attributes.get(name), variable)), None)
        if name is None:
            name = next((name for name, value in attributes.items() if _holds(value, variable)), None)
            if name is None:
                raise Unsupported(
                    f"A variable of layer {layer.name!r} is held by no attribute of its own, so it has no stable name; "
                    "assign what add_weight returns to an attribute."
                )
            names.append(name)
        yield name, variable


def _holds(value: Any, variable: Any) -> bool:
    return value is variable or (isinstance(value, Through) and value.source is variable)


# The attributes in which each class of layers was seen to hold variables: where to look first.
_holders: dict[type, list[str]] = {}


def walk(layer: Any, path: tuple[str, ...], positions: tuple[int, ...], above: tuple[int, ...]) -> Iterator[Place]:
    """Every use of every layer in definition order; one used at several places comes several times."""
    if id(layer) in above:  # a layer that refers back to its parent
        return
    yield path, positions, layer
    for position, (segments, child) in enumerate(children(layer)):
        at = (position,) if len(segments) == 1 else (position, *(int(s) if s.isdigit() else 0 for s in segments[1:]))
        yield from walk(child, (*path, *segments), (*positions, *at), (*above, id(layer)))


def children(layer: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A layer's direct sublayers by name: by position in a Sequential; elsewhere by the attributes that hold them, then
    by layer name in a Functional model, then by private attributes, which MultiHeadAttention, for one, keeps."""
    cls = {base.__name__ for base in type(layer).__mro__}
    if "Sequential" in cls:
        yield from (((str(i),), child) for i, child in enumerate(_sequence(layer)))
        return
    if not (getattr(layer, "_layers", None) or getattr(layer, "_self_tracked_trackables", None)):
        return
    seen: set[int] = set()
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}  # where layers are torch's modules, they are there
    if "Bidirectional" in cls and hasattr(layer, "backward_layer"):
        attributes.pop("layer", None)  # tf_keras keeps the layer it was given, unused, beside the two it made of it
    public = {attribute for attribute in attributes if not attribute.startswith("_")}
    for attribute in attributes:
        if attribute in public:
            for segments, child in _layers(attributes[attribute]):
                seen.add(id(child))
                yield (attribute, *segments), child
    if "Functional" in cls:
        graph = [child for child in layer.layers if type(child).__name__ != "InputLayer" and id(child) not in seen]
        seen.update(map(id, graph))
        yield from zip(((name,) for name in _stable_names(graph)), graph, strict=True)
    for attribute, value in attributes.items():
        if attribute.startswith("_") and not attribute.startswith("_self_") and attribute not in TRACKERS:
            for segments, child in _layers(value):
                if id(child) not in seen:
                    seen.add(id(child))
                    bare = attribute.lstrip("_")
                    yield (attribute if bare in public else bare, *segments), child


def _sequence(model: Any) -> list[Any]:
    """A Sequential's layers as it applies them. tf_keras lists one that is repeated once, whatever it does."""
    if not getattr(model, "_graph_initialized", False):
        return list(model.layers)
    nodes = [node.layer for _, depth in sorted(model._nodes_by_depth.items(), reverse=True) for node in depth]
    applied = [layer for layer in nodes if type(layer).__name__ != "InputLayer"]
    return applied if len(applied) > len(model.layers) else list(model.layers)


def _repeated(model: Any) -> list[Any]:
    """The layers of a tf_keras Sequential that is not built yet, where one is there twice."""
    if getattr(model, "_graph_initialized", True) or type(model).__name__ != "Sequential":
        return []
    added = [each for each in model._self_tracked_trackables if type(each).__name__ != "InputLayer"]
    return added if len(set(map(id, added))) < len(added) else []


# Where Keras itself lists a layer's sublayers again; TensorFlow's own lists begin with "_self_".
TRACKERS = {"_modules", "_layers", "_tracked", "_operations", "_metrics", "_functional", "_obj_reference_counts_dict"}


def _layers(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if is_layer(value):
        yield (), value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from (((str(i), *segments), child) for segments, child in _layers(item))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from (((str(name), *segments), child) for segments, child in _layers(item))


def _stable_names(graph: Sequence[Any]) -> list[str]:
    """The names of a Functional model's layers: the user's where there is one, else the class and a count within the
    model. Keras' own count is the process's, and a model built twice would have two sets of names."""
    bases = [next((base for base in _auto_names(layer) if _is_counted(layer.name, base)), None) for layer in graph]
    taken = {layer.name for layer, base in zip(graph, bases, strict=True) if base is None}
    names = []
    for layer, base in zip(graph, bases, strict=True):
        name, n = base or layer.name, 0
        while base is not None and name in taken:
            n += 1
            name = f"{base}_{n}"
        taken.add(name)
        names.append(str(name))
    return names


def _auto_names(layer: Any) -> list[str]:
    """What Keras would call a layer of this class, in either generation."""
    name = type(layer).__name__
    three = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
    two = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)).lower()
    return [three, two, *(["model"] if name in ("Functional", "Model") else [])]


def _is_counted(name: str, base: str) -> bool:
    return re.fullmatch(rf"{re.escape(base)}(_\d+)?", name) is not None


class TensorflowAdapter(Adapter):
    """Keras on TensorFlow."""

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> KerasHost:
        if not is_layer(native):
            raise Unrecognised(f"mp.wrap takes a Keras model or layer, not {type(native).__qualname__}.")
        repeated = _repeated(native)
        if not native.built or not all(layer.built for _, _, layer in walk(native, (), (), ())):
            if not inputs and native.built:
                idle = next(layer for _, _, layer in walk(native, (), (), ()) if not layer.built)
                raise UnknownShapes(
                    f"The layer {idle.name!r} of the Keras model {native.name!r} was never called, so it has no "
                    "parameters. Pass example inputs, mp.wrap(net, X); a layer that no call reaches is left out."
                )
            if not inputs:
                raise UnknownShapes(
                    f"The Keras model {native.name!r} is not built, so it has no parameters yet. "
                    "Pass example inputs, mp.wrap(net, X), or call it once."
                )
            native(*inputs)
        if repeated and len(_sequence(native)) < len(repeated):
            at = [i for i, layer in enumerate(repeated) if repeated.count(layer) > 1]
            warnings.warn(
                f"tf_keras applies a repeated layer of a Sequential once when its first call builds it: "
                f"of {repeated[at[0]].name!r}, at {' and '.join(map(str, at))} of {native.name!r}, the first is left. "
                "Begin with tf_keras.Input, and it is applied each time.",
                MultiparamWarning,
                stacklevel=3,
            )
        return KerasHost(native)

    def build(self, architecture: nn.Architecture, dtype: str) -> KerasHost:
        model, places = functional(architecture, dtype)
        _built[model] = places
        return KerasHost(model)

    def to_numpy(self, array: Any) -> np.ndarray:
        if isinstance(array, keras.Variable):
            array = _tensor(array)
        return _numpy(array)

    def from_numpy(self, array: np.ndarray) -> Any:
        if keras.backend.backend() == "tensorflow":
            return tf.constant(array)
        return keras.ops.convert_to_tensor(np.array(array))

    def namespace(self, array: Any) -> Any:
        return namespace(array)

    def detach(self, array: Any) -> Any:
        if tf.is_tensor(array):
            return tf.stop_gradient(array)
        return keras.ops.copy(keras.ops.stop_gradient(array))  # torch's may alias the variable

    def mse(self, prediction: Any, target: Any) -> tf.Tensor:
        return tf.reduce_mean(tf.math.squared_difference(prediction, tf.cast(target, prediction.dtype)))

    def cross_entropy(self, logits: Any, labels: Any) -> tf.Tensor:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    def initializer(self, function: Any) -> Callable[[Any, int], None] | None:
        roots = {base.__module__.partition(".")[0] for base in type(function).__mro__}
        if not roots & {"keras", "tf_keras", "tensorflow"} or not hasattr(function, "get_config"):
            return None

        def fill(storage: VariableStorage, seed: int) -> None:
            config = function.get_config()  # an initialiser keeps the seed it was made with: make one with ours
            seeded = type(function).from_config({**config, "seed": seed}) if "seed" in config else function
            storage.native.assign(seeded(storage.shape, dtype=storage.dtype))

        return fill
