"""The networks built in, in every backend of one environment or of several: recorded there, judged anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core import registry
from ..errors import FileError, InvalidArgument
from .activations import Call, Kept
from .divergence import Follower
from .judge import BOUNDS, Check, judge
from .models import Comparison, Pair
from .recording import Arrays, loaded, open_recording
from .runs import Run, record
from .subjects import environment
from .zoo import ZOO

TICKS = 4  # of progress per run: the look, and each optimizer
DTYPES = ("float64", "float32")


def record_networks(
    networks: Sequence[str],
    backends: Sequence[str],
    *,
    steps: int,
    seed: int,
    layers: Sequence[str] = (),
    tick: Callable[[str], None] = lambda what: None,
) -> list[Run]:
    """Build each network in each backend, in float64 and float32, and look at it."""
    runs = []
    for network in networks:
        for backend in backends:
            for dtype in DTYPES:
                said = partial(tick, f"{network} in {backend}, {dtype}")
                run = record(ZOO[network], backend, dtype, steps=steps, seed=seed, layers=layers, tick=said)
                version = str(registry.info(backend).version())
                runs.append(replace(run, network=network, version=version))
    return runs


def judge_networks(
    runs: Sequence[Run],
    options: Mapping[str, Any],
    environments: Sequence[Mapping[str, Any]] = (),
) -> Comparison:
    """Judge what was recorded of each network: the first column is the reference, in float64."""
    columns = list(dict.fromkeys(run.column for run in runs))
    pairs = {column: Pair(column) for column in columns}
    reference: dict[str, Run] = {}
    for network in dict.fromkeys(run.network for run in runs):
        mine = [run for run in runs if run.network == network]
        reference[network] = next(run for run in mine if run.dtype == "float64")
        checks = judge(network, mine)
        for column in columns:
            pairs[column].checks += [check for check in checks if check.backend == column]
        for run in mine:
            if run.dtype == "float64" and run is not reference[network]:
                _follow(pairs[run.column], run, reference[network], checks)
    models = {run.column: {"backend": run.backend, "version": run.version, "title": "", "parameters": None,
                           "source": run.source} for run in runs}  # fmt: skip
    said = [{**environment(), "name": "here"}] if not environments else list(environments)
    return Comparison(columns[0], [pair for pair in pairs.values() if pair.checks], BOUNDS, models, said, options)


def _follow(pair: Pair, run: Run, reference: Run, checks: Sequence[Check]) -> None:
    """Where a network's outputs part, layer by layer."""
    follower = Follower(
        Kept(reference.calls), {call.layer: call.layer for call in run.calls}, "float64", BOUNDS["output"]
    )
    for call in run.calls:
        follower.see(call)
    pair.layers[run.network] = follower.layers()
    agree = all(check.agrees for check in checks if check.backend == run.column and check.check == "output")
    parting = None if agree else follower.parting(outputs_agree=False)
    if parting is not None:
        pair.parted = "; ".join(filter(None, (pair.parted, f"{parting.where} ({run.network})")))
        pair.hints += parting.hints
        if parting.index is not None:
            pair.first[run.network] = parting.index


# -- files

ARRAYS = ("values", "output", "calls", "grads", "trained", "buffers")


def write_networks(path: Path, runs: Sequence[Run], steps: int, seed: int) -> None:
    """A recording of networks."""
    arrays = Arrays()
    said = []
    for run in runs:
        where = f"{run.network}/{run.backend}/{run.dtype}"
        kept = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in LOCAL}
        said.append({key: arrays.put(value, f"{where}/{key}") for key, value in kept.items()})
    arrays.write(path, {"networks": {"steps": steps, "seed": seed, "runs": said}})


LOCAL = ("label", "source")  # given where a recording is read


def open_networks(path: Path | str) -> tuple[list[Run], dict[str, Any], Mapping[str, Any]]:
    """The runs of a recording, what they were asked for, and where that was."""
    file, document = open_recording(path)
    if "networks" not in document:
        raise FileError(f"{str(path)!r} is a recording of models, not of the networks built in.")
    said = document["networks"]
    known = [field.name for field in fields(Run) if field.name not in LOCAL]
    runs = []
    for each in said["runs"]:
        found = {key: each[key] for key in known}
        found.update({key: loaded(each[key], file) for key in ARRAYS})
        found["shapes"] = [tuple(shape) for shape in each["shapes"]]
        found["ties"] = [tuple(names) for names in each["ties"]]
        found["calls"] = [Call(c["layer"], tuple(c["inputs"]), tuple(c["outputs"])) for c in found["calls"]]
        runs.append(Run(**found, source=str(path)))
    return runs, {"steps": said["steps"], "seed": said["seed"]}, document["environment"]


def of_files(paths: Iterable[Path]) -> tuple[list[Run], dict[str, Any], list[dict[str, Any]]]:
    """The runs of several recordings of the same networks and options. A backend that is in more than one of them is
    called ``backend@file``. Raises InvalidArgument where they were not asked for the same."""
    runs: list[Run] = []
    asked: dict[str, Any] = {}
    environments = []
    for path in paths:
        found, options, where = open_networks(path)
        if asked and options != asked:
            raise InvalidArgument(f"{str(path)!r} was recorded with {_text(options)}, others with {_text(asked)}.")
        asked = options
        runs += found
        environments.append({**where, "name": str(path)})
    return labelled(runs), asked, environments


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with columns of different names: ``backend@file`` where files share a backend, with folders where they
    share a name."""
    sources: dict[str, set[str]] = {}
    for run in runs:
        sources.setdefault(run.backend, set()).add(run.source)
    stems = [Path(source).stem for source in {run.source for run in runs}]

    def label(run: Run) -> str:
        if len(sources[run.backend]) == 1:
            return run.backend
        path = Path(run.source)
        name = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(""))
        return f"{run.backend}@{name if run.source else 'here'}"

    return [replace(run, label=label(run)) for run in runs]


def _text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
