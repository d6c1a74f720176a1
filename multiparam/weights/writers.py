"""Who writes a weight file: multiparam itself safetensors, what is a framework's own that one's adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..core import registry
from ..core.model import Model
from ..core.registry import BackendInfo
from ..errors import FileError, InvalidArgument, MultiparamError
from .atomic import atomic_folder, atomic_path
from .formats import SAFETENSORS, damaged, first_line
from .kinds import folder_kind

CONVERT = "With the command line: give one as TARGET, and the file as --output."


def writer(path: Path, format: str | None = None) -> tuple[BackendInfo | None, str]:
    """Who writes a file of such a name, None for multiparam itself, and the suffix; a folder's ends in ``/``.

    ``format``, a backend's name or a suffix such as ``"orbax"``, must be the one that does; with a suffix a name may
    have any end that says nothing else. Raises InvalidArgument for an unknown suffix or format.

        >>> writer(Path("net.weights.h5"))[1], writer(Path("v1.safetensors")), writer(Path("v1"), "orbax")[1]
        ('.weights.h5', (None, '.safetensors'), '.orbax/')
    """
    writers: dict[str, BackendInfo | None] = {SAFETENSORS: None, **registry.writers()}
    longest_first = sorted(writers, key=len, reverse=True)
    suffix = next((suffix for suffix in longest_first if path.name.endswith(suffix.rstrip("/"))), None)
    if format is not None:
        kinds = {kind.strip("./"): kind for kind in writers}
        named = kinds.get(format.lstrip("."))
        if named is None and format not in registry.registered():
            raise InvalidArgument(
                f"No format {format!r}. {paths.did_you_mean(format, [*kinds, *registry.registered()])}"
            )
        suffixes = (named,) if named is not None else tuple(registry.info(format).writes)
        if named is not None and suffix is None:
            return writers[named], named
        if suffix not in suffixes:
            ends = " or ".join(each.rstrip("/") for each in suffixes)
            raise InvalidArgument(f"{format.lstrip('.')} files end in {ends}; {path.name!r} does not.")
        return (writers[suffix] if named is not None else registry.info(format)), suffix
    if suffix is None:
        known = [each.rstrip("/") for each in writers]
        hint = paths.did_you_mean("".join(path.suffixes[-2:]), known)
        raise InvalidArgument(f"No weight file that can be written ends like {path.name!r}. {hint}")
    return writers[suffix], suffix


@contextmanager
def place_to_write(path: Path, suffix: str) -> Iterator[Path]:
    """Where a framework writes what ``path`` is to hold, a file or a folder: it appears whole or not at all, and what
    the framework raises is a sentence. A folder only takes the place of one of its kind, or of an empty one."""
    if not suffix.endswith("/"):
        with atomic_path(path) as temporary, unwritable(path):
            yield temporary
        return
    if path.exists() and not (path.is_dir() and (f".{folder_kind(path)}" == suffix or not any(path.iterdir()))):
        raise FileError(f"{str(path)!r} is there, and is nothing that multiparam would replace: give another name.")
    with atomic_folder(path) as temporary, unwritable(path):
        yield temporary


def written_bytes(path: Path) -> int:
    """How large a file is, or all files of a folder."""
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def is_native_export(source: Any, path: Path, format: str | None = None, *, renamed: bool = False) -> bool:
    """Whether a model is written by its own framework, in the framework's names: where that writes such files, and
    nothing is renamed. Raises InvalidArgument for a format that only a model of its framework can be written in."""
    backend, suffix = writer(path, format)
    if backend is None:
        return False
    native = not renamed and isinstance(source, Model) and source.backend == backend.name
    if not native and suffix in backend.models_only:
        raise InvalidArgument(
            f"A {suffix} file is laid out as the layers of a model are, so only a model of {backend.name} can be "
            f"written as one, with its own names: transfer the weights into one, and save that. {CONVERT}"
        )
    return native


class ArraysToWrite(Mapping[str, np.ndarray]):
    """Every name, aliases too, and its array, read when it is looked up; names of one array give one object.

    Args:
        readers: Name -> what reads its array.
        aliases: Other names -> the name whose array they have, and whether transposed.
        tick: Is called with each name whose array is read.
    """

    def __init__(
        self,
        readers: Mapping[str, Callable[[], np.ndarray]],
        aliases: Mapping[str, tuple[str, bool]],
        tick: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._readers = readers
        self._aliases = aliases
        self._tick = tick
        self._tied_names = {stored for stored, _ in aliases.values()}
        self._tied: dict[str, np.ndarray] = {}  # only these stay in memory

    def __getitem__(self, name: str) -> np.ndarray:
        stored, transposed = self._aliases.get(name, (name, False))
        array = self._tied.get(stored)
        if array is None:
            array = self._readers[stored]()
            if stored in self._tied_names:
                self._tied[stored] = array
        self._tick(name)
        return array.T if transposed else array

    def __iter__(self) -> Iterator[str]:
        yield from self._readers
        yield from self._aliases

    def __len__(self) -> int:
        return len(self._readers) + len(self._aliases)


class unwritable(damaged):
    """What a framework raises when it cannot write, in a sentence."""

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (MultiparamError, OSError)):
            raise FileError(f"{str(self.path)!r} cannot be written. {first_line(error)}") from error
