"""Carrying a plan out, and running both models afterwards to see whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.arrays import numpy_dtype
from ..core.distances import distance
from ..core.group import store_of
from ..core.model import Model
from ..core.parameter import write
from ..errors import InvalidArgument, TransferError
from .plan import Move, Plan, manifest_of, plan
from .rename import Rules

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
    apply_plan(found, target)
    if verify is None:
        return Report(found, bound=bound)
    return verify_transfer(found, source, target, verify if isinstance(verify, tuple) else (verify,), bound)


def apply_plan(found: Plan, target: Model, tick: Callable[[str], None] = lambda name: None) -> None:
    """Write the moves of a plan in which nothing is wrong, one value at a time; ``tick`` is told of each."""
    for move in found.moves:
        p = target[move.target]
        write(p, move.make().astype(numpy_dtype(p.dtype), copy=False))
        tick(move.target)


def verify_transfer(
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
    if again and any(move.permutation for move in found.moves):
        read = manifest_of(source).read
        other = replace(found, moves=[without_permutation(move, read) for move in found.moves])
        apply_plan(other, target)
        report = verify_transfer(other, source, target, inputs, bound, again=False)
        if report.agrees:
            return report
        apply_plan(found, target)
    return Report(found, apart, bound, first_divergence(found.layers, source, target, inputs, bound))


def without_permutation(move: Move, read: Callable[[str], np.ndarray]) -> Move:
    """A move without the flattening that was inferred for it."""
    if move.permutation is None:
        return move
    change = "rows as they are: nothing is flattened before, or in one order on both sides"
    gradient = None if move.gradient is None else lambda array: array
    return replace(move, make=lambda: read(move.sources[0]), change=change, permutation=None, gradient=gradient)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    coarse = min((a.dtype, b.dtype), key=lambda dtype: dtype.itemsize)
    return distance(b, a, coarse.name if coarse.kind == "f" else "float32")


def to_data_order(order: str | None, array: np.ndarray, back: bool = False) -> np.ndarray:
    """An array of four or more axes from channels first to a model's order, or back."""
    if array.ndim < 4 or order != "last":
        return array
    return np.moveaxis(array, -1, 1) if back else np.moveaxis(array, 1, -1)


def inputs_for(source: Model, net: Model, inputs: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    first, last = data_order(source), data_order(net)
    arrays = [to_data_order(first, net.to_numpy(x), back=True) for x in inputs]
    return tuple(np.ascontiguousarray(to_data_order(last, array)) for array in arrays)


def data_order(net: Model) -> str:
    """Where a model has the channels of its data: ``"first"`` or ``"last"``."""
    return store_of(net).host.data_order


def _outputs(source: Model, net: Model, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    outputs = arrays_of(net(*inputs_for(source, net, inputs)))
    return [to_data_order(data_order(net), array, back=True) for array in outputs]


def arrays_of(output: Any) -> list[np.ndarray]:
    """Every array of an output, however nested."""
    from ..core.arrays import to_numpy

    if isinstance(output, Mapping):
        return [array for each in output.values() for array in arrays_of(each)]
    if isinstance(output, (list, tuple)):
        return [array for each in output for array in arrays_of(each)]
    return [] if output is None else [to_numpy(output)]


def channel_orders(array: np.ndarray) -> list[np.ndarray]:
    """A layer's output as it is and with its channels elsewhere: a built model's layers have another order inside."""
    return [array] if array.ndim < 3 else [array, np.moveaxis(array, -1, 1), np.moveaxis(array, 1, -1)]


def first_divergence(
    layers: Iterable[tuple[str, str]], source: Model, target: Model, inputs: tuple[Any, ...], bound: float
) -> str:
    """The first layer in the source's order of execution whose output differs in the target, by both names."""
    watch_calls = [net.activations(*inputs_for(source, net, inputs)) for net in (source, target)]
    mine, theirs = ({call.layer: arrays_of(call.output) for call in each} for each in watch_calls)
    to = dict(layers)
    for name, arrays in mine.items():
        other = theirs.get(to.get(name, ""))
        if other is None:
            continue
        apart = max(
            (min(_distance(a, each) for each in channel_orders(b)) for a, b in zip(arrays, other, strict=False)),
            default=0.0,
        )
        if apart > bound:
            names = name if name == to[name] else f"{name} -> {to[name]}"
            return f"layer {names} ({apart:.3g} eps)"
    return "the output: the outputs of all layers with parameters agree"
