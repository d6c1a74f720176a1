"""What is compared: a live model, which is run when it is asked, or what was recorded of one."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from ..core import registry
from ..core.arrays import to_numpy
from ..core.distances import EPS
from ..core.group import store_of
from ..core.model import Model
from ..errors import DoesNotRun, InvalidArgument, MultiparamError, ShapeError, Unsupported
from ..transfers import apply
from ..transfers.manifest import Manifest, manifest_of
from ..transfers.plan import Plan
from .activations import Call, Kept, chosen

Arrays = Mapping[str, np.ndarray]
See = Callable[[Call], None]


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

    def in_order(self, order: str | None) -> Task:
        """The same as numpy, with channels first, where the inputs were in this order."""
        inputs = (apply.to_data_order(order, to_numpy(a), back=True) for a in self.inputs)
        return replace(self, inputs=tuple(inputs), targets=tuple(map(to_numpy, self.targets)))

    def filled(self, other: Task) -> Task:
        """What this one leaves open as in another one."""
        given = other if not self.steps else self
        return replace(
            self, inputs=self.inputs or other.inputs, targets=self.targets or other.targets,
            objective=self.objective or other.objective, steps=given.steps, optimizer=given.optimizer, lr=given.lr,
        )  # fmt: skip

    def same(self, other: Task, name: str) -> None:
        """Raise InvalidArgument where what was recorded of a model is not of the same task."""
        here, there = self.said(), other.said()
        for key in ("objective", "steps", "optimizer", "lr"):
            if here.get(key) != there.get(key):
                raise InvalidArgument(f"{name} was recorded with {key} {here.get(key)!r}, not {there.get(key)!r}.")
        for what, mine, theirs in (("inputs", self.inputs, other.inputs), ("targets", self.targets, other.targets)):
            if len(mine) != len(theirs) or not all(map(np.array_equal, mine, theirs)):
                raise InvalidArgument(f"{name} was recorded on other {what}. Leave them out, and its own are taken.")

    def said(self) -> dict[str, Any]:
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
    """One side of a comparison. ``dtypes``: those it can be run in, the widest first."""

    name: str
    model: str  # its name where it was recorded
    backend: str
    version: str
    source: str  # the recording's file, or nothing
    side: Manifest
    dtypes: tuple[str, ...]
    task: Task
    environment: Mapping[str, Any]

    def run(self, dtype: str, see: See | None = None) -> list[np.ndarray]:
        """The outputs of a forward pass in evaluation; ``see`` is shown the calls of layers as they come."""
        raise NotImplementedError

    def grads(self) -> Arrays:
        """name -> the gradient of the objective, in evaluation."""
        raise NotImplementedError

    def trained(self) -> Arrays:
        """name -> the value after the steps asked for; nothing where there are none."""
        raise NotImplementedError

    def kept(self, dtype: str) -> tuple[list[np.ndarray], Kept]:
        """Outputs and calls of a pass, to be gone through more than once."""
        kept = Kept()
        return self.run(dtype, kept.add), kept

    def weights(self) -> Any:
        """What a transfer takes them from."""
        return self.side

    @property
    def own(self) -> str:
        """The dtype it was made in."""
        return self.dtypes[-1]

    def about(self) -> dict[str, Any]:
        """What it is, as plain data."""
        entries = {e.key: e for e in self.side.entries().values() if not e.buffer}
        return {
            "backend": self.backend,
            "version": self.version,
            "title": self.side.title,
            "parameters": sum(int(np.prod(e.spec.shape)) for e in entries.values()),
            "source": self.source,
        }


class Live(Subject):
    """A wrapped model. It is left as it was."""

    def __init__(self, name: str, net: Model, task: Task) -> None:
        self.name = self.model = name
        self.net = net
        self.task = task
        self.source = ""
        self.environment = environment()
        self.backend = net.backend
        self.version = str(registry.info(net.backend).version())
        self.side = manifest_of(net)
        dtypes = (slot.storage.dtype for slot in store_of(net).table.slots)
        own = next((dtype for dtype in dtypes if dtype in EPS), "float32")
        wide = own != "float64" and store_of(net).host.in_float64() is not None
        self.dtypes = ("float64", own) if wide else (own,)

    def run(self, dtype: str, see: See | None = None) -> list[np.ndarray]:
        net, order = self.net, self.side.order
        with ExitStack() as stack:
            if dtype != self.own:
                widened = store_of(net).host.in_float64()
                assert widened is not None  # it is among the dtypes
                stack.enter_context(widened)
            try:
                with _said(f"{self.name} does not run on these inputs"):
                    inputs = self._inputs(dtype)
                    if see is None:
                        output = net(*inputs)
                    else:
                        output = store_of(net).host.activations(inputs, chosen(self.task.layers, see))
                    arrays = apply.arrays_of(output)
                    if dtype != self.own and any(a.dtype.kind == "f" and a.dtype.name != dtype for a in arrays):
                        raise DoesNotRun(f"{self.name} casts to {self.own}")
                    return [np.array(apply.to_data_order(order, a, back=True)) for a in arrays]
            except DoesNotRun as error:
                if dtype == self.own:
                    raise
                self.dtypes = (self.own,)  # a part insists on float32, as the state of flax' recurrent cells does
                raise NotInFloat64 from error

    def weights(self) -> Model:
        return self.net

    def verify(self, plan: Plan, target: Model) -> None:
        """After a transfer in which a flattening was inferred: keep what agrees, with it or without."""
        with _said(f"{self.name} does not run on these inputs"):
            apply.verify_transfer(plan, self.net, target, self._turned())

    def _turned(self) -> tuple[np.ndarray, ...]:
        """The inputs in the model's own order of channels."""
        return tuple(np.ascontiguousarray(apply.to_data_order(self.side.order, a)) for a in self.task.inputs)

    def _inputs(self, dtype: str) -> tuple[Any, ...]:
        arrays = self._turned()
        cast = (a.astype(dtype, copy=False) if a.dtype.kind == "f" and dtype != "bfloat16" else a for a in arrays)
        return tuple(self.net.adapter.from_numpy(array) for array in cast)

    def _batch(self) -> tuple[np.ndarray, ...]:
        return (*self._turned(), *self.task.targets)

    def grads(self) -> Arrays:
        step = self.net.value_and_grad(self.task.objective or mean_square, train=False)
        with _said(f"The gradient of {self.task.name or 'the outputs'} cannot be taken in {self.name}"):
            _, grads = step(*self._batch())
            return {name: np.array(to_numpy(grad)) for name, grad in grads.items()}

    def trained(self) -> Arrays:
        if not self.task.steps:
            return {}
        net, task = self.net, self.task
        start = net.state_dict()
        step = net.value_and_grad(task.objective or mean_square)
        optimizer = net.optimizer(task.optimizer, lr=task.lr)
        batch = self._batch()
        try:
            with _said(f"{self.name} cannot be trained"):
                for _ in range(task.steps):
                    step(*batch)
                    optimizer.step()
                return net.state_dict()
        finally:
            net.load_state_dict(start)


