"""Marks for tests of one framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import multiparam as mp

INSTALLED = [name for name, status in mp.backends().items() if status]


def in_framework(name: str) -> Callable[[Any], Any]:
    """Skip without the framework, and run beside its other tests, in the worker that has imported it."""
    return lambda test: pytest.mark.needs(name)(pytest.mark.xdist_group(name)(test))
