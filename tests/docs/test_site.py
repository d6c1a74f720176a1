"""The site is built without a warning, leads to every page, and is published from what was built."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


class Loader(yaml.SafeLoader):
    """mkdocs.yml may name functions; none is called here."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)  # a SafeLoader


def pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(each)


def test_the_navigation_leads_to_every_page_once() -> None:
    listed = [*pages(SITE["nav"])]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


def test_docs_is_built_strictly_where_the_workflow_takes_it() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text("utf-8"))
    build, publish = workflow["jobs"]["build"]["steps"], workflow["jobs"]["publish"]
    [path] = [step["with"]["path"] for step in build if "upload-pages" in step.get("uses", "")]
    assert path == SITE["site_dir"] and SITE["strict"] and {"run": "make docs"} in build
    assert publish["needs"] == "build" and publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert re.search(r"^docs:.*\n\t\$\(BIN\)/mkdocs build --strict$", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Strictly: each link, anchor, reference and section of a docstring is there."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    index = (tmp_path / "site" / "search" / "search_index.json").read_text("utf-8")
    for name in ("multiparam.wrap", "multiparam.Model.tie", "multiparam.initializers.xavier_uniform"):
        assert f"#{name}" in index  # what the search leads to


def test_examples_and_names_of_docstrings_are_as_the_sites_parser_wants_them() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from site_docstrings import for_the_site
    finally:
        sys.path.remove(str(ROOT / "tools"))
    text = "A :class:`~a.b.Model`.\n\nRaises:\n    E: Why.\n\n    >>> f(1)\n    2\n\n    >>> f(2)\n    3\n\nAn end."
    assert for_the_site(text) == (
        "A `Model`.\n\nRaises:\n    E: Why.\n\nExamples:\n    >>> f(1)\n    2\n\n    >>> f(2)\n    3\n\nAn end."
    )
