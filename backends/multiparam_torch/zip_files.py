"""PyTorch's weight files, read without PyTorch, and without running what a pickle says.

Since PyTorch 1.6 a file is a zip: a pickle, ``data.pkl``, of plain containers and of calls that rebuild tensors, and
beside it a member for each storage, stored as it is. The unpickler here knows plain containers and tensors. Any other
class is an :class:`Unknown`, which takes what a pickle gives it and does nothing.

Source: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch 2.4 to 2.9.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from multiparam.adapter import ArraySpec, FileError, Stamp, flatten, numpy_dtype

STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
DTYPES = {
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32"),
    *("uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
}
CLASSES = ("Tensor", "Parameter", "Buffer")  # of tensors that are no more than their values
CURE = "Where you trust it, load it with PyTorch and save its state_dict()."


def read(path: Path) -> Mapping[str, Any]:
    """The tensors of a ``.pt``, ``.pth`` or ``.bin`` file, each read when it is asked for.

    Nested dictionaries are joined with dots. Raises FileError for a file that holds tensors inside of what is no plain
    container, such as a whole model.
    """
    if not zipfile.is_zipfile(path):  # the format before PyTorch 1.6
        from .files import read_legacy

        return read_legacy(path)
    with zipfile.ZipFile(path) as archive:
        tree = _Unpickler(path, archive).read_all()
    if isinstance(tree, (Unknown, Tensor)) or not isinstance(tree, (Mapping, list, tuple)):
        what = f"an object of class {tree.called}" if isinstance(tree, Unknown) else "no mapping of tensors"
        raise FileError(f"{str(path)!r} holds {what}, which multiparam does not unpickle. {CURE}")
    _require_plain(tree, path)
    arrays = flatten(tree)
    strange = next((item for item in _below(tree) if isinstance(item, Unknown)), None)
    if not arrays and strange is not None:
        raise FileError(f"{str(path)!r} holds an object of class {strange.called}, which multiparam does not unpickle.")
    return arrays


class Storage(NamedTuple):
    """A member of the archive: where its bytes are, how many, and of which dtype."""

    start: int
    nbytes: int
    dtype: str


class Tensor:
    """A tensor of a file, read when numpy asks for it."""

    def __init__(
        self, stamp: Stamp, order: str, storage: Storage, dtype: str, offset: int, shape: Any, strides: Any
    ) -> None:
        self._stamp = stamp
        self._order = order
        self._storage = storage
        self._offset = int(offset)
        self.dtype = dtype
        self.shape = tuple(int(n) for n in shape)
        self._strides = tuple(int(n) for n in strides)
        last = self._offset + sum((n - 1) * stride for n, stride in zip(self.shape, self._strides, strict=True))
        size = numpy_dtype(dtype).itemsize
        if min((*self.shape, *self._strides, self._offset, 0)) < 0 or (
            0 not in self.shape and (last + 1) * size > storage.nbytes
        ):
            raise FileError(f"A tensor of shape {self.shape} would lie outside of its storage.")

    @property
    def spec(self) -> ArraySpec:
        return ArraySpec(self.shape, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        native = numpy_dtype(self.dtype)
        inside = [n for n in self.shape if n > 1]
        reach = [stride for n, stride in zip(self.shape, self._strides, strict=True) if n > 1]
        count = 1 + sum((n - 1) * stride for n, stride in zip(inside, reach, strict=True))
        count = 0 if 0 in self.shape else count
        with open(self._stamp.path, "rb") as file:
            self._stamp.check()
            file.seek(self._storage.start + self._offset * native.itemsize)
            flat = np.fromfile(file, native, count)
        if flat.size != count:
            raise FileError(f"{str(self._stamp.path)!r} ends before its data does: it was cut short.")
        if self._order == "big":
            flat = flat.byteswap()
        steps = [stride * native.itemsize for stride in self._strides]
        array = np.lib.stride_tricks.as_strided(flat, self.shape, steps) if count else flat.reshape(self.shape)
        return array if dtype is None else array.astype(dtype)


class Unknown:
    """An object of a class that no plain file holds: nothing of it is imported, or run."""

    called = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unknown:
        self = super().__new__(cls)
        self.inside = [*args, *kwargs.values()]
        return self

    inside: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.inside.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.inside.append(value)

    def append(self, item: Any) -> None:
        self.inside.append(item)

    add = append

    def extend(self, items: Any) -> None:
        self.inside.extend(items)

    def __call__(self, *args: Any, **kwargs: Any) -> Unknown:
        self.inside += [*args, *kwargs.values()]
        return self


def hashable(key: Any) -> Any:
    """A key of a mapping, unless it is a tuple of tuples: a short pickle can make one that takes for ever to hash."""
    if isinstance(key, tuple) and any(isinstance(each, tuple) for each in key):
        raise FileError("A mapping has a tuple of tuples as a key, which multiparam does not unpickle.")
    return key


def mapping(kind: type[dict[Any, Any]]) -> Callable[..., Any]:
    """What makes a mapping of pairs, with such keys."""
    return lambda pairs=(), *rest: kind((hashable(key), value) for key, value in pairs)


class PlainUnpickler(pickle._Unpickler):
    """Python's unpickler in Python: the quick one believes the numbers in a pickle, and a few bytes of it ask for any
    memory. Sets hold their items without hashing them."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def read_all(self) -> Any:
        """The object. Raises FileError where it would not fit into memory."""
        try:
            return self.load()
        except MemoryError:
            raise FileError("It asks for more memory than there is: it is damaged.") from None

    def load_setitem(self) -> None:
        hashable(self.stack[-2])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            hashable(key)
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(mapping(dict)(zip(items[::2], items[1::2], strict=True)))

    def load_empty_set(self) -> None:
        self.append(Unknown())

    def load_frozenset(self) -> None:
        self.append(Unknown(*self.pop_mark()))

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.EMPTY_SET[0]] = load_empty_set
    dispatch[pickle.FROZENSET[0]] = load_frozenset