@contextmanager
def _said(what: str) -> Iterator[None]:
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
class Recorded(Subject):
    """What was recorded of a model: see :mod:`multiparam.comparison.recording`."""

    name: str
    model: str
    backend: str
    version: str
    side: Manifest
    dtypes: tuple[str, ...]
    passes: Mapping[str, Callable[[], tuple[list[np.ndarray], Any]]]  # dtype -> its outputs and calls
    gradients: Arrays | None
    end: Arrays
    task: Task
    source: str
    environment: Mapping[str, Any]

    def run(self, dtype: str, see: See | None = None) -> list[np.ndarray]:
        outputs, calls = self.passes[dtype]()
        for call in calls if see is not None else ():
            see(call)  # type: ignore[misc]
        return outputs

    def kept(self, dtype: str) -> tuple[list[np.ndarray], Any]:
        return self.passes[dtype]()

    def grads(self) -> Arrays:
        if self.gradients is None:
            raise Unsupported(f"{self.name} was recorded without: {self.backend} gave none.")
        return self.gradients

    def trained(self) -> Arrays:
        return self.end


def mean_square(net: Model, *inputs: Any) -> Any:
    """An objective for models that come with none: the mean of the squared outputs, the first where there are more."""
    output = net(*inputs)
    while isinstance(output, (list, tuple, Mapping)):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    if not hasattr(output, "shape"):
        raise ShapeError("The model's output is no array: give an objective.")
    return net.adapter.mse(output, output * 0)


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
