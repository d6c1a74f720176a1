"""A comparison's document as one HTML page: verdict, hints, checks, layers, histograms, and what was compared where.

The page loads nothing and runs no script, so it can be mailed, archived and printed. Plots are SVG whose x is in
percent and whose y is in pixels: they are as wide as the page, on any screen, and their text keeps its size. All their
geometry is computed here; the template only draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ....core.packages import require
from .checks import CheckTable
from .histograms import sort_histograms
from .layers import LayerPlots
from .text import exact, option_text, readable_document, short, shortened
from .verdict import headline, verdict_of

if TYPE_CHECKING:
    from jinja2 import Template


def to_html(document: Mapping[str, Any]) -> str:
    """One self-contained page from a comparison's JSON document (see ``schemas/comparison.json``).

    >>> document = {
    ...     "format": "multiparam-comparison-1", "multiparam": "0.1.0", "agrees": False, "reference": "torch",
    ...     "models": {}, "environments": [], "options": {}, "bounds_eps": {"output": 1024},
    ...     "pairs": [{"model": "flax", "agrees": False, "parted": "at layer <b1>: its inputs agree", "hints": [],
    ...                "checks": [], "layers": [], "histograms": []}],
    ... }
    >>> to_html(document).partition("<title>")[2].partition("</title>")[0]
    'They do not agree: flax parts from torch at layer &lt;b1&gt;'
    """
    document = readable_document(document)
    pairs = document["pairs"]
    return _template().render(
        document=document,
        headline=headline(document),
        verdicts=[verdict_of(pair, document["reference"]) for pair in pairs],
        places=list(_places(pairs)),
        table=CheckTable.of(document),
        plots=LayerPlots.of(document),
        histograms=[(pair["model"], *sort_histograms(pair["histograms"])) for pair in pairs if pair["histograms"]],
        environments=list(_environments(document["environments"])),
        options={name: option_text(value) for name, value in document["options"].items()},
        bounds=", ".join(f"{name} {short(bound)}" for name, bound in document["bounds_eps"].items()),
    )


@cache
def _template() -> Template:
    """The template that stands beside this module, in this package."""
    require("jinja2", "An HTML page", 'pip install "multiparam[cli]"')
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"short": short, "exact": exact, "shortened": shortened}
    return environment.get_template("page.html.jinja")


def _places(pairs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every place where a model parts from the reference, where there are several: the verdict has the first only."""
    for pair in pairs:
        faults = pair.get("faults", ())
        for fault in faults if len(faults) > 1 else ():
            lines = fault.get("lines", ())
            yield pair["model"], fault["where"] + (f" ({', '.join(lines)})" if lines else "")


def _environments(environments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str], bool]]:
    """Rows: what, its version in each environment, and whether they are the same."""
    packages = sorted({name for each in environments for name in each["packages"]}, key=str.lower)
    for what in ("python", "platform"):
        yield _versions(what, [each[what] for each in environments])
    for name in packages:
        yield _versions(name, [each["packages"].get(name, "") for each in environments])


def _versions(what: str, versions: list[str]) -> tuple[str, list[str], bool]:
    return what, versions, len(set(versions)) <= 1
