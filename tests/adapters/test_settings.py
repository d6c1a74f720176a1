"""Settings that numbers depend on: told where they are not the framework's defaults, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn


def settings(backend: str) -> dict[str, Any]:
    return dict(mp.build(nn.Linear(2), np.ones((1, 3), "float32"), backend=backend).adapter.settings())


@contextmanager
def torch_matmul() -> Iterator[None]:
    import torch

    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def jax_matmul() -> Iterator[None]:
    import jax

    with jax.default_matmul_precision("bfloat16"):
        yield


@contextmanager
def keras_policy() -> Iterator[None]:
    import keras

    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


@contextmanager
def mxnet_accumulation() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MXNET_SAFE_ACCUMULATION", "1")
        yield


CHANGES = {
    "torch": (torch_matmul, {"float32 matmul precision": "medium"}),
    "jax": (jax_matmul, {"jax_default_matmul_precision": "bfloat16"}),
    "tensorflow": (keras_policy, {"dtype policy": "mixed_bfloat16"}),
    "mxnet": (mxnet_accumulation, {"MXNET_SAFE_ACCUMULATION": "1"}),
}


@pytest.mark.parametrize(
    "framework",
    [pytest.param(name, marks=[pytest.mark.needs(name), pytest.mark.xdist_group(name)]) for name in CHANGES],
)
def test_a_setting_is_told_while_it_is_not_the_default(framework: str) -> None:
    change, told = CHANGES[framework]
    before = settings(framework)
    with change():
        assert settings(framework) == before | told
    assert settings(framework) == before and not before.keys() & told.keys()
