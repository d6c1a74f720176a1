"""The main job's table, its verdict in words, and its JSON."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from ...cli.terminal import console_for
from ..judge import Check
from ..models import Comparison

METHOD = """\
structure: names, shapes and layer kinds are equal. initial values: equal bit for bit. sgd, momentum, adam: the
parameters after {steps} steps. statistics: the running ones of batch normalisation after the same steps.
Distances: max|a - b| / max|b| of the worst array, in eps of float64 (f64) or float32 (f32), to {reference} in float64,
the reference (ref.)."""


def show(console: Console, found: Comparison, steps: int) -> None:
    """The table: a row per network, check and dtype; a column per backend. The first backend is the reference."""
    checks, backends = found.checks, list(found.models)
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
        table.add_column(column.replace("@", "\n@"), justify="right", no_wrap=True)
    rows: dict[tuple[str, str, str], dict[str, Check]] = {}
    for check in checks:
        rows.setdefault((check.network, check.check, check.dtype), {})[check.backend] = check
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
    console_for(table).print(table)
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
    if check.expected:
        mark = notes.setdefault(check.expected, "*" * (len(notes) + 1))
        return f"[yellow]{number}{mark}[/]"
    return f"[green]{number}✓[/]" if number else "[green]✓[/]"


def verdict(found: Comparison) -> list[str]:
    """One line when all agree; else one for each disagreement, naming network, check, backend and parameter, and one
    for where each backend parts first."""
    checks = found.checks
    wrong = [check for check in checks if not check.agrees]
    named = ", ".join(f"{name} {said['version']}" for name, said in found.models.items())
    models = len({check.network for check in checks})
    if not wrong:
        return [f"All agree: {len(checks)} checks on {models} models with {named}."]
    lines = [f"{len(wrong)} of {len(checks)} checks disagree ({named}):"]
    for check in wrong:
        far = "" if check.distance is None else f" is {check.distance:.3g} eps away (bound {check.bound:g})"
        what = " ".join(filter(None, (check.check, check.dtype)))
        lines.append(f"  {check.network}, {what}, {check.backend}: {check.detail}{far}")
    lines += [f"  {pair.name} parts first {pair.parted}" for pair in found.pairs if pair.parted]
    return lines
