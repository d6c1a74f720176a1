"""The site's pages in tabs: code that each framework's reader can run from top to bottom, and what is shown of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import pages

DOCS = Path(__file__).parents[2] / "docs"
TABS = {"PyTorch": "torch", "MXNet": "mxnet", "JAX": "jax", "TensorFlow": "tensorflow"}


def tabs_of(page: str, *needs: str) -> list[object]:
    """A page once for each tab. Quick is what imports one framework, and the lightest."""
    return [
        pytest.param(
            page,
            tab,
            id=f"{page}-{tab}",
            marks=[pytest.mark.needs(name, *needs), *([pytest.mark.slow] if needs or name != "torch" else [])],
        )
        for tab, name in TABS.items()
    ]


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page selects for the process is put back."""
    monkeypatch.setattr("multiparam.core.registry._process", [])
    yield
    if "mxnet" in sys.modules:
        sys.modules["mxnet"].npx.reset_np()


QUICK = ("ties", "how-to/prefix", "how-to/lora")
PAGES = {"ties": ["torch"], "matching": ["torch"]} | {
    f"how-to/{name}": needs
    for name, needs in {
        "prefix": ["torch"],
        "ema": ["torch"],
        "lora": ["torch"],
        "tied-heads": ["torch", "jax"],
        "weight-norm": ["torch", "jax"],
        "batchnorm-momentum": ["torch", "jax"],
        "gru-biases": ["torch", "jax", "tensorflow"],
        "conv-transpose": ["torch", "jax"],
    }.items()
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page, marks=[pytest.mark.needs(*needs), *([] if page in QUICK else [pytest.mark.slow])])
        for page, needs in PAGES.items()
    ],
)
@pytest.mark.filterwarnings("ignore::multiparam.MultiparamWarning")
def test_a_page_runs_and_prints_what_is_shown(page: str, own_process: None) -> None:
    pages.run((DOCS / f"{page}.md").read_text("utf-8"), f"docs/{page}.md")


def test_every_question_is_answered_by_code_that_is_run() -> None:
    answers = {str(path.relative_to(DOCS).with_suffix("")) for path in (DOCS / "how-to").glob("*.md")}
    assert answers - {"how-to/index"} == {page for page in PAGES if page.startswith("how-to/")}
    index = (DOCS / "how-to" / "index.md").read_text("utf-8")
    assert all(f"({Path(page).name}.md)" in index for page in answers - {"how-to/index"})


TABBED = [*tabs_of("four-tabs"), *tabs_of("canonical-form"), *tabs_of("index", "torch", "jax")]


@pytest.mark.parametrize(("page", "tab"), TABBED)
@pytest.mark.xdist_group("mxnet")
def test_a_tab_runs_and_prints_what_is_shown(page: str, tab: str, own_process: None) -> None:
    pages.run((DOCS / f"{page}.md").read_text("utf-8"), f"docs/{page}.md", tab)


@pytest.mark.parametrize("page", ["four-tabs", "canonical-form", "index"])
def test_a_page_in_tabs_has_the_same_steps_in_each(page: str) -> None:
    """Wherever one framework has its way shown, the others have theirs."""
    found = [block for block in pages.blocks((DOCS / f"{page}.md").read_text("utf-8")) if block.tab]
    runs: list[list[str]] = []
    for block in found:
        if not runs or (block.tab == "PyTorch" and runs[-1][-1] != "PyTorch"):
            runs.append([])
        if not runs[-1] or runs[-1][-1] != block.tab:
            runs[-1].append(str(block.tab))
    assert runs and all(run == [*TABS] for run in runs), runs
