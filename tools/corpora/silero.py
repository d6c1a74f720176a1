"""Silero's voice activity detector: the weights of its wheel into networks of Keras and Flax. The truth is the wheel's
own TorchScript, whose weights are these; those of its safetensors file are of another training."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pairs import Pair, arrays, worst

import multiparam as mp

SIZES = ((128, 1), (64, 2), (64, 2), (128, 1))  # filters and stride of each convolution
PADDED, CUT = 64, 129  # samples that are reflected at the end; frequencies of the transform


def pair(framework: str) -> Pair:
    """The weights, as a state by TorchScript's names, into a network of a framework."""
    spec = find_spec("silero_vad")
    assert spec is not None and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "data"
    frames = (np.random.default_rng(0).normal(size=(1, 576)) * 0.1).astype("float32")
    state, outputs = _scripted(data / "silero_vad.jit", frames)
    padded = np.pad(frames, ((0, 0), (0, PADDED)), mode="reflect")[..., None]
    target, run = {"keras": (_in_keras, _run_keras), "linen": (_in_linen, _run_linen)}[framework]

    def judge(net: mp.Model) -> str:
        return worst(outputs, run(net, padded))

    return Pair(state, lambda: target(padded), judge)


def _scripted(path: Path, frames: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The weights for 16 kHz, and what the wheel says of a first frame."""
    import torch

    scripted = torch.jit.load(path)._model
    with torch.no_grad():
        outputs = arrays(scripted(torch.from_numpy(frames), torch.zeros(2, 1, 128))[0])
    return {name: value.numpy() for name, value in scripted.state_dict().items()}, outputs


def _in_keras(padded: np.ndarray) -> mp.Model:
    import keras

    keras.utils.set_random_seed(1)
    layers, ops = keras.layers, keras.ops

    class Magnitude(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return ops.sqrt(x[..., :CUT] ** 2 + x[..., CUT:] ** 2)

    x = given = keras.Input(padded.shape[1:])
    x = layers.Conv1D(258, 256, strides=128, use_bias=False, name="stft_conv")(x)
    x = Magnitude(name="magnitude")(x)
    for at, (filters, stride) in enumerate(SIZES, 1):
        x = layers.ZeroPadding1D(1)(x)
        x = layers.Conv1D(filters, 3, strides=stride, activation="relu", name=f"conv{at}")(x)
    x = layers.LSTM(128, return_sequences=True, name="lstm_cell")(x)
    x = layers.ReLU()(x)
    x = layers.Conv1D(1, 1, activation="sigmoid", name="final_conv")(x)
    return mp.wrap(keras.Model(given, x))


def _run_keras(net: mp.Model, padded: np.ndarray) -> np.ndarray:
    return np.asarray(net.native(padded, training=False))[:, 0]


def _in_linen(padded: np.ndarray) -> mp.Model:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Conv(258, (256,), 128, padding="VALID", use_bias=False, name="stft_conv")(x)
            x = (x[..., :CUT] ** 2 + x[..., CUT:] ** 2) ** 0.5
            for at, (filters, stride) in enumerate(SIZES, 1):
                x = linen.relu(linen.Conv(filters, (3,), stride, padding=1, name=f"conv{at}")(x))
            cell = linen.OptimizedLSTMCell(128, name="lstm_cell")
            _, x = cell(cell.initialize_carry(self.make_rng("params"), x[:, 0].shape), x[:, 0])
            return linen.sigmoid(linen.Conv(1, (1,), name="final_conv")(linen.relu(x)[:, None]))

    return mp.wrap(Net(), padded, seed=1)


def _run_linen(net: mp.Model, padded: np.ndarray) -> np.ndarray:
    import jax

    return np.asarray(net.native.apply(net.variables, padded, rngs={"params": jax.random.key(0)}))[:, 0]
