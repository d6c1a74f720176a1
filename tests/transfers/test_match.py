"""Which layer goes into which, on what evidence: names written differently, ranks, and what outputs prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam.core.state import ArraySpec
from multiparam.transfers.manifest import Entry, Manifest
from multiparam.transfers.names import name_pairs
from multiparam.transfers.plan import plan_manifests
from multiparam.transfers.ranking import assignment, by_words

torch = pytest.importorskip("torch")
N, L = torch.nn, torch.nn.Linear
X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


class Named(N.Module):
    """Layers by name, run in the order given."""

    def __init__(self, *order: str, **layers: N.Module) -> None:
        super().__init__()
        self.order = order or tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        for name in self.order:
            x = torch.tanh(getattr(self, name)(x))
        return x


def named(*order: str, seed: int = 0, **layers: N.Module) -> mp.Model:
    net = mp.wrap(Named(*order, **layers))
    net.init(mp.init.normal(std=0.7), seed=seed)
    return net


def manifest(layers: dict[str, dict[str, tuple[int, ...]]], kind: str = "linear") -> Manifest:
    """A side of which only names and shapes are there; its values are ones."""
    entries = {
        layer: {
            leaf: Entry(f"{layer}.{leaf}", ArraySpec(shape, "float32"), (layer, leaf)) for leaf, shape in leaves.items()
        }
        for layer, leaves in layers.items()
    }
    shapes = {entry.name: entry.spec.shape for leaves in entries.values() for entry in leaves.values()}
    kinds = {(layer, leaf): kind for layer, leaves in layers.items() for leaf in leaves}
    return Manifest("side", entries, kinds, lambda name: np.ones(shapes[name], "float32"), {})


def squares(*names: str, kind: str = "linear") -> Manifest:
    return manifest({name: {"weight": (3, 3)} for name in names}, kind)


PAIRS: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    # source, target, target -> source
    "equal": (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}),
    "a prefix of the source": (["bert.a", "bert.b"], ["a", "b"], {"a": "bert.a", "b": "bert.b"}),
    "a prefix of the target": (["a.x", "b.x"], ["model.a.x", "model.b.x"], {"model.a.x": "a.x", "model.b.x": "b.x"}),
    "a prefix and a head that has none": (
        ["encoder.fc", "head"], ["bert.encoder.fc", "head"], {"bert.encoder.fc": "encoder.fc", "head": "head"},
    ),
    "separators": (["blocks.0.q"], ["blocks_0_q"], {"blocks_0_q": "blocks.0.q"}),
    "capitals": (["selfAttention.q"], ["self_attention.q"], {"self_attention.q": "selfAttention.q"}),
    "containers": (["encoder.layers.0.fc"], ["encoder.0.fc"], {"encoder.0.fc": "encoder.layers.0.fc"}),
    "from 1": (["conv1", "conv2"], ["conv0", "conv1"], {"conv0": "conv1", "conv1": "conv2"}),
    "fewer layers": (["l.0", "l.1", "l.2"], ["l.0", "l.1"], {"l.0": "l.0", "l.1": "l.1"}),
    "numbers of other things": (["0", "2", "4"], ["0", "1", "2"], {}),
    "two that would have one name": (["layer.a", "a"], ["a", "block.a"], {"a": "a"}),
    "other words": (["a"], ["b"], {}),
}  # fmt: skip


@pytest.mark.parametrize("what", PAIRS)
def test_one_name_written_differently(what: str) -> None:
    sources, targets, expected = PAIRS[what]
    assert {pair.target: pair.source for pair in name_pairs(sources, targets)} == expected
    back = {source: target for target, source in expected.items()}
    assert {pair.target: pair.source for pair in name_pairs(targets, sources)} == back


def test_every_pair_of_a_large_model_is_found_in_linear_time() -> None:
    names = [f"decoder.layers.{i}.experts.{j}.{leaf}" for i in range(20) for j in range(50) for leaf in ("up", "down")]
    pairs = name_pairs([f"model.{name}" for name in names], [name.replace(".", "_") for name in names])
    assert len(pairs) == len(names) and all(p.source.replace(".", "_") == f"model_{p.target}" for p in pairs)


@pytest.mark.parametrize("order", [("k", "v", "q"), ("v", "q", "k")])
def test_no_guess_contradicts_the_words_of_a_name(order: tuple[str, ...]) -> None:
    sources, targets = [f"self.{name}_proj" for name in order], ["attn.query", "attn.key", "attn.value"]
    assert by_words(sources, targets) == {f"attn.{word}": f"self.{word[0]}_proj" for word in ("query", "key", "value")}


def test_ranks_are_guesses_and_names_are_not() -> None:
    plan = plan_manifests(squares("a.k", "a.q", "b"), squares("x.query", "x.key", "b"))
    whys = {move.target: (move.sources[0], move.why) for move in plan.moves}
    guess = "guess: order, kind and shape"
    assert whys == {
        "b.weight": ("b.weight", "name"),
        "x.key.weight": ("a.k.weight", guess),
        "x.query.weight": ("a.q.weight", guess),
    }


def test_an_assignment_costs_least() -> None:
    costs = np.random.default_rng(0).normal(size=(6, 6))
    chosen = assignment(costs)
    assert sorted(i for i, _ in chosen) == sorted(j for _, j in chosen) == list(range(6))
    assert sum(costs[i, j] for i, j in chosen) <= np.trace(costs)


# -- inside a pair


def test_a_square_matrix_of_an_unknown_class_is_laid_out_as_the_others_of_its_class() -> None:
    source = manifest({"a": {"weight": (3, 9)}, "b": {"weight": (3, 3)}}, "Conv1D")
    target = manifest({"a": {"kernel": (9, 3)}, "b": {"kernel": (3, 3)}}, "FlaxConv1D")
    plan = plan_manifests(source, target)
    assert plan.complete and [move.change for move in plan.moves] == ["transposed", "transposed"]


def test_a_square_matrix_that_nothing_tells_is_refused() -> None:
    plan = plan_manifests(manifest({"b": {"weight": (3, 3)}}, "Mine"), manifest({"b": {"kernel": (3, 3)}}, "Yours"))
    assert not plan.moves and "whether kernel (3, 3) is laid out so nothing says" in plan.refused[0]


def test_a_norm_is_known_by_its_leaves() -> None:
    leaves = {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)}
    theirs = {"gamma": (1, 4, 1, 1), "beta": (1, 4, 1, 1), "moving_mean": (1, 4, 1, 1), "moving_var": (1, 4, 1, 1)}
    plan = plan_manifests(manifest({"n": leaves}, "Norm"), manifest({"n": theirs}, "BatchNorm"))
    assert plan.complete and not plan.guesses
    assert {move.target: move.sources[0] for move in plan.moves} == {
        "n.gamma": "n.scale", "n.beta": "n.bias", "n.moving_mean": "n.mean", "n.moving_var": "n.var",
    }  # fmt: skip
    assert {move.make().shape for move in plan.moves} == {(1, 4, 1, 1)}


def test_a_linear_layer_is_a_convolution_of_one_position() -> None:
    source = mp.wrap(N.Sequential(N.Conv2d(4, 3, 1), N.Flatten()))
    target = mp.wrap(N.Sequential(L(4, 3)))
    for a, b, x in ((source, target, X[:, :, None, None]), (target, source, X)):
        a.init(mp.init.normal(std=1.0), seed=1)
        mp.transfer(a, b)
        other = X if x.ndim == 4 else X[:, :, None, None]
        np.testing.assert_allclose(mp.to_numpy(a(x)), mp.to_numpy(b(other)), rtol=1e-5)


def test_a_weight_that_counts_as_ones_is_ones_there_and_must_be_here() -> None:
    shapes = {"n": {"weight": (3,), "bias": (3,)}}
    fixed, free = manifest(shapes, "batchnorm"), manifest(shapes, "batchnorm")
    fixed.options = {"n": {"scale": False}}
    free.read = lambda name: np.full(3, 2, "float32")
    there = {move.target: move for move in plan_manifests(fixed, free).moves}
    assert there["n.weight"].make().tolist() == [1, 1, 1] and there["n.weight"].change == "counts as 1 there"
    assert "counts as 1 here whatever it holds" in plan_manifests(free, fixed).refused[0]
    free.read = lambda name: np.ones(3, "float32")
    assert plan_manifests(free, fixed).complete


def test_nothing_goes_into_a_model_without_parameters() -> None:
    plan = plan_manifests(squares("a"), squares())
    assert not plan.complete and "no parameter that is reached" in plan.refused[0]
    assert plan_manifests(squares(), squares()).complete


# -- what outputs prove


def test_a_guess_is_proved_by_order_of_definition_or_of_execution() -> None:
    source = named("a", "b", "c", a=L(4, 4), b=L(4, 4), c=L(4, 4))
    for order in (("x", "y", "z"), ("z", "x", "y")):
        target = named(*order, x=L(4, 4), y=L(4, 4), z=L(4, 4), seed=9)
        with pytest.raises(mp.errors.TransferError, match="guesses"):
            mp.transfer(source, target)
        report = mp.transfer(source, target, verify=X)
        assert report.agrees and "proved by the outputs" in report.proved and not report.plan.guesses
        assert np.array_equal(target[f"{order[1]}.weight"].numpy(), source["b.weight"].numpy())
        np.testing.assert_array_equal(mp.to_numpy(source(X)), mp.to_numpy(target(X)))


@pytest.mark.parametrize("fails", [False, True])
def test_what_nothing_proves_leaves_the_target_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = named(a=L(4, 4), b=L(4, 4))
    target = named(x=L(4, 4), y=L(4, 4), seed=9)
    target.native.order = ("x", "y", "x")  # another function
    if fails:
        monkeypatch.setattr(target.native, "forward", lambda x: 1 / 0)
    before = {name: p.numpy().tobytes() for name, p in target.parameters().items()}
    with pytest.raises(ZeroDivisionError if fails else mp.errors.TransferError) as error:
        mp.transfer(source, target, verify=X)
    assert fails or "none of" in str(error.value)
    assert {name: p.numpy().tobytes() for name, p in target.parameters().items()} == before


def test_guesses_that_are_accepted_are_taken_and_judged() -> None:
    source, target = named(a=L(4, 4), b=L(4, 4)), named(x=L(4, 4), y=L(4, 4), seed=9)
    target.native.order = ("x", "y", "x")
    report = mp.transfer(source, target, accept_guesses=True, verify=X)
    assert not report.agrees and len(report.plan.guesses) == 4 and not report.proved


def test_compare_takes_no_pair_that_nothing_proves() -> None:
    source, target = named(a=L(4, 4), b=L(4, 4)), named(x=L(4, 4), y=L(4, 4), seed=9)
    assert mp.compare({"one": source, "other": target}, X, sync="one").agrees
    target.native.order = ("x", "y", "x")
    with pytest.raises(mp.errors.TransferError, match="guesses"):
        mp.compare({"one": source, "other": target}, X, sync="one")


def test_weight_norm_has_one_name_whichever_version_of_pytorch_made_it() -> None:
    new = mp.wrap(N.Sequential(N.utils.parametrizations.weight_norm(L(4, 3))))
    old = {
        "0.weight_g": np.ones((3, 1), "float32"),
        "0.weight_v": np.full((3, 4), 2, "float32"),
        "0.bias": np.ones(3, "f4"),
    }
    plan = mp.plan(old, new)
    assert plan.complete and not plan.guesses and not plan.unused
    mp.transfer(old, new)
    assert new["0.parametrizations.weight.original1"].numpy().tolist() == old["0.weight_v"].tolist()
