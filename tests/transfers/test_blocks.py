"""A block of what a move makes is that of the whole, and no more of the file is read than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save_file

import multiparam as mp
from multiparam.core.blocks import whole_box
from multiparam.weights.positioned import Positioned

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]
RNG = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


# file, model, what is moved, and by how many numbers at most a block of one row is more than that in the file
WAYS: dict[str, tuple[dict[str, np.ndarray], Any, str, int]] = {
    "other names": (
        {"model.0.weight": values(64, 32), "model.0.bias": values(64)},
        lambda: torch.nn.Sequential(torch.nn.Linear(32, 64)),
        "0.weight",
        0,
    ),
    "a convolution of one position": (
        {"0.weight": values(64, 300, 1, 1), "0.bias": values(64)},
        lambda: torch.nn.Sequential(torch.nn.Linear(300, 64)),
        "0.weight",
        0,
    ),
    "packed": (
        {
            **{f"{part}_proj_weight": values(64, 64) for part in "qkv"},
            "in_proj_bias": values(192),
            "out_proj.weight": values(64, 64),
            "out_proj.bias": values(64),
        },
        lambda: torch.nn.MultiheadAttention(64, 4),
        "in_proj_weight",
        256,  # runs of less than 1 KiB are read with what is between them
    ),
}


def counted(read: Any) -> tuple[Any, int]:
    fill, counts = Positioned.fill, []

    def counting(self: Any, buffer: memoryview, start: int) -> None:
        counts.append(len(buffer))
        fill(self, buffer, start)

    with mock.patch.object(Positioned, "fill", counting):
        return read(), sum(counts)


@pytest.mark.parametrize("way", WAYS)
def test_blocks_are_those_of_the_whole(tmp_path: Path, way: str) -> None:
    state, make, name, more = WAYS[way]
    save_file(state, tmp_path / "w.safetensors")
    target = mp.wrap(make())
    move = next(move for move in mp.plan(tmp_path / "w.safetensors", target).moves if move.target == name)
    whole = move.make()
    assert whole.shape == target[name].shape
    for row in (0, len(whole) // 2, len(whole) - 1):
        box = (slice(row, row + 1), *whole_box(whole.shape[1:]))
        given, count = counted(lambda box=box: move.block(box))
        np.testing.assert_array_equal(given, whole[box])
        assert count <= (given.size + more) * 4
    box = tuple(slice(n // 3, n // 2) for n in whole.shape)
    np.testing.assert_array_equal(move.block(box), whole[box])


def test_a_damaged_block_is_not_taken(tmp_path: Path) -> None:
    native = torch.nn.Sequential(torch.nn.Linear(32, 64))
    path = mp.save(mp.wrap(native), tmp_path / "w.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    plan = mp.plan(path, mp.wrap(native))
    moves = {move.target: move for move in plan.moves}
    with pytest.raises(mp.FileError, match="not those that were written"):
        for name, move in moves.items():
            move.block(tuple(slice(0, 1) for _ in mp.wrap(native)[name].shape))
