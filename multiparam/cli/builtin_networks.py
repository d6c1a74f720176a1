"""``multiparam compare`` and ``multiparam record`` with the networks built in: the main job."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..core import registry
from ..errors import BackendUnknown, InvalidArgument
from ..paths import did_you_mean
from .terminal import exit_on_error, print_recorded, print_verdict, progress, quiet

if TYPE_CHECKING:
    from ..comparison.results import Comparison
    from ..comparison.runs import NetworkRun

DEFAULTS: Mapping[str, int] = {"steps": 100, "seed": 0}


def compare_built_in(options: Mapping[str, Any], against: Path | None, reports: Mapping[str, Path | None]) -> int:
    """Build the networks here and compare them, with each other or with a recording; the exit code.

    ``options``: the values of ``--backend``, ``--model``, ``--steps`` and ``--seed``, None where one is not used.
    """
    from ..comparison.environments import environment
    from ..comparison.networks import judge_networks, label_columns, open_network_files
    from ..comparison.zoo import ZOO

    golden, recorded, environments = open_network_files([against]) if against is not None else ([], {}, [])
    networks = _known(options["model"], list(dict.fromkeys(run.network for run in golden)) or ZOO, "--model")
    training = _training({**DEFAULTS, **recorded}, options)
    if recorded and training != recorded:
        was = f"steps {recorded['steps']} and seed {recorded['seed']}"
        raise InvalidArgument(f"{str(against)!r} was recorded with {was}.")
    backends = _backends(options["backend"])
    if len(backends) == 1 and not golden:
        Console().print(f"Only {backends[0]} is compared: its float32 against its own float64.")
    reference = [run for run in golden if run.backend == golden[0].backend and run.network in networks]
    runs = label_columns([*reference, *_runs(networks, backends, training)])
    here = {**environment(), "name": "here"}
    comparison = judge_networks(runs, {"networks": networks, **training}, [*environments, here])
    return _report(comparison, training["steps"], reports)


def compare_recordings(files: Sequence[Path], reports: Mapping[str, Path | None]) -> int:
    """Compare recordings of the networks; the exit code."""
    from ..comparison.networks import judge_networks, open_network_files

    runs, training, environments = open_network_files(files)
    networks = list(dict.fromkeys(run.network for run in runs))
    comparison = judge_networks(runs, {"networks": networks, **training}, environments)
    return _report(comparison, training["steps"], reports)


def record_built_in(options: Mapping[str, Any], layers: Sequence[str], output: Path) -> None:
    """Record the networks in the backends of this environment. ``options``: as in :func:`compare_built_in`."""
    from ..comparison.networks import write_networks
    from ..comparison.zoo import ZOO

    networks, backends = _known(options["model"], ZOO, "--model"), _backends(options["backend"])
    training = _training(DEFAULTS, options)
    runs = _runs(networks, backends, training, layers)
    with exit_on_error():
        write_networks(output, runs, **training)
    print_recorded(output, f"{len(networks)} networks in {', '.join(backends)}")


def _training(defaults: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, int]:
    """Steps and seed: as the options say, else the defaults."""
    return {key: default if options[key] is None else options[key] for key, default in defaults.items()}


def _runs(
    networks: Sequence[str], backends: Sequence[str], training: Mapping[str, int], layers: Sequence[str] = ()
) -> list[NetworkRun]:
    from ..comparison.networks import DTYPES, TICKS, record_networks

    steps, seed = training["steps"], training["seed"]
    total = len(networks) * len(backends) * len(DTYPES) * (TICKS if steps else 1)
    with quiet() as stderr, progress("comparing", total, stderr) as tick:
        for name in backends:  # all before the first run: a broken one is said at once
            registry.info(name).load()
        return record_networks(networks, backends, steps=steps, seed=seed, layers=layers, tick=tick)


def _report(comparison: Comparison, steps: int, reports: Mapping[str, Path | None]) -> int:
    from ..comparison.reports.console import print_checks, verdict
    from ..comparison.reports.files import write_reports

    console = Console()
    print_checks(console, comparison, steps)
    print_verdict(console, "\n".join(verdict(comparison)), comparison.agrees)
    write_reports(comparison, reports)
    return 0 if comparison.agrees else 1


def _known(names: list[str] | None, known: Iterable[str], option: str) -> list[str]:
    """The known ones among the names, in the order in which they are known; all of them where none is named."""
    order = list(known)
    for name in names or ():
        if name not in order:
            raise typer.BadParameter(f"no {name!r}. {did_you_mean(name, order)}", param_hint=option)
    return [name for name in order if not names or name in names]


def _backends(names: list[str] | None) -> list[str]:
    """The backends named, or in the environment, or all installed ones, in the order named or else the registry's."""
    variable = os.environ.get(registry.VARIABLE)
    names = names or ([variable] if variable else None)
    try:
        for name in names or ():
            registry.info(name).require()
    except BackendUnknown as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from None
    installed = [name for name, status in registry.backends().items() if status]
    if not installed:
        registry.selected()  # raises, with the pip line of each backend
    return [name for name in dict.fromkeys(names or installed) if name in installed]
