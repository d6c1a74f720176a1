"""Code of the user's: what it raises is an error of ours, with its words, so that it can be caught as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DoesNotRun, MultiparamError


@contextmanager
def raising_does_not_run(what: str) -> Iterator[None]:
    """What a model, an objective or an initialiser raises, as DoesNotRun; errors of ours stay as they are.

    Args:
        what: What fails then, as the beginning of a sentence.

    Yields:
        None.

    Raises:
        DoesNotRun: Something inside has raised.

    >>> with raising_does_not_run("net does not run on these inputs"):
    ...     [][0]
    Traceback (most recent call last):
    multiparam.errors.DoesNotRun: net does not run on these inputs: IndexError: list index out of range
    """
    try:
        yield
    except MultiparamError:
        raise
    except Exception as error:
        raise DoesNotRun(f"{what}: {type(error).__name__}: {error}") from error
