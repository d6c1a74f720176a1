"""``mp.compare``: do the models people have compute the same, and if not, where do they first part?

The first model is the reference. Another one's parameters are matched to it by :func:`multiparam.plan`, and so are the
layers whose inputs and outputs are followed through a forward pass. Where the models can run in float64, that is where
they must agree: there rounding is so small that a wrong eps shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import paths, plans, registry, transferring
from ..errors import InvalidArgument, MultiparamError, ShapeError
from ..model import Model, to_numpy, wrap
from ..plans import Move, Plan
from ..protocol import Activation
from ..rules import Rules
from .hints import between, of_values
from .judge import Check, distance

# In eps, unless told otherwise: room for a deep network, and far below what a wrong eps costs in float64.
BOUNDS: Mapping[str, float] = {"output": 1024, "layer": 1024, "gradient": 16384, "training": 65536}


@dataclass(frozen=True)
class Layer:
    """One matched call of a layer: how far apart its inputs and its outputs are, in eps."""

    reference: str
    name: str
    inputs: float
    output: float


@dataclass
class Pair:
    """One model against the reference."""

    name: str
    plan: Plan
    checks: list[Check] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    parted: str = ""
    hints: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What :func:`compare` found: ``print`` it, or ask it whether it ``agrees``, and each pair where it ``parted``."""

    reference: str
    pairs: list[Pair]
    bounds: Mapping[str, float]
    versions: Mapping[str, str]

    @property
    def checks(self) -> list[Check]:
        """All checks of all pairs."""
        return [check for pair in self.pairs for check in pair.checks]

    @property
    def agrees(self) -> bool:
        """Whether every check holds."""
        return all(check.agrees for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: Comparison) -> Iterator[str]:
    for pair in found.pairs:
        agrees = all(check.agrees for check in pair.checks)
        yield f"{pair.name} {'agrees' if agrees else 'DISAGREES'} with {found.reference}"
        for check in pair.checks:
            far = "" if check.distance is None else f"{check.distance:.3g} eps of {check.dtype} (bound {check.bound:g})"
            notes = " ".join(filter(None, (far, check.detail)))
            yield f"  {'ok ' if check.agrees else 'NOT'} {check.check}" + (f": {notes}" if notes else "")
        if pair.parted:
            yield f"  They part first {pair.parted}."
        yield from (f"  Hint: {hint}." for hint in pair.hints)


def compare(
    models: Mapping[str, Any],
    inputs: Any,
    *,
    targets: Any = None,
    objective: Callable[..., Any] | None = None,
    rules: Rules = None,
    sync: str | None = None,
    rtol_eps: float | None = None,
    steps: int = 0,
    optimizer: str = "sgd",
    lr: float = 0.01,
) -> Comparison:
    """Compare models, native or wrapped, of any frameworks: name -> model, the first being the reference.

    Checked are parameters (names, shapes, kinds, ties, values), options that weights do not carry, outputs, what layers
    give on the way, and the gradients of ``objective(net, *inputs, *targets)``; with ``steps``, the parameters after as
    many of ``optimizer``. ``inputs`` are the reference's, numpy, a tuple where there are several; four axes or more are
    turned to each model's order of channels. ``sync`` names a model whose weights are first transferred to the others,
    so that what is compared is the computation: those models are changed. ``rules``: see :func:`multiparam.transfer`.

    Distances are normwise, in eps of the dtype, in float64 where both models can run in it. ``rtol_eps`` is one bound
    for all instead of the stated ones. Raises InvalidArgument for fewer than two models or an unknown ``sync``.

        >>> import torch
        >>> a = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> b = mp.build(mp.nn.Sequential(mp.nn.Linear(3), mp.nn.LayerNorm(eps=1e-6)), np.ones((1, 4)), backend="jax")
        >>> found = mp.compare({"a": a, "b": b}, np.eye(4, dtype="float32"), sync="a")
        >>> found.agrees, found.pairs[0].parted.partition(":")[0], found.pairs[0].hints
        (False, 'at layer 1', ['1: eps is 1e-05 there, 1e-06 here'])
    """
    if len(models) < 2:
        raise InvalidArgument(f"mp.compare needs two models or more; it gets {len(models)}.")
    if sync is not None and sync not in models:
        raise InvalidArgument(f"sync={sync!r} names no model of {', '.join(map(repr, models))}.")
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    more = () if targets is None else targets if isinstance(targets, tuple) else (targets,)
    nets = {name: model if isinstance(model, Model) else wrap(model, *given) for name, model in models.items()}
    reference, *others = nets
    bounds = dict(BOUNDS) if rtol_eps is None else dict.fromkeys(BOUNDS, rtol_eps)
    work = _Work(nets[reference], given, more, objective, bounds, steps, optimizer, lr)
    for name in [name for name in nets if sync not in (None, name)]:
        transferring.transfer(nets[str(sync)], nets[name], rules if sync == reference else None, accept_guesses=True)
    pairs = [work.pair(name, nets[name], rules) for name in others]
    versions = {net.backend: str(registry.info(net.backend).version()) for net in nets.values()}
    return Comparison(reference, pairs, bounds, versions)


