"""The errors users meet. Each names the thing, what was found, and the cure.

All derive from :class:`MultiparamError` and from the builtin a caller would expect, so both
``except mp.MultiparamError`` and ``except KeyError`` work.
"""

from __future__ import annotations


# Each has a builtin as its second base: users' code that catches KeyError around a dict of parameters, or ValueError
# around a load, goes on working when a model is wrapped, and hasattr gets the AttributeError that it looks for.
class MultiparamError(Exception):
    """The root of every error multiparam raises on purpose."""


class ParameterNotFound(MultiparamError, KeyError):
    """No parameter, group or selector of that name."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class PositionError(MultiparamError, IndexError):
    """No layer with parameters at that position."""


class ShapeError(MultiparamError, ValueError):
    """An array, a tie or an architecture whose shapes do not fit."""


class DtypeError(MultiparamError, TypeError):
    """An array whose dtype is not the parameter's."""


class UnknownShapes(MultiparamError, RuntimeError):
    """A model whose parameters do not exist, or have no shape, before its first forward pass."""


class NoValues(MultiparamError, RuntimeError):
    """A parameter that has a shape and no numbers: its model was made without memory."""


class ShardError(MultiparamError, RuntimeError):
    """An array of which this process holds a part only, where all of it is asked for."""


class TieError(MultiparamError, ValueError):
    """A tie or untie that cannot be made."""


class StateError(MultiparamError, ValueError):
    """A state that does not fit a model; lists all that is missing, unexpected or misshapen."""


class FileError(MultiparamError, ValueError):
    """A file that is not what it should be: truncated, changed, of an unknown format."""


class TransferError(MultiparamError, ValueError):
    """A transfer whose plan is not complete, or has guesses that nobody accepted."""


class InvalidArgument(MultiparamError, ValueError):
    """An option, a name or a combination that has no meaning."""


class DoesNotRun(InvalidArgument, RuntimeError):
    """A model or an objective that raises on what it is given."""


class NoGradient(InvalidArgument):
    """A loss that depends on no trainable parameter.

    Attributes:
        switched_off: Whether it was computed without gradients on purpose, as under ``torch.no_grad``.
    """

    def __init__(self, message: str, switched_off: bool = False) -> None:
        super().__init__(message)
        self.switched_off = switched_off


class WrongType(MultiparamError, TypeError):
    """An object of a type that cannot stand there."""


class BackendMissing(MultiparamError, ImportError):
    """A backend that is not installed, or whose installation is broken."""


class PackageMissing(MultiparamError, ImportError):
    """A package that one file format or dtype needs, and that is not installed."""


class BackendUnknown(MultiparamError, ValueError):
    """A backend name nobody has registered, or no choice where one is needed."""


class Unrecognised(MultiparamError, TypeError):
    """An object that no registered backend knows as a model."""


class Unsupported(MultiparamError, NotImplementedError):
    """Something a framework, or multiparam so far, cannot do; the message says why."""


class UnsupportedAttribute(Unsupported, AttributeError):
    """The same for an attribute, so that ``hasattr`` answers."""


class MultiparamWarning(UserWarning):
    """Something the user should know that is not an error."""
