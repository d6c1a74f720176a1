"""``mp.compare``: do the models people have compute the same, and if not, where do they first part?

The first model is the reference. Another one's parameters are matched to it by :func:`multiparam.plan`, and so are the
layers whose inputs and outputs are followed through a forward pass. Where the models can run in float64, that is where
they must agree: there rounding is so small that a wrong eps shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..core.construction import wrap
from ..core.distances import EPS, distance
from ..core.group import store_of
from ..core.model import Model
from ..errors import InvalidArgument, Unsupported
from ..transfers import apply
from ..transfers import plan as planning
from ..transfers.manifest import Manifest
from ..transfers.plan import Move, Plan
from ..transfers.rename import Rules
from .activations import Kept
from .divergence import Follower, Layer
from .hints import of_values
from .judge import Check
from .recording import opened, write_models
from .subjects import Arrays, Live, NotInFloat64, Recorded, Subject, Task

# In eps, unless told otherwise: room for a deep network, and far below what a wrong eps costs in float64. "numeric" is
# of outputs in the models' own dtype, where those in float64 are judged, too.
BOUNDS: Mapping[str, float] = {"output": 1024, "layer": 1024, "gradient": 16384, "training": 65536, "numeric": 16384}
BINS = 40


@dataclass(frozen=True)
class Histogram:
    """How the values, or gradients, of a parameter are distributed in both models: counts in equal bins."""

    parameter: str
    reference: str
    what: str
    low: float
    high: float
    reference_counts: Sequence[int]
    counts: Sequence[int]


@dataclass
class Pair:
    """One model against the reference. ``layers`` and ``parted`` are those of each network, which has a name only
    where the networks built in are compared."""

    name: str
    checks: list[Check] = field(default_factory=list)
    layers: dict[str, list[Layer]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)  # network -> which of its layers is the first to part
    dtype: str = "float64"  # of what is said of layers
    parted: str = ""
    hints: list[str] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    plan: Plan | None = None

    @property
    def agrees(self) -> bool:
        """Whether every check holds."""
        return all(check.agrees for check in self.checks)


@dataclass
class Comparison:
    """What :func:`compare` found: ``print`` it, or ask it whether it ``agrees``, and each pair where it ``parted``."""

    reference: str
    pairs: list[Pair]
    bounds: Mapping[str, float]
    models: Mapping[str, Mapping[str, Any]]  # name -> backend, version, ...
    environments: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        """All checks of all pairs."""
        return [check for pair in self.pairs for check in pair.checks]

    @property
    def agrees(self) -> bool:
        """Whether every check holds."""
        return all(pair.agrees for pair in self.pairs)

    @property
    def versions(self) -> dict[str, str]:
        """Backend -> its version, or versions."""
        found: dict[str, list[str]] = {}
        for said in self.models.values():
            found.setdefault(said["backend"], []).append(said["version"])
        return {backend: " and ".join(dict.fromkeys(versions)) for backend, versions in found.items()}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: Comparison) -> Iterator[str]:
    for pair in found.pairs:
        yield f"{pair.name} {'agrees' if pair.agrees else 'DISAGREES'} with {found.reference}"
        for check in pair.checks:
            far = "" if check.distance is None else f"{check.distance:.3g} eps of {check.dtype} (bound {check.bound:g})"
            excuse = f"expected: {check.expected}" if check.expected else ""
            notes = " ".join(filter(None, (far, check.detail, excuse)))
            yield f"  {'ok ' if check.agrees else 'NOT'} {check.check}" + (f": {notes}" if notes else "")
        if pair.parted:
            yield f"  They part first {pair.parted}."
        yield from (f"  Hint: {hint}." for hint in pair.hints)


def compare(
    models: Mapping[str, Any],
    inputs: Any = None,
    *,
    targets: Any = None,
    objective: Callable[..., Any] | None = None,
    rules: Rules = None,
    sync: str | None = None,
    rtol_eps: float | Mapping[str, float] | None = None,
    steps: int = 0,
    optimizer: str = "sgd",
    lr: float = 0.01,
    layers: Sequence[str] = (),
    histograms: bool = False,
    against: str | Path | None = None,
) -> Comparison:
    """Compare models, native or wrapped, of any frameworks: name -> model, the first being the reference.

    Checked are parameters (names, shapes, kinds, ties, values), options that weights do not carry, outputs, what layers
    give on the way, and the gradients of ``objective(net, *inputs, *targets)``; with ``steps``, the parameters after as
    many of ``optimizer``. ``inputs`` are the reference's, numpy, a tuple where there are several; four axes or more are
    turned to each model's order of channels. ``sync`` names a model whose weights are first transferred to the others,
    so that what is compared is the computation: those models are changed. ``rules``: see :func:`multiparam.transfer`.

    A file that :func:`multiparam.record` has written may stand for a model, or for several, which are then called
    ``model@name``; ``inputs`` and what belongs to them are then those recorded. With ``against`` such a file is the
    reference: each model is held against the one of its name there, or else against the first.

    Distances are normwise, in eps of the dtype, in float64 where both models can run in it. ``rtol_eps`` is one bound
    for all instead of the stated ones, or a bound for each of ``"output"``, ``"layer"``, ``"gradient"``,
    ``"training"`` and ``"numeric"``, which is of outputs in the models' own dtype. ``layers``, globs of the names of
    layers, are those that are followed; what layers of the reference give is kept in memory up to a gigabyte, and
    beyond that in temporary files. ``histograms`` of values and gradients are for the HTML page.

    Raises InvalidArgument for fewer than two models, an unknown ``sync`` or bound, or recordings of other inputs.

        >>> import torch
        >>> a = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> b = mp.build(mp.nn.Sequential(mp.nn.Linear(3), mp.nn.LayerNorm(eps=1e-6)), np.ones((1, 4)), backend="jax")
        >>> found = mp.compare({"a": a, "b": b}, np.eye(4, dtype="float32"), sync="a")
        >>> found.agrees, found.pairs[0].parted.partition(":")[0], found.pairs[0].hints
        (False, 'at layer 1', ['1: eps is 1e-05 there, 1e-06 here'])
    """
    bounds = _bounds(rtol_eps)
    golden = [] if against is None else opened(Path(against).stem, against)
    given = Task(_arrays(inputs), _arrays(targets), objective, steps, optimizer, lr, tuple(layers))
    subjects, task = _subjects(models, given, golden)
    everyone: list[Subject] = [*golden[:1], *subjects]
    if len(everyone) < 2:
        raise InvalidArgument(f"mp.compare needs two models or more; it gets {len(everyone)}.")
    reference, others = everyone[0], everyone[1:]
    if sync is not None:
        _sync((*golden, *subjects), reference, sync, rules)
    works = {each.model: _Work(each, bounds, histograms) for each in (golden or everyone[:1])}
    first = works[reference.model]
    pairs = [works.get(other.model, first).pair(other, rules) for other in others]
    options = task.said() if sync is None else {**task.said(), "sync": sync}
    return Comparison(
        reference.name, pairs, bounds, {each.name: each.about() for each in everyone}, _environments(everyone), options
    )


def record(
    path: str | Path,
    models: Any,
    inputs: Any,
    *,
    targets: Any = None,
    objective: Callable[..., Any] | None = None,
    steps: int = 0,
    optimizer: str = "sgd",
    lr: float = 0.01,
    layers: Sequence[str] = (),
) -> Path:
    """Write down what models compute, in a file that :func:`compare` judges in any environment, without frameworks.

    ``models``: name -> model, or one model; the rest is as in :func:`compare`. The file, safetensors, has names, ties,
    options and values of parameters, outputs and what layers give in each dtype that a model can be run in, gradients,
    the parameters after ``steps``, the inputs, and versions. It appears whole or not at all.

        >>> import pathlib, tempfile
        >>> golden = pathlib.Path(tempfile.mkdtemp()) / "golden.safetensors"
        >>> spec, x = mp.nn.Sequential(mp.nn.Linear(3), mp.nn.Tanh(), mp.nn.Linear(2)), np.eye(4, dtype="float32")
        >>> _ = mp.record(golden, mp.build(spec, x, backend="torch"), x)
        >>> mp.compare({"jax": mp.build(spec, x, backend="jax")}, against=golden).agrees
        True
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InvalidArgument(f"A recording is a .safetensors file, not {path.name!r}.")
    named = models if isinstance(models, Mapping) else {"model": models}
    if any(isinstance(model, (str, Path)) for model in named.values()):
        raise InvalidArgument("mp.record takes models, not recordings of them.")
    task = Task(_arrays(inputs), _arrays(targets), objective, steps, optimizer, lr, tuple(layers))
    subjects, _ = _subjects(named, task, ())
    write_models(path, [each for each in subjects if isinstance(each, Live)])
    return path


