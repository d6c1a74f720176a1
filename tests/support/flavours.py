"""The flavours of models, and marks for tests of one framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import multiparam as mp

# What each flavour of model needs installed, and the framework beside whose tests its own run.
NEEDS = {
    "torch": "torch",
    "gluon": "mxnet",
    "linen": "jax",
    "nnx": "jax",
    "keras": "tensorflow",
    "tf_keras": "tf_keras",
}
GROUPS = {**NEEDS, "tf_keras": "tensorflow"}
INSTALLED = [name for name, status in mp.backends().items() if status]


def in_framework(name: str) -> Callable[[Any], Any]:
    """Skip without the framework, and run beside its other tests, in the worker that has imported it."""
    return lambda test: pytest.mark.needs(name)(pytest.mark.xdist_group(name)(test))
