"""Files that appear whole or not at all: written in a hidden folder beside their own, brought to the disk, renamed.

A symbolic link stays one and what it points to is replaced; a file that was there passes its permissions on. A process
that is killed leaves its hidden folder, which the next save of that name finds and removes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..core.regular import require_regular

try:
    import fcntl
except ImportError:  # Windows, where a folder cannot be locked: what was left stays there
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".multiparam-", ".tmp"
TOKEN = 16  # characters that tell two hidden folders of one name apart
LONGEST = 100  # characters of a file's name that its hidden folder shares: names end at 255 bytes


class Pending(NamedTuple):
    """A file under its temporary name, and the one that it takes the place of, links followed."""

    file: BinaryIO | None
    temporary: Path
    path: Path


class Replacement:
    """Files written under temporary names beside those they replace; renamed in order when all are complete.

    After an error the temporary files are gone and nothing is replaced. After a crash they are left, in
    ``.multiparam-NAME-*.tmp``, until the next replacement of that name.

    Args:
        name: What is saved, as the user calls it: its leftovers are found by this name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folders: dict[Path, tuple[Path, int | None]] = {}  # folder -> hidden folder in it, and its lock
        self._pending: list[Pending] = []
        self.written: list[Path] = []  # the files' final names

    def file(self, path: Path) -> BinaryIO:
        """A file to write what ``path`` is to hold. The one before is complete, and brought to the disk, so that no
        more than one is open."""
        self._finish_last()
        temporary, final = self._place(path)
        file = open(temporary, "xb")  # noqa: SIM115 - closed by _finish_last
        self._add(Pending(file, temporary, final), path)
        return file

    def path(self, path: Path) -> Path:
        """A path to write what ``path`` is to hold, for writers that open the file themselves.

        It has the same name, since some writers look at it.
        """
        self._finish_last()
        temporary, final = self._place(path)
        self._add(Pending(None, temporary, final), path)
        return temporary

    def _place(self, path: Path) -> tuple[Path, Path]:
        """Where to write, and what is replaced: through a symbolic link, that which it points to."""
        final = Path(os.path.realpath(path))
        if final.exists():
            require_regular(final, path)
        return self._hidden_folder(final.parent) / path.name, final

    def _add(self, pending: Pending, path: Path) -> None:
        self._pending.append(pending)
        self.written.append(path)

    def _hidden_folder(self, parent: Path) -> Path:
        """This replacement's own folder in a folder, made when first asked for; what dead ones left is removed."""
        if parent not in self._folders:
            remove_leftovers(parent, self._name)
            self._folders[parent] = _make_hidden(parent, self._name)
        return self._folders[parent][0]

    def _finish_last(self) -> None:
        """Bring the last file to the disk: a rename may get there before the data, and a crash leave an empty file."""
        for file, temporary, final in self._pending[-1:]:
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            else:
                with open(temporary, "rb+") as written:
                    os.fsync(written.fileno())
            if final.exists():
                os.chmod(temporary, stat.S_IMODE(final.stat().st_mode))

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        try:
            if error is None:
                self._finish_last()
                self._rename()
        finally:
            self._clear()

    def _clear(self) -> None:
        """Close and remove what is left in the hidden folders, and them."""
        for pending in self._pending:
            with suppress(OSError):
                if pending.file is not None:
                    pending.file.close()
            with suppress(OSError):  # a renamed one is not there any more
                pending.temporary.unlink()
        for hidden, lock in self._folders.values():
            try:
                hidden.rmdir()
            except OSError:  # somebody else's writer may have put more there
                shutil.rmtree(hidden, ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def _rename(self) -> None:
        """Put every file in its place, the last one after the names of all others are on the disk."""
        for i, (_, temporary, path) in enumerate(self._pending):
            if i and i == len(self._pending) - 1:
                sync_folder(path.parent)  # on the disk too, an index comes after what it names
            os.replace(temporary, path)
        for pending in self._pending[-1:]:
            sync_folder(pending.path.parent)


def _marked(name: str) -> str:
    return f"{PREFIX}{name[:LONGEST]}-"


def _make_hidden(parent: Path, name: str) -> tuple[Path, int | None]:
    """A new hidden folder, and its lock. One that another process took for a dead one's, before it was locked, is made
    again."""
    while True:
        hidden = parent / f"{_marked(name)}{secrets.token_hex(TOKEN // 2)}{SUFFIX}"
        hidden.mkdir(mode=0o700)
        lock = _lock(hidden, wait=True)
        if hidden.exists():
            return hidden, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a folder for as long as this process lives, or until the descriptor is closed. None where that cannot be."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # somebody else's, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def remove_leftovers(parent: Path, name: str) -> None:
    """Remove the hidden folders that killed replacements of a name have left. A living one's is locked, and stays.

    Where nothing can be locked, nothing is removed: whether its writer lives cannot be told.
    """
    for hidden in parent.glob(f"{PREFIX}*{SUFFIX}"):
        if hidden.name[: -len(SUFFIX) - TOKEN] == _marked(name) and hidden.is_dir():
            lock = _lock(hidden)
            if lock is not None:
                shutil.rmtree(hidden, ignore_errors=True)
                os.close(lock)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text so that the file is the old one or the new one, never a part."""
    with Replacement(path.name) as replacement:
        replacement.file(path).write(text.encode())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write what ``path`` is to hold, for writers that open the file themselves.

    It has the same name, since some writers look at it, and takes the place of ``path`` when the block ends; it is gone
    after an error.
    """
    with Replacement(path.name) as replacement:
        yield replacement.path(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A path to make the folder that ``path`` is to be; it takes its place when the block ends, and is gone after an
    error. A folder that is there gives its name to the new one in one step, and is then removed.

    Raises FileExistsError where one is there and the system has no such step: it is not left nameless meanwhile.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and any(final.iterdir()) and exchange_call() is None:
        raise FileExistsError(errno.EEXIST, "A folder is there, which this system cannot replace: remove it", str(path))
    remove_leftovers(final.parent, path.name)
    hidden, lock = _make_hidden(final.parent, path.name)
    try:
        temporary = hidden / path.name
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                with open(os.path.join(folder, name), "rb+") as written:
                    os.fsync(written.fileno())
            sync_folder(Path(folder))
        if final.exists() and any(final.iterdir()):
            os.chmod(temporary, stat.S_IMODE(final.stat().st_mode))
            _exchange(temporary, final)
        else:
            os.replace(temporary, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


EXCHANGE, HERE = 2, -100  # Linux' RENAME_EXCHANGE and AT_FDCWD


def exchange_call() -> Any:
    """Linux' call that lets two folders change names, which Python does not have; None elsewhere."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None


def _exchange(first: Path, second: Path) -> None:
    if exchange_call()(HERE, os.fsencode(first), HERE, os.fsencode(second), EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}; remove the folder first", str(second))


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
