"""``mp.compare`` and ``mp.record``: do the models people have compute the same, and if not, where do they first part?

The first model is the reference, each other one a candidate. Its parameters are matched to the reference's by
:func:`multiparam.plan`, and so are the layers whose inputs and outputs are followed through a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..core.construction import wrap
from ..core.group import store_of
from ..core.inputs import Inputs
from ..core.model import Model
from ..errors import InvalidArgument
from ..transfers.rename import Rules
from .calling import Call, Caller, Output, callers
from .pairs import BOUNDS, ReferenceJudge
from .recording import open_subjects, write_models
from .results import Comparison
from .subjects import LiveSubject, RecordedSubject, Subject
from .tasks import Task, is_number


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
    call: Mapping[str, Call] | None = None,
    output: Output | Mapping[str, Output] | None = None,
) -> Comparison:
    """Compare models of any frameworks: parameters, options, outputs, layers on the way, gradients, training.

    Distances are ``max|a - b| / max|b|`` in eps of the dtype: of float64 where both models can run in it.

    Args:
        models: Name -> native or wrapped model, or a file of :func:`multiparam.record`; the first is the reference. The
            models of a file that has several are called ``model@name``; inputs and task are then those recorded.
        inputs: The reference's, numpy; a tuple of several; a mapping by keyword. Four axes or more get each model's
            order of channels.
        targets: What the objective takes after the inputs; a tuple of several.
        objective: ``objective(net, *inputs, *targets)``; else the mean of the squared outputs.
        rules: The reference's names -> others': see :func:`multiparam.transfer`.
        sync: The model whose weights the others get first. It changes them; what is compared is the computation.
        rtol_eps: One bound for all, or some of ``"output"``, ``"layer"``, ``"gradient"``, ``"training"`` and
            ``"numeric"``, which is of outputs in the models' own dtype; in eps.
        steps: Training steps, on the inputs, after which parameters are compared too.
        optimizer: ``"sgd"``, ``"momentum"``, ``"adam"``, ``"adamw"``, or another that :meth:`Model.optimizer` takes.
        lr: Its learning rate.
        layers: Globs of the layers to follow. The reference's are held in memory up to a gigabyte, then in files.
        histograms: Whether to make those of values and gradients, for the HTML page.
        against: A recording that is the reference: of each model the one of its name, or else the first.
        call: Model -> ``call(net, batch)``, for those that are not called on the inputs as they are given.
        output: What is compared of what they give: a path such as ``"last_hidden_state"``, an index or a function.

    Returns:
        A :class:`Comparison`: its ``agrees`` is the verdict; ``print`` it for the rest.

    Raises:
        InvalidArgument: Fewer than two models, names or globs of nothing, numbers that are none, or other inputs.

    Example:
        >>> import torch
        >>> a = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> b = mp.build(mp.nn.Sequential(mp.nn.Linear(3), mp.nn.LayerNorm(eps=1e-6)), np.ones((1, 4)), backend="jax")
        >>> result = mp.compare({"a": a, "b": b}, np.eye(4, dtype="float32"), sync="a")
        >>> result.agrees, result.pairs[0].hints
        (False, ['1: eps is 1e-05 there, 1e-06 here'])
    """
    if not isinstance(models, Mapping):
        raise InvalidArgument(f"mp.compare takes a mapping name -> model; this is a {type(models).__name__}.")
    task = Task(_inputs(inputs), _inputs(targets), objective, steps, optimizer, lr, layers)
    return _compare(models, task, against, rules, sync, _bounds(rtol_eps), histograms, callers(models, call, output))


def _compare(
    models: Mapping[str, Any],
    task: Task,
    against: str | Path | None,
    rules: Rules,
    sync: str | None,
    bounds: Mapping[str, float],
    histograms: bool,
    callers: Mapping[str, Caller],
) -> Comparison:
    golden = [] if against is None else open_subjects(Path(against).stem, against)
    subjects, task = _subjects(models, task, golden, callers)
    everyone: list[Subject] = [*golden[:1], *subjects]
    if len(everyone) < 2:
        raise InvalidArgument(f"mp.compare needs two models or more; it gets {len(everyone)}.")
    reference, candidates = everyone[0], everyone[1:]
    if sync is not None:
        _sync((*golden, *subjects), reference, sync, rules)
    judges = {each.model: ReferenceJudge(each, bounds, histograms) for each in (golden or everyone[:1])}
    first = judges[reference.model]
    pairs = [judges.get(candidate.model, first).judge(candidate, rules) for candidate in candidates]
    options = task.to_dict() if sync is None else {**task.to_dict(), "sync": sync}
    about = {each.name: each.to_dict() for each in everyone}
    return Comparison(reference.name, pairs, bounds, about, _environments(everyone), options)


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
    call: Mapping[str, Call] | None = None,
    output: Output | Mapping[str, Output] | None = None,
) -> Path:
    """Write down what models compute, in a file that :func:`compare` judges in any environment, without frameworks.

    The file, safetensors, has names, ties, options and values of parameters, outputs and what layers give in each dtype
    that a model can be run in, gradients, the parameters after ``steps``, the inputs, and versions.

    Args:
        path: The ``.safetensors`` file to write. It appears whole or not at all.
        models: Name -> model, or one model; native or wrapped.
        inputs: The first model's, as in :func:`compare`.
        targets: What the objective takes after the inputs.
        objective: Of the gradients and the training; a function's name is in the file, its code is not.
        steps: Training steps, after which parameters are recorded too.
        optimizer: Their optimizer.
        lr: Its learning rate.
        layers: Globs of the layers whose inputs and outputs are recorded; all of them by default.
        call: How models are called, as in :func:`compare`.
        output: What is recorded of what they give, as in :func:`compare`.

    Returns:
        The path.

    Raises:
        InvalidArgument: Another suffix, a recording among the models, or a number or a glob as for :func:`compare`.
        DoesNotRun: A model or an objective that raises on these inputs.

    Example:
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
    task = Task(_inputs(inputs), _inputs(targets), objective, steps, optimizer, lr, layers)
    if task.inputs.options:
        first = next(iter(task.inputs.options))
        raise InvalidArgument(f"A recording keeps arrays: {first!r} is none. Say call= with a function that adds it.")
    subjects, _ = _subjects(named, task, (), callers(named, call, output))
    write_models(path, [each for each in subjects if isinstance(each, LiveSubject)])
    return path


