"""How a model that is compared is called, and what of its outputs is compared, where it is not called as the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from ..core.inputs import Inputs
from ..core.model import Model
from ..errors import InvalidArgument, WrongType
from ..paths import did_you_mean

Call = Callable[[Model, Any], Any]
Output = Union[str, int, Callable[[Any], Any]]


@dataclass(frozen=True)
class Caller:
    """A model's own way to be called.

    Attributes:
        call: ``call(net, batch)`` runs the model; None: on the inputs as they are. The batch is a mapping where inputs
            go by keyword, a tuple of several, or the only array.
        output: The path of what is compared in what it gives, such as ``"last_hidden_state"`` or ``"0.logits"``, an
            index, or a function of it; None: all of it.
    """

    call: Call | None = None
    output: Output | None = None

    def __call__(self, net: Model, inputs: Inputs) -> Any:
        """Run a model.

        Raises:
            InvalidArgument: Where what it gives has no such output.
        """
        given = inputs.call(net) if self.call is None else self.call(net, _batch(inputs))
        if self.output is None:
            return given
        if callable(self.output):
            return self.output(given)
        for segment in str(self.output).split("."):
            given = _part(given, segment, str(self.output))
        return given


def callers(names: Iterable[str], call: Any, output: Any) -> dict[str, Caller]:
    """The caller of each model.

    Args:
        names: The models'.
        call: Model -> function, or None.
        output: One path, index or function for all; or model -> that; or None.

    Returns:
        Model -> its caller; only of those that have one of their own.

    Raises:
        InvalidArgument: For a model that is not compared.
        WrongType: For what is no function, path or index.
    """
    names = list(names)
    if call is not None and not isinstance(call, Mapping):
        raise WrongType(f"call= takes a mapping model -> function(net, batch); this is a {type(call).__name__}.")
    outputs = output if isinstance(output, Mapping) else {} if output is None else dict.fromkeys(names, output)
    for what, each in (("call", call or {}), ("output", outputs)):
        for name in each:
            if name not in names:
                raise InvalidArgument(f"{what}= names no model {name!r}. {did_you_mean(str(name), names)}")
    for name, function in (call or {}).items():
        if not callable(function):
            raise WrongType(f"call[{name!r}] is a {type(function).__name__}: give a function of the model and a batch.")
    for name, path in outputs.items():
        if isinstance(path, bool) or not (isinstance(path, (str, int)) or callable(path)):
            raise WrongType(f"output of {name!r} is a {type(path).__name__}: give a path, an index or a function.")
    chosen = [name for name in names if name in (call or {}) or name in outputs]
    return {name: Caller((call or {}).get(name), outputs.get(name)) for name in chosen}


def _batch(inputs: Inputs) -> Any:
    if inputs.keywords:
        return inputs.keywords
    return inputs[0] if len(inputs) == 1 else tuple(inputs)


def _part(given: Any, segment: str, path: str) -> Any:
    """One step into what a model gives: a key, an attribute or an index."""
    if isinstance(given, Mapping):
        if segment in given:
            return given[segment]
        known = ", ".join(map(repr, given))
    elif isinstance(given, Sequence) and segment.lstrip("-").isdecimal():
        if -len(given) <= int(segment) < len(given):
            return given[int(segment)]
        known = f"{len(given)} of them"
    elif not segment.startswith("_") and hasattr(given, segment):
        return getattr(given, segment)
    else:
        known = f"a {type(given).__name__}"
    raise InvalidArgument(f"There is no output {path!r}: at {segment!r} there is {known}.")
