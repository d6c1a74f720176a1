"""Packages that only some of multiparam needs: imported where they are used, and asked for in a sentence."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..errors import PackageMissing


def require(module: str, why: str, install: str) -> ModuleType:
    """Import a package that multiparam itself does not depend on.

    Args:
        module: What to import, such as ``"sklearn.datasets"``.
        why: A sentence without its full stop: what needs the package, and what the package is called.
        install: The whole line that installs it.

    Returns:
        The module.

    Raises:
        PackageMissing: Where it, or something it imports, is not installed.

    >>> require("no_such_package", "Drawing needs no_such_package", 'pip install "multiparam[plot]"')
    Traceback (most recent call last):
    ...
    multiparam.errors.PackageMissing: Drawing needs no_such_package. Try: pip install "multiparam[plot]"
    """
    try:
        return import_module(module)
    except ImportError:
        raise PackageMissing(f"{why}. Try: {install}") from None
