"""Rules that a plan comes to: saved, used again, turned round. A round trip gives the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import multiparam as mp
from multiparam.transfers.rename import RuleSet, loaded, renamer

torch = pytest.importorskip("torch")
N, D = torch.nn, 8


class Tree(N.Module):
    """Modules by dotted names."""

    def __init__(self, **modules: N.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            *above, last = name.split("__")
            at: N.Module = self
            for segment in above:
                if segment not in dict(at.named_children()):
                    at.add_module(segment, N.Module())
                at = at.get_submodule(segment)
            at.add_module(last, module)


def linear() -> N.Module:
    return N.Linear(D, D)


def apart(at: str, q: str, k: str, v: str, out: str) -> Callable[[], N.Module]:
    return lambda: Tree(**{f"{at}__{name}": linear() for name in (q, k, v, out)}, head=N.Linear(D, 3))


def fused(at: str) -> Callable[[], N.Module]:
    return lambda: Tree(**{f"{at}__qkv": N.Linear(D, 3 * D), f"{at}__proj": linear()}, top=N.Linear(D, 3))


def packed(at: str) -> Callable[[], N.Module]:
    return lambda: Tree(**{at: N.MultiheadAttention(D, 2)}, last=N.Linear(D, 3))


class Stacked(N.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = N.Parameter(torch.zeros(3, D, D)), N.Parameter(torch.zeros(3, D))


PAIRS: dict[str, tuple[Callable[[], N.Module], Callable[[], N.Module]]] = {
    "other names": (
        lambda: Tree(a__one=N.Linear(4, 5), a__two=N.BatchNorm1d(5), end=N.Linear(5, 3)),
        lambda: Tree(x=N.Linear(4, 5), y__norm=N.BatchNorm1d(5), z__head=N.Linear(5, 3)),
    ),
    "equal names": (lambda: Tree(a=N.Linear(4, 5)), lambda: Tree(a=N.Linear(4, 5))),
    "names of two layers exchanged": (
        lambda: Tree(a=N.Linear(4, 5), b=N.Linear(5, 4)),
        lambda: Tree(b=N.Linear(4, 5), a=N.Linear(5, 4)),
    ),
    "a guess": (
        lambda: Tree(a=linear(), b=linear(), c=linear()),
        lambda: Tree(x=linear(), y=linear(), z=linear()),
    ),
    "apart, otherwise named": (apart("self", "q", "k", "v", "o"), apart("attn", "query", "key", "value", "out")),
    "apart into packed": (apart("self", "q", "k", "v", "o"), packed("mha")),
    "apart into one layer": (apart("self", "q", "k", "v", "o"), fused("attn")),
    "one layer into packed": (fused("self"), packed("attn")),
    "stacked": (lambda: Tree(**{f"h__{i}__fc": linear() for i in range(3)}), lambda: Tree(h__fc=Stacked())),
    "stacked, called otherwise": (
        lambda: Tree(**{f"layers__{i}__fc": linear() for i in range(3)}),
        lambda: Tree(body__fc=Stacked()),
    ),
}


def filled(make: Callable[[], N.Module], seed: int) -> mp.Model:
    net = mp.wrap(make())
    net.init(mp.init.normal(), seed=seed)
    return net


def bits(net: mp.Model) -> dict[str, bytes]:
    return {name: p.numpy().tobytes() for name, p in {**net.parameters(), **net.buffers()}.items()}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("what", PAIRS)
def test_a_round_trip_gives_the_same_bits(what: str, back: bool, tmp_path: Path) -> None:
    makes = PAIRS[what][::-1] if back else PAIRS[what]
    source, target = filled(makes[0], 1), filled(makes[1], 2)
    before, plan = bits(source), mp.plan(source, target)
    mp.transfer(source, target, accept_guesses=True)
    there, inverse = bits(target), plan.inverse()
    assert inverse.complete and not inverse.guesses
    source.init(mp.init.zeros())
    mp.transfer(target, source, inverse.rules())
    assert bits(source) == before
    file = tmp_path / "rules.toml"
    plan.rules().save(file)
    target.init(mp.init.zeros())
    again = mp.transfer(source, target, file).plan  # nothing is a guess any more
    assert bits(target) == there and not again.guesses
    assert {(m.target, m.sources) for m in again.moves} == {(m.target, m.sources) for m in plan.moves}


def test_rules_of_equal_names_say_nothing() -> None:
    makes = PAIRS["equal names"]
    assert mp.plan(filled(makes[0], 1), filled(makes[1], 2)).rules() == {}


def test_rules_are_by_layer() -> None:
    makes = PAIRS["other names"]
    rules = mp.plan(filled(makes[0], 1), filled(makes[1], 2)).rules()
    assert rules == {"a.one": "x", "a.two": "y.norm", "end": "z.head"}


def test_what_goes_nowhere_is_left_out_again(tmp_path: Path) -> None:
    source, target = filled(lambda: Tree(a=linear(), gone=N.Linear(2, 3)), 1), filled(lambda: Tree(x=linear()), 2)
    plan = mp.plan(source, target)
    rules = plan.rules()
    assert rules == {"gone.weight": None, "gone.bias": None, "a": "x"}
    rules.save(tmp_path / "r.toml")
    assert '"gone.weight" = false' in (tmp_path / "r.toml").read_text()
    assert mp.plan(source, target, tmp_path / "r.toml").unused == plan.unused
    assert not plan.inverse().complete  # the target has nothing to make it of


def test_a_sum_cannot_be_taken_apart() -> None:
    keras = pytest.importorskip("keras")
    target = mp.wrap(keras.Sequential([keras.Input((5, 4)), keras.layers.LSTM(3, return_sequences=True)]))
    back = mp.plan(mp.wrap(N.LSTM(4, 3, batch_first=True)), target).inverse()
    assert any("cannot be taken apart again: sum of two biases" in text for text in back.refused)


@pytest.mark.parametrize("as_inferred", [True, False])
def test_what_was_proved_of_a_flattening_is_kept(as_inferred: bool, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    net = N.Sequential(N.Conv2d(3, 4, 2), *([] if as_inferred else [N.Flatten(2), N.Flatten()]), N.Flatten())
    source = mp.wrap(N.Sequential(net, N.Linear(4 * 6, 5)))
    conv, dense = keras.layers.Conv2D(4, 2), keras.layers.Dense(5)
    inner = [keras.layers.Flatten()] if as_inferred else [keras.layers.Permute((3, 1, 2)), keras.layers.Flatten()]
    target = mp.wrap(keras.Sequential([keras.Input((3, 4, 3)), conv, *inner, dense]))
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype("float32")
    report = mp.transfer(source, target, verify=x)
    assert report.agrees and set(report.plan.rules().flattened.values()) == {as_inferred}
    values = bits(target)
    report.plan.rules().save(tmp_path / "r.toml")
    target.init(mp.init.zeros())
    mp.transfer(source, target, tmp_path / "r.toml")
    assert bits(target) == values
    back, before = report.plan.inverse(), bits(source)
    source.init(mp.init.zeros())
    mp.transfer(target, source, back.rules())
    assert bits(source) == before


def test_names_that_toml_must_quote_come_back(tmp_path: Path) -> None:
    rules = RuleSet({'a "b"\\': "c\n\x7f", "日本 🙂": None}, {"w.x": True})
    rules.save(tmp_path / "r.toml")
    found = loaded(tmp_path / "r.toml")
    assert isinstance(found, RuleSet) and found == rules and found.flattened == rules.flattened


@pytest.mark.parametrize("text", ['flattened = 3\n[rules]\n"a" = "b"', '[rules]\n"a" = "b"\n[flattened]\n"x" = "y"'])
def test_a_wrong_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(mp.errors.FileError, match="flattened"):
        renamer(tmp_path / "r.toml")


def test_the_first_rule_that_fits_counts_exact_or_not() -> None:
    rename = renamer({"a.w": "1", re.compile(r"b\.(.*)"): r"2.\1", "b.w": "3", "c": "4", "c.w": "5", "*": "6.*"})
    assert [rename(name) for name in ("a.w", "b.w", "b.x", "c.w", "c", "d.w")] == [
        "1",
        "2.w",
        "2.x",
        "4.w",
        "4",
        "6.d.w",
    ]


def test_a_plan_made_by_hand_has_no_inverse() -> None:
    with pytest.raises(mp.errors.InvalidArgument, match="by hand"):
        type(mp.plan({"weight": np.ones((3, 2), "float32")}, mp.wrap(N.Linear(2, 3))))("a", "b").inverse()
