"""Keras' and TensorFlow's arrays, and storages over variables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

import multiparam.adapter as mpa

from .framework import is_tensor, is_variable, tf

# TensorFlow's names for what the array API standard names.
TENSORS = tf and SimpleNamespace(permute_dims=tf.transpose, reshape=tf.reshape, flip=tf.reverse, concat=tf.concat)


def namespace(array: Any) -> Any:
    """That of TensorFlow's tensors, or of another backend of Keras'."""
    return TENSORS if is_tensor(array) else keras.ops


def tf_variable(variable: Any) -> Any:
    """The tf.Variable behind a Keras 3 one, which on TensorFlow is a wrapper."""
    return variable if is_variable(variable) else variable._value


def to_tensor(variable: Any) -> Any:
    """A variable as the tensor that its backend computes with."""
    if is_variable(variable) or keras.backend.backend() == "tensorflow":
        return tf.convert_to_tensor(variable)
    return variable.value


def to_numpy(array: Any) -> np.ndarray:
    """An array of TensorFlow, Keras or a backend of Keras' as numpy."""
    if isinstance(array, keras.Variable):
        array = to_tensor(array)
    if is_tensor(array) or is_variable(array):
        return np.asarray(array.numpy())  # np.asarray alone fails for a scalar of bfloat16, as of TensorFlow 2.21
    return np.asarray(keras.ops.convert_to_numpy(array) if hasattr(array, "detach") else array)  # torch's may track


class KerasStorage(mpa.KeptGradient):
    """A Keras 3 Variable, or tf_keras' tf.Variable.

    Attributes:
        native: The variable.
        layer: One that holds it; tf_keras freezes layers, not variables.
    """

    def __init__(self, native: Any, layer: Any) -> None:
        self.native = native
        self.layer = layer
        self._shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        if self._shape is None:  # a variable keeps its shape, and TensorFlow makes a TensorShape each time
            self._shape = tuple(self.native.shape)
        return self._shape

    @property
    def dtype(self) -> str:
        dtype = self.native.dtype  # a text in Keras 3
        return str(dtype if isinstance(self.native, keras.Variable) else tf.as_dtype(dtype).name)

    @property
    def trainable(self) -> bool:
        three = isinstance(self.native, keras.Variable)
        return bool(self.native.trainable and (three or self.layer.trainable))

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        (self.native if isinstance(self.native, keras.Variable) else self.layer).trainable = flag
        if not flag:
            self.gradient = None

    def read(self) -> Any:
        return to_tensor(self.native)

    def write(self, value: np.ndarray) -> None:
        self.native.assign(mpa.contiguous(value))  # a tensor may alias what it is made of


class TiedView:
    """What a layer's attribute holds where a transposed tie is: another variable, ``source``, in this layout.

    TensorFlow takes it for a tensor wherever it computes with it, and Keras for a variable where it saves weights.
    """

    def __init__(self, source: Any, layout: mpa.Layout) -> None:
        self.source = source
        self.layout = layout

    @property
    def value(self) -> Any:
        tensor = to_tensor(self.source)
        return self.layout.apply(tensor, namespace(tensor))

    def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> Any:
        value: Any = self.value
        return value if dtype is None or value.dtype == dtype else tf.cast(value, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(to_numpy(self.value), dtype)

    def __jax_array__(self) -> Any:  # where Keras runs on JAX
        return self.value

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*(a.value if isinstance(a, cls) else a for a in args), **(kwargs or {}))  # and on PyTorch

    def numpy(self) -> np.ndarray:
        return to_numpy(self.value)

    @property
    def shape(self) -> Any:
        shape = self.layout.shape(tuple(self.source.shape))
        return shape if isinstance(self.source, keras.Variable) else tf.TensorShape(shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return self.source.dtype

    @property
    def name(self) -> str:
        return str(self.source.name)

    def assign(self, value: Any) -> Any:
        return self.source.assign(self.layout.undo(to_numpy(value), np))

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]
