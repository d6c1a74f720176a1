"""Writing a comparison in any of its forms: the one place that writes reports' files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ...weights.atomic import write_text_atomically
from ..results import Comparison
from .html.page import to_html
from .json import to_document, to_json
from .junit import to_junit
from .markdown import to_markdown

FORMS: Mapping[str, Callable[[Comparison], str]] = {
    "json": to_json,
    "markdown": to_markdown,
    "junit": to_junit,
    "html": lambda comparison: to_html(to_document(comparison)),
}


def write_reports(comparison: Comparison, paths: Mapping[str, Path | None]) -> None:
    """Write a comparison in the forms that have a path; each file appears whole or not at all."""
    for form, path in paths.items():
        if path is not None:
            text = FORMS[form](comparison)
            if path.exists() and not path.is_file():  # such as /dev/stdout, which nothing can replace
                path.write_text(text, "utf-8")
            else:
                write_text_atomically(path, text)
