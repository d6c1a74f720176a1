"""A project's own list of what its adapter does not pass, in a file of its own.

    [xfail]
    "test_grad.py::test_optimizers_train" = "no optimizers yet"

    [skip]
    "test_build.py::*[*conv3d*]" = "takes an hour"

A pattern is a test of the kit with or without its file and its parameters; ``*`` stands for anything. An expected
failure is strict, and an entry that fits no test is an error: the list cannot outlive what it speaks of.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidArgument

TABLES = ("xfail", "skip")


class Entry(NamedTuple):
    """A line of the list: in which table, for which tests, and why."""

    table: str
    pattern: str
    reason: str

    def fits(self, test: str) -> bool:
        """Whether it speaks of a test, given as ``file::name[parameters]``.

        >>> Entry("skip", "test_tie.py::test_a*", "").fits("test_tie.py::test_a_tie[mine]")
        True
        >>> Entry("skip", "test_a_tie", "").fits("test_tie.py::test_a_tie[mine]")
        True
        >>> Entry("skip", "test_a_tie[other]", "").fits("test_tie.py::test_a_tie[mine]")
        False
        """
        name = test.partition("::")[2]
        forms = (test, name, test.partition("[")[0], name.partition("[")[0])
        wanted = re.compile(re.escape(self.pattern).replace(r"\*", ".*"), re.DOTALL)
        return any(wanted.fullmatch(form) for form in forms)


def read(path: Path) -> list[Entry]:
    """The entries of a file. Raises InvalidArgument, which says what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"The conformance list {str(path)!r} cannot be read: {error}") from None
    return list(_entries(tables, path))


def _entries(tables: dict[str, object], path: Path) -> Iterator[Entry]:
    for table, lines in tables.items():
        if table not in TABLES or not isinstance(lines, dict):
            raise InvalidArgument(f"{str(path)!r} has {table!r}; it takes the tables [xfail] and [skip].")
        for pattern, reason in lines.items():
            if not isinstance(reason, str) or not reason.strip():
                raise InvalidArgument(f"{str(path)!r}: {pattern!r} in [{table}] needs its reason as a text.")
            yield Entry(table, pattern, reason)


def unused(entries: Iterable[Entry], tests: Iterable[str]) -> list[str]:
    """The patterns that fit none of the tests."""
    names = list(tests)
    return [entry.pattern for entry in entries if not any(entry.fits(name) for name in names)]
