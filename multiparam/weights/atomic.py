"""Files that appear whole or not at all: written under another name beside their own, brought to the disk, renamed."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


class Replacement:
    """Files written under temporary names beside those they replace; renamed in order when all are complete.

    After an error the temporary files are gone and nothing is replaced. After a crash one may be left:
    ``.multiparam-*.tmp``.
    """

    def __init__(self) -> None:
        self._files: list[tuple[BinaryIO, Path, Path]] = []  # open file, temporary path, path it takes the place of

    @property
    def written(self) -> list[Path]:
        """The files' final names."""
        return [path for _, _, path in self._files]

    def file(self, path: Path) -> BinaryIO:
        """A file to write what ``path`` is to hold. The one before is complete, and brought to the disk, so that no
        more than one is open."""
        self._finish_last()
        temporary = path.with_name(f".multiparam-{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115 - not by tempfile, whose files nobody else may read
        self._files.append((file, temporary, path))
        return file

    def _finish_last(self) -> None:
        for file, _, _ in self._files[-1:]:
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the data: a crash would leave an empty file
            file.close()

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        try:
            if error is None:
                self._finish_last()
                self._rename()
        finally:
            for file, temporary, _ in self._files:
                with suppress(OSError):
                    file.close()
                with suppress(OSError):  # a renamed one is not there any more
                    temporary.unlink()

    def _rename(self) -> None:
        """Put every file in its place, the last one after the names of all others are on the disk."""
        for i, (_, temporary, path) in enumerate(self._files):
            if i and i == len(self._files) - 1:
                sync_folder(path.parent)  # on the disk too, an index comes after what it names
            os.replace(temporary, path)
        for path in self.written[-1:]:
            sync_folder(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text so that the file is the old one or the new one, never a part."""
    with Replacement() as replacement:
        replacement.file(path).write(text.encode())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write what ``path`` is to hold, for writers that open the file themselves.

    It has the same name, since some writers look at it, and takes the place of ``path`` when the block ends; it is gone
    after an error.
    """
    with tempfile.TemporaryDirectory(prefix=".multiparam-", suffix=".tmp", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can do that."""
    if os.name == "nt":  # no folder can be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do not know it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
