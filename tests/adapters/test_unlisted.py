"""What a model holds besides parameters and buffers is named when it is wrapped, checked and saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.flavours import in_framework

import multiparam as mp

X = np.ones((3, 4), "float32")


def named(make: Any, match: str, tmp_path: Path | None = None) -> mp.Model:
    with pytest.warns(mp.MultiparamWarning, match=match):
        net = mp.wrap(make())
    with pytest.warns(mp.MultiparamWarning, match=match):
        net.check()
    if tmp_path is not None:
        with pytest.warns(mp.MultiparamWarning, match=match):
            mp.save(net, tmp_path / "w.safetensors")
    return net


@in_framework("torch")
def test_tensors_that_torch_lists_nowhere() -> None:
    import torch

    class Scratch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = torch.randn(4, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
            self.constant = torch.ones(1)

    net = named(Scratch, r"'(w|b)'.* a tensor that asks for a gradient in a plain attribute.*torch\.nn\.Parameter")
    with pytest.raises(mp.InvalidArgument, match="The model has no parameters"):
        net.value_and_grad(mp.losses.mse)(X, X)


@in_framework("torch")
def test_extra_state(tmp_path: Path) -> None:
    import torch

    class Scaled(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": 7}

    named(lambda: torch.nn.Sequential(Scaled(2, 2)), r"'0\._extra_state': extra state of a module", tmp_path)


@in_framework("torch")
def test_quantised_weights(tmp_path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)), {torch.nn.Linear}, dtype=torch.qint8
        )
    named(lambda: native, r"'1\.scale'.*as quantised weights are", tmp_path)


@in_framework("tensorflow")
def test_variables_that_keras_lists_nowhere() -> None:
    import keras
    import tensorflow as tf

    class Scratch(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(tf.zeros((4, 1)))

        def call(self, x: Any) -> Any:
            return tf.matmul(x, self.w)

    with pytest.warns(mp.MultiparamWarning, match=r"'w': a tf\.Variable in a plain attribute.*add_weight"):
        mp.wrap(Scratch(), X)


@in_framework("mxnet")
def test_arrays_that_gluon_lists_nowhere() -> None:
    mx = pytest.importorskip("multiparam_mxnet.load").load()

    class Scratch(mx.gluon.nn.Block):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.w = mx.nd.ones((4, 1))
            self.w.attach_grad()

    named(Scratch, r"'w': an array with a gradient in a plain attribute.*gluon\.Parameter")


@in_framework("torch")
def test_usual_models_are_silent() -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.LSTM(3, 3))).check()
        mp.wrap(torch.nn.TransformerEncoderLayer(8, 2)).check()
