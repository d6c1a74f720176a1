"""What is compared: a live model, which is run when it is asked for results, or what was recorded of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core import registry
from ..core.arrays import dtype_kind, numpy_dtype, to_numpy
from ..core.distances import EPS
from ..core.group import store_of
from ..core.inputs import Inputs
from ..core.model import Model
from ..core.outputs import Outputs
from ..core.slots import Storage
from ..core.training import gradients_kept
from ..core.user_code import raising_does_not_run
from ..errors import DoesNotRun, NoGradient, Unsupported
from ..transfers import apply
from ..transfers.manifest import Manifest, manifest_of
from ..transfers.rename import Rules
from . import noise
from .activations import ActivationCache, LayerCalls, OnCall, select_layers
from .calling import Caller
from .environments import environment
from .forcing import Forcing
from .objectives import mean_square
from .tasks import Task

NamedArrays = Mapping[str, np.ndarray]


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
    settings: Mapping[str, Any]  # of its framework, that are not the defaults

    def run(self, dtype: str, on_call: OnCall | None = None) -> Outputs:
        """The outputs of a forward pass in evaluation; ``on_call`` gets the calls of layers as they come."""
        raise NotImplementedError

    def grads(self) -> NamedArrays:
        """name -> the gradient of the objective, in evaluation."""
        raise NotImplementedError

    def grads_in_float64(self) -> NamedArrays | None:
        """The same in float64; None where it cannot be had."""
        return None

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

    def own_floor(self) -> float:
        """How far rounding alone moves the outputs in its own dtype where a part computes in a narrower one, as under a
        policy of mixed precision; 0.0 where none does, or that is not known."""
        return 0.0

    def response_to(self, names: Collection[str], size: float) -> float:
        """How far the outputs in float64 move, relative to the largest, where some parameters move by ``size``; 0.0
        where that is not known."""
        return 0.0

    def take_exact_values(self, values: Mapping[str, Callable[[], np.ndarray]]) -> bool:
        """Compute in float64 with these values, of which its own are roundings; whether that can be."""
        return False

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
            **({"settings": dict(self.settings)} if self.settings else {}),
        }


class LiveSubject(Subject):
    """A wrapped model. It is left as it was."""

    def __init__(self, name: str, net: Model, task: Task, caller: Caller = Caller()) -> None:
        self.name = self.model = name
        self.net = net
        self.task = task
        self._caller = caller
        self._exact: Mapping[str, Callable[[], np.ndarray]] = {}
        self.source = ""
        self.environment, self.settings = environment(), net.adapter.settings()
        self.backend = net.backend
        self.version = str(registry.info(net.backend).version())
        self.manifest = manifest_of(net, gather=True)
        dtypes = (slot.storage.dtype for slot in store_of(net).table.slots)
        native = next((dtype for dtype in dtypes if dtype in EPS), "float32")
        widens = native != "float64" and store_of(net).host.in_float64() is not None
        self.dtypes = ("float64", native) if widens else (native,)

    def run(self, dtype: str, on_call: OnCall | None = None) -> Outputs:
        if dtype == self.native_dtype:
            return self._run(dtype, self._watching(on_call))
        try:
            with self._widened():
                return self._run(dtype, self._watching(on_call))
        except DoesNotRun as error:
            # A part insists on float32, as the state of flax' recurrent cells does.
            self.dtypes = (self.native_dtype,)
            raise NotInFloat64 from error

    @contextmanager
    def _widened(self) -> Iterator[None]:
        """Inside, it computes in float64."""
        widened = store_of(self.net).host.in_float64()
        assert widened is not None  # float64 is among the dtypes
        with widened:
            places = [store_of(self.net).table.slot(name).storage for name in self._exact]
            before = [np.array(to_numpy(place.read())) for place in places]
            try:
                for name, make in self._exact.items():
                    self.net[name].assign(make().astype(np.float64))
                yield
            finally:
                for place, value in zip(places, before, strict=True):
                    place.write(value)

    def take_exact_values(self, values: Mapping[str, Callable[[], np.ndarray]]) -> bool:
        if "float64" not in self.dtypes:
            return False
        with self._widened():  # Keras computes in float64, and its variables stay as they are
            taken = all(store_of(self.net).table.slot(name).storage.dtype == "float64" for name in values)
        self._exact = dict(values) if taken else {}
        return taken

    def run_forced(self, dtype: str, forcing: Forcing) -> Outputs:
        """The outputs of a pass in which each layer takes and gives what the reference's do."""
        with nullcontext() if dtype == self.native_dtype else self._widened():
            return self._run(dtype, store_of(self.net).host.watch(forcing.on_call, forcing.on_enter))

    def _watching(self, on_call: OnCall | None) -> AbstractContextManager[None]:
        host = store_of(self.net).host
        return nullcontext() if on_call is None else host.watch(select_layers(self.task.layers, on_call, host.gather))

    def _run(self, dtype: str, watching: AbstractContextManager[None]) -> Outputs:
        with raising_does_not_run(f"{self.name} does not run on these inputs"):
            inputs = self._inputs(dtype)
            host = store_of(self.net).host
            with watching:
                output = self._call(self.net, inputs)
            outputs = apply.outputs_in_order(self.manifest.order, output, host.gather)
            arrays = [leaf for leaf in outputs.values() if not isinstance(leaf, str)]
            # A cast back would hide what is judged: then float64 shows no more than the model's own dtype does.
            if dtype != self.native_dtype and any(a.dtype.kind == "f" and a.dtype.name != dtype for a in arrays):
                raise DoesNotRun(f"{self.name} casts to {self.native_dtype}")
            # Copied, since the framework may write into that memory again.
            return {name: leaf if isinstance(leaf, str) else np.array(leaf) for name, leaf in outputs.items()}

    def give_weights(self, target: Model, rules: Rules) -> None:
        if self._caller != Caller():  # the target is called in another way, which only the judge knows
            apply.transfer_for_judging(self.net, target, rules)
            return
        with raising_does_not_run(f"{self.name} does not run on these inputs"):
            apply.transfer(self.net, target, rules, verify=self._native_order())

    def _call(self, net: Model, inputs: Inputs) -> Any:
        """A forward pass."""
        return self._caller(net, inputs)

    def _native_order(self) -> Inputs:
        """The inputs in the model's own order of channels."""
        return self.task.inputs.map(lambda a: np.ascontiguousarray(apply.to_data_order(self.manifest.order, a)))

    def noise_floor(self) -> float:
        # Of one that takes whole numbers the weights are moved: they are what its tokens become.
        floats = any(dtype_kind(a.dtype.name) == "f" for a in self.task.inputs)

        def run(size: float, seed: int) -> Outputs:
            if floats:
                moved = (noise.moved(a, size, seed + i) for i, a in enumerate(self.task.inputs))
                return replaced(self, self.task.inputs.replace(moved)).run("float64")
            return self._run_with_moved_weights(size, seed)

        return noise.noise_floor(run)

    def own_floor(self) -> float:
        def run(size: float, seed: int) -> Outputs:
            moved = (noise.moved(a, size, seed + i) for i, a in enumerate(self.task.inputs))
            outputs = replaced(self, self.task.inputs.replace(moved)).run(self.native_dtype)
            return {name: leaf if isinstance(leaf, str) else noise.as_float64(leaf) for name, leaf in outputs.items()}

        return noise.second_difference(run)

    def response_to(self, names: Collection[str], size: float) -> float:
        storages = [slot.storage for slot in map(store_of(self.net).table.slot, names)]
        return noise.response(lambda moved, seed: self._run_with_moved_weights(moved, seed, storages), size)

    def _run_with_moved_weights(self, size: float, seed: int, chosen: Sequence[Storage] = ()) -> Outputs:
        with self._widened():
            storages = chosen or store_of(self.net).table.storages()
            before = [(s, np.array(to_numpy(s.read()))) for s in storages if s.dtype == "float64"]
            try:
                for i, (storage, value) in enumerate(before):
                    storage.write(noise.moved(value, size, seed + i))
                return self._run("float64", nullcontext())
            finally:
                for storage, value in before:
                    storage.write(value)

    def _inputs(self, dtype: str) -> Inputs:
        def cast(array: np.ndarray) -> Any:
            is_float = dtype_kind(array.dtype.name) == "f"
            return store_of(self.net).from_numpy(array.astype(numpy_dtype(dtype), copy=False) if is_float else array)

        return self._native_order().map(cast)

    def _objective(self) -> Callable[..., Any]:
        """The task's, over arrays in order: what goes by keyword is put together again inside, where it is traced."""
        inputs, objective = self.task.inputs, self.task.objective
        count = len(inputs)

        def of_arrays(net: Model, *batch: Any) -> Any:
            given, targets = inputs.replace(batch[:count]), batch[count:]
            if objective is None:
                return mean_square(net, self._call(net, given))
            # By keyword, the objective of the user's gets a mapping for them.
            named = (given.keywords,) if given.keywords else ()
            return objective(net, *given.positional, *named, *targets)

        return of_arrays

    def _batch(self) -> tuple[np.ndarray, ...]:
        return (*self._native_order(), *self.task.targets)

    def grads(self) -> NamedArrays:
        with gradients_kept(store_of(self.net)):
            return self._grads(self._batch())

    def grads_in_float64(self) -> NamedArrays | None:
        if "float64" not in self.dtypes or self.native_dtype == "float64" or self.task.targets:
            return None
        with gradients_kept(store_of(self.net)), suppress(Unsupported, DoesNotRun), self._widened():
            grads = self._grads(self._inputs("float64"))
            return grads if all(grad.dtype.name == "float64" for grad in grads.values()) else None
        return None

    def _grads(self, batch: Sequence[Any]) -> NamedArrays:
        objective = self.task.name
        parameters, gather = self.net.parameters(), store_of(self.net).host.gather
        if not any(parameter.trainable for parameter in parameters.values()):
            raise Unsupported(f"{self.name} has no trainable parameter: there is no gradient to take.")
        step = self.net.value_and_grad(self._objective(), train=False)
        what = f"The gradient of {objective or 'the outputs'} cannot be taken in {self.name}"
        try:
            with raising_does_not_run(what):
                _, grads = step(*batch)
                return {name: np.array(to_numpy(gather(grad))) for name, grad in grads.items()}
        except NoGradient as error:
            if error.switched_off:
                raise Unsupported(f"{self.name} computes without gradients: there is none to take.") from error
            # It was detached on the way, of which other frameworks say that it is zero.
            return {name: np.zeros(p.shape) for name, p in parameters.items() if p.trainable}
        except DoesNotRun as error:
            if objective:
                raise
            raise Unsupported(f"{error}.") from error  # the outputs can be compared without

    def trained(self) -> NamedArrays:
        if not self.task.steps:
            return {}
        net, task = self.net, self.task
        start = _whole_state(net)
        step = net.value_and_grad(self._objective())
        optimizer = net.optimizer(task.optimizer, lr=task.lr)
        batch = self._batch()
        try:
            with gradients_kept(store_of(net)), raising_does_not_run(f"{self.name} cannot be trained"):
                for _ in range(task.steps):
                    step(*batch)
                    optimizer.step()
                return _whole_state(net)
        finally:
            net.load_state_dict(start)


def _whole_state(net: Model) -> NamedArrays:
    return {name: p.numpy(gather=True) for name, p in {**net.parameters(), **net.buffers()}.items()}


def replaced(subject: LiveSubject, inputs: Inputs) -> LiveSubject:
    """The same model, on other inputs."""
    other = copy(subject)
    other.task = replace(subject.task, inputs=inputs)
    return other


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
    settings: Mapping[str, Any] = field(default_factory=dict)

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
