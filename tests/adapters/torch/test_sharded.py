"""Sharded parameters, over two processes: names and numbers as on one device. The truth is an unsharded twin."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save_file

import multiparam as mp
from multiparam import errors
from multiparam.transfers.cost import cost

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]
X = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
Y = np.zeros((4, 5), "float32")


def network(tied: bool = False) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5)
    native = torch.nn.Sequential(*layers)
    if tied:
        native[4].weight = native[2].weight
    return native


def fully_sharded(tied: bool = False) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    native, mesh = network(tied), init_device_mesh("cpu", (2,))
    for layer in () if tied else native:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(native, mesh=mesh)


def tensor_parallel() -> Any:
    """The first weight in pieces of rows, the second of columns."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    native = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(native, init_device_mesh("cpu", (2,)), plan)


def gathered(net: mp.Model) -> dict[str, np.ndarray]:
    return {name: p.numpy(gather=True) for name, p in net.parameters().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def bytes_read(load: Callable[[], Any]) -> int:
    """How many bytes of values a load reads from safetensors files."""
    from multiparam.weights.positioned import Positioned

    fill, counts = Positioned.fill, []

    def counting(self: Any, buffer: memoryview, start: int) -> None:
        counts.append(len(buffer))
        fill(self, buffer, start)

    with mock.patch.object(Positioned, "fill", counting):
        load()
    return sum(counts)


# -- what each process checks; a name, and whether it is right


def of_verbs(folder: Path, rank: int) -> dict[str, Any]:
    from torch.distributed.tensor.debug import CommDebugMode

    net, twin = mp.wrap(fully_sharded()), mp.wrap(network())
    rows = slice(0, 3) if rank == 0 else slice(3, 5)
    checks: dict[str, Any] = {"values": same(gathered(net), gathered(twin))}
    checks["shape"] = net["0.weight"].shape == (5, 6) and net["0.weight"].sharding == (rows, slice(0, 6))
    try:
        net["0.weight"].numpy()
    except errors.ShardError as error:
        checks["refused"] = "numpy(gather=True) puts it together" in str(error)
    with CommDebugMode() as communication:
        for each in (net, twin):
            each.init(mp.init.normal(), "*.weight", seed=3)
            each["2.bias"] = np.arange(5, dtype="float32")
        mp.load(net, folder / "start.safetensors")
    checks["no collective"] = communication.get_total_counts() == 0
    mp.load(twin, folder / "start.safetensors")
    checks["loaded"] = same(gathered(net), gathered(twin))
    own = sum(math.prod(part.stop - part.start for part in p.sharding) * 4 for p in net.parameters().values())
    loads = {"its own blocks read": "start.safetensors", "its own blocks read and looked at": "plain.safetensors"}
    for what, file in loads.items():
        load = partial(mp.load, net, folder / file, verify="looked" in what)
        checks[what] = bytes_read(load) == own
        checks[f"{what}, and right"] = same(gathered(net), gathered(twin))
    for each in (net, twin):
        each.init(mp.init.xavier_uniform(), "*.weight", seed=5)
    checks["initialised"] = same(gathered(net), gathered(twin))
    mp.transfer(folder / "start.safetensors", net)
    mp.transfer(folder / "start.safetensors", net)
    checks["transferred"] = same(gathered(net), dict(mp.read(folder / "start.safetensors")))
    twin.init(mp.init.normal(), seed=8)
    mp.transfer(twin, net)
    checks["transferred from a model"] = same(gathered(net), gathered(twin))
    with CommDebugMode() as communication:
        count = bytes_read(lambda: mp.transfer(folder / "other.safetensors", net))
        told = cost(mp.plan(folder / "other.safetensors", net), net)
    checks["its own blocks told"] = told[:2] == (own, own)
    checks["its own blocks transferred"] = count == own
    checks["no collective in a transfer"] = communication.get_total_counts() == 0
    checks["transferred from other names"] = same(gathered(net), dict(mp.read(folder / "start.safetensors")))
    return checks


def of_training(folder: Path, rank: int) -> dict[str, Any]:
    net, twin = mp.wrap(fully_sharded(tied=True)), mp.wrap(network(tied=True))
    checks: dict[str, Any] = {"ties": net.ties() == twin.ties() == [("2.weight", "4.weight")]}
    losses = []
    for each in (net, twin):
        each.freeze("0.bias")
        step, optimizer = each.value_and_grad(mp.losses.mse), each.optimizer("adam", lr=0.1)
        for _ in range(3):
            loss, grads = step(X, Y)
            optimizer.step()
        losses.append((float(loss), list(grads)))
    checks["loss"] = abs(losses[0][0] - losses[1][0]) < 1e-6 and losses[0][1] == losses[1][1]
    ours, theirs = gathered(net), gathered(twin)
    checks["trained"] = all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    net(X)  # after which the root's parameters would be whole, and a write lost
    net["2.bias"] = np.full(5, 7.0, "float32")
    checks["written after a pass"] = gathered(net)["2.bias"].tolist() == [7.0] * 5
    try:
        net.tie("2.bias", "4.bias")
    except errors.TieError as error:
        checks["tie refused"] = "Tie before fully_shard" in str(error)
    return checks


def of_saving(folder: Path, rank: int) -> dict[str, Any]:
    net, twin = mp.wrap(fully_sharded()), mp.wrap(network())
    path = mp.save(net, folder / "w.safetensors")
    checks: dict[str, Any] = {"one file": same(dict(mp.read(path)), dict(twin.state_dict()))}
    index = mp.save(net, folder / "s.safetensors", shard_size=100)
    checks["shards"] = same(dict(mp.read(index)), dict(twin.state_dict()))
    if rank == 0:
        (folder / "bad.safetensors").symlink_to("/dev/null")
    torch.distributed.barrier()
    try:
        mp.save(net, folder / "bad.safetensors")
    except errors.FileError as error:
        checks["a failure reaches all"] = ("no regular file" if rank == 0 else "another process failed") in str(error)
    checks["and all go on"] = same(gathered(net), gathered(twin))
    return checks


def of_tensor_parallelism(folder: Path, rank: int) -> dict[str, Any]:
    net = mp.wrap(tensor_parallel())
    twin = mp.wrap(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)))
    columns = slice(0, 4) if rank == 0 else slice(4, 8)
    checks: dict[str, Any] = {"columns": net["2.weight"].sharding == (slice(0, 5), columns)}
    checks["whole"] = net["2.bias"].sharding is None
    for each in (net, twin):
        each.init(mp.init.normal(std=0.3), seed=2)
    checks["initialised"] = same(gathered(net), gathered(twin))
    checks["outputs"] = np.allclose(net.to_numpy(net(X)), twin.to_numpy(twin(X)), atol=1e-6)
    path = mp.save(net, folder / "tp.safetensors")
    checks["saved"] = same(dict(mp.read(path)), dict(twin.state_dict()))
    return checks


