"""Reading and writing while another thread's step is traced: nothing is lost, and nobody sees what is traced."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

import multiparam as mp

X, Y = np.ones((2, 8), "float32"), np.zeros((2, 8), "float32")


def test_another_thread_sees_the_model_itself_while_an_objective_runs(backend: str) -> None:
    spec = mp.nn.Sequential(mp.nn.Linear(8), mp.nn.BatchNorm(), mp.nn.Linear(8))
    net = mp.build(spec, X, backend=backend)
    inside, go = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def objective(net: mp.Model, x: Any, y: Any) -> Any:
        inside.set()
        go.wait(20)
        return mp.losses.mse(net, x, y)

    def step() -> None:
        try:
            net.value_and_grad(objective)(X, Y)
        except Exception as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=step)
    thread.start()
    try:
        assert inside.wait(60)
        before = net["2.bias"].numpy()
        assert type(before) is np.ndarray and not np.shares_memory(before, net["2.bias"].numpy())
        net["2.bias"] = np.full(8, 5.0, "float32")
        assert net["2.bias"].numpy().tolist() == [5.0] * 8
        assert set(net.state_dict()) >= {"0.weight", "1.running_mean"}
    finally:
        go.set()
        thread.join(60)
    assert not failed and net["2.bias"].numpy().tolist() == [5.0] * 8
    assert all(np.isfinite(value).all() for value in net.state_dict().values())


def test_two_models_train_in_two_threads(backend: str) -> None:
    nets = [mp.build(mp.nn.Linear(8), X, backend=backend, seed=1) for _ in range(2)]
    alone = mp.build(mp.nn.Linear(8), X, backend=backend, seed=1)

    def train(net: mp.Model) -> None:
        step, optimizer = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
        for _ in range(5):
            step(X, Y)
            optimizer.step()

    threads = [threading.Thread(target=train, args=(net,)) for net in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    train(alone)
    for net in nets:
        np.testing.assert_allclose(net["weight"].numpy(), alone["weight"].numpy(), rtol=1e-6)
