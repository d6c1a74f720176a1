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
from ..core.state import ArraySpec, Source, spec
from ..errors import FileError, InvalidArgument, Unsupported
from ..transfers.manifest import manifest_of_arrays
from ..weights.atomic import Replacement
from ..weights.metadata import FileMetadata, describe
from ..weights.safetensors import Tensor, TensorFile, strict_json, write_safetensors
from .activations import Call, digest
from .runs import LEARNING_RATES
from .subjects import Live, NotInFloat64, Recorded, Task, environment

KEY = "multiparam.recording"
MAJOR, MINOR = 1, 0
OBJECTIVES: Mapping[str, Callable[..., Any]] = {"mse": losses.mse, "cross_entropy": losses.cross_entropy}


class Arrays:
    """The arrays of a document on their way into a file."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._tensors: dict[str, Tensor] = {}

    def put(self, thing: Any, where: str) -> Any:
        """The same with ``{"tensor": name}`` for each array, named after its place."""
        if isinstance(thing, np.ndarray):
            return {"tensor": self._add(thing, where)}
        if isinstance(thing, Call):
            return self.put(thing._asdict(), where)
        if isinstance(thing, Mapping):
            return {str(key): self.put(each, f"{where}/{key}") for key, each in thing.items()}
        if isinstance(thing, str) or not isinstance(thing, Sequence):
            return thing
        return [self.put(each, f"{where}/{i}") for i, each in enumerate(thing)]

    def _add(self, array: np.ndarray, where: str) -> str:
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
        with Replacement() as replacement:
            write_safetensors(replacement.file(path), self._tensors.values(), {KEY: text})


# -- writing


def write_models(path: Path, subjects: Sequence[Live]) -> None:
    """Run models, in each dtype they can be run in, and write down everything."""
    arrays = Arrays()
    task = subjects[0].task
    said = {
        "objective": task.name,
        "steps": task.steps,
        "optimizer": task.optimizer,
        "lr": task.lr,
        "inputs": task.inputs,
        "targets": task.targets,
    }
    models = {each.name: arrays.put(_model(each), each.name) for each in subjects}
    arrays.write(path, {"task": arrays.put(said, "task"), "models": models})


def _model(subject: Live) -> dict[str, Any]:
    passes: dict[str, Any] = {}
    for dtype in subject.dtypes:
        with suppress(NotInFloat64):
            outputs, calls = subject.kept(dtype)
            passes[dtype] = {"outputs": outputs, "calls": list(calls)}
    found = {
        "backend": subject.backend,
        "version": subject.version,
        "title": subject.side.title,
        "order": subject.side.order,
        "dtypes": list(passes),  # a float64 that was found impossible is not among them
        **describe(subject.net),
        "values": {names[0]: subject.net[names[0]].numpy() for names in _names(subject)},
        "passes": passes,
        "trained": subject.trained(),
    }
    with suppress(Unsupported):
        found["gradients"] = subject.grads()
    return found


def _names(subject: Live) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(subject.net[name].names for name in subject.side.entries()))


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
    from .schemas import problems

    wrong = problems(document, "recording")
    if not wrong:
        wrong += [f"there is no array {name!r}" for name in _mentioned(document) if name not in file]
        for name, said in document.get("models", {}).items():
            wrong += [f"{name!r} has no pass in {dtype}" for dtype in said["dtypes"] if dtype not in said["passes"]]
        wrong += _of_networks(document.get("networks", {"runs": []}))
        if not document.get("models") and not document.get("networks", {}).get("runs"):
            wrong.append("there are no models in it")
    if wrong:
        raise FileError(f"{str(path)!r} is not as multiparam record writes it: {wrong[0]}.")


def _of_networks(said: Mapping[str, Any]) -> Iterator[str]:
    """What no schema can say of them."""
    for run in said["runs"]:
        where = f"{run['network']} in {run['backend']}"
        if not len(run["names"]) == len(run["shapes"]) == len(run["kinds"]):
            yield f"{where} has not as many shapes and kinds as names"
        for what in ("trained", "buffers") if said["steps"] else ():
            yield from (f"{where} has no {name} among {what}" for name in LEARNING_RATES if name not in run[what])


def _mentioned(thing: Any) -> Iterator[str]:
    if isinstance(thing, dict):
        if isinstance(thing.get("tensor"), str):
            yield thing["tensor"]
        for each in thing.values():
            yield from _mentioned(each)
    elif isinstance(thing, list):
        for each in thing:
            yield from _mentioned(each)


def loaded(thing: Any, file: TensorFile) -> Any:
    """A part of a document with its arrays in it."""
    if isinstance(thing, dict):
        name = thing.get("tensor")
        if len(thing) == 1 and isinstance(name, str):
            return file[name]
        return {key: loaded(each, file) for key, each in thing.items()}
    return [loaded(each, file) for each in thing] if isinstance(thing, list) else thing


class Values(Source):
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


class Calls:
    """The calls of a recorded pass, each read when it is looked at."""

    def __init__(self, file: TensorFile, calls: Sequence[Mapping[str, Any]]) -> None:
        self._file = file
        self._calls = calls
        self.layers = [call["layer"] for call in calls]

    def __getitem__(self, index: int) -> Call:
        call = self._calls[index]
        inputs, outputs = (tuple(loaded(call[key], self._file)) for key in ("inputs", "outputs"))
        return Call(call["layer"], inputs, outputs)

    def __iter__(self) -> Iterator[Call]:
        return (self[i] for i in range(len(self._calls)))

    def __len__(self) -> int:
        return len(self._calls)


def opened(name: str, path: Path | str) -> list[Recorded]:
    """The models of a recording, called ``name`` if there is one, else ``model@name``."""
    file, document = open_recording(path)
    if "models" not in document:
        raise FileError(f"{str(path)!r} is a recording of the networks built in, not of models.")
    found, models = document["task"], document["models"]
    task = Task(
        tuple(loaded(found["inputs"], file)),
        tuple(loaded(found["targets"], file)),
        _objective(found["objective"]),
        found["steps"],
        found["optimizer"],
        found["lr"],
    )
    return [
        _recorded(file, said, name if len(models) == 1 else f"{model}@{name}", model, task, document["environment"])
        for model, said in models.items()
    ]


def _recorded(
    file: TensorFile, said: Mapping[str, Any], name: str, model: str, task: Task, environment: Mapping[str, Any]
) -> Recorded:
    def run(dtype: str) -> Callable[[], tuple[list[np.ndarray], Calls]]:
        found = said["passes"][dtype]
        return lambda: (loaded(found["outputs"], file), Calls(file, found["calls"]))

    about = FileMetadata(said["parameters"], said["layers"])
    gradients = Values(file, said["gradients"]) if "gradients" in said else None
    side = manifest_of_arrays(Values(file, said["values"]), said["title"], about, said["order"])
    return Recorded(
        name, model, said["backend"], said["version"], side, tuple(said["dtypes"]),
        {dtype: run(dtype) for dtype in said["passes"]}, gradients, Values(file, said["trained"]), task,
        file.path.name, environment,
    )  # fmt: skip


def _objective(name: str) -> Callable[..., Any] | None:
    if not name or name in OBJECTIVES:
        return OBJECTIVES.get(name)

    def unknown(*given: Any) -> Any:
        raise InvalidArgument(f"The recording's objective is {name!r}: give it as objective=, for live models.")

    unknown.__name__ = name
    return unknown