def _bounds(rtol_eps: float | Mapping[str, float] | None) -> dict[str, float]:
    if rtol_eps is None or not isinstance(rtol_eps, Mapping):
        return dict(BOUNDS) if rtol_eps is None else dict.fromkeys(BOUNDS, rtol_eps)
    for name in rtol_eps:
        if name not in BOUNDS:
            raise InvalidArgument(f"There is no bound of {name!r}. {paths.did_you_mean(name, BOUNDS)}")
    return {**BOUNDS, **rtol_eps}


def _arrays(given: Any) -> tuple[Any, ...]:
    return () if given is None else given if isinstance(given, tuple) else (given,)


def _subjects(models: Mapping[str, Any], task: Task, golden: Sequence[Recorded]) -> tuple[list[Subject], Task]:
    """What is compared, in order, and what it is run on: as given, or as recorded."""
    files = {name: opened(name, model) for name, model in models.items() if isinstance(model, (str, Path))}
    recorded = [*golden, *(each for found in files.values() for each in found)]
    if not task.inputs and not recorded:
        raise InvalidArgument("Models are compared on inputs: give some.")
    examples = task.inputs or recorded[0].task.inputs
    nets = {
        name: model if isinstance(model, Model) else wrap(model, *examples)
        for name, model in models.items()
        if name not in files
    }
    first = next(iter(models), "")
    live = store_of(nets[first]).host.data_order if first in nets and not golden else None
    order = live or (recorded[0].side.order if recorded else None)
    task = task.in_order(order)
    for each in recorded[:1]:
        task = task.filled(each.task)
    for each in recorded:
        each.task.same(task, each.name)
    found: list[Subject] = []
    for name in models:
        found += files.get(name) or [Live(name, nets[name], task)]
    return found, task


