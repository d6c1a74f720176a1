"""What models give, leaf by leaf: arrays and texts under the names and positions that they have in an output.

Outputs are held against each other by name and structure. Whole numbers, booleans and texts are equal or they are not;
floats and complex numbers have a distance. Where nothing can be told, as where everything is NaN, that is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, NamedTuple, Union

import numpy as np

from .arrays import dtype_kind, to_numpy
from .distances import distance

Leaf = Union[np.ndarray, str]
Outputs = Mapping[str, Leaf]


class OutputsDistance(NamedTuple):
    """How far the outputs of two models are from each other.

    Attributes:
        eps: The largest distance, in eps; infinite for another structure, shape, text or whole number.
        where: The leaf that it is at, and what differs; empty where all is equal.
        undecided: Why nothing can be told; empty where something was compared.
    """

    eps: float
    where: str = ""
    undecided: str = ""


def leaves(output: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of an output, in its order, each with its name: ``logits``, ``[1]``, ``states[0].hidden``.

    Mappings, dataclasses and named tuples have names, other sequences have positions; None is nothing.

    >>> list(leaves({"y": 1.0, "states": (2.0, None, 3.0)}))
    [('y', 1.0), ('states[0]', 2.0), ('states[2]', 3.0)]
    """
    for segment, value in _members(output):
        if segment is None:
            yield path, value
        elif value is not None:
            name = f"[{segment}]" if isinstance(segment, int) else str(segment)
            yield from leaves(value, path + name if name.startswith("[") or not path else f"{path}.{name}")


def _members(output: Any) -> Iterator[tuple[Any, Any]]:
    """Name or position -> what is there, one level down; a leaf as itself, under None."""
    if isinstance(output, Mapping):  # before dataclasses, since transformers' outputs are both
        yield from output.items()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from zip(output._fields, output, strict=True)
    elif isinstance(output, (list, tuple)):
        yield from enumerate(output)
    elif output is not None:
        yield None, output


def as_it_is(array: Any) -> Any:
    """What :meth:`~multiparam.adapter.Host.gather` is where arrays are whole."""
    return array


