"""Keras 3 or tf_keras 2 on TensorFlow: a storage is a Keras or TensorFlow Variable; a slot, an attribute of a layer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

import multiparam.adapter as mpa
from multiparam.errors import MultiparamWarning, Unsupported

from .calls import call
from .framework import is_variable, tf
from .layers import LAYERS, composite_of, giving_path, leaves_of, options_of
from .optimizers import KerasOptimizer, NamedOptimizer, library_of
from .replicas import on_replicas, strategy_of
from .storage import KerasStorage, TiedView, namespace, tf_variable, to_numpy
from .stored_names import stored_names
from .variables import held, own_lists, variables
from .walk import Path, aliases, built, count_children, places, walk
from .watch import fingerprint, holders
from .wide import computing_in_float64

Open = tuple[Path, int, mpa.Composite, Any]  # path, first slot, how it folds, layer
# What a model compiled for the variables it had, in Keras 3 and tf_keras.
COMPILED = ("train_function", "test_function", "predict_function", "train_tf_function")
# The batches that a tf_keras model has seen in this process: in no file of Keras', and nothing of the model.
COUNTERS = ("_train_counter", "_test_counter", "_predict_counter")


def _is_in(variable: Any, group: Sequence[Any]) -> bool:
    """By identity: variables compare by their values."""
    return any(variable is each for each in group)


class KerasHost(mpa.Host):
    """A Keras model or layer."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._storages: mpa.Storages[KerasStorage] = mpa.Storages()
        self._holders = mpa.Holders(native)
        self._training = "training" in inspect.signature(native.call).parameters

    def slots(self) -> list[mpa.Slot]:
        slots: list[mpa.Slot] = []
        inside: list[Open] = []  # the composite layers that the walk is in
        all_places = places(self.native)
        self._holders = holders(self.native, all_places)
        for path, positions, layer in all_places:
            _leave(inside, path, slots)
            if (composite := composite_of(layer)) is not None:
                inside.append((path, len(slots), composite, layer))
            slots += self._own(layer, path, positions)
        _leave(inside, None, slots)
        alive = {id(slot.storage.native) for slot in slots}
        lost = [variable for variable in self.native.weights if id(variable) not in alive]
        if lost:
            raise Unsupported(
                f"{lost[0].name!r} of the Keras model {self.native.name!r} is held by no attribute of any layer, "
                "so it has no stable name. Keep its layer, or the variable, in an attribute."
            )
        self._storages.keep(slots)
        return slots

    def fingerprint(self) -> Any:
        return fingerprint(self.native)

    def holds(self, slot: mpa.Slot) -> bool:
        storage: Any = slot.storage
        there, view = held(slot.owner, slot.leaf, storage.native)
        return there and view == slot.view and self._holders.lead_to(slot.path[:-1], slot.owner)

    def aliases(self) -> Mapping[Path, Path]:
        """The attributes and positions of layers that have given names."""
        return {} if self.native in built else dict(aliases(self.native))

    def count_children(self, path: Path) -> int | None:
        return count_children(self.native, path)

    def _own(self, layer: Any, path: Path, positions: tuple[int, ...]) -> list[mpa.Slot]:
        """The slots of a layer's own variables, in canonical order."""
        kind, trained, own = LAYERS.of(type(layer)), own_lists(layer)[0], []
        for place, variable in variables(layer):
            storage = self._storages.of(variable, KerasStorage, layer)
            if storage.layer is not layer and not any(_is_in(variable, group) for group in own_lists(storage.layer)):
                storage.layer = layer  # it was untied from the layer it was held by first
            held = vars(layer).get(place[0]) if len(place) == 1 else None
            segments, layout = (place[0].lstrip("_") or place[0], *place[1:]), None
            if len(place) == 1:
                shape = tuple(held.shape) if isinstance(held, TiedView) else storage.shape or ()
                name, layout = LAYERS.canonical(type(layer), segments[0], shape, leaves_of(layer))
                segments = (name,)
            buffer, view = not _is_in(variable, trained), held.layout if isinstance(held, TiedView) else None
            nested = (*positions, *(0 for _ in segments[1:]))
            own.append(
                mpa.Slot((*path, *segments), nested, kind, storage, layout, layer, ".".join(place), buffer, view)
            )
        return sorted(own, key=lambda slot: mpa.rank(kind, slot.path[-1]))

    @property
    def data_order(self) -> str:
        formats = {getattr(layer, "data_format", None) for _, _, layer in walk(self.native)}
        return "first" if self.native in built or "channels_first" in formats else "last"

    def in_float64(self) -> AbstractContextManager[None] | None:
        return computing_in_float64([layer for _, _, layer in walk(self.native)])

    def unlisted(self) -> Mapping[str, str]:
        layers = {id(layer): (path, layer) for path, _, layer in places(self.native)}.values()
        held = ((path, name, value, layer) for path, layer in layers for name, value in vars(layer).items())
        return {
            ".".join((*path, name)): PLAIN
            for path, name, value, layer in held
            if is_variable(value) and name not in COUNTERS and not _is_in(value, layer.weights)
        }

    def watch(
        self, on_call: Callable[[mpa.Activation], Any], on_enter: mpa.OnEnter | None = None
    ) -> AbstractContextManager[None]:
        holding = {slot.path[:-1] for slot in self.slots()}
        giving = ((giving_path(path, layer), layer) for path, _, layer in places(self.native))
        names = ((mpa.paths.text(path), layer) for path, layer in giving if path in holding)
        return mpa.watch_calls(mpa.LayerNames(names), on_call, on_enter)

    def stored_names(self, slots: Sequence[mpa.Slot]) -> list[list[str]]:
        return stored_names(self.native, slots)

    def options(self, slot: mpa.Slot) -> Mapping[str, Any]:
        return options_of(slot)

    def low_rank_scale(self, slot: mpa.Slot) -> float | None:
        if not getattr(slot.owner, "lora_enabled", False) or slot.path[-1] not in (
            "lora_kernel_a",
            "lora_embeddings_a",
        ):
            return None
        return float(slot.owner.lora_alpha / slot.owner.lora_rank)

    def call(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if self._training:
            kwargs = {"training": train, **kwargs}
        return call(self.native, inputs, kwargs)

    def call_with(self, values: Mapping[Any, Any], inputs: tuple[Any, ...], kwargs: dict[str, Any], train: bool) -> Any:
        if not isinstance(self.native, keras.layers.Layer):
            raise Unsupported(
                "tf_keras has no functional form: its layers compute with their tf.Variables. Keras 3 has one; here "
                "differentiate an objective, net.value_and_grad, or by a tf.GradientTape over the variables."
            )
        pairs = [(storage.native, array) for storage, array in values.items()]
        with keras.StatelessScope(state_mapping=pairs):  # what training writes stays in the scope
            return self.call(inputs, kwargs, train)

    def set_trainable(self, storages: Sequence[Any], flag: bool) -> None:
        chosen = {id(storage.native) for storage in storages}
        for storage in storages:  # tf_keras freezes by layer
            whole = [] if isinstance(storage.native, keras.Variable) else own_lists(storage.layer)[0]
            if any(id(variable) not in chosen and variable.trainable for variable in whole):
                raise Unsupported(
                    f"tf_keras freezes whole layers: {storage.layer.name!r} has more parameters than the ones named. "
                    "Name all of them, or use Keras 3, which freezes each variable."
                )
        super().set_trainable(storages, flag)

    def bind(self, slots: Sequence[mpa.Slot], storage: Any, view: mpa.Layout | None = None) -> None:
        layer, attribute = slots[0].owner, slots[0].leaf
        if attribute not in vars(layer):
            raise Unsupported(
                f"{attribute!r} of layer {layer.name!r} is in no attribute of its own, so nothing else can be put "
                "there. Assign what add_weight returns to an attribute, and it can be tied."
            )
        old, new = slots[0].storage.native, storage.native
        # By hand and by identity: Keras 3 locks what a built layer holds, and its tracker's own replacement compares
        # variables by their values.
        for group in own_lists(layer):
            group[:] = [new if v is old else v for v in group]
        own = "trainable_variables" if _is_in(new, own_lists(layer)[0]) else "non_trainable_variables"
        for name, ids in getattr(getattr(layer, "_tracker", None), "stored_ids", {}).items():
            if id(old) in ids or name == own:  # native code may have put the old one there and told no tracker
                ids.discard(id(old))
                ids.add(id(new))
        layer.__dict__[attribute] = new if view is None else TiedView(new, view)
        if tf is not None and isinstance(new, tf.__internal__.tracking.Trackable):  # what tf.train.Checkpoint saves
            layer._track_trackable(new, attribute, overwrite=True)
        self._storages.add(storage)
        for _, _, model in walk(self.native):
            for name in COMPILED:
                if getattr(model, name, None) is not None:
                    setattr(model, name, None)
        if _is_foreign(getattr(self.native, "optimizer", None), new):
            warnings.warn(
                f"The optimizer of {self.native.name!r} was built before and does not know the parameter that "
                f"{layer.name!r} has now: compile() the model again before fit().",
                MultiparamWarning,
                stacklevel=4,
            )

    def copy(self, storage: Any, view: mpa.Layout | None = None) -> KerasStorage:
        old, values = storage.native, storage.read()
        values = values if view is None else view.apply(values, namespace(values))
        if isinstance(old, keras.Variable):
            fresh = keras.Variable(to_numpy(values), dtype=old.dtype, trainable=old.trainable, name=old.name)
        else:
            fresh = tf.Variable(values, trainable=old.trainable, name=old.name.partition(":")[0])
        return self._storages.of(fresh, KerasStorage, storage.layer)

    def gradient(self, run: mpa.Run, storages: Sequence[Any], train: bool) -> Callable[..., tuple[Any, list[Any]]]:
        _require_tensorflow(storages, "gradients")
        sources = [tf_variable(storage.native) for storage in storages]

        def gradients(*batch: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                loss = run(self, *batch)
            grads = tape.gradient(loss, sources)
            mpa.require_dependence(any(grad is not None for grad in grads))
            dense = [tf.zeros_like(v) if grad is None else grad for v, grad in zip(sources, grads, strict=True)]
            return loss, [tf.convert_to_tensor(grad) for grad in dense]  # an embedding's are sparse slices

        once = on_replicas(strategy_of(sources), gradients)
        refusals = (tf.errors.OperatorNotAllowedInGraphError, NotImplementedError)
        compiled = mpa.compiled_if_possible(tf.function(once, autograph=False), once, refusals)

        def step(*batch: Any) -> tuple[Any, list[Any]]:
            loss, grads = compiled(*batch)
            for storage, grad in zip(storages, grads, strict=True):
                storage.gradient = grad
            return loss, grads

        return step

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> KerasOptimizer:
        _require_tensorflow(storages, "optimizers")
        return NamedOptimizer(name, options, storages)

    def make_optimizer(self, kind: Any, options: Mapping[str, Any], storages: Sequence[Any]) -> Any:
        is_one = isinstance(kind, type) and issubclass(kind, library_of(storages).optimizers.Optimizer)
        return kind(**options) if is_one else None

    def native_optimizer(self, native: Any, storages: Sequence[Any]) -> KerasOptimizer | None:
        _require_tensorflow(storages, "optimizers")
        is_one = isinstance(native, library_of(storages).optimizers.Optimizer)
        return KerasOptimizer(native, storages) if is_one else None


PLAIN = (
    "a tf.Variable in a plain attribute, which Keras lists nowhere. Make it by add_weight, or as a keras.Variable, and "
    "it is found."
)


def _leave(inside: list[Open], path: Path | None, slots: list[mpa.Slot]) -> None:
    """Fold the composite layers that end before ``path``."""
    while inside and (path is None or path[: len(inside[-1][0])] != inside[-1][0]):
        above, start, composite, layer = inside.pop()
        mpa.fold(composite, slots, start, len(above), layer)


def _is_foreign(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer has been built, and for other variables."""
    if optimizer is None or not getattr(optimizer, "built", getattr(optimizer, "_built", False)):
        return False
    if hasattr(optimizer, "_index_dict"):  # tf_keras
        return optimizer._var_key(variable) not in optimizer._index_dict
    return not _is_in(variable, optimizer._trainable_variables)


def _require_tensorflow(storages: Sequence[KerasStorage], what: str) -> None:
    backend = keras.backend.backend()
    if backend != "tensorflow" and any(isinstance(storage.native, keras.Variable) for storage in storages):
        raise Unsupported(
            f"This Keras runs on {backend}: multiparam reaches, ties and initialises its parameters but has no {what}. "
            "Set KERAS_BACKEND=tensorflow before Keras is imported, or differentiate net.native natively."
        )
