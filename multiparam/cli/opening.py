"""What a command is given: a model by reference, or a weight file; and the folder it is to write into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

import typer

from ..core.model import Model
from ..core.state import Source
from ..errors import FileError
from ..weights.formats import read
from . import references
from .terminal import quiet


@contextmanager
def open_source(
    text: str, inputs: Path | None = None, keywords: bool = False
) -> Iterator[tuple[Model | Source, TextIO]]:
    """The model or the file that a text names, and the real standard error: the frameworks are quiet meanwhile."""
    with quiet() as stderr:
        if references.is_reference(text):
            yield load_model(text, stderr, inputs, keywords), stderr
        else:
            with open_file(text) as file:
                yield file, stderr


def load_model(reference: str, stderr: TextIO, inputs: Path | None = None, keywords: bool = False) -> Model:
    """The model that a reference names. What user code prints goes to standard error: the output is the command's."""
    arrays = () if inputs is None else references.examples(inputs, keywords)
    with redirect_stdout(stderr):
        return references.model(reference, arrays)


def open_file(text: str) -> Source:
    """The weight file that a text names. Raises FileError for what is none, code among it, and OSError."""
    path = Path(text)
    if path.suffix == ".py":
        raise FileError(f"{text!r} is code: say which callable in it gives the model, as in {text}:make.")
    try:
        return read(path)
    except FileNotFoundError as error:
        # without a suffix it may have been meant as a module
        forms = "" if path.suffix else f" {references.FORMS}"
        raise FileError(f"There is no file {str(error.filename or text)!r}.{forms}") from None


def check_folder(path: Path, option: str) -> None:
    """A usage error, before any work is done, where the folder that a file is to be written into does not exist."""
    if not path.parent.is_dir():
        message = f"there is no folder {str(path.parent)!r} to write {path.name!r} into"
        raise typer.BadParameter(message, param_hint=option)
