"""What an archive or a file says of its sizes, held against its own length before any memory is asked for.

A few hundred bytes can say that they hold many gibibytes: a zip that was made to, an array's header, an HDF5 dataset
without data. Formats that compress may hold more than their length; but no more than :func:`largest_unpacked` says.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import FileError, InvalidArgument

VARIABLE = "MULTIPARAM_LARGEST_UNPACKED"
ALWAYS = 1 << 30  # bytes that any file may unpack to
FACTOR = 16  # a larger file may unpack to so many times its length; weights that are no zeros shrink by less than 2
DEFLATE = 1032  # the most that deflate can shrink, https://zlib.net/zlib_tech.html


def largest_unpacked(length: int) -> int:
    """How many bytes the arrays of a file may have together.

    Args:
        length: The file's own length, in bytes.

    Returns:
        Bytes: a gibibyte, or 16 times the length where that is more, or what the environment variable
        ``MULTIPARAM_LARGEST_UNPACKED`` says.

    Raises:
        InvalidArgument: Where the variable is no whole number.

    Example:
        >>> largest_unpacked(1000), largest_unpacked(10**9)
        (1073741824, 16000000000)
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return max(ALWAYS, FACTOR * length)
    if not text.isdecimal():
        raise InvalidArgument(f"{VARIABLE} is a number of bytes, not {text!r}.")
    return int(text)


def require_possible(size: int, length: int, path: Path, what: str = "its arrays") -> None:
    """Refuse sizes that a file of this length should not have.

    Args:
        size: The bytes that would be asked for.
        length: The file's length in bytes.
        path: The file.
        what: What would have that size.

    Raises:
        FileError: Where it is more than :func:`largest_unpacked`.
    """
    largest = largest_unpacked(length)
    if size > largest:
        raise FileError(
            f"{str(path)!r} has {length} bytes and says that {what} would have {size}, more than the {largest} that "
            f"are unpacked from such a file. If you trust it, set the environment variable {VARIABLE}={size}."
        )


def require_sound(archive: zipfile.ZipFile, path: Path) -> None:
    """See that a zip's members have one name each, lie inside the file, and are of sizes that can be.

    Raises:
        FileError: Where one is not.
    """
    members = archive.infolist()
    name, times = Counter(member.filename for member in members).most_common(1)[0] if members else ("", 1)
    if times > 1:
        raise FileError(f"{str(path)!r} has {times} members called {name!r}: which of them is meant cannot be told.")
    length = os.stat(path).st_size
    for member in members:
        packed = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE) + 64
        if member.compress_size > length or (
            member.file_size > packed and member.compress_type <= zipfile.ZIP_DEFLATED
        ):
            raise FileError(
                f"{str(path)!r} is damaged: {member.filename!r} would have {member.file_size} bytes, which its "
                f"{member.compress_size} cannot hold."
            )
    require_possible(sum(member.file_size for member in members), length, path)


def require_whole_array(member: IO[bytes], size: int, path: Path, name: str) -> None:
    """See that an ``.npy`` member of a zip is as long as its header says, of which only the header is read.

    Raises:
        FileError: Where it is not.
        ValueError: Where there is no header that numpy reads.
    """
    npy: Any = np.lib.format  # untyped before numpy 2.3
    version = npy.read_magic(member)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(member)
    if dtype.hasobject:
        raise FileError(f"{str(path)!r}: {name!r} holds Python objects, which multiparam does not unpickle.")
    expected = member.tell() + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise FileError(f"{str(path)!r} is damaged: {name!r} has {size} bytes; its header asks for {expected}.")


def check_zip(path: Path) -> None:
    """See that each member of a zip has the values its checksum was made of; one without a checksum has any.

    Raises:
        FileError: Where one has not.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC and member.file_size:  # torch.serialization.set_crc32_options(False) writes none
                continue
            try:
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise FileError(
                    f"{str(path)!r}: the values of {member.filename!r} are not those that were written "
                    f"({type(error).__name__}). The file is damaged; verify=False reads it all the same."
                ) from None
