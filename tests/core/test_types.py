"""What a type checker makes of users' code: right calls pass, a typo is found on its line. mypy and pyright.

basedpyright is pyright with its JavaScript and a node in its wheels, so that nothing is fetched when it is first run;
``# pyright: standard`` in the files asks for pyright's own rules.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "support" / "typed"
pytestmark = [pytest.mark.needs("torch", "mypy", "basedpyright"), pytest.mark.xdist_group("types")]


def mypy(path: Path, cache: Path) -> set[int]:
    """The lines in which mypy finds errors."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    pattern = re.compile(rf"(?:.*/)?{re.escape(path.name)}:(\d+): error: ")
    return {int(match[1]) for line in done.stdout.splitlines() if (match := pattern.match(line))}


def pyright(path: Path, cache: Path) -> set[int]:
    """The lines in which pyright finds errors."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cache)
    diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in diagnostics if each["severity"] == "error"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for both files: most of the time goes into what they import."""
    return tmp_path_factory.mktemp("types")


@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.quick("mypy")
def test_what_users_write_is_right(checker: type, cache: Path) -> None:
    assert checker(FOLDER / "user_code.py", cache) == set()


@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.quick("mypy")
def test_mistakes_are_found_where_they_are(checker: type, cache: Path) -> None:
    lines = (FOLDER / "mistakes.py").read_text("utf-8").splitlines()
    planted = {number for number, line in enumerate(lines, 1) if "# mistake: " in line}
    assert len(planted) == 12
    assert checker(FOLDER / "mistakes.py", cache) == planted


def test_what_users_write_runs() -> None:
    subprocess.run([sys.executable, str(FOLDER / "user_code.py")], check=True)
