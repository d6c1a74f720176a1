"""Carrying a plan out, and running both models afterwards to see whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .distances import distance
from .errors import InvalidArgument, TransferError
from .model import Model
from .plans import Move, Plan, plan, side_of
from .rules import Rules
from .state import dtype_of

BOUND = 256.0  # eps of the output's dtype that verification allows, unless told otherwise


@dataclass(frozen=True)
class Report:
    """What a transfer did. ``distance``: that of the outputs in eps, where it was verified; ``parted``: the first
    layer, by its source and target name, whose outputs differ by more than ``bound``."""

    plan: Plan
    distance: float | None = None
    bound: float = BOUND
    parted: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two models compute the same; of an unverified transfer nobody knows."""
        return self.distance is not None and self.distance <= self.bound

    def __str__(self) -> str:
        lines = [f"{len(self.plan.moves)} parameters and buffers transferred; optimizer state does not travel."]
        lines += [*self.plan.ties, *(f"Outputs will differ: {text}" for text in self.plan.options)]
        if self.distance is not None:
            verdict = "the models agree" if self.agrees else "the models DISAGREE"
            lines.append(f"Verified: {verdict}, {self.distance:.3g} eps apart (bound {self.bound:g}).")
        if self.parted:
            lines.append(f"They part first at {self.parted}.")
        return "\n".join(lines)


def transfer(
    source: Any,
    target: Model,
    rules: Rules = None,
    *,
    partial: bool = False,
    accept_guesses: bool = False,
    cast: bool = False,
    verify: Any = None,
    bound: float = BOUND,
) -> Report:
    """Write a source's weights and buffers into a model, by :func:`plan`.

    Everything is checked before anything is written; values are read and written one at a time. ``partial`` leaves
    target parameters that nothing makes as they are. With ``verify``, example inputs of the source (numpy; a tuple
    where there are several), both models run afterwards, and the report says how far apart they are, in eps of the
    output's dtype, and if that is more than ``bound``, the first layer at which they part. Inputs and outputs of four
    or more axes are brought into each model's order of channels.

    Raises TransferError, with the plan in its text, when the plan is not complete or has guesses not accepted; the
    target is then unchanged.

        >>> import torch
        >>> native = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> spec = mp.nn.Sequential(mp.nn.Linear(3), mp.nn.ReLU(), mp.nn.Linear(2))
        >>> net = mp.build(spec, np.ones((1, 4)), backend="jax")
        >>> report = mp.transfer(mp.wrap(native), net, verify=np.ones((2, 4), "float32"))
        >>> report.agrees
        True
    """
    if verify is not None and not isinstance(source, Model):
        raise InvalidArgument("Only a model can be run to verify a transfer; this source is a file or a state.")
    found = plan(source, target, rules, cast=cast)
    problems = [title for title, texts in (
        ("something is refused", found.refused),
        ("target parameters are missing (partial=True leaves them as they are)", [] if partial else found.missing),
        ("there are guesses (accept_guesses=True takes them)", [] if accept_guesses else found.guesses),
    ) if texts]  # fmt: skip
    if problems:
        raise TransferError(f"Nothing was transferred: {', '.join(problems)}.\n{found}")
    carry_out(found, target)
    if verify is None:
        return Report(found, bound=bound)
    return verified(found, source, target, verify if isinstance(verify, tuple) else (verify,), bound)


def carry_out(found: Plan, target: Model, tick: Callable[[str], None] = lambda name: None) -> None:
    """Write the moves of a plan in which nothing is wrong, one value at a time; ``tick`` is told of each."""
    for move in found.moves:
        p = target[move.target]
        p._write(move.make().astype(dtype_of(p.dtype), copy=False))
        tick(move.target)


def verified(
    found: Plan, source: Model, target: Model, inputs: tuple[Any, ...], bound: float = BOUND, again: bool = True
) -> Report:
    """Run both models after a transfer. Where they disagree and a flattening was inferred from the layers, the transfer
    without it is tried, and kept if it agrees."""
    outputs = [_outputs(source, net, inputs) for net in (source, target)]
    if [a.shape for a in outputs[0]] != [b.shape for b in outputs[1]]:
        shapes = " and ".join(str([a.shape for a in each]) for each in outputs)
        return Report(found, float("inf"), bound, f"the output, of shapes {shapes}")
    apart = max((_distance(a, b) for a, b in zip(*outputs, strict=True)), default=0.0)
    if apart <= bound:
        return Report(found, apart, bound)
    if again and any(move.turn for move in found.moves):
        read = side_of(source).read
        other = replace(found, moves=[unturned(move, read) for move in found.moves])
        carry_out(other, target)
        report = verified(other, source, target, inputs, bound, again=False)
        if report.agrees:
            return report
        carry_out(found, target)
    return Report(found, apart, bound, parting(found.layers, source, target, inputs, bound))


def unturned(move: Move, read: Callable[[str], np.ndarray]) -> Move:
    """A move without the flattening that was inferred for it."""
    if move.turn is None:
        return move
    change = "rows as they are: nothing is flattened before, or in one order on both sides"
    gradient = None if move.gradient is None else lambda array: array
    return replace(move, make=lambda: read(move.sources[0]), change=change, turn=None, gradient=gradient)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    coarse = min((a.dtype, b.dtype), key=lambda dtype: dtype.itemsize)
    return distance(b, a, coarse.name if coarse.kind == "f" else "float32")


def turned(order: str | None, array: np.ndarray, back: bool = False) -> np.ndarray:
    """An array of four or more axes from channels first to a model's order, or back."""
    if array.ndim < 4 or order != "last":
        return array
    return np.moveaxis(array, -1, 1) if back else np.moveaxis(array, 1, -1)


def given(source: Model, net: Model, inputs: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    first, last = source._host.data_order, net._host.data_order
    arrays = [turned(first, net.to_numpy(x), back=True) for x in inputs]
    return tuple(np.ascontiguousarray(turned(last, array)) for array in arrays)


def _outputs(source: Model, net: Model, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    outputs = arrays_of(net(*given(source, net, inputs)))
    return [turned(net._host.data_order, array, back=True) for array in outputs]


def arrays_of(output: Any) -> list[np.ndarray]:
    """Every array of an output, however nested."""
    from .model import to_numpy

    if isinstance(output, Mapping):
        return [array for each in output.values() for array in arrays_of(each)]
    if isinstance(output, (list, tuple)):
        return [array for each in output for array in arrays_of(each)]
    return [] if output is None else [to_numpy(output)]


def orders(array: np.ndarray) -> list[np.ndarray]:
    """A layer's output as it is and with its channels elsewhere: a built model's layers have another order inside."""
    return [array] if array.ndim < 3 else [array, np.moveaxis(array, -1, 1), np.moveaxis(array, 1, -1)]


def parting(
    layers: Iterable[tuple[str, str]], source: Model, target: Model, inputs: tuple[Any, ...], bound: float
) -> str:
    """The first layer in the source's order of execution whose output differs in the target, by both names."""
    watched = [net.activations(*given(source, net, inputs)) for net in (source, target)]
    mine, theirs = ({call.layer: arrays_of(call.output) for call in each} for each in watched)
    to = dict(layers)
    for name, arrays in mine.items():
        other = theirs.get(to.get(name, ""))
        if other is None:
            continue
        apart = max(
            (min(_distance(a, each) for each in orders(b)) for a, b in zip(arrays, other, strict=False)), default=0.0
        )
        if apart > bound:
            names = name if name == to[name] else f"{name} -> {to[name]}"
            return f"layer {names} ({apart:.3g} eps)"
    return "the output: the outputs of all layers with parameters agree"
