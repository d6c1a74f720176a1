"""``multiparam backends``: which there are."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core import registry
from ..errors import BackendMissing
from .terminal import quiet


def backends_command() -> None:
    """List the backends: the installed version, or the pip line that would install it."""
    table = Table(box=None, header_style="bold")
    for column in ("backend", "version", "unsupported"):
        table.add_column(column)
    missing = []
    for name, status in registry.backends().items():
        if not status:  # below the table, in lines of their own: what a narrow table breaks cannot be copied
            missing.append(f"{name} {status}")
            continue
        try:
            with quiet():
                unsupported = ", ".join(registry.info(name).load().unsupported)
        except BackendMissing as error:  # one whose installation is broken; the others are listed all the same
            unsupported = str(error)
        table.add_row(name, Text(str(status)), Text(unsupported))
    console = Console()
    if table.rows:
        console.print(table)
    for line in missing:
        console.print(Text(line), soft_wrap=True)
