"""The networks of the main job, on real data: scikit-learn's bundled iris and digits.

At a kink, of a ReLU or between two values of a max pool, a rounding error takes another branch, and after that float32
trajectories part by 1e-3, within one framework as much as between two. Networks that are trained are smooth where
gradients pass; those with kinks are held against each other before training: outputs, layers, and one step's gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import losses, nn
from ..core.packages import require

BATCH = 64
DATASETS, WHY, INSTALL = "sklearn.datasets", "The data of the networks built in", 'pip install "multiparam[compare]"'


@dataclass(frozen=True)
class ZooNetwork:
    """A network, its objective and where its data comes from; and whether trajectories of it can be compared."""

    spec: Callable[[], nn.Layer]
    objective: Callable[..., Any]
    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    about: str
    smooth: bool = True

    def batches(self, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """``steps`` batches in the data's own order, starting over at its end."""
        x, y = self.data()
        rows = [np.arange(i * BATCH, (i + 1) * BATCH) % len(x) for i in range(steps)]
        return [(x[r], y[r]) for r in rows]


def iris() -> tuple[np.ndarray, np.ndarray]:
    """Four measures of 150 flowers, each scaled to mean 0 and deviation 1, interleaved by species, and the species
    as a number to regress on, shape (150, 1)."""
    x, y = require(DATASETS, WHY, INSTALL).load_iris(return_X_y=True)
    order = np.arange(150).reshape(3, 50).T.ravel()
    x = (x - x.mean(0)) / x.std(0)
    # Through float32, so that every dtype has the same numbers.
    return x[order].astype(np.float32).astype(np.float64), y[order, None].astype(np.float64)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 handwritten digits as 64 numbers from 0 to 1, and their labels."""
    x, y = require(DATASETS, WHY, INSTALL).load_digits(return_X_y=True)
    return x / 16.0, y.astype(np.int64)


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """The same digits as images (1797, 1, 8, 8)."""
    x, y = digits()
    return x.reshape(-1, 1, 8, 8), y


def digit_tokens() -> tuple[np.ndarray, np.ndarray]:
    """The same digits as sequences of 64 integers from 0 to 16."""
    x, y = digits()
    return np.rint(16 * x).astype(np.int64), y


def mlp() -> nn.Layer:
    """The shape that d2l.ai section 6.2 begins with."""
    return nn.Sequential(nn.Linear(8), nn.Tanh(), nn.Linear(1))


def nested() -> nn.Layer:
    """d2l's ``rgnet``: four blocks named ``block 0`` to ``block 3`` inside a sequence."""

    def block() -> nn.Layer:
        return nn.Sequential(nn.Linear(8), nn.Tanh(), nn.Linear(4), nn.Tanh())

    blocks = nn.Sequential(*[(f"block {i}", block()) for i in range(4)])
    return nn.Sequential(blocks, nn.Linear(1))


def tied() -> nn.Layer:
    """d2l's tied network: one layer at two positions."""
    shared = nn.Linear(8)
    return nn.Sequential(nn.Linear(8), nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(1))


def digits_mlp() -> nn.Layer:
    """64-128-64-10."""
    return nn.Sequential(nn.Linear(128), nn.Tanh(), nn.Linear(64), nn.Tanh(), nn.Linear(10))


def cnn() -> nn.Layer:
    """Convolutions, batch normalisation, both poolings, and a flatten whose order matters."""
    return nn.Sequential(
        nn.MaxPool(3, stride=1, padding=1),
        nn.Conv(8, 3, padding=1, bias=False),
        nn.BatchNorm(),
        nn.GELU("tanh"),
        nn.AvgPool(2),
        nn.Conv(16, 3, padding=1),
        nn.GELU("tanh"),
        nn.AvgPool(2),
        nn.Flatten(),
        nn.Linear(10),
    )


def joined_branches() -> nn.Layer:
    """Kinks, branches that join, and the norms and poolings that the others have not."""
    body = nn.Sequential(nn.Conv(8, 3, padding=1), nn.GroupNorm(2), nn.ReLU(), nn.Conv(8, 3, padding=1, bias=False))
    patches = nn.Sequential(nn.Conv(4, 3, stride=3), nn.Tokens(), nn.Linear(2), nn.Flatten())
    # No biases before the norm, whose gradients would be 0 but for rounding.
    return nn.Sequential(
        nn.Conv(8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool(2),
        nn.Add(("body", body), ("shortcut", nn.Conv(8, 1, bias=False))),
        nn.InstanceNorm(),
        nn.Residual(nn.Sequential(nn.Conv(8, 3, padding=1, groups=2), nn.Sigmoid())),
        nn.ConvTranspose(6, 3, stride=2, padding=1),
        nn.Concat(nn.Identity(), nn.Sequential(nn.Conv(4, 1), nn.ReLU())),
        nn.Concat(nn.GlobalAvgPool(), nn.GlobalMaxPool(), patches),
        nn.Linear(10),
    )


def token_blocks() -> nn.Layer:
    """An embedding, the norms of the last axis, and what is done position by position."""
    norm = nn.LayerNorm(eps=2**-16)  # MXNet takes it as a float32 always, and this is one
    feed_forward = nn.Sequential(norm, nn.Linear(16), nn.GELU("tanh"), nn.Linear(8))
    return nn.Sequential(nn.Embedding(17, 8), nn.Residual(feed_forward), nn.RMSNorm(), nn.Softmax(), nn.Flatten(),
                         nn.Linear(10))  # fmt: skip


ZOO: Mapping[str, ZooNetwork] = {
    "mlp": ZooNetwork(mlp, losses.mse, iris, "4-8-1 on iris"),
    "nested": ZooNetwork(nested, losses.mse, iris, "four named blocks on iris"),
    "tied": ZooNetwork(tied, losses.mse, iris, "one layer at two positions on iris"),
    "digits-mlp": ZooNetwork(digits_mlp, losses.cross_entropy, digits, "64-128-64-10 on digits"),
    "cnn": ZooNetwork(cnn, losses.cross_entropy, digit_images, "convolutional, batch-normalised, on digits"),
    "joined": ZooNetwork(
        joined_branches, losses.cross_entropy, digit_images, "kinks and branches, on digits", smooth=False
    ),
    "tokens": ZooNetwork(
        token_blocks, losses.cross_entropy, digit_tokens, "an embedding and norms, on digits as tokens"
    ),
}
