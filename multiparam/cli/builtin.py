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
from .terminal import exit_on_error, print_verdict, progress, quiet
from .user_models import written

if TYPE_CHECKING:
    from ..comparison.results import Comparison
    from ..comparison.runs import NetworkRun as Run

STEPS, SEED = 100, 0


def run(given: Mapping[str, Any], against: Path | None, paths: Mapping[str, Path | None]) -> int:
    """Build the networks here and compare them, with each other or with a recording; the exit code."""
    from ..comparison.networks import judge_networks
    from ..comparison.networks import label_columns as labelled
    from ..comparison.networks import open_network_files as of_files
    from ..comparison.subjects import environment
    from ..comparison.zoo import ZOO

    golden, asked, environments = of_files([against]) if against is not None else ([], {}, [])
    networks = _known(given["model"], list(dict.fromkeys(run.network for run in golden)) or ZOO, "--model")
    options = {key: given[key] if given[key] is not None else asked.get(key, default) for key, default in DEFAULTS}
    if asked and options != asked:
        raise InvalidArgument(f"{str(against)!r} was recorded with steps {asked['steps']} and seed {asked['seed']}.")
    chosen = _chosen(given["backend"])
    if len(chosen) == 1 and not golden:
        Console().print(f"Only {chosen[0]} is compared: its float32 against its own float64.")
    reference = [run for run in golden if run.backend == golden[0].backend and run.network in networks]
    runs = labelled([*reference, *_runs(networks, chosen, **options)])
    here = {**environment(), "name": "here"}
    found = judge_networks(runs, {"networks": networks, **options}, [*environments, here])
    return _report(found, options["steps"], paths)


DEFAULTS = (("steps", STEPS), ("seed", SEED))


def judge(files: Sequence[Path], paths: Mapping[str, Path | None]) -> int:
    """Compare recordings of the networks; the exit code."""
    from ..comparison.networks import judge_networks
    from ..comparison.networks import open_network_files as of_files

    runs, options, environments = of_files(files)
    networks = list(dict.fromkeys(run.network for run in runs))
    return _report(judge_networks(runs, {"networks": networks, **options}, environments), options["steps"], paths)


def record(given: Mapping[str, Any], layers: Sequence[str], output: Path) -> None:
    """Record the networks in the backends of this environment."""
    from ..comparison.networks import write_networks
    from ..comparison.zoo import ZOO

    networks, chosen = _known(given["model"], ZOO, "--model"), _chosen(given["backend"])
    options = {key: default if given[key] is None else given[key] for key, default in DEFAULTS}
    runs = _runs(networks, chosen, **options, layers=layers)
    with exit_on_error():
        write_networks(output, runs, **options)
    written(output, f"{len(networks)} networks in {', '.join(chosen)}")


def _runs(
    networks: Sequence[str], backends: Sequence[str], steps: int, seed: int, layers: Sequence[str] = ()
) -> list[Run]:
    from ..comparison.networks import DTYPES, TICKS, record_networks

    total = len(networks) * len(backends) * len(DTYPES) * (TICKS if steps else 1)
    with quiet() as stderr, progress("comparing", total, stderr) as tick:
        for name in backends:
            registry.info(name).load()
        return record_networks(networks, backends, steps=steps, seed=seed, layers=layers, tick=tick)


def _report(found: Comparison, steps: int, paths: Mapping[str, Path | None]) -> int:
    from ..comparison.reports.console import print_checks as show
    from ..comparison.reports.console import verdict
    from ..comparison.reports.files import write_reports as write

    console = Console()
    show(console, found, steps)
    print_verdict(console, "\n".join(verdict(found)), found.agrees)
    write(found, paths)
    return 0 if found.agrees else 1


def _known(asked: list[str] | None, known: Iterable[str], option: str) -> list[str]:
    names = list(known)
    for name in asked or ():
        if name not in names:
            raise typer.BadParameter(f"no {name!r}. {did_you_mean(name, names)}", param_hint=option)
    return [name for name in names if not asked or name in asked]


def _chosen(asked: list[str] | None) -> list[str]:
    """The backends asked for, or in the environment, or all installed ones, in the registry's order."""
    fallback = os.environ.get(registry.VARIABLE)
    asked = asked or ([fallback] if fallback else None)
    try:
        for name in asked or ():
            registry.info(name).require()
    except BackendUnknown as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from None
    installed = [name for name, status in registry.backends().items() if status]
    if not installed:
        registry.selected()
    return [name for name in dict.fromkeys(asked or installed) if name in installed]
