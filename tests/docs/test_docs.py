"""Every example in the README and in the docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import multiparam as mp

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = PYTHON.findall(README + (ROOT / "docs" / "tour.md").read_text("utf-8"))  # each stands alone
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
SITE = URLS["Documentation"]
PAGES = {"torch-to-flax": ("torch", "jax"), "keras-to-torch": ("tensorflow", "torch")}
PAGES["leaving-mxnet"] = ("mxnet", "torch", "jax", "tensorflow")
PAGES["write-an-adapter"] = ("autograd",)
PAGES["weight-files"] = ("torch", "jax")
PAGES["what-agrees-means"] = ("torch",)
PAGES["larger-than-one-machine"] = ("torch", "jax")
MODULES = [
    module.name
    for package in ("multiparam",)
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.needs("torch", "jax")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_the_readmes_code_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiparam.core.registry._process", [])
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.needs(*needs), id=page) for page, needs in PAGES.items()]
)
def test_a_pages_code_runs_from_top_to_bottom(page: str) -> None:
    """A page is one story: each block goes on where the last one ended, and asserts what the text says."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    names: dict[str, object] = {}
    for block in PYTHON.findall(text):
        exec(compile(block, f"docs/{page}.md", "exec"), names)


def test_every_page_is_run_and_found_from_the_readme() -> None:
    pages = {
        *PAGES,
        "compare-in-ci",
        "glossary",
        "tour",
    }  # test_compare_in_ci.py runs the first, and words have no code
    pages |= {"four-tabs", "canonical-form", "ties", "matching"}  # test_pages.py runs these, and the first page
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == pages | {"index"}
    for page in pages:
        assert f"({SITE}{page}/)" in README


def test_the_readmes_links_resolve_on_a_package_index() -> None:
    """They are whole, begin as the project's own URLs do, and what they lead to is here."""
    repository = f"{URLS['Homepage']}/blob/main/"
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    assert len(links) > 15
    for link in links:
        path = link.partition("#")[0]
        if path.startswith(SITE):
            page = path.removeprefix(SITE).rstrip("/") or "index"
            assert any((ROOT / "docs" / each).exists() for each in (f"{page}.md", f"{page}/index.md")), link
        else:
            assert path.startswith(repository) and (ROOT / path.removeprefix(repository)).exists(), link


PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PROSE, ids=lambda path: path.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Paths of the repository, and links to files of it."""
    text = page.read_text("utf-8")
    paths = set(re.findall(r"`((?:multiparam|backends|tests|tools|benchmarks|constraints|docs)/[\w./-]*)`", text))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)  # code may call what it has looked up
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose)}
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []


def test_a_word_of_the_glossary_is_explained_once_and_briefly() -> None:
    entries = re.findall(r"^\* (.*(?:\n  .*)?)$", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    words = [word for entry in entries for word in re.findall(r"\*\*([^*]+)\*\*", entry.partition(":")[0])]
    assert len(words) > 50 and [word for word in words if words.count(word) > 1] == []
    assert all(len(entry) <= 240 for entry in entries)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", ["multiparam", *MODULES])
def test_the_docstrings_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"mp": mp, "np": np}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.needs("mxnet")
@pytest.mark.xdist_group("mxnet")
def test_the_mxnet_loaders_example_runs() -> None:
    assert doctest.testmod(importlib.import_module("multiparam_mxnet.load")).failed == 0


def test_the_readme_shows_two_frameworks_with_the_same_calls() -> None:
    torch, flax = (block.partition("net = mp.wrap")[2] for block in BLOCKS[:2])
    assert torch and torch == flax


def test_the_readme_names_each_backend_and_option() -> None:
    for name in mp.backends():
        assert name in README
    for option in ("--backend", "--model", "--steps", "--seed", "--json"):
        assert option in README


def test_examples_exist_where_users_look() -> None:
    """The public classes and functions show how they are used."""
    for thing in (
        mp.build,
        mp.wrap,
        mp.Model,
        mp.Parameter,
        mp.Recorder,
        mp.use,
        mp.nn,
        mp.init,
        mp.Model.value_and_grad,
    ):
        assert ">>>" in (thing.__doc__ or ""), thing