def _sync(subjects: Sequence[Subject], reference: Subject, sync: str, rules: Rules) -> None:
    """Give every live model the weights of one."""
    source = next((each for each in subjects if sync in (each.name, each.model)), None)
    if source is None:
        names = ", ".join(repr(each.name) for each in subjects)
        raise InvalidArgument(f"sync={sync!r} names no model of {names}.")
    for each in subjects:
        if each is not source and isinstance(each, Live):
            known = rules if source is reference else None
            report = apply.transfer(source.weights(), each.net, known, accept_guesses=True)
            if isinstance(source, Live) and any(move.permutation for move in report.plan.moves):
                source.verify(report.plan, each.net)


def _environments(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for each in subjects:
        said = {**each.environment, "name": each.source or "here"}
        found += [] if said in found else [said]
    return found


class _Work:
    """A reference, and how far others may be from it."""

    def __init__(self, reference: Subject, bounds: Mapping[str, float], histograms: bool) -> None:
        self.reference = reference
        self.bounds = bounds
        self.histograms = histograms
        self._kept: dict[str, tuple[list[np.ndarray], Kept]] = {}

    @cached_property
    def _grads(self) -> Arrays:
        return self.reference.grads()

    @cached_property
    def _trained(self) -> Arrays:
        return self.reference.trained()

    def pair(self, other: Subject, rules: Rules) -> Pair:
        """All checks of one model. Where they fail, and a flattening was inferred that the values know nothing of, the
        plan without it is tried, and kept if the outputs then agree."""
        plan = planning.plan_manifests(self.reference.side, other.side, rules, cast=True)
        found = self._judged(plan, other)
        if not found.agrees and any(move.permutation for move in plan.moves):
            again = self._judged(_as_flattened(plan, self.reference, other), other)
            if all(check.agrees for check in again.checks if check.check == "outputs"):
                return again
        return found

    def _judged(self, plan: Plan, other: Subject) -> Pair:
        found = Pair(other.name, plan=plan)
        self._parameters(found, plan, other)
        self._passes(found, plan, other)
        if not (plan.missing or plan.refused):
            self._gradients(found, plan, other)
        if other.task.steps:
            what = f"{other.task.steps} steps of {other.task.optimizer}"
            far, where = _farthest(plan.moves, self._trained, other.trained(), self._coarse(other))
            self._check(found, what, "training", self._coarse(other), far, where)
        return found

    def _bound(self, kind: str, dtype: str) -> float:
        """As asked for, or as stated; of a coarse dtype no more than makes an eighth of a number."""
        bound = self.bounds[kind]
        return min(bound, LOOSEST / EPS[dtype]) if bound == BOUNDS[kind] else bound

    def _check(self, found: Pair, what: str, kind: str, dtype: str, far: float, where: str = "") -> None:
        bound = self._bound(kind, dtype)
        detail = where if far > bound else ""
        found.checks.append(Check("", what, found.name, far <= bound, dtype, far, bound, detail))

    def _coarse(self, other: Subject) -> str:
        """The coarser of the dtypes that the models were made in."""
        return max(self.reference.own, other.own, key=EPS.__getitem__)

    def _parameters(self, found: Pair, plan: Plan, other: Subject) -> None:
        mine, theirs = self.reference.side, other.side
        wrong = [
            *(f"nothing makes {name}" for name in plan.missing),
            *(f"{name} goes nowhere" for name in plan.unused),
            *plan.refused,
        ]
        training = other.task.steps > 0
        options = [text for text in plan.options if training or not text.endswith("when it trains")]
        differing = [m for m in plan.moves if not plan.refused and not _same(m.make(), theirs.read(m.target))]
        looked_at = {"structure": wrong, "options": options, "ties": [*plan.ties, *_untied(plan, mine, theirs)]}
        if not plan.refused:  # else values cannot be made
            looked_at["values"] = [move.target for move in differing]
        for what, items in looked_at.items():
            more = "; ..." if len(items) > SHOWN else ""
            detail = "; ".join(items[:SHOWN]) + more
            found.checks.append(Check("", what, found.name, not items, detail=detail, items=tuple(items)))
        if self.histograms:
            found.histograms += [
                _histogram(move, "value", move.make(), theirs.read(move.target)) for move in plan.moves
            ]
        hints = (of_values(move.make(), theirs.read(move.target), move) for move in differing)
        found.hints += [hint for hint in hints if hint]

    def _passes(self, found: Pair, plan: Plan, other: Subject) -> None:
        """Outputs and layers: in float64 where both can be run in it, and then the outputs in their own dtype too."""
        wide = all("float64" in each.dtypes for each in (self.reference, other))
        try:
            self._follow(found, plan, other, "float64" if wide else "")
        except NotInFloat64:
            return self._passes(found, plan, other)  # it is no longer among the dtypes
        if wide and other.own != "float64":
            truth, _ = self._kept["float64"]
            far = _worst(truth, other.run(other.own), other.own)
            self._check(found, "outputs", "numeric", other.own, far)

    def _follow(self, found: Pair, plan: Plan, other: Subject, wide: str) -> None:
        dtype = wide or self._coarse(other)
        at = wide or self.reference.own
        if at not in self._kept:
            self._kept[at] = self.reference.kept(at)
        outputs, kept = self._kept[at]
        turns = {paths.split(move.target)[0]: move.permutation for move in plan.moves if move.permutation is not None}
        follower = Follower(kept, dict(plan.layers), dtype, self._bound("layer", dtype), turns)
        theirs = other.run(wide or other.own, follower.see)
        self._check(found, "outputs", "output", dtype, _worst(outputs, theirs, dtype))
        parting = follower.parting(found.checks[-1].agrees)
        layers = found.layers[""] = follower.layers()
        self._check(found, f"{len(layers)} layers on the way", "layer", dtype, follower.farthest())
        found.dtype = dtype
        if parting is None:
            return
        found.parted = parting.where
        found.hints += parting.hints
        if parting.index is not None:
            found.first[""] = parting.index
        if parting.at and parting.index is not None:
            name = layers[parting.index].name or "the model"
            found.hints += [text for text in plan.options if text.startswith(f"{name}: ")]

    def _gradients(self, found: Pair, plan: Plan, other: Subject) -> None:
        try:
            mine, theirs = self._grads, other.grads()
        except Unsupported as error:
            found.checks.append(Check("", "gradients", found.name, True, expected=str(error)))
            return
        far, where = _farthest(plan.moves, mine, theirs, self._coarse(other), _small(plan.moves, mine))
        self._check(found, "gradients", "gradient", self._coarse(other), far, where)
        if self.histograms:
            found.histograms += [_histogram(move, "gradient", *both) for move, *both in _both(plan.moves, mine, theirs)]


SHOWN = 4  # of the differences of one check
LOOSEST = 0.125  # the relative distance that no bound of ours goes beyond
SMALL = 2.0**-10  # of the largest gradient


def _as_flattened(plan: Plan, mine: Subject, theirs: Subject) -> Plan:
    """The plan without a flattening that was inferred, where the values say that both sides flatten in one order."""

    def seen(move: Move) -> Move:
        other = apply.without_permutation(move, mine.side.read)
        value = theirs.side.read(move.target)
        return other if not _same(move.make(), value) and _same(other.make(), value) else move

    return replace(plan, moves=[move if move.permutation is None else seen(move) for move in plan.moves])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.astype(b.dtype, copy=False), b, equal_nan=True)


