"""Recordings: what models compute in one environment, in a file that is judged in any other, without their frameworks.

A safetensors file. Its metadata has a document (see schemas/recording.json) in which ``{"tensor": name}`` stands for an
array of the file; equal arrays are in it once. Arrays are read when they are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, losses
from ..core.group import store_of
from ..core.inputs import Inputs
from ..core.outputs import Outputs
from ..core.state import ArraySpec, Source, spec
from ..errors import FileError, InvalidArgument, Unsupported
from ..transfers.manifest import manifest_of_arrays
from ..weights.atomic import Replacement
from ..weights.metadata import FileMetadata, describe
from ..weights.safetensors import Tensor, TensorFile, write_safetensors
from ..weights.strict_json import strict_json
from ..weights.together import in_all_or_none
from .activations import LayerCall, digest
from .environments import environment
from .runs import LEARNING_RATES
from .schemas import problems
from .subjects import LiveSubject, NotInFloat64, RecordedSubject
from .tasks import Task
from .zoo import ZOO

KEY = "multiparam.recording"
MAJOR, MINOR = 1, 1
OBJECTIVES: Mapping[str, Callable[..., Any]] = {"mse": losses.mse, "cross_entropy": losses.cross_entropy}


# -- writing


class RecordingWriter:
    """Collects the arrays of a document on their way into a file."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}  # by digest
        self._tensors: dict[str, Tensor] = {}

    def add(self, value: Any, where: str) -> Any:
        """The same with ``{"tensor": name}`` for each array, named after its place."""
        if isinstance(value, np.ndarray):
            return {"tensor": self._add_array(value, where)}
        if isinstance(value, LayerCall):
            return self.add(value._asdict(), where)
        if isinstance(value, Mapping):
            return {str(key): self.add(each, f"{where}/{key}") for key, each in value.items()}
        if isinstance(value, str) or not isinstance(value, Sequence):
            return value
        return [self.add(each, f"{where}/{i}") for i, each in enumerate(value)]

    def _add_array(self, array: np.ndarray, where: str) -> str:
        key = digest(array)
        if key not in self._names:
            while where in self._tensors:  # a model's name may have a slash
                where += "+"
            self._names[key] = where
            self._tensors[where] = Tensor(where, *spec(array), lambda: array)
        return self._names[key]

    def write(self, path: Path, document: Mapping[str, Any]) -> None:
        """The file, whole or not at all."""
        whole = {
            "format": f"{MAJOR}.{MINOR}",
            "multiparam": __version__,
            "environment": environment(),
            **document,
        }
        text = json.dumps(whole, ensure_ascii=False, default=str)
        with Replacement(path.name) as replacement:
            write_safetensors(replacement.file(path), self._tensors.values(), {KEY: text})


def write_models(path: Path, subjects: Sequence[LiveSubject]) -> None:
    """Run models, in each dtype they can be run in, and write down everything."""
    writer = RecordingWriter()
    task = subjects[0].task
    task_document = {
        "objective": task.name,
        "steps": task.steps,
        "optimizer": task.optimizer,
        "lr": task.lr,
        "inputs": tuple(task.inputs),
        "keywords": list(task.inputs.names),
        "targets": task.targets,
    }
    models = {each.name: writer.add(_model_document(each), each.name) for each in subjects}
    document = {"task": writer.add(task_document, "task"), "models": models}
    hosts = [store_of(each.net).host for each in subjects]

    def write() -> None:
        if all(host.rank() == 0 for host in hosts):
            writer.write(path, document)

    in_all_or_none(hosts, write, path)


