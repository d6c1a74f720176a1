"""Paths: tuples of segments, their text form, globs over it, and "did you mean".

A path is a tuple because names may hold dots and spaces; the text form joins the segments with dots and
escapes a dot inside a segment with a backslash, so two paths never share a text.
"""

from __future__ import annotations

from collections.abc import Iterable

Path = tuple[str, ...]


def text(path: Path) -> str:
    r"""The text form of a path.

    >>> text(("0", "block 1", "weight"))
    '0.block 1.weight'
    >>> print(text(("a.b", "weight")))
    a\.b.weight
    """
    # Nearly every path has nothing to escape, and large models have thousands of them.
    joined = ".".join(path)
    if joined.count(".") == len(path) - 1 and "\\" not in joined:
        return joined
    return ".".join(segment.replace("\\", "\\\\").replace(".", "\\.") for segment in path)


def segments(name: str) -> list[str]:
    r"""The segments of a text, each as it stands there.

    >>> segments(r"a\.b.weight") == [r"a\.b", "weight"]
    True
    """
    if "\\" not in name:  # nearly every one, and large models are asked for them often
        return name.split(".")
    import re  # here and below in the functions: importing multiparam stays quick

    return re.split(r"(?<!\\)\.", name)


def split(name: str) -> tuple[str, str]:
    """A parameter's layer and leaf, both as text.

    >>> split("0.block 1.weight"), split("weight")
    (('0.block 1', 'weight'), ('', 'weight'))
    """
    if "\\" not in name:
        layer_text, _, leaf = name.rpartition(".")
        return layer_text, leaf
    *layer, leaf = segments(name)
    return ".".join(layer), leaf


def joined(*texts: str) -> str:
    """Texts of paths, one below the other; empty ones are no segments.

    >>> joined("net", "", "0.weight")
    'net.0.weight'
    """
    return ".".join(filter(None, texts))


def matches(name: str, pattern: str) -> bool:
    """Whether a glob (``*``, ``?``, ``[...]``; ``*`` crosses dots) matches a whole name.

    >>> matches("0.block 1.bias", "*.bias"), matches("2.weight", "0.*")
    (True, False)
    """
    from fnmatch import fnmatchcase

    return name == pattern or fnmatchcase(name, pattern)


def some(names: Iterable[str], most: int = 4) -> str:
    """The first of many names, and how many more there are, for a sentence.

    >>> some(["0.weight", "0.bias", "1.weight"], 2)
    '0.weight, 0.bias and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, or with some of the known ones.

    >>> did_you_mean("2.wieght", ["0.weight", "2.weight"])
    "Did you mean '2.weight'?"
    """
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(wrong, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    if not names:
        return "There are none."
    shown = ", ".join(repr(name) for name in names[:6])
    return f"There are: {shown}{', ...' if len(names) > 6 else ''}."
