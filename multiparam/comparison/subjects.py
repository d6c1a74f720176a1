"""What is compared: a live model, which is run when it is asked for results, or what was recorded of one."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from ..core import registry
from ..core.arrays import dtype_kind, dtype_name, numpy_dtype, to_numpy
from ..core.distances import EPS
from ..core.group import store_of
from ..core.model import Model
from ..core.outputs import Outputs, leaves
from ..core.slots import Storage
from ..core.training import gradients_kept
from ..errors import DoesNotRun, InvalidArgument, MultiparamError, Unsupported
from ..transfers import apply
from ..transfers.manifest import Manifest, manifest_of
from ..transfers.rename import Rules
from . import noise
from .activations import ActivationCache, LayerCalls, OnCall, select_layers

NamedArrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What models are run on. Arrays of four axes or more have their channels first."""

    inputs: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...] = ()
    objective: Callable[..., Any] | None = None
    steps: int = 0
    optimizer: str = "sgd"
    lr: float = 0.01
    layers: tuple[str, ...] = ()  # globs of those that are followed; all where there is none

    @property
    def name(self) -> str:
        """That of the objective, or nothing."""
        return getattr(self.objective, "__name__", type(self.objective).__name__) if self.objective else ""

    def channels_first(self, order: str | None) -> Task:
        """The same as numpy, with channels first, where the inputs had them ``"first"`` or ``"last"``."""
        inputs = (apply.to_data_order(order, to_numpy(a), back=True) for a in self.inputs)
        return replace(self, inputs=tuple(inputs), targets=tuple(map(to_numpy, self.targets)))

    def completed(self, recorded: Task) -> Task:
        """What this one leaves open as in a recorded one."""
        training = recorded if not self.steps else self
        return replace(
            self, inputs=self.inputs or recorded.inputs, targets=self.targets or recorded.targets,
            objective=self.objective or recorded.objective, steps=training.steps, optimizer=training.optimizer,
            lr=training.lr,
        )  # fmt: skip

    def check_same(self, task: Task, name: str) -> None:
        """Raise InvalidArgument where this one, of the recording of that name, is another one than what is compared."""
        recorded, wanted = self.to_dict(), task.to_dict()
        for key in ("objective", "steps", "optimizer", "lr"):
            if recorded.get(key) != wanted.get(key):
                raise InvalidArgument(f"{name} was recorded with {key} {recorded.get(key)!r}, not {wanted.get(key)!r}.")
        for what, own, others in (("inputs", self.inputs, task.inputs), ("targets", self.targets, task.targets)):
            if len(own) != len(others) or not all(map(np.array_equal, own, others)):
                raise InvalidArgument(f"{name} was recorded on other {what}. Leave them out, and its own are taken.")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        training = {"optimizer": self.optimizer, "lr": self.lr} if self.steps else {}
        return {
            "inputs": [{"shape": list(a.shape), "dtype": a.dtype.name} for a in self.inputs],
            "objective": self.name or "mean of the squared outputs",
            "steps": self.steps,
            **training,
            **({"layers": list(self.layers)} if self.layers else {}),
        }


class Subject:
    """The abstract thing compared: the reference or a candidate. ``dtypes``: those it runs in, the widest first."""

    name: str
    model: str  # its name where it was recorded
    backend: str
    version: str
    source: str  # the recording's file, or nothing
    manifest: Manifest
    dtypes: tuple[str, ...]
    task: Task
    environment: Mapping[str, Any]

    def run(self, dtype: str, on_call: OnCall | None = None) -> Outputs:
        """The outputs of a forward pass in evaluation; ``on_call`` gets the calls of layers as they come."""
        raise NotImplementedError

    def grads(self) -> NamedArrays:
        """name -> the gradient of the objective, in evaluation."""
        raise NotImplementedError

    def trained(self) -> NamedArrays:
        """name -> the value after the steps of the task; nothing where there are none."""
        raise NotImplementedError

    def run_with_cache(self, dtype: str) -> tuple[Outputs, LayerCalls]:
        """Outputs and calls of a pass, to be gone through more than once."""
        cache = ActivationCache()
        return self.run(dtype, cache.add), cache

    def give_weights(self, target: Model, rules: Rules) -> None:
        """Transfer the weights to a model. Pairs that are guesses have to be proved, which a recording cannot do."""
        apply.transfer_for_judging(self.manifest, target, rules)

    def noise_floor(self) -> float:
        """How far rounding alone moves the outputs in float64, relative to the largest; 0.0 where that is not known."""
        return 0.0

    def response_to(self, names: Collection[str], size: float) -> float:
        """How far the outputs in float64 move, relative to the largest, where some parameters move by ``size``; 0.0
        where that is not known."""
        return 0.0

    @property
    def native_dtype(self) -> str:
        """The dtype it was made in."""
        return self.dtypes[-1]

    def to_dict(self) -> dict[str, Any]:
        """What it is, as plain data."""
        entries = {e.key: e for e in self.manifest.entries().values() if not e.buffer}
        return {
            "backend": self.backend,
            "version": self.version,
            "title": self.manifest.title,
            "parameters": sum(int(np.prod(e.spec.shape)) for e in entries.values()),
            "source": self.source,
        }


