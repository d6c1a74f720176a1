"""Blocks through layouts: the truth is the block of the whole array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors
from multiparam.core.blocks import block_of, box_shape, cover, whole_box
from multiparam.core.layouts import Layout
from multiparam.weights.positioned import Positioned

LAYOUTS = {
    "none": ((6, 4), None),
    "transposed": ((6, 4, 5), Layout(("transpose", (2, 0, 1)))),
    "flipped": ((6, 4), Layout(("flip", (0, 1)))),
    "gates": ((8, 3), Layout(("reorder", (4, 5, 0, 1, 6, 7, 2, 3)))),
    "depthwise": ((3, 5, 4, 2), Layout(("transpose", (2, 3, 0, 1)), ("reshape", (4, 2, 3, 5), (8, 1, 3, 5)))),
    "heads": ((6, 2, 4), Layout(("reshape", (6, 2, 4), (6, 8)), ("transpose", (1, 0)))),
    "apart": ((6, 8), Layout(("reshape", (6, 8), (6, 2, 4)))),
    "joined": ((2, 3, 4), Layout(("reshape", (2, 3, 4), (6, 4)))),
    "another row": ((4, 6), Layout(("reshape", (4, 6), (3, 8)))),
    "an axis of one": ((4, 6), Layout(("reshape", (4, 6), (4, 6, 1)))),
    "an axis of one gone": ((4, 6, 1), Layout(("reshape", (4, 6, 1), (4, 6)))),
    "nothing": ((0, 3), Layout(("reshape", (0, 3), (0, 1, 3)))),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_block_is_that_of_the_whole_and_no_more_is_asked_for(case: str) -> None:
    shape, layout = LAYOUTS[case]
    array = np.arange(np.prod(shape)).reshape(shape)
    shown = array if layout is None else layout.apply(array, np)
    rng = np.random.default_rng(0)
    boxes = [whole_box(shown.shape), *(tuple(slice(n, n) for n in shown.shape) for _ in range(1))]
    for _ in range(60):
        ends = (sorted(rng.integers(0, n + 1, 2).tolist()) for n in shown.shape)
        boxes.append(tuple(slice(a, b) for a, b in ends))
    for box in boxes:
        asked = []

        def read(each: tuple[slice, ...], asked: list = asked) -> np.ndarray:
            asked.append(each)
            return array[each]

        block = block_of(layout, shape, box, read)
        assert block.shape == box_shape(box) and np.array_equal(block, shown[box]), box
        assert asked == [cover(layout, shape, box)]


def test_transposes_and_flips_ask_for_as_much_as_they_give() -> None:
    box = cover(Layout(("transpose", (2, 0, 1)), ("flip", (0,))), (6, 4, 5), (slice(0, 2), slice(1, 3), slice(2, 4)))
    assert box == (slice(1, 3), slice(2, 4), slice(3, 5))


def test_a_share_of_the_channels_of_a_depthwise_kernel_needs_whole_rows_of_them() -> None:
    shape, layout = LAYOUTS["depthwise"]
    assert cover(layout, shape, (slice(2, 5), *whole_box((1, 3, 5)))) == (
        *whole_box((3, 5)), slice(1, 3), slice(0, 2),
    )  # fmt: skip


def test_a_block_of_a_file_is_read_by_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(40, 500)).astype("float32"),
        "kernel": rng.normal(size=(6, 5, 3, 7)),
        "vector": np.arange(9),
        "scalar": np.array(3.0),
        "flags": rng.integers(0, 2, (5, 4)).astype(bool),
        "none": np.zeros((0, 3), "float32"),
    }
    source = mp.read(mp.save(arrays, tmp_path / "w.safetensors"))
    for name, array in arrays.items():
        for _ in range(40):
            ends = (sorted(rng.integers(0, n + 1, 2).tolist()) for n in array.shape)
            box = tuple(slice(a, b) for a, b in ends)
            block = source.block(name, box)
            assert block.dtype == array.dtype and np.array_equal(block, array[box]), (name, box)
    read: list[int] = []
    fill = Positioned.fill

    def counting(self: Positioned, buffer: memoryview, start: int) -> None:
        read.append(len(buffer))
        fill(self, buffer, start)

    monkeypatch.setattr(Positioned, "fill", counting)
    source.block("matrix", (slice(10, 20), slice(0, 500)))
    assert read == [10 * 500 * 4]
    read.clear()
    source.block("matrix", (slice(0, 40), slice(0, 300)))
    assert read == [300 * 4] * 40


def test_of_a_block_only_its_own_mebibytes_are_checked(tmp_path: Path) -> None:
    path = mp.save({"a": np.zeros((6, 1 << 18), "float32")}, tmp_path / "w.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with mp.read(path) as source:
        source.verify_block("a", (slice(1, 5), slice(3, 9)))
        for box in ((slice(5, 6), slice(0, 1)), (slice(0, 6), slice(0, 1)), (slice(4, 6), slice(9, 12))):
            with pytest.raises(errors.FileError, match="are not those that were written"):
                source.verify_block("a", box)
        source.verify_block("a", (slice(6, 6), slice(0, 1)))  # of nothing there is nothing to check
