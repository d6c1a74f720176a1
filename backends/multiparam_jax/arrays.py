"""JAX's arrays: 64-bit scopes, what comes from numpy, and storages over immutable arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

import multiparam.adapter as mpa

WIDENED = ("float32", "float16", "bfloat16")  # whose numbers float64 has exactly
LARGE = 1 << 16  # bytes from which an array is handed to JAX at once
CONFIG: Any = jax.config
# JAX 0.7 has the second only; the first, where it is there, refuses to be taken for a truth value.
ENABLE_X64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def x64() -> AbstractContextManager[Any]:
    """A scope in which JAX keeps 64-bit numbers, whatever ``jax_enable_x64`` is outside."""
    scope: AbstractContextManager[Any] = nullcontext() if CONFIG.jax_enable_x64 else ENABLE_X64(True)
    return scope


def scope(dtypes: Iterable[Any]) -> AbstractContextManager[Any]:
    """:func:`x64` where one of the dtypes needs it, else nothing."""
    return x64() if any(np.dtype(dtype).name in ("float64", "complex128") for dtype in dtypes) else nullcontext()


def from_numpy(array: np.ndarray) -> jax.Array:
    """A copy. JAX may adopt numpy memory on a CPU, or copy it later: it gets memory that nobody else can write to."""
    with scope([array.dtype]):
        if array.flags.c_contiguous:
            return jnp.asarray(mpa.contiguous(array))
        # XLA is quicker at changing the order than numpy. It may work on after the call, so wait for it.
        return jnp.asarray(array).block_until_ready()


def placed(array: np.ndarray, like: Any) -> Any:
    """numpy's numbers as a JAX array that lies where another does: on its devices, sharded as it is.

    Each device gets its own blocks and no more, and of an array over several processes each makes its own blocks.
    """
    sharding = like.sharding
    if not like.committed:  # free to be moved to where computations want it, as it was
        return from_numpy(array)
    with scope([array.dtype]):
        # a block is a copy, since JAX may adopt numpy's memory
        return jax.make_array_from_callback(array.shape, sharding, lambda box: np.array(array[box], order="C"))


def is_concrete(tree: Any) -> bool:
    """Whether no array of a tree is traced, as those inside a scan are."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _in_own_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of jax.numpy in the precision of its arrays: outside of a scope, float64 comes out as float32."""

    def call(arrays: Any, *args: Any, **kwargs: Any) -> Any:
        with scope(array.dtype for array in jax.tree.leaves(arrays)):
            return function(arrays, *args, **kwargs)

    return call


NAMESPACE = SimpleNamespace(
    **{f.__name__: _in_own_precision(f) for f in (jnp.permute_dims, jnp.reshape, jnp.flip, jnp.concat)}
)


class ArrayStorage(mpa.KeptGradient):
    """A storage over an immutable array that somebody holds: here this object itself, as its ``native``."""

    def __init__(self, native: Any, trainable: bool = True) -> None:
        self.native = native
        self._trainable = trainable

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self._trainable = flag
        if not flag:
            self.gradient = None

    def get(self) -> Any:
        """The current array, or a tracer."""
        return self.native

    def set(self, array: Any) -> None:
        """Hold another array."""
        self.native = array

    @property
    def shape(self) -> tuple[int, ...] | None:
        return tuple(self.get().shape)

    @property
    def dtype(self) -> str:
        return str(np.dtype(self.get().dtype).name)

    def read(self) -> Any:
        return self.get()

    def write(self, value: np.ndarray) -> None:
        like = self.get()
        with x64():  # or 64-bit integers would be cut to 32
            self.set(placed(value, like) if isinstance(like, jax.Array) else from_numpy(value))

    def put(self, array: jax.Array) -> None:
        """Hold a JAX array, moved to where the one before lies."""
        like = self.get()
        self.set(jax.device_put(array, like.sharding) if like.committed else array)


class LeafStorage(ArrayStorage):
    """A leaf of a tree. numpy's arrays become JAX's when they are first asked for, which takes long for thousands."""

    def __init__(self, native: Any, trainable: bool = True) -> None:
        if isinstance(native, np.ndarray):
            # JAX has no 64-bit integers unless told so: the dtype must be the one that the array has afterwards.
            lasting = native.dtype.name not in ("int64", "uint64")
            wait = lasting and native.nbytes < LARGE and native.flags.c_contiguous
            native = native.copy() if wait else from_numpy(native)
        self.held: Any = native
        self._trainable = trainable

    @property
    def native(self) -> Any:
        if isinstance(self.held, np.ndarray):
            with jax.ensure_compile_time_eval():
                self.held = from_numpy(self.held)
        return self.held

    @native.setter
    def native(self, native: Any) -> None:
        self.held = native

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.held.shape
        return shape

    @property
    def dtype(self) -> str:
        return str(np.dtype(self.held.dtype).name)


def in_float64(storages: Iterable[Any]) -> AbstractContextManager[None] | None:
    """Arrays of narrower floats as float64 ones for a while; None where others are among them."""
    dtypes = {storage: storage.dtype for storage in storages}
    if not set(dtypes.values()) <= {*WIDENED, "int32", "uint32"}:
        return None
    return _widened([storage for storage, dtype in dtypes.items() if dtype in WIDENED])


def computes_narrower(module: Any) -> bool:
    """Whether a layer's ``dtype`` says that it computes in narrower floats than float64, however that is written."""
    dtype = getattr(module, "dtype", None)
    try:
        return dtype is not None and jnp.dtype(dtype).name in WIDENED
    except TypeError:  # a user's own attribute of that name
        return False


@contextmanager
def _widened(storages: list[ArrayStorage]) -> Iterator[None]:
    before = [storage.get() for storage in storages]
    with x64():
        for storage, array in zip(storages, before, strict=True):
            storage.set(array.astype("float64"))
        try:
            yield
        finally:
            for storage, array in zip(storages, before, strict=True):
                storage.set(array)
