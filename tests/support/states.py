"""Models and their states, for the tests of states and of files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors, nn

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)


def spec() -> nn.Layer:
    """Layer 2 is layer 4; 5 has buffers."""
    shared = nn.Linear(5)
    return nn.Sequential(nn.Linear(5), nn.ReLU(), shared, nn.ReLU(), shared, nn.BatchNorm(), nn.Linear(2))


def made(backend: str, seed: int = 0, **options: Any) -> mp.Model:
    return mp.build(spec(), X, backend=backend, seed=seed, **options)


def bits(net: mp.Group) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in net.state_dict().items()}


@contextmanager
def refused(net: mp.Model, error: Any = errors.StateError, match: str | None = None) -> Iterator[Any]:
    before = bits(net)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert bits(net) == before


def weights(backend: str, seed: int = 1) -> dict[str, np.ndarray]:
    """A state without the counts that PyTorch alone keeps."""
    return {name: a for name, a in made(backend, seed).state_dict().items() if "num_batches" not in name}


def transposed(backend: str, wide: int = 3) -> mp.Model:
    layers = nn.Linear(wide, bias=False), nn.Linear(4, bias=False)
    net = mp.build(nn.Sequential(*layers), X, backend=backend)
    try:
        net.tie("1.weight", "0.weight", transpose=True)
    except (errors.Unsupported, errors.TieError) as error:
        pytest.skip(f"no transposed ties here: {error}")
    return net
