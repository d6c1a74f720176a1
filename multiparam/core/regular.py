"""Only regular files are opened: a named pipe or a device would be waited for, or read, for ever."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import FileError

KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def require_regular(path: Path, named: Path | None = None) -> os.stat_result:
    """What the system knows of a file, which is not opened.

    A link is followed. Between this look and the opening another process may put a pipe there; this is a guard against
    mistakes and strangers' archives, not against somebody who can write to the folder.

    Args:
        path: The file, or a link to it.
        named: What the user called it, where that is another path.

    Returns:
        Its size, times and mode.

    Raises:
        FileError: Where it is no regular file.
        OSError: Where it is not there, or nobody may look at it.

    Example:
        >>> import pathlib
        >>> require_regular(pathlib.Path("/dev/null"))
        Traceback (most recent call last):
        multiparam.errors.FileError: '/dev/null' is no regular file but a device: copy what it gives into a file first.
    """
    about = os.stat(path)
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(named or path))
    if not stat.S_ISREG(about.st_mode):
        kind = next((name for test, name in KINDS if test(about.st_mode)), "something else")
        cure = "give a file in it" if kind == "a folder" else "copy what it gives into a file first"
        raise FileError(f"{str(named or path)!r} is no regular file but {kind}: {cure}.")
    return about
