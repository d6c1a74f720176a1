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
    "errors": ("errors", None),
    "MultiparamError": ("errors", "MultiparamError"),
    "MultiparamWarning": ("errors", "MultiparamWarning"),
}

if TYPE_CHECKING:
    from . import errors, losses, nn
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
    from .errors import MultiparamError, MultiparamWarning
    from .transfers.apply import transfer
    from .transfers.plan import plan
    from .weights.files import load, save
    from .weights.formats import read

__all__ = [
    "Group",
    "Model",
    "MultiparamError",
    "MultiparamWarning",
    "Parameter",
    "Recorder",
    "backends",
    "build",
    "compare",
    "record",
    "errors",
    "init",
    "load",
    "losses",
    "nn",
    "plan",
    "read",
    "register_layer",
    "save",
    "to_numpy",
    "transfer",
    "use",
    "wrap",
]


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
