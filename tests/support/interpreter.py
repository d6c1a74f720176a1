"""Code in a fresh interpreter, and which frameworks it has loaded."""

from __future__ import annotations

import os
import subprocess
import sys

FRAMEWORKS = {"torch", "mxnet", "jax", "jaxlib", "flax", "optax", "tensorflow", "keras", "tf_keras"}
LOADED = f"import sys; print(*sorted({FRAMEWORKS!r} & sys.modules.keys()))"


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
