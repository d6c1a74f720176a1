"""What a weight file is, by its first bytes, or by its name where these say nothing; which file is a folder's."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..errors import FileError
from ..paths import did_you_mean

INDEX = ".safetensors.index.json"
ANY_INDEX = ".index.json"
HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
PARAMS = (0x112).to_bytes(8, "little")
KERAS_MEMBER = "model.weights.h5"
MSGPACK_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # first byte of a map that is not empty
PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
# Files that stand for all of a folder, as hubs name them, the surest first; "*" is any stem.
IN_FOLDER = (
    "*.safetensors.index.json", "*.bin.index.json", "*.msgpack.index.json", "model.safetensors", "*.safetensors",
    "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "*.weights.h5", "*.keras",
)  # fmt: skip
# The same of a folder that no framework's package reads, where there is one.
ONLY_ONE = ("*.params", "*.msgpack", "*.h5", "*.npz", "*.pt", "*.pth", "*.ckpt", "checkpoint_[0-9]*")
TREE = {"_METADATA", "manifest.ocdbt"}  # of an Orbax checkpoint that is a tree of arrays
STEP = {"_CHECKPOINT_METADATA"}  # of one, and of a folder of several by name


def file_kind(path: Path, known: Iterable[str]) -> str:
    """What a file is, as the suffix that says so.

    Args:
        path: A regular file.
        known: The suffixes that are read.

    Returns:
        One of ``known``, by the file's first bytes, or by its name where these are of no format.

    Raises:
        FileError: For a file of no known kind, an empty one among them; for code that was pickled or scripted.
        OSError: Where it cannot be opened.
    """
    known = list(known)
    with open(path, "rb") as file:
        start = file.read(16)
    by_bytes = _by_bytes(path, start)
    by_name = next((suffix for suffix in known if path.name.lower().endswith(suffix)), "")
    if by_bytes and (not by_name or not _is_a(by_name, by_bytes)):
        return by_bytes
    if by_name:
        return by_name
    hint = did_you_mean(path.suffix, known) if path.suffix else f"They are: {', '.join(known)}."
    raise FileError(
        f"{str(path)!r}: no known weight file begins like it, or ends in {path.suffix!r}. {hint} "
        "Say format= to read it as one of them."
    )


def _is_a(suffix: str, by_bytes: str) -> bool:
    """Whether a name says what the bytes say: some formats have several names, and tell more than the bytes."""
    same = ((".h5", ".hdf5", ".weights.h5"), (".pt", ".pth", ".bin"))
    return suffix == by_bytes or any(suffix in names and by_bytes in names for names in same)


def _by_bytes(path: Path, start: bytes) -> str:
    """The suffix of what begins with these bytes; empty where nothing does."""
    if start.startswith(HDF5):
        return ".h5"
    if start.startswith(ZIP):
        return _zip_kind(path)
    if start.startswith(PARAMS):
        return ".params"
    # before pickle: a header of 640 bytes begins with the bytes of one
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40:
        return ".safetensors"
    if start.startswith(PICKLE):
        return ".pt"
    return ".msgpack" if start[:1] and start[0] in MSGPACK_MAPS and _is_text_key(start) else ""


def _is_text_key(start: bytes) -> bool:
    """Whether the first key of a msgpack map is a short text, or a small number, as of a list that is a map."""
    at = {0xDE: 3, 0xDF: 5}.get(start[0], 1)
    return len(start) > at and (start[at] < 0x80 or 0xA0 <= start[at] <= 0xBF or start[at] == 0xD9)


def _zip_kind(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return ""  # cut short: its name says what it was
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return ""  # its reader says what is wrong with it
    if KERAS_MEMBER in names:
        return ".keras"
    if any(name.endswith("/constants.pkl") for name in names):
        raise FileError(
            f"{str(path)!r} is TorchScript, a program with its weights. Load it where you trust it, with "
            "torch.jit.load, and save its state_dict() with mp.save or torch.save."
        )
    if any(name.endswith("data.pkl") for name in names):
        return ".pt"
    return ".npz" if names and all(name.endswith(".npy") for name in names) else ""


def in_folder(folder: Path) -> Path:
    """The file, or the index, that a folder stands for.

    Args:
        folder: It exists.

    Returns:
        The one of the surest form there is.

    Raises:
        FileError: There is none, or several of one form; what the folder is, where that can be told.
    """
    inside = {each.name for each in folder.iterdir()}
    package = next((what for marks, _, what in FOLDERS if marks & inside), "")
    for pattern in IN_FOLDER if package else (*IN_FOLDER, *ONLY_ONE):
        there = _files(folder, pattern)
        if len(there) > 1:
            names = ", ".join(repr(each.name) for each in there[:4])
            raise FileError(f"The folder {str(folder)!r} has several files to read: {names}. Say which one.")
        if there:
            return there[0]
    if package:
        raise FileError(f"The folder {str(folder)!r} is {package}")
    raise FileError(f"The folder {str(folder)!r} holds no weight file. A file in it, or an index of shards, is read.")


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def folder_kind(folder: Path) -> str:
    """What a folder is that only a framework's package reads, as backends register it; empty for any other."""
    if any(_files(folder, pattern) for pattern in IN_FOLDER):
        return ""
    inside = {each.name for each in folder.iterdir()}
    return next((kind for marks, kind, _ in FOLDERS if marks & inside), "")


