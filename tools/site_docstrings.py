"""Docstrings as the site shows them: a griffe extension, which mkdocs.yml names.

In a terminal an example stands below a section without a heading of its own, and references are Sphinx' roles. The
site's parser wants a heading over examples, and knows no roles.
"""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(?:~[\w.]*\.)?([^`]+)`")


def for_the_site(text: str) -> str:
    """A docstring with a heading over each run of examples, and names in code font.

    >>> print(for_the_site("Args:\\n    x: A :class:`Model`.\\n\\n    >>> f(1)\\n    2"))
    Args:
        x: A `Model`.
    <BLANKLINE>
    Examples:
        >>> f(1)
        2
    """
    blocks = []
    for block in re.split(r"\n[ \t]*\n", ROLE.sub(r"`\1`", text)):
        if block.lstrip().startswith(">>>"):
            block = indent(dedent(block), "    ")
            block = block if blocks and ">>>" in blocks[-1] else f"Examples:\n{block}"
        blocks.append(block)
    return "\n\n".join(blocks)


class SiteDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = for_the_site(obj.docstring.value)
