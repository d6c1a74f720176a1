"""The command line as a user starts it, and a folder of the user's own code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def command(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a fresh interpreter, in a pipe; or code, with these arguments after the command's name."""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    start = ["-c", f"import sys; sys.argv[0] = 'multiparam'; {code}"] if code else ["-m", "multiparam.cli"]
    line = [sys.executable, *start, *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


@contextmanager
def imports_of(folder: Path) -> Iterator[None]:
    """Nothing that is imported from the folder meanwhile stays imported."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