def innermost(folder: Path) -> Path:
    """The folder that holds the arrays, inside of what trainers put around it: the steps of a run, the items of a step.

    Args:
        folder: It exists.

    Returns:
        The only one below it that is of a known kind; the folder itself where it is of one, or none below it is.

    Raises:
        FileError: There are several.
    """
    if any(_files(folder, pattern) for pattern in IN_FOLDER):
        return folder
    inside = {each.name: each for each in folder.iterdir()}
    if not STEP.isdisjoint(inside) and inside.keys().isdisjoint(TREE):
        below = [each for each in inside.values() if each.is_dir() and TREE & {item.name for item in each.iterdir()}]
    elif folder_kind(folder) or any(_files(folder, pattern) for pattern in ONLY_ONE):
        return folder
    else:
        below = [each for each in inside.values() if each.is_dir() and os.access(each, os.R_OK) and _is_known(each)]
    if len(below) > 1:
        below.sort(key=lambda each: (len(each.name), each.name))  # so that 10 comes after 9
        names = ", ".join(repr(each.name) for each in below[:8])
        raise FileError(
            f"The folder {str(folder)!r} holds {len(below)} checkpoints: {names}{', ...' if len(below) > 8 else ''}. "
            f"Say which one, as in {str(below[-1])!r}."
        )
    return innermost(below[0]) if below else folder


def _is_known(folder: Path) -> bool:
    return bool(folder_kind(folder)) or any(_files(folder, pattern) for pattern in IN_FOLDER)


# What is in a folder -> its kind, what it is, and the way out where its package is not installed.
FOLDERS: tuple[tuple[set[str], str, str], ...] = (
    (
        {"saved_model.pb"},
        "tensorflow/",
        "a TensorFlow SavedModel, a program with its weights. Load it with tf.saved_model.load, and save its weights.",
    ),
    (
        {"checkpoint"},
        "tensorflow/",
        "a TensorFlow checkpoint. Restore it into its model, or read it with tf.train.load_checkpoint, and mp.save it.",
    ),
    (
        {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"},
        "orbax/",
        "an Orbax checkpoint. Restore it with orbax.checkpoint, and mp.save what you get.",
    ),
    (
        {".metadata"},
        "dcp/",
        "a distributed checkpoint of torch. Turn it into one file with torch.distributed.checkpoint.format_utils."
        "dcp_to_torch_save.",
    ),
)


def index_beside(path: Path) -> Path:
    """The index of the one file that was split, where only that is there."""
    index = path.with_name(f"{path.name}{ANY_INDEX}")
    return index if not path.exists() and index.exists() else path
