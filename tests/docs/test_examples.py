"""The examples run, and come to what they say."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_silero_in_flax_says_what_its_own_network_says() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("flax")
    if find_spec("silero_vad") is None:
        pytest.skip("silero-vad is not installed: make corpora installs it, and runs the example")
    assert runpy.run_path(str(EXAMPLES / "silero_vad_in_flax.py"))["main"]() < 1e-5