def _model_document(subject: LiveSubject) -> dict[str, Any]:
    passes: dict[str, Any] = {}
    for dtype in subject.dtypes:
        with suppress(NotInFloat64):
            outputs, calls = subject.run_with_cache(dtype)
            passes[dtype] = {**_outputs_document(outputs), "calls": list(calls)}
    document = {
        "backend": subject.backend,
        "version": subject.version,
        "title": subject.manifest.title,
        "order": subject.manifest.order,
        "dtypes": list(passes),  # a float64 that turned out to be impossible is not among them
        **describe(subject.net),
        "values": {names[0]: subject.net[names[0]].numpy(gather=True) for names in _names(subject)},
        "passes": passes,
        **({"settings": dict(subject.settings)} if subject.settings else {}),
        "trained": subject.trained(),
    }
    if "float64" in passes:
        document["noise_floor"] = subject.noise_floor()
    with suppress(Unsupported):
        document["gradients"] = subject.grads()
    return document


def _names(subject: LiveSubject) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(subject.net[name].names for name in subject.manifest.entries()))


# -- reading


def open_recording(path: Path | str) -> tuple[TensorFile, dict[str, Any]]:
    """A recording's arrays and its document. Raises FileError for what is none, or of an unknown version."""
    path = Path(path)
    file = TensorFile(path)
    if KEY not in file.metadata:
        raise FileError(f"{str(path)!r} is no recording. multiparam record writes one.")
    document = strict_json(file.metadata[KEY].encode(), path)
    version = str(document.get("format"))
    major, _, minor = version.partition(".")
    if major != str(MAJOR) or not minor.isdigit():
        raise FileError(
            f"{str(path)!r} is a recording of format {version}, written by multiparam {document.get('multiparam')}; "
            f"this one, {__version__}, reads {MAJOR}.x. Record it again, or: pip install --upgrade multiparam"
        )
    _check(document, file, path)
    return file, document


def _check(document: dict[str, Any], file: TensorFile, path: Path) -> None:
    wrong = problems(document, "recording")
    if not wrong:
        wrong += [f"there is no array {name!r}" for name in _tensor_names(document) if name not in file]
        for name, model in document.get("models", {}).items():
            wrong += [f"{name!r} has no pass in {dtype}" for dtype in model["dtypes"] if dtype not in model["passes"]]
            wrong += [
                f"{name!r} has not as many names as outputs in {dtype}"
                for dtype, each in model["passes"].items()
                if len(each.get("output_names", each["outputs"])) != len(each["outputs"])
            ]
        task = document.get("task", {"inputs": ()})
        if len(task.get("keywords", ())) > len(task["inputs"]):
            wrong.append("there are more keywords than inputs")
        wrong += _network_problems(document.get("networks", {"runs": []}))
        if not document.get("models") and not document.get("networks", {}).get("runs"):
            wrong.append("there are no models in it")
    if wrong:
        raise FileError(f"{str(path)!r} is not as multiparam record writes it: {wrong[0]}.")


def _network_problems(networks: Mapping[str, Any]) -> Iterator[str]:
    """What no schema can say of them."""
    for run in networks["runs"]:
        where = f"{run['network']} in {run['backend']}"
        if not len(run["names"]) == len(run["shapes"]) == len(run["kinds"]):
            yield f"{where} has not as many shapes and kinds as names"
        known = ZOO.get(run["network"])
        for what in ("trained", "buffers") if networks["steps"] and (known is None or known.smooth) else ():
            yield from (f"{where} has no {name} among {what}" for name in LEARNING_RATES if name not in run[what])


def _tensor_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("tensor"), str):
            yield value["tensor"]
        for each in value.values():
            yield from _tensor_names(each)
    elif isinstance(value, list):
        for each in value:
            yield from _tensor_names(each)


def load_arrays(value: Any, file: TensorFile) -> Any:
    """A part of a document with its arrays in it."""
    if isinstance(value, dict):
        name = value.get("tensor")
        if len(value) == 1 and isinstance(name, str):
            return file[name]
        return {key: load_arrays(each, file) for key, each in value.items()}
    return [load_arrays(each, file) for each in value] if isinstance(value, list) else value