class _Work:
    """A reference, what it is run on, and how far others may be from it."""

    def __init__(
        self, net: Model, inputs: tuple[Any, ...], targets: tuple[Any, ...], objective: Callable[..., Any] | None,
        bounds: Mapping[str, float], steps: int, optimizer: str, lr: float,
    ) -> None:  # fmt: skip
        self.net = net
        self.inputs = inputs
        self.targets = targets
        self.objective = objective
        self.bounds = bounds
        self.steps = steps
        self.training = optimizer, lr

    def pair(self, name: str, other: Model, rules: Rules) -> Pair:
        """All checks of one model."""
        found = Pair(name, plans.plan(self.net, other, rules, cast=True))
        self._parameters(found, other)
        with ExitStack() as stack:
            dtype = self._outputs(found, other, stack)
            self._layers(found, other, dtype)
        self._gradients(found, other)
        if self.steps:
            self._training(found, other)
        return found

    def _check(self, found: Pair, what: str, kind: str, dtype: str, far: float, where: str = "") -> None:
        bound = self.bounds[kind]
        detail = where if far > bound else ""
        found.checks.append(Check("", what, found.name, far <= bound, dtype, far, bound, detail))

    def _parameters(self, found: Pair, other: Model) -> None:
        plan = found.plan
        wrong = [
            *(f"nothing makes {name}" for name in plan.missing),
            *(f"{name} goes nowhere" for name in plan.unused),
            *plan.refused,
        ]
        found.checks.append(Check("", "structure", found.name, not wrong, detail="; ".join(wrong[:4])))
        options = [text for text in plan.options if self.steps or not text.endswith("when it trains")]
        found.checks.append(Check("", "options", found.name, not options, detail="; ".join(options)))
        ties = [*plan.ties, *_untied(plan, self.net, other)]
        found.checks.append(Check("", "ties", found.name, not ties, detail="; ".join(ties)))
        differing = [m for m in plan.moves if not _same(m.make(), other[m.target].numpy())] if not plan.refused else []
        names = ", ".join(move.target for move in differing[:4]) + (", ..." if len(differing) > 4 else "")
        found.checks.append(Check("", "values", found.name, not differing, detail=names))
        hints = (of_values(move.make(), other[move.target].numpy(), move) for move in differing)
        found.hints += [hint for hint in hints if hint]

    def _outputs(self, found: Pair, other: Model, stack: ExitStack | None) -> str:
        """Run both, in float64 where there is a stack and they can; the dtype they ran in, and are in until that one is
        closed."""
        widened = any(net.dtype != "float64" for net in (self.net, other))
        dtype = "float32" if stack is None else _widen(stack, self.net, other)
        try:
            mine, theirs = (self._run(net, dtype) for net in (self.net, other))
        except MultiparamError:
            raise
        except Exception as error:
            if stack is not None and widened and dtype == "float64":
                stack.close()  # a part of it insists on float32, as the state of flax' recurrent cells does
                return self._outputs(found, other, None)
            raise InvalidArgument(f"A model does not run on these inputs: {type(error).__name__}: {error}") from error
        self._check(found, "outputs", "output", dtype, _worst(mine, theirs, dtype))
        return dtype

    def _run(self, net: Model, dtype: str) -> list[np.ndarray]:
        output = net(*self._given(net, dtype))
        return [transferring.turned(net, array, back=True) for array in transferring.arrays_of(output)]

    def _given(self, net: Model, dtype: str) -> tuple[Any, ...]:
        arrays = transferring.given(self.net, net, self.inputs)
        cast = (a.astype(dtype, copy=False) if a.dtype.kind == "f" else a for a in arrays)
        return tuple(net.adapter.from_numpy(array) for array in cast)

    def _layers(self, found: Pair, other: Model, dtype: str) -> None:
        mine, theirs = (net._host.activations(self._given(net, dtype)) for net in (self.net, other))
        to = dict(found.plan.layers)
        turns = {paths.split(move.target)[0]: move.turn for move in found.plan.moves if move.turn is not None}
        seen: dict[str, list[Activation]] = {}
        for call in theirs:
            seen.setdefault(call.layer, []).append(call)
        before: tuple[Activation, Activation] | None = None
        for call in mine:
            name = to.get(call.layer)
            if name is None or not seen.get(name):
                continue
            twin = seen[name].pop(0)
            layer = Layer(call.layer, name, _apart(call.inputs, twin.inputs, dtype, turns.get(name)),
                          _apart(call.output, twin.output, dtype))  # fmt: skip
            found.layers.append(layer)
            if not found.parted:
                self._part(found, layer, before, (call, twin), turns.get(name))
            before = call, twin
        outputs = next(check for check in found.checks if check.check == "outputs")
        if not outputs.agrees and not found.parted:
            last = f"after layer {_both(found.layers[-1])}, whose output agrees" if found.layers else "somewhere"
            found.parted = last
        far = max((layer.output for layer in found.layers), default=0.0)
        self._check(found, f"{len(found.layers)} layers on the way", "layer", dtype, far)

    def _part(self, found: Pair, layer: Layer, before: Any, calls: tuple[Activation, Activation], turn: Any) -> None:
        bound = self.bounds["layer"]
        if layer.output <= bound:  # its inputs may still be cut otherwise, as where padding is a layer of its own
            return
        if layer.inputs > bound:
            since = f"between layers {_both(found.layers[-2])} and" if before else "before layer"
            found.parted = f"{since} {_both(layer)}, whose inputs are {layer.inputs:.3g} eps apart"
            if before and turn is None:
                found.hints += between(before[0], before[1], calls[0], calls[1])
        else:
            found.parted = (
                f"at layer {_both(layer)}: its inputs agree ({layer.inputs:.3g} eps) and its output does not "
                f"({layer.output:.3g} eps)"
            )
            found.hints += [text for text in found.plan.options if text.startswith(f"{layer.name or 'the model'}: ")]

    def _gradients(self, found: Pair, other: Model) -> None:
        if found.plan.missing or found.plan.refused:
            return
        worst, where = _farthest(found.plan.moves, self._grads(self.net), self._grads(other))
        self._check(found, "gradients", "gradient", "float32", worst, where)

    def _grads(self, net: Model) -> dict[str, np.ndarray]:
        objective = self.objective or _mean_square
        step = net.value_and_grad(objective, train=False)
        _, grads = step(*transferring.given(self.net, net, self.inputs), *self.targets)
        return {name: np.array(to_numpy(grad)) for name, grad in grads.items()}

    def _training(self, found: Pair, other: Model) -> None:
        """The same steps of both from where they are, after which they are as they were."""
        worst, where = _farthest(found.plan.moves, self._trained(self.net), self._trained(other))
        what = f"{self.steps} steps of {self.training[0]}"
        self._check(found, what, "training", "float32", worst, where)

    def _trained(self, net: Model) -> dict[str, np.ndarray]:
        start = net.state_dict()
        name, lr = self.training
        step, optimizer = net.value_and_grad(self.objective or _mean_square), net.optimizer(name, lr=lr)
        batch = (*transferring.given(self.net, net, self.inputs), *self.targets)
        for _ in range(self.steps):
            step(*batch)
            optimizer.step()
        end = net.state_dict()
        net.load_state_dict(start)
        return end


