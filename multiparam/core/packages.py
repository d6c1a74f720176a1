"""Optional packages: imported where they are used, and where one is missing, the pip line that brings it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..errors import PackageMissing

DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # by another name than they are imported by


def require(module: str, why: str, install: str) -> ModuleType:
    """Import a module of an optional package, or say how to get it.

    ``import multiparam`` needs numpy only, so whatever else a feature needs is imported by the feature itself. A
    ``from package import name`` may follow the call, for the sake of type checkers.

    Args:
        module: What to import, with its dots: ``"sklearn.datasets"``.
        why: What it is for, as the beginning of a sentence: ``"Drawing"``.
        install: What to run in a shell: ``'pip install "multiparam[plot]"'``.

    Returns:
        The module.

    Raises:
        PackageMissing: Where it cannot be imported: it is not installed, or its installation is broken.

    Example:
        >>> require("math", "Counting", "pip install python").pi > 3
        True
        >>> require("no_such.module", "Drawing", 'pip install "multiparam[plot]"')
        Traceback (most recent call last):
        multiparam.errors.PackageMissing: Drawing needs no_such, which is not installed. Try: pip install "multiparam[plot]"
    """  # noqa: E501
    package = module.partition(".")[0]
    name = DISTRIBUTIONS.get(package, package)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # What is not found may be something that the package itself imports: then it is there, and broken.
        if error.name is not None and error.name.partition(".")[0] != package:
            raise PackageMissing(f"{why} needs {name}, which cannot be imported: {error}. Try: {install}") from error
        raise PackageMissing(f"{why} needs {name}, which is not installed. Try: {install}") from None
    except ImportError as error:
        raise PackageMissing(f"{why} needs {name}, which cannot be imported: {error}. Try: {install}") from error
