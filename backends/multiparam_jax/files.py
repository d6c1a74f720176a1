"""Flax's msgpack files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import serialization

from multiparam.adapter import flatten


def read(path: Path) -> Mapping[str, Any]:
    """The arrays of a tree written by ``flax.serialization``, its keys joined with dots."""
    return flatten(serialization.msgpack_restore(path.read_bytes()))
