"""docs/compare-in-ci.md and the workflows: what users copy is run here, command by command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import multiparam as mp
from multiparam.cli.commands import app
from multiparam.comparison.config import read_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compare-in-ci.md").read_text()
pytestmark = [pytest.mark.needs("torch", "jax"), pytest.mark.xdist_group("ci page")]


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the page is, after the first section."""
    monkeypatch.chdir(tmp_path)
    ours, theirs, batch = blocks("python")[:3]
    for block in (ours, theirs):
        name = re.match(r"# (\S+)", block)
        assert name is not None
        Path(name[1]).write_text(block)
    exec(compile(batch, "batch.py", "exec"), {})
    whole, expected = blocks("toml")
    Path("agree.toml").write_text(whole)
    Path("expected.toml").write_text(whole + expected)
    return tmp_path


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if "multiparam compare" in line or "multiparam record" in line:
            yield shlex.split(line.partition("multiparam ")[2])


def run(words: list[str]) -> tuple[int, str]:
    found = CliRunner().invoke(app, words)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


def test_every_command_of_the_page_does_what_it_says(folder: Path) -> None:
    asked = [words for block in blocks("console") for words in commands(block)]
    assert len(asked) == 8
    for words in asked:
        code, text = run(words)
        assert code == 0, (words, text)
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[3], "the page", "exec"), names)
    assert isinstance(names["found"], mp.comparison.models.Comparison)


@pytest.mark.slow
def test_the_expected_difference_of_the_page_is_strict(folder: Path) -> None:
    assert [each.reason for each in read_config(Path("expected.toml")).expected] == ["as published; see the model card"]
    code, text = run(["compare", "expected.toml"])
    assert code == 1 and "take it out of the file" in text
    theirs = Path("theirs.py")
    theirs.write_text(theirs.read_text().replace("epsilon=1e-5", "epsilon=1e-6"))
    code, text = run(["compare", "expected.toml"])
    assert code == 1 and "expected: as published" in text and "at layer 1 -> norm" in text


def test_every_command_of_the_pages_workflows_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = folder / "summary.md"
    alone, across = (yaml.safe_load(block) for block in blocks("yaml"))
    [line] = [words for step in alone["jobs"]["agree"]["steps"] for words in commands(step.get("run", ""))]
    code, text = run([word.replace("$GITHUB_STEP_SUMMARY", str(summary)) for word in line])
    assert code == 0, text
    assert (
        summary.read_text().startswith("**All agree**") and Path("agree.xml").exists() and Path("agree.html").exists()
    )
    record = across["jobs"]["record"]
    for side in record["strategy"]["matrix"]["include"]:
        for step in record["steps"]:
            filled = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: side[found[1]], step.get("run", ""))  # noqa: B023
            for words in commands(filled):
                assert run(words)[0] == 0
    [line] = [words for step in across["jobs"]["compare"]["steps"] for words in commands(step.get("run", ""))]
    code, text = run([word.replace("$GITHUB_STEP_SUMMARY", str(summary)) for word in line])
    assert code == 1 and "values" in text  # as the page says: each has weights of its own
    assert summary.read_text().startswith("**Not all agree**")


def test_the_readmes_ten_lines_are_the_pages() -> None:
    readme = (ROOT / "README.md").read_text()
    [ten] = blocks("yaml", readme)
    assert yaml.safe_load(ten)["jobs"] == yaml.safe_load(blocks("yaml")[0])["jobs"]
    assert len(ten.strip().splitlines()) <= 12


def test_our_own_workflow_runs_make_targets_that_make_matrix_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "agree.yml").read_text())
    made = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", made, re.MULTILINE))
    [matrix] = re.findall(r"^matrix: (.*)$", made, re.MULTILINE)
    record, compare = workflow["jobs"]["record"], workflow["jobs"]["compare"]
    said = []
    for environment in record["strategy"]["matrix"]["environment"]:
        for step in (*record["steps"], *compare["steps"], *workflow["jobs"]["test"]["steps"]):
            line = step.get("run", "").replace("${{ matrix.environment }}", environment)
            if line.startswith("make "):
                said.append(line.removeprefix("make "))
    assert set(said) <= targets and set(matrix.split()) <= set(said)
    [path] = [step["with"]["path"] for step in record["steps"] if "upload" in step.get("uses", "")]
    assert path == "build/matrix/${{ matrix.environment }}.safetensors" and "MATRIX ?= build/matrix" in made
    assert "make matrix" in (ROOT / ".ci" / "run").read_text()
