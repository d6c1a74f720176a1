"""The table of the networks built in on a terminal, and its verdict in words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ...core.packages import require
from ..judge import Check

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..results import Comparison

INSTALL = 'pip install "multiparam[cli]"'
METHOD = """\
structure: names, shapes and layer kinds are equal. initial values: equal bit for bit. sgd, momentum, adam: the
parameters after {steps} steps. statistics: the running ones of batch normalisation after the same steps.
Distances: max|a - b| / max|b| of the worst array, in eps of float64 (f64) or float32 (f32), to {reference} in float64,
the reference (ref.)."""


def console_for(body: Any) -> Console:
    """As wide as the terminal, but no narrower than lets every name be read; in a file, as wide as it would be."""
    require("rich", "A table on the terminal", INSTALL)
    from rich.console import Console

    console = Console()
    needed = Console(width=100_000).measure(body)
    if console.is_terminal or "COLUMNS" in os.environ:
        console.width = max(console.width, needed.minimum)
    else:
        console.width = max(80, needed.maximum)
    return console


def print_checks(console: Console, comparison: Comparison, steps: int) -> None:
    """The table, how it was made, and why some of it is not judged."""
    table, notes = _table(comparison)
    console_for(table).print(table)
    reference = next(iter(comparison.models))
    console.print(METHOD.format(steps=steps, reference=reference), style="dim", highlight=False, soft_wrap=True)
    for reason, mark in notes.items():
        console.print(f"{mark} Not judged. {reason}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _table(comparison: Comparison) -> tuple[Table, dict[str, str]]:
    """A row per network, check and dtype; a column per backend, the first being the reference. And reason -> mark of
    what is not judged."""
    from rich import box
    from rich.table import Table

    backends = list(comparison.models)
    table = Table(
        title="multiparam compare", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in ("model", "check", ""):
        table.add_column(column, no_wrap=True)
    for column in (*backends, "bound"):
        table.add_column(column.replace("@", "\n@"), justify="right", no_wrap=True)
    rows: dict[tuple[str, str, str], dict[str, Check]] = {}
    for check in comparison.checks:
        rows.setdefault((check.network, check.check, check.dtype), {})[check.backend] = check
    order = list(dict.fromkeys((network, name) for network, name, _ in rows))
    notes: dict[str, str] = {}
    before = None
    # A check's dtypes are next to each other, float64 first: that is where the networks must agree.
    for key in sorted(rows, key=lambda key: (order.index(key[:2]), key[2] != "float64")):
        network, name, dtype = key
        if before not in (None, network):
            table.add_section()
        bound = next((f"{check.bound:g}" for check in rows[key].values() if check.bound is not None), "")
        cells = [_cell(rows[key].get(backend), notes) for backend in backends]
        table.add_row("" if network == before else network, name, dtype.replace("float", "f"), *cells, bound)
        before = network
    return table, notes


def _cell(check: Check | None, notes: dict[str, str]) -> str:
    if check is None:
        return "[dim]ref.[/]"
    eps = check.distance
    number = "" if eps is None else f"{eps:.2g} " if eps < 10 else f"{eps:.0f} " if eps < 1e5 else "far "
    if not check.agrees:
        return f"[red]{number}✗[/]"
    if check.expected:
        mark = notes.setdefault(check.expected, "*" * (len(notes) + 1))
        return f"[yellow]{number}{mark}[/]"
    return f"[green]{number}✓[/]" if number else "[green]✓[/]"


def verdict(comparison: Comparison) -> list[str]:
    """One line when all agree; else one for each disagreement, naming network, check, backend and parameter, and one
    for where each backend parts first."""
    checks = comparison.checks
    wrong = [check for check in checks if not check.agrees]
    named = ", ".join(f"{name} {model['version']}" for name, model in comparison.models.items())
    networks = len({check.network for check in checks})
    if not wrong:
        return [f"All agree: {len(checks)} checks on {networks} models with {named}."]
    lines = [f"{len(wrong)} of {len(checks)} checks disagree ({named}):"]
    for check in wrong:
        eps = "" if check.distance is None else f" is {check.distance:.3g} eps away (bound {check.bound:g})"
        what = " ".join(filter(None, (check.check, check.dtype)))
        lines.append(f"  {check.network}, {what}, {check.backend}: {check.detail}{eps}")
    lines += [f"  {pair.name} parts first {pair.parted}" for pair in comparison.pairs if pair.parted]
    return lines