def with_leaves(output: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with another leaf in each one's place, in the order of :func:`leaves`.

    >>> with_leaves({"y": 1.0, "states": (2.0, None)}, lambda leaf: leaf + 1)
    {'y': 2.0, 'states': (3.0, None)}
    """
    if output is None:
        return None
    members = list(_members(output))
    if [name for name, _ in members] == [None]:
        return function(output)
    values = [with_leaves(value, function) for _, value in members]
    if isinstance(output, Mapping):
        other: Any = copy(output)  # transformers' outputs are made of more than their items
        for (name, before), value in zip(members, values, strict=True):
            if value is not before:
                other[name] = value
        return other
    if dataclasses.is_dataclass(output):
        changes: dict[str, Any] = dict(zip((name for name, _ in members), values, strict=True))
        return dataclasses.replace(output, **changes)  # type: ignore[type-var]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


def named_arrays(output: Any, gather: Callable[[Any], Any] = as_it_is) -> dict[str, Leaf]:
    """The leaves of an output as numpy arrays, which may alias the framework's memory, and texts as they are.

    ``gather`` puts an array together that several processes hold: see :meth:`~multiparam.adapter.Host.gather`.
    """
    return {name: leaf if isinstance(leaf, str) else to_numpy(gather(leaf)) for name, leaf in leaves(output)}


def arrays_of(output: Any, gather: Callable[[Any], Any] = as_it_is) -> list[np.ndarray]:
    """Every array of numbers in an output, however nested; ``gather`` as for :func:`named_arrays`."""
    arrays = (array for array in named_arrays(output, gather).values() if not isinstance(array, str))
    return [array for array in arrays if dtype_kind(array.dtype.name)]


def outputs_distance(
    reference: Outputs, candidate: Outputs, in_eps_of: Callable[[np.ndarray, np.ndarray], str]
) -> OutputsDistance:
    """How far a candidate's outputs are from the reference's, by name; by position where one side has no names.

    Args:
        reference: Its leaves.
        candidate: Those of the other model.
        in_eps_of: The dtype in whose eps the distance of two arrays is.

    Returns:
        The largest distance.

    >>> y = np.array([1.0, 2.0])
    >>> outputs_distance({"u": y, "v": 2 * y}, {"v": 2 * y, "u": y}, lambda a, b: "float64").eps
    0.0
    >>> outputs_distance({"u": y}, {"u": y[:1]}, lambda a, b: "float64")
    OutputsDistance(eps=inf, where='u: of shape (2,) and (1,)', undecided='')
    """
    pairs = _paired(reference, candidate)
    if isinstance(pairs, str):
        return OutputsDistance(float("inf"), pairs)
    worst = OutputsDistance(0.0)
    for name, truth, value in pairs:
        eps, what = _leaf_distance(truth, value, in_eps_of)
        if eps > worst.eps or eps != eps:
            worst = OutputsDistance(eps, ": ".join(filter(None, (name, what))))
    if worst.eps == 0 and (why := _nothing(list(reference.values()))):
        return worst._replace(undecided=why)
    return worst


def _paired(reference: Outputs, candidate: Outputs) -> list[tuple[str, Leaf, Leaf]] | str:
    """The leaves that belong together; or why they do not."""
    if reference.keys() == candidate.keys():
        return [(name, truth, candidate[name]) for name, truth in reference.items()]
    flat = not any("[" in name[1:] or "." in name for name in (*reference, *candidate))
    unnamed = any(all(name == "" or name.startswith("[") for name in side) for side in (reference, candidate))
    if flat and unnamed and len(reference) == len(candidate):  # names that only one side has contradict nothing
        return [(name or other, *each) for (name, other), each in zip(
            zip(reference, candidate, strict=True),
            zip(reference.values(), candidate.values(), strict=True), strict=True,
        )]  # fmt: skip
    if len(reference) == len(candidate) and unnamed:
        return f"nested otherwise: {', '.join(reference)}, and {', '.join(candidate)}"
    only = (", ".join(n or "an output" for n in side if n not in other) for side, other in (
        (reference, candidate), (candidate, reference),
    ))  # fmt: skip
    first, second = only
    return "; ".join(
        f"only {who} gives {names}" for who, names in (("the reference", first), ("the candidate", second)) if names
    )


def _leaf_distance(truth: Leaf, value: Leaf, in_eps_of: Callable[[np.ndarray, np.ndarray], str]) -> tuple[float, str]:
    """The distance of two leaves, and in words what differs where it is no matter of rounding."""
    inf = float("inf")
    if isinstance(truth, str) or isinstance(value, str):
        same = isinstance(truth, str) and isinstance(value, str) and truth == value
        return (0.0, "") if same else (inf, f"{str(truth)[:40]!r} and {str(value)[:40]!r}")
    kinds = [dtype_kind(array.dtype.name) for array in (truth, value)]
    if truth.shape != value.shape:
        return inf, f"of shape {truth.shape} and {value.shape}"
    if not all(kinds):
        return (0.0, "") if np.array_equal(truth, value) else (inf, f"{truth.dtype} that is not equal")
    if all(kind in "biu" for kind in kinds):
        differing = int(np.count_nonzero(truth != value))
        return (inf, f"{differing} of {truth.size} whole numbers differ") if differing else (0.0, "")
    return distance(value, truth, in_eps_of(truth, value)), ""


def _nothing(values: list[Leaf]) -> str:
    """Why equal outputs tell nothing, if they do not."""
    if not values:
        return "the models give no output"
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values) or any(_tells(array) for array in numbers):
        return ""
    return "every output is empty" if not any(array.size for array in numbers) else "every number of the outputs is NaN"


def _tells(array: np.ndarray) -> bool:
    if dtype_kind(array.dtype.name) in "fc" and array.size:
        wide = array if array.dtype.kind == "c" else array.astype(np.float64)
        return not bool(np.isnan(wide).all())
    return bool(array.size)
