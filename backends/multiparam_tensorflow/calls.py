"""Calling a Keras model: a Functional one takes several inputs as one list or dict, whatever its users write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def call(native: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a model or layer on arrays by position and by keyword."""
    names = _input_names(native)
    named = {name: kwargs[name] for name in names if name in kwargs}
    if len(names) > 1 and len(inputs) == len(names):
        named = dict(zip(names, inputs, strict=True))
    if not names or len(named) != len(names):
        return native(*inputs, **kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in named}
    if len(names) == 1:
        return native(named[names[0]], **rest)
    return native(named if _takes_mapping(native) else list(named.values()), **rest)


def _input_names(native: Any) -> list[str]:
    """The names of a Functional model's inputs, in its order; none of another one."""
    if not any(base.__name__ == "Functional" for base in type(native).__mro__):
        return []
    if _takes_mapping(native):
        return list(_structure(native))
    return [tensor.name.partition(":")[0] for tensor in native.inputs or ()]  # tf_keras' Sequential has none at first


def _takes_mapping(native: Any) -> bool:
    return isinstance(_structure(native), Mapping)


def _structure(native: Any) -> Any:
    """The inputs as the model was made with them: Keras 3 keeps that under one private name, tf_keras under another."""
    return getattr(native, "_inputs_struct", getattr(native, "_nested_inputs", None))
