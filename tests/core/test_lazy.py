"""Arrays that are read by blocks: numpy on whole arrays is the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiparam.core.blocks import box_shape
from multiparam.core.lazy import LazyArray

WHOLE = np.arange(24.0, dtype="float32").reshape(4, 6)
OTHER = -np.arange(12.0, dtype="float32").reshape(2, 6)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "as it is": lambda a, b: a,
    "transposed": lambda a, b: a.T,
    "transposed by numpy": lambda a, b: np.transpose(a, (1, 0)),
    "reshaped": lambda a, b: a.reshape(2, 2, -1),
    "flattening permuted": lambda a, b: a.reshape(4, 3, 2).transpose(0, 2, 1).reshape(a.shape),
    "a row": lambda a, b: a[-1],
    "a row of columns": lambda a, b: a[2, 1:5],
    "rows of columns": lambda a, b: a[1:3, 2:],
    "nothing of it": lambda a, b: a[3:1],
    "packed": lambda a, b: np.concatenate([a, b]),
    "packed beside numpy's": lambda a, b: np.concatenate([a[:1], np.zeros((2, 6), "float32"), b]),
    "packed in columns": lambda a, b: np.concatenate([a[:2], b], axis=-1),
    "of two dtypes": lambda a, b: np.concatenate([a, b.astype("float64")]),
    "stacked": lambda a, b: np.stack([a[:2], b]),
    "stacked behind": lambda a, b: np.stack([a[:2], b], axis=-1),
    "summed": lambda a, b: a[:2] + b,
    "scaled": lambda a, b: 2.0 * a - 1,
    "another dtype": lambda a, b: a.astype("float64"),
    "a product": lambda a, b: a @ b.T,
    "every other row": lambda a, b: a[::2],
    "rows in another order": lambda a, b: a[[2, 0, 1]],
    "the rows' sums": lambda a, b: np.sum(a, axis=1),
    "of two lengths": lambda a, b: a + a[0],
    "a method of numpy's": lambda a, b: a.cumsum(axis=0),
}


def lazy(array: np.ndarray, asked: list[Any] | None = None) -> LazyArray:
    def read(box: Any) -> np.ndarray:
        if asked is not None:
            asked.append(box)
        return array[box]

    return LazyArray(array.shape, array.dtype, read)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(data=st.data())
def test_a_block_is_numpys(function: str, data: st.DataObject) -> None:
    expected, given_back = FUNCTIONS[function](WHOLE, OTHER), FUNCTIONS[function](lazy(WHOLE), lazy(OTHER))
    assert given_back.shape == expected.shape and given_back.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(given_back), expected)
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in expected.shape]
    box = tuple(slice(*each) for each in ends)
    block = given_back.block(box) if isinstance(given_back, LazyArray) else given_back[box]
    assert block.shape == box_shape(box) and block.dtype == expected.dtype
    np.testing.assert_array_equal(block, expected[box])


BOXES = {
    "transposed": ((slice(1, 2), slice(0, 4)), [(slice(0, 4), slice(1, 2))]),
    "a row": ((slice(2, 4),), [(slice(3, 4), slice(2, 4))]),
    "rows of columns": ((slice(0, 1), slice(1, 2)), [(slice(1, 2), slice(3, 4))]),
    "packed": ((slice(1, 4), slice(0, 6)), [(slice(1, 4), slice(0, 6))]),
    "stacked": ((slice(0, 1), slice(1, 2), slice(0, 6)), [(slice(1, 2), slice(0, 6))]),
    "summed": ((slice(1, 2), slice(3, 6)), [(slice(1, 2), slice(3, 6))]),
    "scaled": ((slice(1, 2), slice(3, 6)), [(slice(1, 2), slice(3, 6))]),
    "another dtype": ((slice(1, 2), slice(3, 6)), [(slice(1, 2), slice(3, 6))]),
}


@pytest.mark.parametrize("function", BOXES)
def test_no_more_is_read_than_a_block_needs(function: str) -> None:
    box, expected = BOXES[function]
    asked: list[Any] = []
    FUNCTIONS[function](lazy(WHOLE, asked), lazy(OTHER)).block(box)
    assert asked == expected


def test_nothing_is_read_before_a_block_is_asked_for() -> None:
    asked: list[Any] = []
    np.concatenate([lazy(WHOLE, asked).T[:2], np.stack([lazy(WHOLE, asked)[0][:4], lazy(WHOLE, asked)[1][:4]])])
    assert not asked


def test_a_number_is_one() -> None:
    assert float(lazy(np.array([2.5]))[0].reshape(())) == 2.5