def _both(moves: Sequence[Move], mine: Arrays, theirs: Arrays) -> Iterator[tuple[Move, np.ndarray, np.ndarray]]:
    """Each move's gradient, or trained value, as its sources make it and as its target has it; of those that both
    sides have."""
    for move in moves:
        known = move.sources and move.target in theirs and all(name in mine for name in move.sources)
        if known and move.gradient is not None:
            yield move, move.gradient(*(mine[name] for name in move.sources)), theirs[move.target]


def _small(moves: Sequence[Move], grads: Arrays) -> float:
    """A gradient so small that it is measured as if it were this: of one that should be zero, as that of the bias of an
    attention's keys, there is only the rounding of larger ones."""
    names = {name for move in moves for name in move.sources if name in grads}
    largest = (np.abs(grad).max(initial=0, where=np.isfinite(grad)) for grad in map(grads.__getitem__, names))
    return SMALL * max(map(float, largest), default=0.0)


def _farthest(moves: Sequence[Move], mine: Arrays, theirs: Arrays, dtype: str, least: float = 0.0) -> tuple[float, str]:
    """The target that is farthest from what its sources make, and how far."""
    far = ((distance(there, here, dtype, least), move.target) for move, here, there in _both(moves, mine, theirs))
    return max(far, default=(0.0, ""))


def _worst(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], dtype: str) -> float:
    if len(mine) != len(theirs):
        return float("inf")
    return max((distance(b, a, dtype) for a, b in zip(mine, theirs, strict=True)), default=0.0)


def _histogram(move: Move, what: str, mine: np.ndarray, theirs: np.ndarray) -> Histogram:
    both = [array[np.isfinite(array)].astype(np.float64) for array in (mine, theirs)]
    low = min((float(array.min()) for array in both if array.size), default=0.0)
    high = max((float(array.max()) for array in both if array.size), default=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [np.histogram(array, BINS, (low, high))[0].tolist() for array in both]
    return Histogram(move.target, " + ".join(move.sources), what, low, high, *counts)


def _untied(plan: Plan, mine: Manifest, theirs: Manifest) -> list[str]:
    """Ties of the other model that the reference has not."""
    of = {move.target: move.sources[0] for move in plan.moves if move.sources}
    tied = {name for names in mine.ties() for name in names}
    notes = []
    for names in theirs.ties():
        sources = {of[name] for name in names if name in of}
        if sources and not sources & tied:
            notes.append(f"{' and '.join(names)} are tied here, not there")
    return notes
