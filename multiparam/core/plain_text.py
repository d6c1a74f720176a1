"""What notebooks show of the things that are printed."""

from __future__ import annotations

from html import escape


class PlainText:
    """In a notebook it is shown as it is printed: in columns, whatever its names hold."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
