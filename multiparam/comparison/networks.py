"""The networks built in, in every backend of one environment or of several: recorded there, judged anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core import registry
from ..errors import FileError, InvalidArgument
from .activations import ActivationCache, LayerCall
from .divergence import Follower
from .environments import environment
from .judge import BOUNDS, Check, judge_runs
from .recording import RecordingWriter, load_arrays, open_recording
from .results import Comparison, Pair
from .runs import NetworkRun, run_network
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
) -> list[NetworkRun]:
    """Build each network in each backend, in float64 and float32, and look at it."""
    runs = []
    for network in networks:
        for backend in backends:
            for dtype in DTYPES:
                tick_run = partial(tick, f"{network} in {backend}, {dtype}")
                run = run_network(ZOO[network], backend, dtype, steps=steps, seed=seed, layers=layers, tick=tick_run)
                version = str(registry.info(backend).version())
                runs.append(replace(run, network=network, version=version))
    return runs


def judge_networks(
    runs: Sequence[NetworkRun],
    options: Mapping[str, Any],
    environments: Sequence[Mapping[str, Any]] = (),
) -> Comparison:
    """Judge what was recorded of each network: the first column is the reference, in float64."""
    columns = list(dict.fromkeys(run.column for run in runs))
    pairs = {column: Pair(column) for column in columns}
    for network in dict.fromkeys(run.network for run in runs):
        of_network = [run for run in runs if run.network == network]
        reference = next(run for run in of_network if run.dtype == "float64")
        checks = judge_runs(network, of_network)
        for column in columns:
            pairs[column].checks += [check for check in checks if check.backend == column]
        for run in of_network:
            if run.dtype == "float64" and run is not reference:
                _follow(pairs[run.column], run, reference, checks)
    models = {run.column: {"backend": run.backend, "version": run.version, "title": "", "parameters": None,
                           "source": run.source} for run in runs}  # fmt: skip
    where = [{**environment(), "name": "here"}] if not environments else list(environments)
    return Comparison(columns[0], [pair for pair in pairs.values() if pair.checks], BOUNDS, models, where, options)


def _follow(pair: Pair, run: NetworkRun, reference: NetworkRun, checks: Sequence[Check]) -> None:
    """Where a network's outputs part, layer by layer."""
    layer_map = {call.layer: call.layer for call in run.calls}
    follower = Follower(ActivationCache(reference.calls), layer_map, "float64", BOUNDS["output"])
    for call in run.calls:
        follower.on_call(call)
    pair.layers[run.network] = follower.layers()
    agree = all(check.agrees for check in checks if check.backend == run.column and check.check == "output")
    divergence = None if agree else follower.divergence(outputs_agree=False)
    if divergence is not None:
        pair.parted = "; ".join(filter(None, (pair.parted, f"{divergence.where} ({run.network})")))
        pair.hints += divergence.hints
        if divergence.call is not None:
            pair.first[run.network] = follower.position(divergence.call) or 0


# -- files

LOCAL = ("label", "source")  # fields of a run that are set where a recording is read
ARRAYS = ("values", "output", "calls", "grads", "trained", "buffers")


def write_networks(path: Path, runs: Sequence[NetworkRun], steps: int, seed: int) -> None:
    """A recording of networks."""
    writer = RecordingWriter()
    documents = []
    for run in runs:
        where = f"{run.network}/{run.backend}/{run.dtype}"
        values = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in LOCAL}
        documents.append({key: writer.add(value, f"{where}/{key}") for key, value in values.items()})
    writer.write(path, {"networks": {"steps": steps, "seed": seed, "runs": documents}})


def open_networks(path: Path | str) -> tuple[list[NetworkRun], dict[str, Any], Mapping[str, Any]]:
    """The runs of a recording, the options they were made with, and the environment they were made in."""
    file, document = open_recording(path)
    if "networks" not in document:
        raise FileError(f"{str(path)!r} is a recording of models, not of the networks built in.")
    networks = document["networks"]
    known = [field.name for field in fields(NetworkRun) if field.name not in LOCAL]
    runs = []
    for each in networks["runs"]:
        values = {key: each[key] for key in known}
        values.update({key: load_arrays(each[key], file) for key in ARRAYS})
        values["shapes"] = [tuple(shape) for shape in each["shapes"]]
        values["ties"] = [tuple(names) for names in each["ties"]]
        values["calls"] = [LayerCall(c["layer"], tuple(c["inputs"]), tuple(c["outputs"])) for c in values["calls"]]
        runs.append(NetworkRun(**values, source=str(path)))
    return runs, {"steps": networks["steps"], "seed": networks["seed"]}, document["environment"]


def open_network_files(paths: Iterable[Path]) -> tuple[list[NetworkRun], dict[str, Any], list[dict[str, Any]]]:
    """The runs of several recordings of the same networks and options. A backend that is in more than one of them is
    called ``backend@file``. Raises InvalidArgument where they were made with other options."""
    runs: list[NetworkRun] = []
    options: dict[str, Any] = {}
    environments = []
    for path in paths:
        of_file, its_options, where = open_networks(path)
        if options and its_options != options:
            texts = _options_text(its_options), _options_text(options)
            raise InvalidArgument(f"{str(path)!r} was recorded with {texts[0]}, others with {texts[1]}.")
        options = its_options
        runs += of_file
        environments.append({**where, "name": str(path)})
    return label_columns(runs), options, environments


def label_columns(runs: Sequence[NetworkRun]) -> list[NetworkRun]:
    """The runs with columns of different names: ``backend@file`` where files share a backend, with folders where they
    share a name."""
    sources: dict[str, set[str]] = {}
    for run in runs:
        sources.setdefault(run.backend, set()).add(run.source)
    stems = [Path(source).stem for source in {run.source for run in runs}]

    def label(run: NetworkRun) -> str:
        if len(sources[run.backend]) == 1:
            return run.backend
        path = Path(run.source)
        name = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(""))
        return f"{run.backend}@{name if run.source else 'here'}"

    return [replace(run, label=label(run)) for run in runs]


def _options_text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