def _bounds(rtol_eps: float | Mapping[str, float] | None) -> dict[str, float]:
    if rtol_eps is None:
        return dict(BOUNDS)
    bounds = rtol_eps if isinstance(rtol_eps, Mapping) else dict.fromkeys(BOUNDS, rtol_eps)
    for name, bound in bounds.items():
        if name not in BOUNDS:
            raise InvalidArgument(f"There is no bound of {name!r}. {paths.did_you_mean(name, BOUNDS)}")
        if not is_number(bound):
            raise InvalidArgument(f"rtol_eps={bound!r} is no bound: say a finite number of eps, 0 or more.")
    return {**BOUNDS, **bounds}


def _check_layers(globs: Sequence[str], subjects: Sequence[Subject]) -> None:
    """Raise InvalidArgument for a glob of layers that fits none of any model."""
    known = list(dict.fromkeys(layer for each in subjects for layer in each.manifest.layers))
    for glob in globs:
        if not any(fnmatchcase(layer, glob) for layer in known):
            raise InvalidArgument(f"layers={glob!r} fits no layer. {paths.did_you_mean(glob, known)}")


def _inputs(arrays: Any) -> Inputs:
    several = Inputs.of(arrays)
    for array in several:
        if isinstance(array, np.ndarray) and array.dtype.kind == "O":
            raise InvalidArgument(f"An input is an array of Python objects, of shape {array.shape}: give numbers.")
    return several


def _subjects(
    models: Mapping[str, Any], task: Task, golden: Sequence[RecordedSubject], callers: Mapping[str, Caller]
) -> tuple[list[Subject], Task]:
    """What is compared, in order, and what it is run on: the user's, or what was recorded."""
    files = {name: open_subjects(name, model) for name, model in models.items() if isinstance(model, (str, Path))}
    recorded = [*golden, *(each for of_file in files.values() for each in of_file)]
    if not task.inputs and not recorded:
        raise InvalidArgument("Models are compared on inputs: give some.")
    examples = task.inputs or recorded[0].task.inputs
    nets = {
        name: model if isinstance(model, Model) else wrap(model, examples)
        for name, model in models.items()
        if name not in files
    }
    # Inputs are in the order of channels of the reference: the golden file, the first model, or the first recording.
    first = next(iter(models), "")
    live = store_of(nets[first]).host.data_order if first in nets and not golden else None
    task = task.channels_first(live or (recorded[0].manifest.order if recorded else None))
    for each in recorded[:1]:
        task = task.completed(each.task)
    for each in recorded:
        each.task.check_same(task, each.name)
    subjects: list[Subject] = []
    for name in models:
        subjects += files.get(name) or [LiveSubject(name, nets[name], task, callers.get(name, Caller()))]
    _check_layers(task.layers, [*golden, *subjects])
    return subjects, task


def _sync(subjects: Sequence[Subject], reference: Subject, sync: str, rules: Rules) -> None:
    """Give every live model the weights of one."""
    source = next((each for each in subjects if sync in (each.name, each.model)), None)
    if source is None:
        names = ", ".join(repr(each.name) for each in subjects)
        raise InvalidArgument(f"sync={sync!r} names no model of {names}.")
    for each in subjects:
        if each is not source and isinstance(each, LiveSubject):
            known = rules if source is reference else None  # rules are of the reference's names
            source.give_weights(each.net, known)


def _environments(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    environments: list[dict[str, Any]] = []
    for each in subjects:
        environment = {**each.environment, "name": each.source or "here"}
        environments += [] if environment in environments else [environment]
    return environments
