"""What one backend makes of one network: plain numpy, to be judged anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.arrays import to_numpy
from ..core.construction import build
from ..core.group import store_of
from ..core.layers import BOOKKEEPING
from ..core.model import Model
from .activations import ActivationCache, LayerCall, select_layers
from .zoo import ZooNetwork

NamedArrays = dict[str, np.ndarray]
LEARNING_RATES: Mapping[str, float] = {"sgd": 0.05, "momentum": 0.01, "adam": 0.002}


@dataclass
class NetworkRun:
    """One network in one backend and one dtype. ``label`` is its column's name where several files have the backend."""

    backend: str
    dtype: str
    names: list[str]
    shapes: list[tuple[int, ...]]
    kinds: list[str]
    ties: list[tuple[str, ...]]
    values: NamedArrays
    output: np.ndarray
    grads: NamedArrays
    trained: dict[str, NamedArrays] = field(default_factory=dict)  # by optimizer, as the buffers are
    buffers: dict[str, NamedArrays] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    calls: list[LayerCall] = field(default_factory=list)
    network: str = ""
    version: str = ""
    label: str = ""
    source: str = ""

    @property
    def column(self) -> str:
        """What it is called in a table."""
        return self.label or self.backend


def run_network(
    network: ZooNetwork,
    backend: str,
    dtype: str,
    *,
    steps: int,
    seed: int,
    layers: Sequence[str] = (),
    tick: Callable[[], None] = lambda: None,
) -> NetworkRun:
    """Build a network of the zoo, look at everything, then train it once with each optimizer from the same start.

    The calls of those layers that one of the globs ``layers`` matches are in it; of all, where there are none.
    """
    batches = network.batches(max(steps, 1))
    x, y = batches[0]
    net = build(network.spec(), x, backend=backend, seed=seed, dtype=dtype)
    parameters = net.parameters()
    step = net.value_and_grad(network.objective)
    start = net.state_dict()
    cache = ActivationCache()
    inputs = (net.native_array(x),)
    with store_of(net).host.watch(select_layers(layers, cache.add)):
        output = np.array(to_numpy(net(*inputs)))
    _, grads = step(x, y)
    run = NetworkRun(
        backend,
        dtype,
        names=list(parameters),
        shapes=[p.shape for p in parameters.values()],
        kinds=[p.kind for p in parameters.values()],
        ties=net.ties(),
        values={name: p.numpy() for name, p in parameters.items()},
        output=output,
        grads={name: np.array(to_numpy(grad)) for name, grad in grads.items()},
        unsupported=net.adapter.unsupported,
        calls=list(cache),
    )
    tick()
    for name, lr in LEARNING_RATES.items() if steps and network.smooth else ():
        _restore(net, start)
        optimizer = net.optimizer(name, lr=lr)
        for batch in batches:
            step(*batch)
            optimizer.step()
        _add_trained(run, name, net)
        tick()
    return run


def _add_trained(run: NetworkRun, optimizer: str, net: Model) -> None:
    run.trained[optimizer] = {key: p.numpy() for key, p in net.parameters().items()}
    # PyTorch counts batches in a buffer, which the others have not.
    run.buffers[optimizer] = {
        key: p.numpy() for key, p in net.buffers().items() if key.rpartition(".")[2] not in BOOKKEEPING
    }


def _restore(net: Model, state: NamedArrays) -> None:
    for name, value in state.items():
        net[name].assign(value)
