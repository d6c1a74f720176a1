"""Codes: small numbers that are weights only together with a scale that lies beside them in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..paths import segments
from .arrays import dtype_kind

SCALE = re.compile(r"(?:^|_)(?:scales?|scale_inv|zero_points?|absmax)$")
CODES = re.compile(r"u?int[248]$|float8")


def beside(name: str, source: str, target: str, names: Iterable[str]) -> str:
    """What says that an array holds codes, and not the numbers of a parameter of floats.

    Args:
        name: The array's.
        source: Its dtype.
        target: The parameter's.
        names: All names that it lies among.

    Returns:
        The scale's or zero point's name; empty where there is none, or the numbers may be what they seem.

    >>> names = ["fc.weight", "fc.weight_scale", "norm.scale"]
    >>> beside("fc.weight", "int8", "float32", names), beside("fc.weight", "float16", "float32", names)
    ('fc.weight_scale', '')
    """
    if not CODES.match(source) or CODES.match(target) or dtype_kind(target) not in ("f", "c"):
        return ""
    *parent, _ = own = segments(name)
    for other in names:
        *above, leaf = segments(other)
        if other != name and above in (parent, own) and SCALE.search(leaf.lower()):
            return other
    return ""


def refusal(name: str, source: str, scale: str) -> str:
    """Why codes are not converted, as the end of a sentence.

    >>> refusal("w", "int8", "scale").partition(". ")[0]
    "'w' holds codes (int8), which 'scale' beside it makes numbers of"
    """
    return (
        f"{name!r} holds codes ({source}), which {scale!r} beside it makes numbers of. Write the numbers with the "
        "tool that made the codes"
    )
