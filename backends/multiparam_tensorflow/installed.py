"""Which modules Keras needs, by the backend that it runs on. This module imports no framework."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path


def requires() -> tuple[str, ...]:
    """What must be there: TensorFlow, unless Keras runs on another backend, and then that."""
    from importlib.util import find_spec

    backend = getattr(sys.modules.get("keras"), "backend", None)  # of a Keras that is imported
    chosen = os.environ.get("KERAS_BACKEND") if backend is None else backend.backend()
    if not chosen:
        folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
        with suppress(OSError, ValueError, AttributeError):
            chosen = json.loads((folder / "keras.json").read_text()).get("backend")
    if chosen in (None, "", "tensorflow"):
        return ("tensorflow", "keras")
    with suppress(ValueError):  # a module that was put there without a spec, or a None that hides it
        if find_spec("tensorflow") is not None:
            return ("tensorflow", "keras")
    return ("keras", str(chosen))
