"""Checksums are zlib's numbers, whoever computes them."""

from __future__ import annotations

import zlib

import numpy as np

from multiparam.weights.checksums import crc32


def test_the_numbers_are_those_of_zlib() -> None:
    data = np.random.default_rng(0).bytes(100_003)
    assert crc32(data) == zlib.crc32(data)
    assert crc32(memoryview(data)[7:], crc32(data[:7])) == zlib.crc32(data)
    assert crc32(b"") == 0