def _mean_square(net: Model, *inputs: Any) -> Any:
    """An objective for models that come with none: the mean of the squared outputs, the first where there are more."""
    output = net(*inputs)
    while isinstance(output, (list, tuple, Mapping)):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    if not hasattr(output, "shape"):
        raise ShapeError("The model's output is no array: give an objective.")
    return net.adapter.mse(output, output * 0)


def _widen(stack: ExitStack, *nets: Model) -> str:
    """Put the models into float64 where all can; the dtype they are in then."""
    if all(net.dtype == "float64" for net in nets):
        return "float64"
    contexts = [None if net.dtype == "float64" else net._host.in_float64() for net in nets]
    if any(context is None and net.dtype != "float64" for context, net in zip(contexts, nets, strict=True)):
        return "float32"
    for context in contexts:
        if context is not None:
            stack.enter_context(context)
    return "float64"


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.astype(b.dtype, copy=False), b, equal_nan=True)


def _farthest(
    moves: Sequence[Move], mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[float, str]:
    """The target whose gradient, or trained value, is farthest from that of its sources, and how far in float32's eps;
    of those that both sides have."""
    worst, where = 0.0, ""
    for move in moves:
        known = move.sources and move.target in theirs and all(name in mine for name in move.sources)
        if known and move.gradient is not None:
            expected = move.gradient(*(mine[name] for name in move.sources))
            worst, where = max((worst, where), (distance(theirs[move.target], expected, "float32"), move.target))
    return worst, where


def _worst(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], dtype: str) -> float:
    if len(mine) != len(theirs):
        return float("inf")
    return max((distance(b, a, dtype) for a, b in zip(mine, theirs, strict=True)), default=0.0)


def _apart(mine: Any, theirs: Any, dtype: str, turn: Callable[[np.ndarray], np.ndarray] | None = None) -> float:
    """How far two layers' inputs or outputs are apart, whichever axis has their channels."""
    pairs = [
        (a if turn is None or a.ndim != 2 else turn(a), b)
        for a, b in zip(transferring.arrays_of(mine), transferring.arrays_of(theirs), strict=False)
        if a.dtype.kind == "f"
    ]
    return max((min(distance(each, a, dtype) for each in transferring.orders(b)) for a, b in pairs), default=0.0)


def _both(layer: Layer) -> str:
    name = layer.reference or "the model"
    return name if layer.name == layer.reference else f"{name} -> {layer.name or 'the model'}"


def _untied(plan: Plan, mine: Model, other: Model) -> list[str]:
    """Ties of the other model that the reference has not."""
    of = {move.target: move.sources[:1] for move in plan.moves}
    notes = []
    for names in other.ties():
        sources = {mine[source].names for name in names if name in of for source in of[name]}
        reference = [tie for tie in mine.ties() if set(tie) & {name for each in sources for name in each}]
        if sources and not reference:
            notes.append(f"{' and '.join(names)} are tied here, not there")
    return notes
