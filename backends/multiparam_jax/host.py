"""What the hosts of linen and of NNX have in common: their storages hold JAX's immutable arrays."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import multiparam.adapter as mpa

from . import sharded
from .arrays import is_concrete, scope
from .training import OptaxOptimizer, TreeOptimizer, made, taken


class ArrayHost(mpa.Host):
    """A host over :class:`~multiparam_jax.arrays.ArrayStorage`."""

    _has_warned = False

    @abstractmethod
    def _parameter_tree(self) -> Any:
        """The storages of all parameters, in the tree that native code has their arrays in."""

    def has_values(self, storage: Any) -> bool:
        return not isinstance(storage.get(), jax.ShapeDtypeStruct)  # what jax.eval_shape gives for an array

    def allocate(self, storages: Sequence[Any]) -> None:
        for storage in storages:
            like = storage.get()
            with scope([like.dtype]):
                storage.set(jnp.zeros(like.shape, like.dtype, device=like.sharding))

    def write_native(self, storage: Any, array: Any) -> bool:
        if not isinstance(array, jax.Array) or not is_concrete(array):
            return False
        if any(device.platform == "cpu" for device in array.devices()):
            return False
        with scope([array.dtype]):
            storage.put(jnp.copy(array))  # or a buffer that the user donates would be the model's
        return True

    def sharding(self, storage: Any) -> mpa.Box | None:
        return sharded.local_box(storage.get())

    def fill(self, storage: Any, make: Callable[[mpa.Box], np.ndarray]) -> None:
        like = storage.get()
        if sharded.local_box(like) is None:
            super().fill(storage, make)
        else:
            storage.set(sharded.made(like, make))

    def gather(self, array: Any) -> Any:
        return sharded.gathered(array)

    def rank(self) -> int:
        return jax.process_index()

    def all_succeeded(self, done: bool) -> bool:
        over_processes = any(sharded.local_box(leaf.get()) for leaf in jax.tree.leaves(self._parameter_tree()))
        return sharded.all_succeeded(done) if over_processes else done

    def set_trainable(self, storages: Sequence[Any], flag: bool) -> None:
        super().set_trainable(storages, flag)
        if flag or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            "Frozen for the steps and optimizers of multiparam. Native training does not know of it: give optax the "
            "mask, optax.multi_transform({True: tx, False: optax.set_to_zero()}, net.trainable_mask()).",
            mpa.MultiparamWarning,
            stacklevel=5,
        )

    def trainable_mask(self) -> Any:
        return jax.tree.map(lambda storage: storage.trainable, self._parameter_tree())

    def optimizer(self, name: str, options: Mapping[str, Any], storages: Sequence[Any]) -> OptaxOptimizer:
        return OptaxOptimizer(name, options, storages)

    def native_optimizer(self, native: Any, storages: Sequence[Any]) -> TreeOptimizer | None:
        return taken(native, self._parameter_tree())

    def make_optimizer(self, kind: Any, options: Mapping[str, Any], storages: Sequence[Any]) -> Any:
        return made(kind, options)
