"""What a load left out."""

from __future__ import annotations

from html import escape
from typing import NamedTuple


class Loaded(NamedTuple):
    """What a load left out.

    Attributes:
        missing: Names of parameters and buffers that the state does not have; they are as they were.
        unexpected: Names of the state that the model does not have; they were not read.

    Example:
        >>> Loaded(missing=("head.bias",)).unexpected
        ()
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shown = (f"{field}={_some(getattr(self, field))}" for field in ("missing", "unexpected"))
        return f"Loaded({', '.join(shown)})"

    def _repr_html_(self) -> str:
        if not (self.missing or self.unexpected):
            return "<p>Loaded: all that the model has, and nothing is left over.</p>"
        left_out = ((field, names) for field, names in self._asdict().items() if names)
        rows = (f"<tr><th>{field}</th><td>{escape(', '.join(names))}</td></tr>" for field, names in left_out)
        return f"<table>{''.join(rows)}</table>"


def _some(names: tuple[str, ...]) -> str:
    return repr(names) if len(names) < 5 else f"<{len(names)} names: {', '.join(names[:3])}, ...>"
