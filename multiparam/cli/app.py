"""The console script ``multiparam``. It imports nothing that the extra ``cli`` brings before it has looked for it."""

from __future__ import annotations

import os
import sys

from ..core.packages import require
from ..errors import PackageMissing


def main() -> None:
    """The entry point: the command line, or a sentence and exit code 3 where the extra ``cli`` is not installed."""
    # TensorFlow reads it when it is imported; its start-up messages are no part of what a command says.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        for package in ("typer", "rich"):
            require(package, "The command line", 'pip install "multiparam[cli]"')
    except PackageMissing as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    from . import commands

    commands.run()
