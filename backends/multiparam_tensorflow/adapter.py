"""Keras 3 or tf_keras 2 on TensorFlow: a storage is a Keras or TensorFlow Variable; a slot, an attribute of a layer.

Keras' own names and paths are neither unique nor stable, so variables and layers are found by looking up, by identity,
which attribute holds them; a Sequential's children are named by position.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multiparam import layouts, nn
from multiparam.errors import UnknownShapes, Unrecognised, Unsupported
from multiparam.identity import Storages
from multiparam.protocol import Backend, Host, Run, Slot

from .build import functional
from .optimizers import KerasOptimizer

Place = tuple[tuple[str, ...], tuple[int, ...], Any]  # path, positions, layer

NORM = {"gamma": ("weight", "C"), "beta": ("bias", "C")}


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
}
LAYERS = layouts.Layers(
    {f"{root}.{name}": kind for root in ("keras", "tf_keras") for name, kind in KINDS.items()},
    {
        "linear": {"kernel": ("weight", "IO"), "bias": ("bias", "O")},
        "conv": {"kernel": ("weight", "*IO"), "bias": ("bias", "O")},
        "conv_transpose": {"kernel": ("weight", "*OI"), "bias": ("bias", "O")},
        "embedding": {"embeddings": ("weight", "VD")},
        "layernorm": {"gamma": ("weight", "*"), "beta": ("bias", "*")},
        "rmsnorm": {"scale": ("weight", "*")},
        "groupnorm": NORM,
        "batchnorm": {**NORM, "moving_mean": ("running_mean", "C"), "moving_variance": ("running_var", "C")},
    },
)

# A depthwise convolution is a grouped one; Keras 3 and tf_keras call its kernel differently.
DEPTHWISE: layouts.LeafNames = {
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

    def read(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.variable)

    def write(self, value: np.ndarray) -> None:
        self.variable.assign(np.asarray(value, order="C"))

    def grad(self) -> Any | None:
        return self.gradient


class KerasHost(Host):
    """A Keras model or layer."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._storages: Storages[VariableStorage] = Storages()
        self._training = "training" in _call_arguments(native)

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        for path, positions, layer in _built.get(self.native) or walk(self.native, (), (), ()):
            self._own(layer, path, positions, found)
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
            leaf = attribute.lstrip("_")
            name, layout = LAYERS.canonical(type(layer), leaf, tuple(variable.shape), depthwise)
            buffer = not any(variable is v for v in trained)
            own.append(Slot((*path, name), positions, kind, storage, layout, layer, attribute, buffer))
        found.extend(sorted(own, key=lambda slot: layouts.rank(kind, slot.path[-1])))

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

    def bind(self, slots: Sequence[Slot], storage: Any) -> None:
        layer, attribute = slots[0].owner, slots[0].leaf
        old, new = getattr(layer, attribute), storage.native
        for variables_of in _lists(layer):  # by identity: the tracker's own replacement compares values
            variables_of[:] = [new if v is old else v for v in variables_of]
        for ids in getattr(getattr(layer, "_tracker", None), "stored_ids", {}).values():
            if id(old) in ids:
                ids.remove(id(old))
                ids.add(id(new))
        layer.__dict__[attribute] = new
        if isinstance(new, tf.__internal__.tracking.Trackable):  # what tf.train.Checkpoint saves
            layer._track_trackable(new, attribute, overwrite=True)
        self._storages.add(storage)
        for _, _, model in walk(self.native, (), (), ()):
            for name in ("train_function", "test_function", "predict_function", "train_tf_function"):
                if getattr(model, name, None) is not None:  # compiled for the old variable
                    setattr(model, name, None)

    def copy(self, storage: Any) -> VariableStorage:
        old = storage.native
        if isinstance(old, keras.Variable):
            fresh = keras.Variable(old.numpy(), dtype=old.dtype, trainable=old.trainable, name=old.name)
        else:
            fresh = tf.Variable(old, trainable=old.trainable, name=old.name.partition(":")[0])
        return self._storages.of(fresh, VariableStorage, storage._layer)

    def gradient(self, run: Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        watched = [storage.variable for storage in storages]

        @tf.function(autograph=False)
        def compiled(*batch: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                for variable in watched:
                    tape.watch(variable)
                loss = run(self, *batch)
            grads = tape.gradient(loss, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return loss, [tf.convert_to_tensor(grad) for grad in grads]  # an embedding's are sparse slices

        def step(*batch: Any) -> tuple[Any, list[Any]]:
            loss, grads = compiled(*batch)
            for storage, grad in zip(storages, grads, strict=True):
                storage.gradient = grad
            return loss, grads

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> KerasOptimizer:
        return KerasOptimizer(name, options, storages)


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
        name = next((name for name in names if attributes.get(name) is variable), None)
        if name is None:
            name = next((name for name, value in attributes.items() if value is variable), None)
            if name is None:
                raise Unsupported(
                    f"A variable of layer {layer.name!r} is held by no attribute of its own, so it has no stable name; "
                    "assign what add_weight returns to an attribute."
                )
            names.append(name)
        yield name, variable


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
        yield from (((str(i),), child) for i, child in enumerate(layer.layers))
        return
    if not (getattr(layer, "_layers", None) or getattr(layer, "_self_tracked_trackables", None)):
        return
    seen: set[int] = set()
    public = {attribute for attribute in vars(layer) if not attribute.startswith("_")}
    for attribute in vars(layer):
        if attribute in public:
            for segments, child in _layers(vars(layer)[attribute]):
                seen.add(id(child))
                yield (attribute, *segments), child
    if "Functional" in cls:
        graph = [child for child in layer.layers if type(child).__name__ != "InputLayer" and id(child) not in seen]
        seen.update(map(id, graph))
        yield from zip(((name,) for name in _stable_names(graph)), graph, strict=True)
    for attribute, value in vars(layer).items():
        if attribute.startswith("_") and not attribute.startswith("_self_") and attribute not in TRACKERS:
            for segments, child in _layers(value):
                if id(child) not in seen:
                    seen.add(id(child))
                    bare = attribute.lstrip("_")
                    yield (attribute if bare in public else bare, *segments), child


# Where Keras itself lists a layer's sublayers again; TensorFlow's own lists begin with "_self_".
TRACKERS = {"_layers", "_tracked", "_operations", "_metrics", "_functional", "_obj_reference_counts_dict"}


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


class TensorflowBackend(Backend):
    """Keras on TensorFlow."""

    def wrap(self, native: Any, inputs: tuple[Any, ...]) -> KerasHost:
        if not is_layer(native):
            raise Unrecognised(f"mp.wrap takes a Keras model or layer on TensorFlow, not {type(native).__qualname__}.")
        if isinstance(native, keras.layers.Layer) and keras.backend.backend() != "tensorflow":
            raise Unsupported(
                f"This Keras runs on {keras.backend.backend()}; multiparam reaches Keras models on TensorFlow so far. "
                "Set KERAS_BACKEND=tensorflow before Keras is imported."
            )
        if not native.built or not all(layer.built for _, _, layer in walk(native, (), (), ())):
            if not inputs:
                raise UnknownShapes(
                    f"The Keras model {native.name!r} is not built, so it has no parameters yet. "
                    "Pass example inputs, mp.wrap(net, X), or call it once."
                )
            native(*inputs)
        return KerasHost(native)

    def build(self, plan: nn.Plan, dtype: str) -> KerasHost:
        model, places = functional(plan, dtype)
        _built[model] = places
        return KerasHost(model)

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(tf.convert_to_tensor(array).numpy())

    def from_numpy(self, array: np.ndarray) -> tf.Tensor:
        return tf.constant(array)

    def transpose(self, array: Any, axes: tuple[int, ...]) -> tf.Tensor:
        return tf.transpose(array, axes)

    def reshape(self, array: Any, shape: tuple[int, ...]) -> tf.Tensor:
        return tf.reshape(array, shape)

    def flip(self, array: Any, axes: tuple[int, ...]) -> tf.Tensor:
        return tf.reverse(array, axes)

    def detach(self, array: Any) -> tf.Tensor:
        return tf.stop_gradient(array)

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
            storage.variable.assign(seeded(storage.shape, dtype=storage.dtype))

        return fill
