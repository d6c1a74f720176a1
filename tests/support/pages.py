"""A page's code as a reader of one tab meets it: blocks from top to bottom, and what is shown of their output."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
TAB = re.compile(r'^=== "(.+)"$', re.MULTILINE)


@dataclass
class Block:
    """Python code of a page, the tab that it is in (None: outside of tabs), and the text that is shown below it."""

    tab: str | None
    code: str
    shown: str | None
    line: int


def blocks(page: str) -> Iterator[Block]:
    """Each block of Python; text between code and a ```text block makes that one no output."""
    fences = [*FENCE.finditer(page)]
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[2] != "python":
            continue
        tabs = [*TAB.finditer(page, 0, fence.start())] if fence[1] else []
        shown = None
        if after and after[2] == "text" and not page[fence.end() : after.start()].strip():
            shown = dedent(after[3])
        yield Block(tabs[-1][1] if tabs else None, dedent(fence[3]), shown, page.count("\n", 0, fence.start()) + 2)


def lines(text: str) -> list[str]:
    """Without trailing spaces; distances such as 6.03e+11 differ in later digits from one machine to another."""
    return [re.sub(r"(\d)\.\d+(e[+-]\d+)", r"\1\2", line.rstrip()) for line in text.strip().splitlines()]


def run(page: str, name: str, tab: str | None = None, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run what a reader of that tab reads, and hold what it prints against what the page shows.

    Args:
        page: The page's text.
        name: What tracebacks call it.
        tab: The tab that is read; blocks of others are passed by.
        names: What the code starts from.

    Returns:
        The names after the last block.
    """
    names = {"__name__": "page"} if names is None else names
    for block in blocks(page):
        if block.tab not in (None, tab):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # the line numbers of a traceback are the page's
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), names)
        found, expected = lines(printed.getvalue()), lines(block.shown or "")
        assert found == expected, f"{name}:{block.line}, {block.tab or tab}: printed\n{printed.getvalue()}"
    return names
