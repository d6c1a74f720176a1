"""How models come in: a native one is wrapped, or an architecture of ``mp.nn`` built."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import initializers, paths
from ..errors import InvalidArgument, ShapeError, UnknownShapes
from . import registry
from .arrays import numpy_dtype
from .group import store_of
from .inputs import Inputs
from .model import Model
from .parameter import slot_of, write
from .protocol import Adapter
from .unlisted import warn_of_unlisted
from .values import UNKNOWN_CURE

FLOATS = ("float32", "float64", "float16", "bfloat16")


def wrap(native: Any, *inputs: Any, variables: Any = None, seed: int | None = None) -> Model:
    """A framework's model as a :class:`Model`; the framework is recognised by the object's classes.

    Args:
        native: The model. Nothing of it is changed.
        *inputs: Example inputs, numpy (float64 is taken as float32, which models start in) or native: for shapes that
            are only made in the first forward pass. A mapping alone: they go by keyword.
        variables: For a framework that keeps parameters apart from the model: these, as a linen module has them.
        seed: The seed to make them from, where ``variables`` is not there.

    Returns:
        The model behind one face; ``.native`` is the object itself.

    Raises:
        Unrecognised: No backend knows such an object.
        BackendMissing: The backend does not import.
        InvalidArgument: ``variables`` or ``seed`` for a framework whose models hold their parameters.
        UnknownShapes: The model's parameters do not exist yet.

        >>> import torch
        >>> net = wrap(torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.ReLU()), np.ones((2, 4)))
        >>> net["0.weight"].shape
        (8, 4)
    """
    info = registry.detect(native)  # by class names alone: a framework is imported only when a model of it is here
    adapter = info.load()
    options = {name: value for name, value in (("variables", variables), ("seed", seed)) if value is not None}
    _check_options(adapter, info.name, options)
    examples = Inputs.of(inputs[0] if len(inputs) == 1 and isinstance(inputs[0], (Mapping, Inputs)) else inputs)
    host = adapter.wrap(native, examples.map(lambda x: _example(adapter, x)), **options)
    net = Model(host, info.name, adapter)
    warn_of_unlisted(host)
    # Raised here and not at the first look at a shape: here the cure, example inputs, can still be given.
    table = store_of(net).table
    unknown = [name for name, slot in zip(table.names, table.slots, strict=True) if slot.storage.shape is None]
    if unknown:
        raise UnknownShapes(
            f"The shapes of {', '.join(map(repr, unknown[:4]))}{', ...' if len(unknown) > 4 else ''} are not known "
            f"before the first forward pass. {UNKNOWN_CURE}"
        )
    return net


def _check_options(adapter: Adapter, backend: str, options: Iterable[str]) -> None:
    """Raises InvalidArgument for an option that the adapter's wrap does not have."""
    # Its signature is the declaration: which frameworks keep parameters apart is written in no list here.
    taken = inspect.signature(adapter.wrap).parameters
    for name in options:
        if name not in taken:
            raise InvalidArgument(f"mp.wrap takes no {name}= for a model of {backend}, which holds its parameters.")


def _example(adapter: Adapter, x: Any) -> Any:
    """An example input as the framework's array; numpy's default float64 as float32, which models start in."""
    if not isinstance(x, np.ndarray):
        return x
    return adapter.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x)


def build(spec: Any, *inputs: Any, backend: str | None = None, seed: int = 0, dtype: str = "float32") -> Model:
    """An architecture of ``mp.nn`` as native layers of the selected backend.

    The function computed is the same in every backend: eps, momentum, padding, flatten order and data order are
    PyTorch's.

    Args:
        spec: A layer of ``mp.nn``, mostly a ``Sequential``.
        *inputs: One example batch, or anything with its ``shape`` and ``dtype``, channels first; input sizes are
            inferred from it.
        backend: The framework's name; None: the one that :class:`multiparam.use`, the environment variable
            MULTIPARAM_BACKEND, or being the only one installed selects.
        seed: What parameters are drawn from. They start as PyTorch's layers do, the same bits in every backend.
        dtype: That of the parameters: ``"float32"``, ``"float64"``, ``"float16"`` or ``"bfloat16"``.

    Returns:
        The model.

    Raises:
        ShapeError: A layer does not fit; it is named.
        InvalidArgument: Not one example input, or a dtype that no network has.
        WrongType: ``spec`` is no layer.
        BackendUnknown: No such backend, or several and none selected.
        BackendMissing: The backend is not installed.

        >>> net = build(mp.nn.Conv(8, 3), np.ones((1, 3, 9, 9)), backend="torch", seed=1)
        >>> net["weight"].shape, type(net.native).__name__
        ((8, 3, 3, 3), 'Conv2d')
    """
    from .architecture import infer_shapes  # here, since who only wraps need not wait for all of mp.nn

    if len(inputs) != 1:
        raise InvalidArgument(f"mp.build needs one example input, since an architecture has one; it gets {len(inputs)}")
    shape = tuple(int(n) for n in inputs[0].shape)
    if not shape:
        raise ShapeError("The example input needs a batch axis; it is a scalar")
    if dtype not in FLOATS:
        raise InvalidArgument(f"No network of dtype {dtype!r}. {paths.did_you_mean(str(dtype), FLOATS)}")
    name = registry.selected(backend)
    # Any integers are indices: what an embedding looks up.
    kind = "int64" if "int" in str(inputs[0].dtype) else dtype
    architecture = infer_shapes(spec, shape[1:], kind)
    adapter = registry.info(name).load()
    net = Model(adapter.build(architecture, dtype), name, adapter)
    _start(net, seed)
    return net


def _start(net: Model, seed: int) -> None:
    """Fill a new network, buffers too, as PyTorch's layers start, from the seed."""
    # A bias starts within bounds that its layer's weight gives (torch.nn.Linear, torch.nn.Conv2d: Variables).
    weights = {slot_of(p).path[:-1]: p.shape for p in net if slot_of(p).path[-1] == "weight"}
    for p in [*net.parameters().values(), *net.buffers().values()]:
        path = slot_of(p).path
        weight = weights.get(path[:-1], p.shape)
        value = initializers.draw(initializers.default(p.kind, path[-1], weight), p.shape, seed=seed, name=p.name)
        write(p, value.astype(numpy_dtype(p.dtype), copy=False))
