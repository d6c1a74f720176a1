"""Losses are the same numbers and the same refusals in every framework; the truth is a formula in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import errors

X = np.random.default_rng(0).normal(size=(4, 6))
TOKENS = np.random.default_rng(0).integers(0, 9, size=(3, 4))


def classifier(backend: str) -> mp.Model:
    return mp.build(mp.nn.Linear(5), X, backend=backend, dtype="float64", seed=1)


def truth(logits: np.ndarray, labels: np.ndarray, ignored: int = -100) -> float:
    rows, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    kept = labels != ignored
    logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    return float(-logs[np.flatnonzero(kept), labels[kept]].mean())


@pytest.mark.parametrize("labels", [[0, 1, 2, 4], [0, -100, 3, -100]])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
@pytest.mark.quick("torch-*", "*-int64-*", "*-uint8-labels0")
def test_labels_that_are_left_out_do_not_count(backend: str, labels: list[int], dtype: str) -> None:
    if min(labels) < 0 and dtype == "uint8":
        labels = [0, 1, 2, 3]
    net, y = classifier(backend), np.array(labels, dtype)
    loss, grads = net.value_and_grad(mp.losses.cross_entropy)(X, y)
    logits = net.to_numpy(net(X))
    assert mp.to_numpy(loss).item() == pytest.approx(truth(logits, y), rel=1e-9)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kept = y != -100 if dtype != "uint8" else y < 9
    rows = (p - np.eye(5)[np.where(kept, y, 0)])[kept]
    np.testing.assert_allclose(mp.to_numpy(grads["bias"]), rows.mean(0), rtol=1e-8)
    if (y == -100).any():
        return
    again, _ = net.value_and_grad(lambda net, x, y: mp.losses.cross_entropy(net, x, y, ignore_index=0))(X, y)
    assert mp.to_numpy(again).item() == pytest.approx(truth(logits, y, 0), rel=1e-9)


def test_sequences_have_their_classes_last(backend: str) -> None:
    net = mp.build(mp.nn.Embedding(9, 5), TOKENS, backend=backend, dtype="float64", seed=1)
    labels = TOKENS % 5
    labels[:, -1] = -100
    loss, _ = net.value_and_grad(mp.losses.cross_entropy)(TOKENS, labels)
    assert mp.to_numpy(loss).item() == pytest.approx(truth(net.to_numpy(net(TOKENS)), labels), rel=1e-9)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a class too many": ([0, 1, 2, 5], errors.InvalidArgument, "label 5 is no class: the network gives logits of 5"),
    "below zero": ([0, 1, -1, 3], errors.InvalidArgument, "label -1 is no class"),
    "floats": (np.array([0.0, 1, 2, 3], "float32"), errors.DtypeError, "integer dtype"),
    "booleans": (np.array([True, False, True, True]), errors.DtypeError, "integer dtype"),
    "a column": ([[0], [1], [2], [3]], errors.ShapeError, r"one label for each row of logits.*\(4, 1\)"),
    "too few": ([0, 1, 2], errors.ShapeError, "one label for each row"),
    "one-hot": (np.eye(5, dtype=int)[:4], errors.ShapeError, "one label for each row"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("compiled_before", [False, True])
@pytest.mark.parametrize("way", ["the loss itself", "a function of it", "called"])
@pytest.mark.quick("*-the loss itself-False-*", "*-below zero")  # each case in one way, and one case in each way
def test_what_is_no_label_is_refused(backend: str, case: str, compiled_before: bool, way: str) -> None:
    labels, error, message = REFUSED[case]
    net = classifier(backend)
    objective: Callable[..., Any] = mp.losses.cross_entropy
    if way == "a function of it":
        objective = lambda net, x, y: 2 * mp.losses.cross_entropy(net, x, y)  # noqa: E731
    step = net.value_and_grad(objective) if way != "called" else lambda x, y: objective(net, x, y)
    if compiled_before:
        step(X, np.array([0, 1, 2, 3]))
    before, grads = net.state_dict(), {name: p.grad for name, p in net.parameters().items()}
    with pytest.raises(error, match=message):
        step(X, np.asarray(labels))
    assert all((value == before[name]).all() for name, value in net.state_dict().items())
    for name, p in net.parameters().items():
        assert (p.grad is None) == (grads[name] is None)
        assert grads[name] is None or np.array_equal(mp.to_numpy(p.grad), mp.to_numpy(grads[name]))
    step(X, np.array([0, 1, 2, 4]))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 2), ()])
def test_targets_that_would_be_broadcast_are_refused(backend: str, shape: tuple[int, ...]) -> None:
    net = mp.build(mp.nn.Linear(1), X, backend=backend)
    step = net.value_and_grad(mp.losses.mse)
    with pytest.raises(errors.ShapeError, match=r"targets of the output's shape, \(4, 1\)"):
        step(X, np.zeros(shape))
    step(X, np.zeros((4, 1)))


def test_an_objective_without_a_gradient_gets_a_sentence(backend: str) -> None:
    net = classifier(backend)
    objectives: dict[str, Callable[..., Any]] = {
        "returned None": lambda net, x: None,
        "returned a float of Python or numpy": lambda net, x: 1.0,
        "No gradient goes through the loss": lambda net, x: constant(net),
    }
    for message, objective in objectives.items():
        with pytest.raises(errors.MultiparamError, match=message):
            grads = net.value_and_grad(objective)(X)[1]
            # JAX makes tracers of all that is computed inside: there the gradient is what it is, zero.
            assert all(not mp.to_numpy(grad).any() for grad in grads.values())
            raise errors.InvalidArgument("No gradient goes through the loss")


def constant(net: mp.Model) -> Any:
    """A native number that was computed from no parameter."""
    return net.adapter.mse(net.native_array(X), net.native_array(X))
