"""Saving what several processes hold in pieces: all of them put each array together, and the first one writes it.

Putting together is a collective, which every process must enter as often as the others and in one order. So a process
whose disk fails goes on reading to the end, and only then says so; the others then raise as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..core.protocol import Host
from ..errors import FileError
from .safetensors import Tensor, in_written_order


def write_together(
    host: Host, shards: Sequence[Sequence[Tensor]], write: Callable[[list[list[Tensor]]], Path], path: Path
) -> Path:
    """Write a model's arrays from the first of the processes that hold it.

    Args:
        host: The model's.
        shards: What each file gets.
        write: Writes them, reading each once in the order of its file; gives the path to load.
        path: That for the other processes.

    Returns:
        The path to load.

    Raises:
        FileError: Another process has failed; the file is then as it was.
    """
    reads = _Reads(shards)
    result = path

    def write_or_read_on() -> None:
        nonlocal result
        try:
            if host.rank() == 0:
                result = write(reads.shards)
        finally:
            reads.finish()

    in_all_or_none([host], write_or_read_on, path)
    return result


def in_all_or_none(hosts: Sequence[Host], write: Callable[[], None], path: Path) -> None:
    """Do one process' part of a writing, and wait for the other processes that hold the models.

    Args:
        hosts: The models'.
        write: This process' part.
        path: What is written, for the error.

    Raises:
        FileError: Another process has failed.
    """
    done = False
    try:
        write()
        done = True
    finally:
        answers = [host.all_succeeded(done) for host in hosts]  # all are asked: each question is a collective
    if not all(answers):
        raise FileError(f"{str(path)!r} was not written: another process failed, and says why.")


class _Reads:
    """The reads of all arrays in the order in which files are written, and how many were made."""

    def __init__(self, shards: Sequence[Sequence[Tensor]]) -> None:
        self._ordered = [tensor for tensors in shards for tensor in in_written_order(tensors)]
        self._made = 0
        self.shards = [[self._counting(tensor) for tensor in tensors] for tensors in shards]

    def _counting(self, tensor: Tensor) -> Tensor:
        def read() -> np.ndarray:
            self._made += 1
            return tensor.read()

        return tensor._replace(read=read)

    def finish(self) -> None:
        """Make those that were not made."""
        for tensor in self._ordered[self._made :]:
            tensor.read()
