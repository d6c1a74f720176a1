"""Silero's voice activity detector in Flax: the trained weights of its wheel, moved without a rule.

    pip install --no-deps silero-vad
    python examples/silero_vad_in_flax.py

The wheel has the network as TorchScript, whose code is closed. The network below is written from what it computes; its
layers have names of our own. Right is what the wheel's own network says, frame by frame, with its state carried on.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import linen

import multiparam as mp

FRAMES, CONTEXT, SAMPLES = 40, 64, 512  # at 16 kHz, each frame with the end of the one before it
FREQUENCIES, UNITS = 129, 128


class VoiceActivity(linen.Module):
    """Frames (1, samples, 1) and the recurrent state to the probability of speech and the next state."""

    @linen.compact
    def __call__(self, x: Any, carry: Any) -> tuple[Any, Any]:
        x = linen.Conv(2 * FREQUENCIES, (256,), 128, padding="VALID", use_bias=False, name="stft_conv")(x)
        x = (x[..., :FREQUENCIES] ** 2 + x[..., FREQUENCIES:] ** 2) ** 0.5
        for i, (filters, stride) in enumerate(((128, 1), (64, 2), (64, 2), (128, 1)), 1):
            x = linen.relu(linen.Conv(filters, (3,), stride, padding=1, name=f"conv{i}")(x))
        carry, x = linen.OptimizedLSTMCell(UNITS, name="lstm_cell")(carry, x[:, 0])
        return linen.sigmoid(linen.Conv(1, (1,), name="final_conv")(linen.relu(x)[:, None])), carry


def frames() -> np.ndarray:
    """A vowel of a kind, three times a second: harmonics by three formants, in noise; (frames, context and samples)."""
    time = np.arange(FRAMES * SAMPLES) / 16_000
    phase = 2 * np.pi * np.cumsum(130 * (1 + 0.03 * np.sin(2 * np.pi * 5 * time))) / 16_000
    formants = ((700, 130), (1220, 150), (2600, 200))
    loudness = [sum(np.exp(-(((130 * k - at) / width) ** 2)) for at, width in formants) + 0.02 for k in range(1, 40)]
    voice = sum(each * np.sin(k * phase) for k, each in enumerate(loudness, 1)) * np.sin(2 * np.pi * 3 * time).clip(0)
    sound = 0.1 * voice + 0.003 * np.random.default_rng(0).normal(size=time.size)
    padded = np.pad(sound, (CONTEXT, 0)).astype("float32")
    return np.stack([padded[i * SAMPLES : i * SAMPLES + CONTEXT + SAMPLES] for i in range(FRAMES)])


def theirs(network: Any, sound: np.ndarray) -> np.ndarray:
    """The probabilities of the wheel's own network."""
    state, said = torch.zeros(2, 1, UNITS), []
    with torch.no_grad():
        for frame in sound:
            probability, state = network(torch.from_numpy(frame[None]), state)
            said.append(float(probability))
    return np.array(said)


def ours(net: mp.Model, sound: np.ndarray) -> np.ndarray:
    """Those of the network above, with the weights that it was given."""
    step, carry, said = jax.jit(net.native.apply), (np.zeros((1, UNITS), "float32"),) * 2, []
    for frame in sound:
        padded = np.pad(frame[None], ((0, 0), (0, CONTEXT)), mode="reflect")[..., None]
        probability, carry = step(net.variables, padded, carry)
        said.append(float(probability.squeeze()))
    return np.array(said)


def main() -> float:
    """Move the weights, and print how far the two are apart."""
    spec = find_spec("silero_vad")  # not imported: it asks for more than its weights need
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps silero-vad"
    network = torch.jit.load(Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit")._model
    state = {name: value.numpy() for name, value in network.state_dict().items()}

    carry = (np.zeros((1, UNITS), "float32"),) * 2
    net = mp.wrap(VoiceActivity(), np.zeros((1, 640, 1), "float32"), carry, seed=0)
    report = mp.transfer(state, net)
    print(report.plan, report, sep="\n\n")

    sound = frames()
    expected, given = theirs(network, sound), ours(net, sound)
    apart = float(np.abs(expected - given).max())
    print(f"\nSpeech in {(expected > 0.5).sum()} of {FRAMES} frames; at most {apart:.1e} apart.")
    return apart


if __name__ == "__main__":
    main()