def of_comparing(folder: Path, rank: int) -> dict[str, Any]:
    """The same verdicts as of unsharded twins, in every process."""
    net, twin = mp.wrap(fully_sharded()), mp.wrap(network())
    checks: dict[str, Any] = {"agrees": mp.compare({"sharded": net, "whole": twin}, X, steps=2).agrees}
    mp.record(folder / "r.safetensors", {"sharded": net}, X)
    torch.distributed.barrier()
    checks["recorded"] = mp.compare({"sharded": twin}, against=folder / "r.safetensors").agrees
    twin["2.weight"][0, 0] += 0.1
    checks["written by one"] = len(list(folder.glob("r*"))) == 1
    for models in ({"sharded": net, "whole": twin}, {"whole": twin, "sharded": net}):
        pair = mp.compare(models, X).pairs[0]
        values = next(check for check in pair.checks if check.check == "values")
        checks[f"{next(iter(models))} first"] = not pair.agrees and list(values.items) == ["2.weight"]
    torch.manual_seed(0)
    tp = mp.wrap(tensor_parallel())
    whole = mp.wrap(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)))
    for name, p in whole.parameters().items():
        p.assign(tp[name].numpy(gather=True))
    checks["tensor parallel"] = mp.compare({"whole": whole, "sharded": tp}, X).agrees
    return checks


PARTS = {each.__name__: each for each in (of_verbs, of_training, of_saving, of_tensor_parallelism, of_comparing)}


def work(rank: int, folder: str, part: str) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)  # a file, so no port is needed
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    checks = PARTS[part](Path(folder), rank)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(checks))
    # Who leaves early takes the others' connections along. And what torch and gloo do at the end of a process that has
    # used threads aborts it at times, "terminate called without an active exception": what was to be seen is written.
    store.add("done", 1)
    while store.add("done", 0) < 2:
        time.sleep(0.01)
    os._exit(0)


EXPECTED = {
    "of_verbs": {
        "values",
        "shape",
        "refused",
        "no collective",
        "loaded",
        "its own blocks read",
        "its own blocks read, and right",
        "its own blocks read and looked at",
        "its own blocks read and looked at, and right",
        "initialised",
        "transferred",
        "transferred from a model",
        "its own blocks told",
        "its own blocks transferred",
        "no collective in a transfer",
        "transferred from other names",
    },
    "of_training": {"ties", "loss", "trained", "written after a pass", "tie refused"},
    "of_saving": {"one file", "shards", "a failure reaches all", "and all go on"},
    "of_comparing": {"agrees", "recorded", "written by one", "sharded first", "whole first", "tensor parallel"},
    "of_tensor_parallelism": {"columns", "whole", "initialised", "outputs", "saved"},
}


@pytest.mark.parametrize("part", PARTS)
def test_over_two_processes(tmp_path: Path, part: str) -> None:
    import torch.multiprocessing

    start = mp.wrap(network())
    start.init(mp.init.uniform(), seed=9)
    mp.save(start, tmp_path / "start.safetensors")
    plain = {name: p.numpy() for name, p in start.parameters().items()}
    save_file(plain, tmp_path / "plain.safetensors")  # without checksums, as the files of hubs are
    save_file({f"model.{name}": value for name, value in plain.items()}, tmp_path / "other.safetensors")
    torch.multiprocessing.spawn(work, args=(str(tmp_path), part), nprocs=2)
    for rank in range(2):
        checks = json.loads((tmp_path / f"{rank}.json").read_text())
        assert set(checks) == EXPECTED[part] and all(checks.values()), checks


def test_an_array_that_is_whole_is_as_it_was() -> None:
    net = mp.wrap(network())
    assert net["0.weight"].sharding is None
    assert (net["0.weight"].numpy(gather=True) == net["0.weight"].numpy()).all()
