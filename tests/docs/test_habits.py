"""What an open library has besides its code: that files of it are right, and agree with each other."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import multiparam as mp

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflows_jobs_can_be_started(path: Path) -> None:
    """Names that GitHub takes, jobs that exist, and targets that make knows."""
    workflow = load(path)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name, job in workflow["jobs"].items():
        assert re.fullmatch(r"[A-Za-z_][\w-]*", name)
        needs = job.get("needs", [])
        assert {needs} if isinstance(needs, str) else set(needs) <= workflow["jobs"].keys()
        for step in job["steps"]:
            for target in re.findall(r"^make ([\w-]+)$", step.get("run", ""), re.MULTILINE):
                assert target in targets
        for key, values in job.get("strategy", {}).get("matrix", {}).items():
            assert f"matrix.{key} }}" in path.read_text("utf-8") and values
            assert key != "target" or set(values) <= targets


def test_ci_runs_on_each_python_that_the_metadata_names() -> None:
    named = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)}
    workflow = load(ROOT / ".github" / "workflows" / "ci.yml")
    used = {step["with"]["python-version"] for step in steps(workflow) if "setup-python" in step.get("uses", "")}
    used = {each for each in used if "matrix" not in each} | set(
        workflow["jobs"]["newer"]["strategy"]["matrix"]["python"]
    )
    assert used == named
    assert PROJECT["requires-python"] == f">={min(named, key=lambda text: int(text[2:]))}"


def test_a_release_publishes_without_a_token_what_was_checked() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    lines = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert any("python -m build" in line for line in lines) and any("twine check" in line for line in lines)
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_what_it_needs(path: Path) -> None:
    form = load(path)
    if path.stem == "config":
        assert all(link.keys() == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) and "versions" in ids
    assert all(field["type"] in ("textarea", "dropdown", "input", "markdown") for field in form["body"])
    assert all("label" in field["attributes"] and "validations" in field for field in form["body"])


def test_hooks_are_local_and_run_what_make_check_runs() -> None:
    (repo,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local" and all(hook["language"] == "system" for hook in repo["hooks"])
    (check,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    tools = set(re.findall(r"\$\(BIN\)/(ruff check|ruff format|mypy)", check))
    assert tools == {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in repo["hooks"]}


def test_the_version_is_one() -> None:
    assert load(ROOT / "CITATION.cff")["version"] == mp.__version__
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)
    assert sections[0] == "Unreleased" and mp.__version__ in sections
    assert all(f"\n[{each}]: https://" in changes for each in sections)
    assert load(ROOT / "CITATION.cff")["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text("utf-8").startswith("MIT License")


def imported() -> set[str]:
    """The packages that a module of multiparam or of an adapter imports, as they are installed."""
    names = set()
    for path in [*(ROOT / "multiparam").rglob("*.py"), *(ROOT / "backends").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    own = {name for name in names if name.startswith("multiparam")}
    return {{"orbax": "orbax-checkpoint"}.get(name, name) for name in names - own - sys.stdlib_module_names}


def test_every_dependency_is_explained() -> None:
    """CONTRIBUTING says of each package, and of each extra, why it is there."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    explained = {name for packages, _, _ in rows for name in re.split(r"[,;] ", packages)}
    extras = PROJECT["optional-dependencies"]
    needed = {re.split(r"[\[<>=; ]", text)[0] for texts in extras.values() for text in texts} - {"multiparam"}
    assert needed | imported() <= explained
    named = {name.strip("`") for _, names, _ in rows for name in names.split(", ")}
    assert set(extras) - {"all"} <= named
    frameworks = ("torch", "mxnet", "jax", "tensorflow")
    assert all("multiparam[cli,fast]" in extras[name] for name in frameworks)