class LiveSubject(Subject):
    """A wrapped model. It is left as it was."""

    def __init__(self, name: str, net: Model, task: Task) -> None:
        self.name = self.model = name
        self.net = net
        self.task = task
        self.source = ""
        self.environment = environment()
        self.backend = net.backend
        self.version = str(registry.info(net.backend).version())
        self.manifest = manifest_of(net)
        dtypes = (slot.storage.dtype for slot in store_of(net).table.slots)
        native = next((dtype for dtype in dtypes if dtype in EPS), "float32")
        widens = native != "float64" and store_of(net).host.in_float64() is not None
        self.dtypes = ("float64", native) if widens else (native,)

    def run(self, dtype: str, on_call: OnCall | None = None) -> Outputs:
        if dtype == self.native_dtype:
            return self._run(dtype, on_call)
        widened = store_of(self.net).host.in_float64()
        assert widened is not None  # it is among the dtypes
        try:
            with widened:
                return self._run(dtype, on_call)
        except DoesNotRun as error:
            # A part insists on float32, as the state of flax' recurrent cells does.
            self.dtypes = (self.native_dtype,)
            raise NotInFloat64 from error

    def _run(self, dtype: str, on_call: OnCall | None) -> Outputs:
        with _raising_does_not_run(f"{self.name} does not run on these inputs"):
            inputs = self._inputs(dtype)
            if on_call is None:
                output = self.net(*inputs)
            else:
                output = store_of(self.net).host.activations(inputs, select_layers(self.task.layers, on_call))
            outputs = apply.outputs_in_order(self.manifest.order, output)
            arrays = [leaf for leaf in outputs.values() if not isinstance(leaf, str)]
            # A cast back would hide what is judged: then float64 shows no more than the model's own dtype does.
            if dtype != self.native_dtype and any(a.dtype.kind == "f" and a.dtype.name != dtype for a in arrays):
                raise DoesNotRun(f"{self.name} casts to {self.native_dtype}")
            # Copied, since the framework may write into that memory again.
            return {name: leaf if isinstance(leaf, str) else np.array(leaf) for name, leaf in outputs.items()}

    def give_weights(self, target: Model, rules: Rules) -> None:
        with _raising_does_not_run(f"{self.name} does not run on these inputs"):
            apply.transfer(self.net, target, rules, verify=self._native_order())

    def _native_order(self) -> tuple[np.ndarray, ...]:
        """The inputs in the model's own order of channels."""
        return tuple(np.ascontiguousarray(apply.to_data_order(self.manifest.order, a)) for a in self.task.inputs)

    def noise_floor(self) -> float:
        # Of one that takes whole numbers the weights are moved: they are what its tokens become.
        floats = any(dtype_kind(a.dtype.name) == "f" for a in self.task.inputs)

        def run(size: float, seed: int) -> Outputs:
            if floats:
                inputs = tuple(noise.moved(a, size, seed + i) for i, a in enumerate(self.task.inputs))
                return replaced(self, inputs).run("float64")
            return self._run_with_moved_weights(size, seed)

        return noise.noise_floor(run)

    def response_to(self, names: Collection[str], size: float) -> float:
        storages = [slot.storage for slot in map(store_of(self.net).table.slot, names)]
        return noise.response(lambda moved, seed: self._run_with_moved_weights(moved, seed, storages), size)

    def _run_with_moved_weights(self, size: float, seed: int, chosen: Sequence[Storage] = ()) -> Outputs:
        widened = store_of(self.net).host.in_float64()
        assert widened is not None  # it was run in float64 before
        with widened:
            storages = chosen or store_of(self.net).table.storages()
            before = [(s, np.array(to_numpy(s.read()))) for s in storages if s.dtype == "float64"]
            try:
                for i, (storage, value) in enumerate(before):
                    storage.write(noise.moved(value, size, seed + i))
                return self._run("float64", None)
            finally:
                for storage, value in before:
                    storage.write(value)

    def _inputs(self, dtype: str) -> tuple[Any, ...]:
        arrays = self._native_order()
        cast = (a.astype(numpy_dtype(dtype), copy=False) if dtype_kind(a.dtype.name) == "f" else a for a in arrays)
        return tuple(self.net.adapter.from_numpy(array) for array in cast)

    def _batch(self) -> tuple[np.ndarray, ...]:
        return (*self._native_order(), *self.task.targets)

    def grads(self) -> NamedArrays:
        store = store_of(self.net)
        if not any(storage.trainable for storage in store.table.storages()):
            raise Unsupported(f"{self.name} has no trainable parameter: there is no gradient to take.")
        step = self.net.value_and_grad(self.task.objective or mean_square, train=False)
        what = f"The gradient of {self.task.name or 'the outputs'} cannot be taken in {self.name}"
        with gradients_kept(store), _raising_does_not_run(what):
            _, grads = step(*self._batch())
            return {name: np.array(to_numpy(grad)) for name, grad in grads.items()}

    def trained(self) -> NamedArrays:
        if not self.task.steps:
            return {}
        net, task = self.net, self.task
        start = net.state_dict()
        step = net.value_and_grad(task.objective or mean_square)
        optimizer = net.optimizer(task.optimizer, lr=task.lr)
        batch = self._batch()
        try:
            with gradients_kept(store_of(net)), _raising_does_not_run(f"{self.name} cannot be trained"):
                for _ in range(task.steps):
                    step(*batch)
                    optimizer.step()
                return net.state_dict()
        finally:
            net.load_state_dict(start)


