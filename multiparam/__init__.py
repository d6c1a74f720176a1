"""multiparam: one parameter API for PyTorch, MXNet Gluon, JAX/Flax and TensorFlow/Keras.

    >>> import multiparam as mp
    >>> spec = mp.nn.Sequential(mp.nn.Linear(8), mp.nn.ReLU(), mp.nn.Linear(1))

Everything heavier than numpy is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> (module, name in it; None for the module itself)
_LAZY: dict[str, tuple[str, str | None]] = {
    "backends": ("core.registry", "backends"),
    "use": ("core.registry", "use"),
    "wrap": ("core.construction", "wrap"),
    "build": ("core.construction", "build"),
    "to_numpy": ("core.arrays", "to_numpy"),
    "Model": ("core.model", "Model"),
    "Parameter": ("core.parameter", "Parameter"),
    "Group": ("core.group", "Group"),
    "Recorder": ("core.recorder", "Recorder"),
    "save": ("weights.files", "save"),
    "load": ("weights.files", "load"),
    "read": ("weights.formats", "read"),
    "compare": ("comparison.models", "compare"),
    "record": ("comparison.models", "record"),
    "plan": ("transfers.plan", "plan"),
    "transfer": ("transfers.apply", "transfer"),
    "register_layer": ("core.layers", "register_layer"),
    "nn": ("nn", None),
    "init": ("initializers", None),
    "losses": ("losses", None),
    "zoo": ("zoo", None),
    "errors": ("errors", None),
    "MultiparamError": ("errors", "MultiparamError"),
    "MultiparamWarning": ("errors", "MultiparamWarning"),
    "BackendMissing": ("errors", "BackendMissing"),
    "BackendUnknown": ("errors", "BackendUnknown"),
    "DoesNotRun": ("errors", "DoesNotRun"),
    "DtypeError": ("errors", "DtypeError"),
    "FileError": ("errors", "FileError"),
    "InvalidArgument": ("errors", "InvalidArgument"),
    "NoGradient": ("errors", "NoGradient"),
    "NoValues": ("errors", "NoValues"),
    "PackageMissing": ("errors", "PackageMissing"),
    "ParameterNotFound": ("errors", "ParameterNotFound"),
    "PositionError": ("errors", "PositionError"),
    "ShardError": ("errors", "ShardError"),
    "ShapeError": ("errors", "ShapeError"),
    "StateError": ("errors", "StateError"),
    "TieError": ("errors", "TieError"),
    "TransferError": ("errors", "TransferError"),
    "UnknownShapes": ("errors", "UnknownShapes"),
    "Unrecognised": ("errors", "Unrecognised"),
    "Unsupported": ("errors", "Unsupported"),
    "UnsupportedAttribute": ("errors", "UnsupportedAttribute"),
    "WrongType": ("errors", "WrongType"),
}

if TYPE_CHECKING:
    from . import errors, losses, nn, zoo
    from . import initializers as init
    from .comparison.models import compare, record
    from .core.arrays import to_numpy
    from .core.construction import build, wrap
    from .core.group import Group
    from .core.layers import register_layer
    from .core.model import Model
    from .core.parameter import Parameter
    from .core.recorder import Recorder
    from .core.registry import backends, use
    from .errors import (
        BackendMissing,
        BackendUnknown,
        DoesNotRun,
        DtypeError,
        FileError,
        InvalidArgument,
        MultiparamError,
        MultiparamWarning,
        NoGradient,
        NoValues,
        PackageMissing,
        ParameterNotFound,
        PositionError,
        ShapeError,
        ShardError,
        StateError,
        TieError,
        TransferError,
        UnknownShapes,
        Unrecognised,
        Unsupported,
        UnsupportedAttribute,
        WrongType,
    )
    from .transfers.apply import transfer
    from .transfers.plan import plan
    from .weights.files import load, save
    from .weights.formats import read

__all__ = [
    "BackendMissing",
    "BackendUnknown",
    "DoesNotRun",
    "DtypeError",
    "FileError",
    "Group",
    "InvalidArgument",
    "Model",
    "MultiparamError",
    "MultiparamWarning",
    "NoGradient",
    "NoValues",
    "PackageMissing",
    "Parameter",
    "ParameterNotFound",
    "PositionError",
    "ShardError",
    "Recorder",
    "ShapeError",
    "StateError",
    "TieError",
    "TransferError",
    "UnknownShapes",
    "Unrecognised",
    "Unsupported",
    "UnsupportedAttribute",
    "WrongType",
    "backends",
    "build",
    "compare",
    "errors",
    "init",
    "load",
    "losses",
    "nn",
    "plan",
    "read",
    "record",
    "register_layer",
    "save",
    "to_numpy",
    "transfer",
    "use",
    "wrap",
    "zoo",
]


def _prepare_selected() -> None:
    """What selecting a backend does to its import, where the environment selects one."""
    import os

    if name := os.environ.get("MULTIPARAM_BACKEND"):
        from .core.registry import prepare_imports

        prepare_imports([name])


_prepare_selected()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'multiparam' has no attribute {name!r}")
    from importlib import import_module

    module_name, attribute = _LAZY[name]
    module = import_module(f".{module_name}", __name__)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
