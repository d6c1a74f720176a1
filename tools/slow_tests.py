"""Which tests the quick run leaves to ``make slow``, from what they took: ``make durations`` writes tests/slow.txt.

Of each test function the cheapest parametrization stays quick, unless it takes longer than ``ALONE``; of the others
those that take at most ``BESIDE``. So each function that can be is in the quick run, once for every law it states.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

LIST = Path(__file__).parents[1] / "tests" / "slow.txt"
# Seconds of one of two busy cores, with what setting a test up takes.
BESIDE, ALONE = 0.8, 2.5
LINE = re.compile(r"\s*([\d.]+)s (?:call|setup|teardown) +(\S.*?)\s*$")  # of pytest's --durations
HEADER = "# Tests left to `make slow`, by what they took: written by `make durations`, read by conftest.py.\n"


def durations(lines: Iterable[str]) -> dict[str, float]:
    """Test -> seconds, setting up and tearing down included, from the report that pytest prints."""
    taken: dict[str, float] = defaultdict(float)
    for line in lines:
        match = LINE.match(line)
        if match:
            taken[match[2]] += float(match[1])
    return taken


def slow(taken: dict[str, float]) -> Iterator[str]:
    """The tests that the quick run does without."""
    functions = defaultdict(list)
    for test, seconds in taken.items():
        functions[test.partition("[")[0]].append((seconds, test))
    for tests in functions.values():
        cheapest, *others = sorted(tests)
        yield from (test for seconds, test in others if seconds > BESIDE)
        if cheapest[0] > ALONE:
            yield cheapest[1]


if __name__ == "__main__":
    LIST.write_text(HEADER + "".join(f"{test}\n" for test in sorted(slow(durations(sys.stdin)))), encoding="utf-8")
