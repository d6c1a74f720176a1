"""All parameters: each storage once, in definition order, its other names as aliases; groups; layers."""

from __future__ import annotations

import numpy as np

import multiparam as mp
from multiparam import nn

from .networks import deep, feature, mlp, without_counts


def test_all_parameters_in_definition_order(backend: str) -> None:
    net = mlp(backend)
    assert [(n, p.shape) for n, p in net.parameters().items()] == [
        ("0.weight", (8, 4)),
        ("0.bias", (8,)),
        ("2.weight", (1, 8)),
        ("2.bias", (1,)),
    ]
    assert [p.name for p in net] == list(net.parameters())
    assert len(net) == 4


def test_each_storage_once_and_aliases_on_request(backend: str) -> None:
    net = deep(backend, shared=True)
    assert list(net.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]
    every = net.parameters(aliases=True)
    assert list(every) == [f"{i}.{leaf}" for i in (0, 2, 4, 6) for leaf in ("weight", "bias")]
    assert every["4.bias"] is every["2.bias"]


def test_distinct_layers(backend: str) -> None:
    net = deep(backend, shared=True)
    assert list(net.layers()) == [("0",), ("2", "4"), ("6",)]
    assert list(net.layers()[("2", "4")].parameters()) == ["weight", "bias"]
    assert len(deep(backend).layers()) == 4


@feature("nn.Conv", "nn.BatchNorm")
def test_buffers_are_no_parameters(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Conv(2, 1), nn.BatchNorm()), np.ones((1, 1, 3, 3)), backend=backend)
    assert list(net.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    running = [name for name in net.buffers() if not name.endswith("num_batches_tracked")]
    assert running == ["1.running_mean", "1.running_var"]
    p = net["1.running_mean"]
    assert p.buffer and not p.trainable and p.grad is None and p.kind == "batchnorm"


@feature("nn.Conv", "nn.BatchNorm")
def test_select_by_glob_kind_and_predicate(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Conv(2, 1), nn.BatchNorm(), nn.Flatten(), nn.Linear(3)), np.ones((1, 1, 3, 3)),
                   backend=backend)  # fmt: skip
    assert [p.name for p in net.select("*.bias")] == ["0.bias", "1.bias", "3.bias"]
    assert [p.name for p in net.select(kind="conv")] == ["0.weight", "0.bias"]
    assert [p.name for p in net.select("*.weight", kind="linear")] == ["3.weight"]
    assert [p.name for p in net.select(lambda p: len(p.shape) == 1)] == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert [p.name for p in net.select("0.*", net["3.bias"])] == ["0.weight", "0.bias", "3.bias"]
    assert [p.name for p in net.select(["0.bias", "3.*"])] == ["0.bias", "3.weight", "3.bias"]


def test_an_alias_selects_its_storage(backend: str) -> None:
    net = deep(backend, shared=True)
    assert [p.name for p in net.select("4.*")] == ["2.weight", "2.bias"]


def test_a_shared_block_has_its_aliases_in_order(backend: str) -> None:
    block = nn.Sequential(nn.Linear(4), nn.Tanh(), nn.Linear(4))
    net = mp.build(nn.Sequential(block, nn.Linear(4), block), np.ones((2, 4)), backend=backend)
    assert [p.names for p in net][:2] == [("0.0.weight", "2.0.weight"), ("0.0.bias", "2.0.bias")]
    assert len(net.parameters()) == 6 and len(net.parameters(aliases=True)) == 10
    assert list(net.layers()) == [("0.0", "2.0"), ("0.2", "2.2"), ("1",)]


@feature("nn.BatchNorm")
def test_buffers_of_a_shared_layer_are_there_once(backend: str) -> None:
    norm = nn.BatchNorm()
    net = mp.build(nn.Sequential(norm, nn.Linear(4), norm), np.ones((2, 4)), backend=backend)
    assert without_counts(net.buffers()) == ["0.running_mean", "0.running_var"]
    assert without_counts(net.buffers(aliases=True)) == [f"{i}.running_{s}" for i in (0, 2) for s in ("mean", "var")]
    assert net["2.running_var"] is net["0.running_var"]
