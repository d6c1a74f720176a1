"""Text and numbers of the page: all shown as it is, not too long, and without what could mislead."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any


def readable_document(value: Any) -> Any:
    """A JSON value with all its text, names of keys included, fit to be read on a page, and one sort of arrow in it."""
    if isinstance(value, str):
        return readable(value.replace(" -> ", " → "))
    if isinstance(value, Mapping):
        return {readable(str(key)): readable_document(each) for key, each in value.items()}
    return [readable_document(each) for each in value] if isinstance(value, (list, tuple)) else value


def readable(text: str) -> str:
    """Text whose characters all show, and whose direction stays its own.

    A control character, a lone surrogate or a mark that turns what follows around could make one name look like
    another, or spoil the file.

        >>> readable("a" + chr(0x202E) + "b" + chr(0))
        'a\\\\u202eb\\\\u0000'
    """
    hidden = "Cc", "Cf", "Cs", "Zl", "Zp"
    return _isolated(
        "".join(c if c in "\n\t" or unicodedata.category(c) not in hidden else f"\\u{ord(c):04x}" for c in text)
    )


ISOLATE, POP = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"


def _isolated(text: str) -> str:
    """Where some of it runs from right to left, between marks that keep this from what is around."""
    right_to_left = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return f"{ISOLATE}{text}{POP}" if right_to_left else text


def shortened(text: str, most: int = 48) -> str:
    """Without its middle, where that is longer: names differ at their ends.

    >>> shortened("encoder.layers.11.attention.query", 16)
    'encoder.…n.query'
    """
    bare, keep = text.replace(ISOLATE, "").replace(POP, ""), most // 2
    return text if len(bare) <= most else _isolated(f"{bare[:keep]}…{bare[-(most - 1 - keep) :]}")


def short(eps: float | str | None) -> str:
    """A distance in few letters.

    >>> [short(eps) for eps in (None, 0, 3.14159, 0.0000312, 1023.7, 6.03e11, "inf")]
    ['', '0', '3.1', '3.1e-5', '1024', '6e11', '∞']
    """
    if eps is None:
        return ""
    number = float(eps)
    if not math.isfinite(number):
        return "∞"
    text = f"{number:.0f}" if 10 <= number < 1e5 else f"{number:.2g}"
    return re.sub(r"e([+-])0*", lambda exponent: "e" + exponent[1].strip("+"), text)


def exact(eps: float | str | None) -> str:
    """A distance in so many letters as one may want to compare.

    >>> [exact(eps) for eps in (1023.71, 6.0312e11, "inf")]
    ['1023.71 eps', '6.0312e+11 eps', 'infinitely far']
    """
    return "" if eps is None else f"{float(eps):.6g} eps" if math.isfinite(float(eps)) else "infinitely far"


def option_text(value: Any) -> str:
    """An option as a person would write it.

    >>> values = [{"shape": [2, 5], "dtype": "int64"}], None, True, 0.01, ["a", "b"], {"a": 1}
    >>> [option_text(value) for value in values]
    ['(2, 5) of int64', 'none', 'yes', '0.01', 'a, b', '{"a": 1}']
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(map(option_text, value)) or "none"
    if isinstance(value, dict) and value.keys() == {"shape", "dtype"} and isinstance(value["shape"], list):
        return f"({', '.join(map(str, value['shape']))}) of {value['dtype']}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def enumeration(words: Sequence[str], most: int = 3) -> str:
    """Words in a row, not too many.

    >>> enumeration(["a", "b"]), enumeration(list("abcde"))
    ('a and b', 'a, b, c and 2 more')
    """
    shown = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def several(count: int, noun: str) -> str:
    """A count of things.

    >>> several(1, "layer"), several(2, "layer")
    ('1 layer', '2 layers')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def brief_dtype(dtype: str) -> str:
    """``float32`` as ``f32``."""
    return dtype.replace("float", "f")
