"""Checkpoints of a training: the weights are found, what is left out is named, averages are there for the asking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.native_files import fill, torch
from support.states import bits, refused

import multiparam as mp
from multiparam import errors

pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]


def states() -> tuple[mp.Model, mp.Model, Any]:
    source, average = fill(torch(), 1), fill(torch(), 2)
    optimizer = __import__("torch").optim.Adam(source.native.parameters())
    sum(p.sum() for p in source.native.parameters()).backward()
    optimizer.step()
    return source, average, optimizer.state_dict()


def under(prefix: str, net: mp.Model) -> dict[str, Any]:
    return {prefix + name: value for name, value in net.native.state_dict().items()}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_the_weights_of_a_checkpoint(key: str, prefix: str, tmp_path: Path) -> None:
    source, average, optimizer = states()
    tree = {"epoch": 3, "args": {"lr": 0.1}, key: under(prefix, source), "optimizer_states": [optimizer]}
    path = tmp_path / "last.ckpt"
    __import__("torch").save({**tree, "state_dict_ema": under(prefix, average)}, path)
    target, averaged, other = fill(torch(), 3), fill(torch(), 4), fill(torch(), 5)
    with pytest.warns(errors.MultiparamWarning, match="left out: optimizer_states, state_dict_ema, epoch, args"):
        assert mp.load(target, path) == ((), ())
    plan = mp.plan(path, other)
    assert plan.complete and not plan.guesses
    assert {"epoch", "optimizer_states", "state_dict_ema"} <= set(plan.unused)
    mp.transfer(path, other)
    assert bits(target) == bits(source) == bits(other)
    assert mp.load(averaged, path, within="state_dict_ema") == ((), ())
    assert bits(averaged) == bits(average)


def test_a_prefix_of_a_flat_file(tmp_path: Path) -> None:
    """As of DistributedDataParallel; what stands beside the model is not passed over."""
    source = fill(torch(), 1)
    __import__("torch").save(under("module.", source), tmp_path / "w.pt")
    target = fill(torch(), 2)
    assert mp.load(target, tmp_path / "w.pt") == ((), ())
    assert bits(target) == bits(source)
    tree = {**under("backbone.", source), "head.weight": source.native[3].weight}
    __import__("torch").save(tree, tmp_path / "w.pt")
    with refused(target, match=r"unexpected \(1\):\n  'head.weight'"):
        mp.load(target, tmp_path / "w.pt")
    __import__("torch").save({"epoch": 1, "state_dict": tree}, tmp_path / "w.pt")
    with refused(target, match=r"unexpected \(1\):\n  'state_dict.head.weight'"):
        mp.load(target, tmp_path / "w.pt")
    assert mp.load(target, tmp_path / "w.pt", strict=False).unexpected == ("state_dict.head.weight",)


def test_two_of_one_structure_are_not_told_apart(tmp_path: Path) -> None:
    a, b = fill(torch(), 1), fill(torch(), 2)
    __import__("torch").save({"left": under("", a), "right": under("", b)}, tmp_path / "w.pt")
    target = fill(torch(), 3)
    with refused(target, errors.InvalidArgument, match="2 times, within 'left', 'right'. Say which: .*within='left'"):
        mp.load(target, tmp_path / "w.pt")
    mp.transfer(mp.read(tmp_path / "w.pt", within="right"), target)
    assert bits(target) == bits(b)
    with pytest.raises(errors.InvalidArgument, match=r"nothing within 'rigth'\. Did you mean 'right'"):
        mp.read(tmp_path / "w.pt", within="rigth")
