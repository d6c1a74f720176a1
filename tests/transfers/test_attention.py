"""Queries, keys and values apart or packed: PyTorch's own attention is the truth, in bits and in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
N, F = torch.nn, torch.nn.functional
D, H = 8, 2
X = np.random.default_rng(0).normal(size=(2, 5, D))


def attend(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (each.view(*each.shape[:2], H, -1).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Apart(N.Module):
    def __init__(self, bias: bool = True, names: str = "query key value dense") -> None:
        super().__init__()
        self.names = names.split()
        for name in self.names:
            self.add_module(name, N.Linear(D, D, bias=bias))

    def forward(self, x: Any) -> Any:
        q, k, v, out = (getattr(self, name) for name in self.names)
        return out(attend(q(x), k(x), v(x)))


class Fused(N.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.qkv, self.proj = N.Linear(D, 3 * D, bias=bias), N.Linear(D, D, bias=bias)

    def forward(self, x: Any) -> Any:
        return self.proj(attend(*self.qkv(x).chunk(3, -1)))


class Packed(N.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.attn = N.MultiheadAttention(D, H, bias=bias, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attn(x, x, x, need_weights=False)[0]


class Block(N.Module):
    """Some of these among other layers, two of each, as in a transformer."""

    def __init__(self, make: Callable[..., Any], bias: bool = True) -> None:
        super().__init__()
        self.attn1, self.norm, self.attn2 = make(bias), N.LayerNorm(D), make(bias)

    def forward(self, x: Any) -> Any:
        return self.attn2(self.norm(self.attn1(x)))


FORMS = {"apart": Apart, "fused": Fused, "packed": Packed}


def net(native: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    native = native.double().eval()
    for p in native.parameters():
        N.init.normal_(p, std=0.4)
    return native


def run(native: Any) -> np.ndarray:
    with torch.no_grad():
        return native(torch.from_numpy(X)).numpy()


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("source", "target"), itertools.permutations(FORMS, 2))
def test_each_form_goes_into_each(source: str, target: str, bias: bool) -> None:
    a, b = net(Block(FORMS[source], bias), 0), net(Block(FORMS[target], bias), 1)
    report = mp.transfer(mp.wrap(a), mp.wrap(b), verify=X)
    assert report.agrees and far(run(b), run(a)) < 1e-13
    again = net(Block(FORMS[source], bias), 2)  # and back, bit for bit
    mp.transfer(mp.wrap(b), mp.wrap(again), verify=X)
    state, back = a.state_dict(), again.state_dict()
    assert all(torch.equal(state[name], back[name]) for name in state)


@pytest.mark.parametrize(("source", "target"), itertools.permutations(FORMS, 2))
def test_gradients_go_the_way_of_the_weights(source: str, target: str) -> None:
    a, b = net(Block(FORMS[source]), 0), net(Block(FORMS[target]), 1)
    mp.transfer(mp.wrap(a), mp.wrap(b), verify=X)
    verdict = mp.compare({"source": a, "target": b}, X)
    assert [c.check for c in verdict.checks if not c.agrees and c.check != "structure"] == []


@pytest.mark.parametrize(("source", "target"), [("apart", "packed"), ("packed", "apart")])
def test_names_that_say_it_are_no_guess(source: str, target: str) -> None:
    a, b = mp.wrap(net(Block(FORMS[source]), 0)), mp.wrap(net(Block(FORMS[target]), 1))
    plan = mp.plan(a, b)
    assert plan.complete and not plan.unused
    assert not [m for m in plan.moves if "proj" in m.target and "attn1" not in m.target and "attn2" not in m.target]


def test_rows_of_one_linear_layer_are_a_guess() -> None:
    a, b = mp.wrap(net(Fused(), 0)), mp.wrap(net(Apart(), 1))
    with pytest.raises(mp.errors.TransferError, match="rows in blocks"):
        mp.transfer(a, b)


@pytest.mark.parametrize(
    "names", ["q k v o", "q_proj k_proj v_proj out_proj", "W_q W_k W_v W_o", "to_q to_k to_v to_out"]
)
def test_from_a_state_without_a_rule(names: str) -> None:
    a, b = net(Apart(True, names), 0), net(Packed(), 1)
    state = {f"attn.{name}": value.numpy() for name, value in a.state_dict().items()}
    mp.transfer(state, mp.wrap(b))
    assert far(run(b), run(a)) < 1e-13


def test_rules_that_name_each_leaf() -> None:
    a, b = net(Apart(False), 0), net(Packed(False), 1)
    rules = {f"re:{name}\\.(weight|bias)": rf"attn.{name[0]}_proj_\1" for name in ("query", "key", "value")}
    report = mp.transfer(mp.wrap(a), mp.wrap(b), {**rules, "dense": "attn.out_proj"}, verify=X)
    assert report.agrees and far(run(b), run(a)) < 1e-13


class KeysUnbiased(Apart):
    """As whisper's: a bias of the keys changes nothing, so there is none."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(bias)
        self.key = N.Linear(D, D, bias=False)


def test_a_bias_that_one_projection_has_not() -> None:
    a, b = net(Block(KeysUnbiased), 0), net(Block(Packed), 1)
    assert mp.transfer(mp.wrap(a), mp.wrap(b), verify=X).agrees
    assert not b.attn1.attn.in_proj_bias[D : 2 * D].any()
    again = net(Block(KeysUnbiased), 2)
    assert mp.transfer(mp.wrap(b), mp.wrap(again), verify=X).agrees
    b.attn1.attn.in_proj_bias.data[D] = 1.0
    before = [p.clone() for p in again.parameters()]
    with pytest.raises(mp.errors.TransferError, match="not zero"):
        mp.transfer(mp.wrap(b), mp.wrap(again), accept_guesses=True)
    assert all(torch.equal(p, q) for p, q in zip(before, again.parameters(), strict=True))
