"""Buffers of persistent=False, which torch keeps out of its state_dict; and modules held under two attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]
X = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")


class Rotary(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(4) / 4), persistent=False)
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("nothing", None, persistent=False)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.rotary = torch.nn.Linear(4, 4), Rotary()
        self.register_buffer("position_ids", torch.arange(4), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.up(x) * self.rotary.inv_freq + self.position_ids


def test_the_state_is_torchs_own_and_constants_are_listed_on_request() -> None:
    native = Net()
    net = mp.wrap(native)
    assert sorted(net.state_dict()) == sorted(native.state_dict())
    assert list(net.buffers()) == ["rotary.seen"]
    constants = net.buffers(persistent=False)
    assert list(constants) == ["position_ids", "rotary.inv_freq"]
    assert constants["rotary.inv_freq"].native is native.rotary.inv_freq
    assert list(net["rotary"].buffers(persistent=False)) == ["inv_freq"]
    assert not net.select("up.*").buffers(persistent=False)
    assert not net["up"].buffers(persistent=False)


def test_a_constant_is_found_by_name_and_is_a_buffer() -> None:
    native = Net()
    net = mp.wrap(native)
    p = net["rotary.inv_freq"]
    assert p is net["rotary"]["inv_freq"] is net.parameter("rotary.inv_freq")
    assert (p.name, p.names, p.shape, p.dtype) == ("rotary.inv_freq", ("rotary.inv_freq",), (4,), "float32")
    assert p.buffer and not p.trainable and p.grad is None
    p.assign(np.ones(4, "float32"))
    assert native.rotary.inv_freq.tolist() == [1, 1, 1, 1]
    with pytest.raises(mp.errors.ParameterNotFound):
        net["rotary.nothing"]
    with pytest.raises(mp.errors.ParameterNotFound):
        net.tie("up.bias", "rotary.inv_freq")


def test_a_constant_put_in_or_replaced_after_wrapping_is_what_is_there_now() -> None:
    native = Net()
    net = mp.wrap(native)
    p = net["position_ids"]
    native.register_buffer("later", torch.ones(2), persistent=False)
    native.position_ids = torch.arange(4) + 1
    assert p.numpy().tolist() == [1, 2, 3, 4]
    assert net["later"].numpy().tolist() == [1, 1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_have_no_constants_and_load_without_them(tmp_path: Path, suffix: str) -> None:
    source, target = Net(), Net()
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        mp.save(mp.wrap(source), path)
    with mp.read(path) as state:
        assert sorted(state) == sorted(source.state_dict())
    assert mp.load(mp.wrap(target), path) == ((), ())
    assert torch.equal(source.up.weight, target.up.weight)


def test_a_file_from_before_may_have_a_constant_with_the_same_values(tmp_path: Path) -> None:
    """Checkpoints of older releases hold position_ids; torch's own strict load refuses them, whatever they hold."""
    net = mp.wrap(Net())
    state = {**net.state_dict(), "position_ids": np.arange(4)}
    assert net.load_state_dict(state) == ((), ())
    assert mp.load(net, mp.save(state, tmp_path / "old.safetensors")) == ((), ())
    for other in (np.arange(4) + 1, np.arange(5)):
        with pytest.raises(mp.errors.StateError, match="position_ids"):
            net.load_state_dict({**state, "position_ids": other})


def test_constants_are_doubled_where_a_model_runs_in_float64() -> None:
    net = mp.wrap(Net())
    host = net.adapter.wrap(net.native, ())
    context = host.in_float64()
    assert context is not None
    before = net["rotary.inv_freq"].numpy()
    with context:
        assert net["rotary.inv_freq"].dtype == "float64"
        assert net["position_ids"].dtype == "int64"
    np.testing.assert_array_equal(net["rotary.inv_freq"].numpy(), before)


def test_models_that_differ_only_in_what_they_keep_as_constants_transfer_and_agree() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.rotary = torch.nn.Linear(4, 4), torch.nn.Module()
            self.rotary.register_buffer("seen", torch.zeros(4))
            self.factor = 1 / 10000 ** (torch.arange(4) / 4)

        def forward(self, x: Any) -> Any:
            return self.up(x) * self.factor.to(x.dtype) + torch.arange(4)

    for source, target in ((Net(), Plain()), (Plain(), Net())):
        assert mp.transfer(mp.wrap(source), mp.wrap(target), verify=X).agrees


# -- index tables


class Table(torch.nn.Module):
    def __init__(self, dtype: Any, scale: int = 1) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3, dtype=dtype) * scale)


@pytest.mark.parametrize("dtypes", [("int32", "int64"), ("int64", "int32"), ("uint8", "int64"), ("int64", "uint8")])
def test_index_tables_of_other_integers_are_transferred_where_the_values_fit(dtypes: tuple[str, str]) -> None:
    source, target = (mp.wrap(Table(getattr(torch, dtype))) for dtype in dtypes)
    target.native.table.zero_()
    mp.transfer(source, target)
    assert (target.native.table.tolist(), target["table"].dtype) == ([0, 1, 2], dtypes[1])


@pytest.mark.parametrize("cast", [False, True])
def test_index_tables_that_do_not_fit_are_refused(cast: bool) -> None:
    source, target = mp.wrap(Table(torch.int64, 2**40)), mp.wrap(Table(torch.int32))
    plan = mp.plan(source, target, cast=cast)
    assert plan.refused == ["table is int64, with values beyond the range of table, which is int32"]


def test_parameters_of_other_integers_and_other_kinds_of_numbers_are_refused_as_ever() -> None:
    source, target = mp.wrap(Table(torch.int64)), mp.wrap(Table(torch.float32))
    assert mp.plan(source, target).refused == ["table is int64, table is float32; say cast=True to convert it"]
    assert mp.plan(target, source).refused == ["table is float32, table is int64"]


# -- one module under two attributes


class Shared(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = self.again = torch.nn.Linear(4, 4)
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.out(self.again(self.embed(x)))


class Once(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.out(self.embed(self.embed(x)))


@pytest.mark.parametrize("classes", [(Shared, Once), (Once, Shared), (Shared, Shared)])
def test_a_module_under_two_attributes_blocks_nothing(classes: tuple[Any, Any]) -> None:
    source, target = (mp.wrap(cls()) for cls in classes)
    assert list(source.parameters()) == ["embed.weight", "embed.bias", "out.weight", "out.bias"]
    plan = mp.plan(source, target)
    assert plan.complete
    assert not (plan.guesses or plan.unused or plan.ties)
    assert mp.transfer(source, target, verify=X).agrees
    assert mp.compare({"reference": source, "candidate": target}, X).agrees


def test_what_is_tied_here_and_two_layers_there_is_still_said() -> None:
    class Two(Once):
        def __init__(self) -> None:
            super().__init__()
            self.again = torch.nn.Linear(4, 4)
            self.again.load_state_dict(self.embed.state_dict())

        def forward(self, x: Any) -> Any:
            return self.out(self.again(self.embed(x)))

    two, shared = Two(), Shared()
    shared.load_state_dict(two.state_dict())
    (ties,) = [each for each in mp.compare({"two": two, "shared": shared}, X).checks if each.check == "ties"]
    assert not ties.agrees