class _Unpickler(PlainUnpickler):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        (name,) = (each for each in archive.namelist() if each == "data.pkl" or each.endswith("/data.pkl"))
        self._stamp = Stamp(path)
        self._members = {member.filename: member for member in archive.infolist()}
        super().__init__(io.BytesIO(self._bytes(name)), encoding="utf-8")
        self._root = name.removesuffix("data.pkl")
        order = self._members.get(f"{self._root}byteorder")
        self._order = "little" if order is None else self._bytes(order.filename).decode()
        self._known: dict[str, type[Unknown]] = {}
        self._storages: dict[str, Storage] = {}

    def _bytes(self, name: str) -> bytes:
        """A member as it is: whoever asks for it looks at checksums by themselves, and some files have none."""
        with open(self._stamp.path, "rb") as file:
            file.seek(_start(self._stamp.path, self._members[name]))
            return file.read(self._members[name].file_size)

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return mapping(OrderedDict)
        if module in ("builtins", "__builtin__") and name in ("list", "dict", "tuple", "complex"):
            return {"list": list, "dict": mapping(dict), "tuple": tuple}.get(name, complex)
        if module.partition(".")[0] == "torch":
            if name in STORAGES:
                return STORAGES[name]
            if name in DTYPES:
                return name
            if name == "Size":
                return tuple
            if module in ("torch._utils", "torch._tensor") and name.startswith("_rebuild_"):
                return self._rebuilder(name)
        known = self._known.setdefault(f"{module}.{name}", type(name, (Unknown,), {"called": f"{module}.{name}"}))
        return known

    def persistent_load(self, saved: Any) -> Storage:
        """A storage, by what a pickle says of it: its kind, type, member, device and length."""
        kind, dtype, key = saved[:3]
        member = self._members.get(f"{self._root}data/{key}")
        if kind != "storage" or member is None:
            raise FileError(f"{str(self._stamp.path)!r} is damaged: it has no storage {key!r}.")
        if key not in self._storages:
            self._storages[key] = Storage(_start(self._stamp.path, member), member.file_size, "")
        return self._storages[key]._replace(dtype=dtype if isinstance(dtype, str) else "")

    def _rebuilder(self, name: str) -> Callable[..., Any]:
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *rest: self._tensor(
                storage, storage.dtype, offset, shape, strides, rest[2:]
            )
        if name == "_rebuild_tensor_v3":
            return lambda storage, offset, shape, strides, _, __, dtype, *rest: self._tensor(
                storage, dtype, offset, shape, strides, rest
            )
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda data, *rest: data
        if name == "_rebuild_from_type_v2":
            return self._of_type

        def refuse(*args: Any) -> Any:
            what = name.removeprefix("_rebuild_").replace("_", " ")
            raise FileError(
                f"{str(self._stamp.path)!r} holds a tensor of another kind ({what}), which multiparam does not read. "
                "Load it with PyTorch, make it a plain one, and save that."
            )

        return refuse

    def _of_type(self, function: Callable[..., Any], cls: Any, args: Any, state: Any) -> Any:
        name = getattr(cls, "__name__", "")
        if name not in CLASSES:
            raise FileError(
                f"{str(self._stamp.path)!r} holds a tensor of class {getattr(cls, 'called', name)}, of which only that "
                "class knows the values. Load it with PyTorch, make it a plain one, and save that."
            )
        return function(*args)

    def _tensor(self, storage: Any, dtype: str, offset: Any, shape: Any, strides: Any, rest: tuple[Any, ...]) -> Tensor:
        if not isinstance(storage, Storage) or dtype not in DTYPES or any(each for each in rest):
            raise FileError(f"{str(self._stamp.path)!r} holds a tensor that is a view of another kind, as a conjugate.")
        return Tensor(self._stamp, self._order, storage, dtype, offset, shape, strides)


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member are: behind a header of its own, whose length the list at the end does not say."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise FileError(f"{str(path)!r}: {member.filename!r} is compressed, which PyTorch does not do.")
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise FileError(f"{str(path)!r} is damaged: {member.filename!r} is not where the list says.")
    return member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _require_plain(tree: Any, path: Path) -> None:
    """See that no tensor is inside of an object of another class, where it would be left out."""
    for item in _below(tree):
        if isinstance(item, Unknown) and any(isinstance(each, (Tensor, Storage)) for each in _below(item)):
            raise FileError(
                f"{str(path)!r} holds more than tensors and plain data, an object of class {item.called} with tensors "
                f"in it, which multiparam does not unpickle. {CURE}"
            )


def _below(tree: Any) -> Iterator[Any]:
    """Everything inside of containers and objects, each once."""
    seen: set[int] = set()
    stack = [tree]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, Mapping):
            stack += item.values()
        elif isinstance(item, (list, tuple, set)):
            stack += item
        elif isinstance(item, Unknown):
            stack += item.inside