def replaced(subject: LiveSubject, inputs: tuple[np.ndarray, ...]) -> LiveSubject:
    """The same model, on other inputs."""
    other = copy(subject)
    other.task = replace(subject.task, inputs=inputs)
    return other


@contextmanager
def _raising_does_not_run(what: str) -> Iterator[None]:
    """What a model or an objective raises, as an error of ours; those of ours stay as they are."""
    try:
        yield
    except MultiparamError:
        raise
    except Exception as error:
        raise DoesNotRun(f"{what}: {type(error).__name__}: {error}") from error


class NotInFloat64(Exception):
    """A model that was thought to run in float64 does not."""


@dataclass
class RecordedSubject(Subject):
    """What was recorded of a model: see :mod:`multiparam.comparison.recording`."""

    name: str
    model: str
    backend: str
    version: str
    manifest: Manifest
    dtypes: tuple[str, ...]
    passes: Mapping[str, Callable[[], tuple[Outputs, LayerCalls]]]  # dtype -> its outputs and calls
    gradients: NamedArrays | None
    final: NamedArrays  # after training
    task: Task
    source: str
    environment: Mapping[str, Any]
    floor: float = 0.0

    def noise_floor(self) -> float:
        return self.floor

    def run(self, dtype: str, on_call: OnCall | None = None) -> Outputs:
        outputs, calls = self.passes[dtype]()
        if on_call is not None:
            for call in calls:
                on_call(call)
        return outputs

    def run_with_cache(self, dtype: str) -> tuple[Outputs, LayerCalls]:
        return self.passes[dtype]()

    def grads(self) -> NamedArrays:
        if self.gradients is None:
            raise Unsupported(f"{self.name} was recorded without: {self.backend} gave none.")
        return self.gradients

    def trained(self) -> NamedArrays:
        return self.final


def mean_square(net: Model, *inputs: Any) -> Any:
    """An objective for models that come with none: the mean of the squares of each output of floats, summed.

    In the order of their names, since another order of adding rounds otherwise. Raises Unsupported where no output has
    a gradient.
    """
    outputs = dict(sorted((name, leaf) for name, leaf in leaves(net(*inputs)) if hasattr(leaf, "dtype")))
    floats = [y for y in outputs.values() if dtype_kind(dtype_name(y.dtype)) == "f"]
    if not floats:
        kinds = ", ".join(dict.fromkeys(dtype_name(y.dtype) for y in outputs.values())) or "no array"
        raise Unsupported(f"The outputs are {kinds}, of which there is no gradient: give an objective.")
    return sum((net.adapter.mse(y, y * 0) for y in floats[1:]), net.adapter.mse(floats[0], floats[0] * 0))


@lru_cache
def environment() -> Mapping[str, Any]:
    """Python, the machine's kind and the versions of what matters here, as plain data."""
    known = [registry.info(backend) for backend in registry.backends()]
    packages = {}
    for package in dict.fromkeys(["numpy", *(each for info in known for each in (*info.requires, *info.recognises))]):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
    }
