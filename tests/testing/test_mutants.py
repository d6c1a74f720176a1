"""The kit notices planted faults: a few here, all of them with --slow and in ``make mutants``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "mutants.py"
pytestmark = [pytest.mark.xdist_group("plugin"), pytest.mark.needs("autograd", "hatchling")]


def score(*arguments: str) -> tuple[int, int]:
    """How many faults were noticed, of how many."""
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) of (\d+) faults (?:noticed|planted)", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    return int(found[1]), int(found[2])


def test_a_few_faults_of_each_verb_are_noticed() -> None:
    noticed, planted = score("--backend", "autograd", "--few")
    assert noticed == planted >= 16


def test_every_fault_finds_what_it_changes() -> None:
    planted, known = score("--plant")
    assert planted == known >= 40


@pytest.mark.slow
def test_every_fault_is_noticed() -> None:
    noticed, planted = score()
    assert noticed == planted >= 40
