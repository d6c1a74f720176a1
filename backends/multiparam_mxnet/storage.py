"""What Gluon keeps: Parameters as storages, transposed ties as Parameters of their own, and arrays of two kinds.

Arrays are of the kind in force when they are made: ``mx.np`` after ``npx.set_np()``, else ``mx.nd``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from multiparam.adapter import Layout, contiguous

from .load import load

mx = load()


def is_np(array: Any) -> bool:
    """Whether an array, or a symbol of one, is of the ``mx.np`` kind."""
    return isinstance(array, (mx.np.ndarray, mx.sym.np._Symbol))


def from_numpy(array: np.ndarray, np_kind: bool) -> Any:
    """An array of one kind or the other. Without ``dtype``, MXNet 1.9.1 makes float32 of everything."""
    return (mx.np.array if np_kind else mx.nd.array)(array, dtype=array.dtype)


def namespace(array: Any) -> Any:
    """Where the operations on an array, or on a symbol of one, are: its kind's own module, but for concat."""
    if is_np(array):
        return mx.sym.np if isinstance(array, mx.sym.Symbol) else mx.np
    F = mx.sym if isinstance(array, mx.sym.Symbol) else mx.nd
    return SimpleNamespace(
        transpose=F.transpose,
        reshape=F.reshape,
        flip=F.flip,
        concat=lambda arrays, axis: F.concat(*arrays, dim=axis),  # concatenate() is no operator: nothing is recorded
    )


def parameter_shape(parameter: Any) -> tuple[int, ...]:
    """A parameter's shape; () while it is not known. One that was loaded into a SymbolBlock knows its array only."""
    shape = parameter.shape
    if shape is None and parameter._data is not None:
        shape = parameter.data().shape
    return tuple(shape or ())


class GluonStorage:
    """A gluon Parameter."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._request = "write" if native.grad_req == "null" else native.grad_req
        # The gradient's arrays that a backward has reached: Gluon shows zeros before the first, and makes new arrays
        # when a parameter is initialised again.
        self._reached: Any = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if self.native._data is None else parameter_shape(self.native)

    @property
    def dtype(self) -> str:
        return str(np.dtype(self.native.dtype).name)

    @property
    def trainable(self) -> bool:
        return bool(self.native.grad_req != "null")

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        if flag != self.trainable:
            if not flag:
                self._request = self.native.grad_req  # "write" or "add", for when it is trained again
            self.native.grad_req = self._request if flag else "null"
            self._reached = None

    def read(self) -> Any:
        return self.native.data()

    def write(self, value: np.ndarray) -> None:
        value = value if value.flags.c_contiguous else contiguous(value)
        with mx.autograd.pause():
            try:
                self.native.data()[:] = value
            except mx.MXNetError:  # 1.9.1: a convolution that has run keeps its weight in MKLDNN's own format
                self.native.data()[:] = from_numpy(value, is_np(self.native.data()))

    def grad(self) -> Any | None:
        arrays = self.native._grad
        if not self.trainable or arrays is None:
            return None
        grad = self.native.grad()
        # The flag is down again after a Trainer's step: then non-zero values tell.
        if self._reached is not arrays and (self.native.data()._fresh_grad or grad.asnumpy().any()):
            self._reached = arrays
        return grad if self._reached is arrays else None

    def hold_grad(self) -> Callable[[], None]:
        grad = self.grad()
        held = None if grad is None else grad.copy()  # the next backward writes into that memory

        def put_back() -> None:
            if held is not None:
                self.native.grad()[:] = held
                self.mark_fresh()
            elif self.grad() is not None:
                self.native.grad()[:] = 0  # 1.9.1: zero_grad fails for an array of the mx.np kind
                self._reached, self.native.data()._fresh_grad = None, False

        return put_back

    def mark_fresh(self) -> None:
        """The gradient is current, for us and for a Trainer."""
        self._reached = self.native._grad
        self.native.data()._fresh_grad = True


class TiedView(mx.gluon.Parameter):  # type: ignore[misc,name-defined]
    """What a block holds where a transposed tie is: another Parameter, ``source``, in this layout.

    Everything asked of it is asked of that one. It has no data, so no Trainer must know it: a block's own dictionary
    holds the source in its place.
    """

    def __init__(self, source: Any, layout: Layout) -> None:
        self.source = source
        self.view = layout
        super().__init__(f"{source.name}_view", source.grad_req, layout.shape(source.shape), source.dtype)
        # What has no array in it is the source's own answer.
        self.list_ctx, self.reset_ctx, self.zero_grad = source.list_ctx, source.reset_ctx, source.zero_grad

    def _apply(self, array: Any) -> Any:
        return self.view.apply(array, namespace(array))

    def _undo(self, array: Any) -> Any:
        return self.view.undo(array, namespace(array))

    @property
    def grad_req(self) -> str:
        return str(self.source.grad_req)

    @grad_req.setter
    def grad_req(self, request: str) -> None:
        if request != self.source.grad_req:  # setting it makes new gradient arrays
            self.source.grad_req = request

    def data(self, ctx: Any = None) -> Any:
        return self._apply(self.source.data(ctx))

    def list_data(self) -> list[Any]:
        return list(map(self._apply, self.source.list_data()))

    def grad(self, ctx: Any = None) -> Any:
        return self._apply(self.source.grad(ctx))

    def list_grad(self) -> list[Any]:
        return list(map(self._apply, self.source.list_grad()))

    def var(self) -> Any:
        return self._apply(self.source.var())

    def set_data(self, data: Any) -> None:
        self.source.set_data(self._undo(data))

    def _reduce(self) -> Any:  # what save_parameters writes
        return self._apply(self.source._reduce())

    def _load_init(self, data: Any, ctx: Any, cast_dtype: bool = False, dtype_source: str = "current") -> None:
        array = data if isinstance(data, mx.nd.NDArray) else mx.nd.array(data)
        self.source._load_init(self._undo(array), ctx, cast_dtype, dtype_source)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the source is initialised where it is held."""

    def cast(self, dtype: Any) -> None:
        self.source.cast(dtype)
        self._dtype = np.dtype(dtype)


def untied(parameter: Any) -> tuple[Any, Layout | None]:
    """The Parameter that has the array of one that a block holds, and the layout that the block sees of it."""
    return (parameter.source, parameter.view) if isinstance(parameter, TiedView) else (parameter, None)