class RecordedArrays(Source):
    """Arrays of a recording by the names a document has for them."""

    def __init__(self, file: TensorFile, places: Mapping[str, Mapping[str, str]]) -> None:
        self._file = file
        self._places = {name: place["tensor"] for name, place in places.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file[self._places[name]]

    def spec(self, name: str) -> ArraySpec:
        return self._file.spec(self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class RecordedCalls:
    """The calls of a recorded pass, each read when it is looked at."""

    def __init__(self, file: TensorFile, calls: Sequence[Mapping[str, Any]]) -> None:
        self._file = file
        self._calls = calls
        self.layers: list[str] = [call["layer"] for call in calls]

    def __getitem__(self, index: int) -> LayerCall:
        call = self._calls[index]
        inputs, outputs = (tuple(load_arrays(call[key], self._file)) for key in ("inputs", "outputs"))
        return LayerCall(call["layer"], inputs, outputs)

    def __iter__(self) -> Iterator[LayerCall]:
        return (self[i] for i in range(len(self._calls)))

    def __len__(self) -> int:
        return len(self._calls)


def open_subjects(name: str, path: Path | str) -> list[RecordedSubject]:
    """The models of a recording, called ``name`` if there is one, else ``model@name``."""
    file, document = open_recording(path)
    if "models" not in document:
        raise FileError(f"{str(path)!r} is a recording of the networks built in, not of models.")
    recorded, models = document["task"], document["models"]
    task = Task(
        Inputs(load_arrays(recorded["inputs"], file), tuple(recorded.get("keywords", ()))),
        tuple(load_arrays(recorded["targets"], file)),
        _objective(recorded["objective"]),
        recorded["steps"],
        recorded["optimizer"],
        recorded["lr"],
    )
    return [
        _subject(file, each, name if len(models) == 1 else f"{model}@{name}", model, task, document["environment"])
        for model, each in models.items()
    ]


def _subject(
    file: TensorFile, document: Mapping[str, Any], name: str, model: str, task: Task, environment: Mapping[str, Any]
) -> RecordedSubject:
    def run(dtype: str) -> Callable[[], tuple[Outputs, RecordedCalls]]:
        recorded = document["passes"][dtype]
        return lambda: (_named_outputs(recorded, file), RecordedCalls(file, recorded["calls"]))

    about = FileMetadata(document["parameters"], document["layers"])
    values = RecordedArrays(file, document["values"])
    return RecordedSubject(
        name=name,
        model=model,
        backend=document["backend"],
        version=document["version"],
        manifest=manifest_of_arrays(values, document["title"], about, document["order"]),
        dtypes=tuple(document["dtypes"]),
        passes={dtype: run(dtype) for dtype in document["passes"]},
        gradients=RecordedArrays(file, document["gradients"]) if "gradients" in document else None,
        final=RecordedArrays(file, document["trained"]),
        task=task,
        floor=document.get("noise_floor", 0.0),
        source=file.path.name,
        environment=environment,
        settings=document.get("settings", {}),
    )


def _outputs_document(outputs: Outputs) -> dict[str, Any]:
    """A pass' outputs: arrays, their names, and texts beside them."""
    arrays = {name: leaf for name, leaf in outputs.items() if not isinstance(leaf, str)}
    texts = {name: leaf for name, leaf in outputs.items() if isinstance(leaf, str)}
    return {"outputs": list(arrays.values()), "output_names": list(arrays), **({"texts": texts} if texts else {})}


def _named_outputs(recorded: Mapping[str, Any], file: TensorFile) -> Outputs:
    """A recorded pass' outputs by name; those of format 1.0 have positions only."""
    arrays = load_arrays(recorded["outputs"], file)
    positions = [""] if len(arrays) == 1 else [f"[{i}]" for i in range(len(arrays))]
    return {**dict(zip(recorded.get("output_names", positions), arrays, strict=True)), **recorded.get("texts", {})}


def _objective(name: str) -> Callable[..., Any] | None:
    if not name or name in OBJECTIVES:
        return OBJECTIVES.get(name)

    # A function of the user's is not in the file: it has its name, which is compared, and cannot be called.
    def unknown(*arguments: Any) -> Any:
        raise InvalidArgument(f"The recording's objective is {name!r}: give it as objective=, for live models.")

    unknown.__name__ = name
    return unknown
