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
    "backends": ("registry", "backends"),
    "use": ("registry", "use"),
    "wrap": ("model", "wrap"),
    "build": ("model", "build"),
    "to_numpy": ("model", "to_numpy"),
    "Model": ("model", "Model"),
    "Parameter": ("parameter", "Parameter"),
    "Group": ("parameter", "Group"),
    "Recorder": ("recorder", "Recorder"),
    "save": ("files", "save"),
    "load": ("files", "load"),
    "read": ("formats", "read"),
    "compare": ("comparison.models", "compare"),
    "record": ("comparison.models", "record"),
    "plan": ("plans", "plan"),
    "transfer": ("transferring", "transfer"),
    "register_layer": ("layouts", "register_layer"),
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
    from .errors import MultiparamError, MultiparamWarning
    from .files import load, save
    from .formats import read
    from .layouts import register_layer
    from .model import Model, build, to_numpy, wrap
    from .parameter import Group, Parameter
    from .plans import plan
    from .recorder import Recorder
    from .registry import backends, use
    from .transferring import transfer

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
