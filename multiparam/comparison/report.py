"""The main job's table, its verdict in words, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..files import written_whole
from .judge import BOUNDS, Check, plain

METHOD = """\
structure: names, shapes and layer kinds are equal. initial values: equal bit for bit. sgd, momentum, adam: the
parameters after {steps} steps. statistics: the running ones of batch normalisation after the same steps.
Distances: max|a - b| / max|b| of the worst array, in eps of float64 (f64) or float32 (f32), to {reference} in float64,
the reference (ref.)."""


def show(console: Console, checks: Sequence[Check], backends: Sequence[str], steps: int) -> None:
    """The table: a row per model, check and dtype; a column per backend. The first backend is the reference."""
    table = Table(
        title="multiparam compare",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("model", "check", ""):
        table.add_column(column, no_wrap=True)
    for column in (*backends, "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[tuple[str, str, str], dict[str, Check]] = {}
    for check in checks:
        rows.setdefault((check.model, check.check, check.dtype), {})[check.backend] = check
    order = list(dict.fromkeys((model, name) for model, name, _ in rows))
    notes: dict[str, str] = {}
    before = None
    for key in sorted(rows, key=lambda key: (order.index(key[:2]), key[2] != "float64")):
        model, name, dtype = key
        if before not in (None, model):
            table.add_section()
        bound = next((check.bound for check in rows[key].values() if check.bound is not None), None)
        cells = [_cell(rows[key].get(backend), notes) for backend in backends]
        table.add_row(
            "" if model == before else model,
            name,
            dtype.replace("float", "f"),
            *cells,
            "" if bound is None else f"{bound:g}",
        )
        before = model
    console.print(table)
    console.print(METHOD.format(steps=steps, reference=backends[0]), style="dim", highlight=False, soft_wrap=True)
    for reason, mark in notes.items():
        console.print(f"{mark} Not judged. {reason}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _cell(check: Check | None, notes: dict[str, str]) -> str:
    if check is None:
        return "[dim]ref.[/]"
    far = check.distance
    number = "" if far is None else f"{far:.2g} " if far < 10 else f"{far:.0f} " if far < 1e5 else "far "
    if not check.agrees:
        return f"[red]{number}✗[/]"
    if check.detail.startswith("declared: "):
        mark = notes.setdefault(check.detail.removeprefix("declared: "), "*" * (len(notes) + 1))
        return f"[yellow]{number}{mark}[/]"
    return f"[green]{number}✓[/]" if number else "[green]✓[/]"


def verdict(checks: Sequence[Check], backends: Mapping[str, str]) -> list[str]:
    """One line when all agree; else one for each disagreement, naming model, check, backend and parameter."""
    wrong = [check for check in checks if not check.agrees]
    named = ", ".join(f"{name} {version}" for name, version in backends.items())
    models = len({check.model for check in checks})
    if not wrong:
        return [f"All agree: {len(checks)} checks on {models} models with {named}."]
    lines = [f"{len(wrong)} of {len(checks)} checks disagree ({named}):"]
    for check in wrong:
        far = "" if check.distance is None else f" is {check.distance:.3g} eps away (bound {check.bound:g})"
        what = " ".join(filter(None, (check.check, check.dtype)))
        lines.append(f"  {check.model}, {what}, {check.backend}: {check.detail}{far}")
    return lines


def write_json(path: Path, checks: Sequence[Check], backends: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """The same as data; the file appears whole or not at all."""
    content = {
        "format": "multiparam-compare-1",
        "agree": all(check.agrees for check in checks),
        "backends": dict(backends),
        "options": dict(options),
        "bounds_eps": dict(BOUNDS),
        "checks": [vars(check) | {"distance": plain(check.distance)} for check in checks],
    }
    written_whole(path, json.dumps(content, indent=1) + "\n")
