"""What evidence matches, on manifests alone: names, kinds and shapes. No framework is needed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from support.manifests import kinds_manifest, manifest, squares

from multiparam.transfers.names import name_pairs, ordinal_keys, without_containers
from multiparam.transfers.plan import plan_manifests
from multiparam.transfers.ranking import assignment, by_calls, by_order, by_pairs, by_words, ranked, similarity

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
    "numbers of other things that begin alike": (["0", "2", "4"], ["0", "1", "3"], {}),
    "from 1, and others": (["conv1", "conv3"], ["conv0", "conv1"], {}),
    "other words": (["a"], ["b"], {}),
    "other alphabets": (["net.权", "net.值", "前"], ["model.net.值", "model.net.权", "后"],
                        {"model.net.权": "net.权", "model.net.值": "net.值"}),
    "signs": (["w.+", "w.-1"], ["w.*", "w.1"], {"w.1": "w.-1"}),
    "equal names among others alike": (["fc_1", "fc1", "FC_1"], ["fc1", "fc_1"], {"fc1": "fc1", "fc_1": "fc_1"}),
    "alike": (["fc_1", "fc1"], ["fc.1"], {}),
    "a number that is the beginning of another": (
        ["layer1.0", "layer10", "layer1"], ["layer_10", "layer_1", "layer_1_0"],
        {"layer_10": "layer10", "layer_1": "layer1", "layer_1_0": "layer1.0"},
    ),
    "a word that is the beginning of another": (["enc", "encoder"], ["m.encoder", "m.enc"],
                                                {"m.enc": "enc", "m.encoder": "encoder"}),
    "h of numbered blocks": (["h.0.fc", "ln"], ["0.fc", "ln"], {"0.fc": "h.0.fc", "ln": "ln"}),
    "h of a hidden state": (["w_x", "w_h"], ["w", "u"], {}),
    "twins": (["encoder.layers.0.fc", "decoder.layers.0.fc"], ["layers.0.fc"], {}),
    "twins of which one is deeper": (
        [*(f"encoder.layers.{i}.fc" for i in range(2)), *(f"decoder.layers.{i}.fc" for i in range(3))],
        ["layers.0.fc", "layers.1.fc"], {},
    ),
    "twins of which one has more": (
        ["encoder.0.fc", "decoder.0.fc", "decoder.0.cross"], ["0.fc", "0.cross"],
        {"0.fc": "decoder.0.fc", "0.cross": "decoder.0.cross"},
    ),
    "twins of which each has more": (
        ["encoder.fc", "encoder.emb", "decoder.fc", "decoder.head"], ["fc", "emb", "head"],
        {"emb": "encoder.emb", "head": "decoder.head"},
    ),
    "a twin that has its own": (["net.fc", "ema.fc"], ["fc", "ema.fc"], {"fc": "net.fc", "ema.fc": "ema.fc"}),
    "two towers": (["image.fc", "text.fc"], ["text.fc", "image.fc"], {"text.fc": "text.fc", "image.fc": "image.fc"}),
    "two towers in a model": (["m.vision.fc", "m.text.fc"], ["text.fc", "vision.fc"],
                              {"text.fc": "m.text.fc", "vision.fc": "m.vision.fc"}),
    "two towers of other names": (["vision.fc", "text.fc"], ["image.fc", "words.fc"], {}),
    "a prefix of two words": (["a.b.fc", "a.b.out"], ["fc", "out"], {"fc": "a.b.fc", "out": "a.b.out"}),
    "a prefix of three words": (["a.b.c.fc", "a.b.c.out"], ["fc", "out"], {"fc": "a.b.c.fc", "out": "a.b.c.out"}),
    "a prefix of four words": (["a.b.c.d.fc", "a.b.c.d.out"], ["fc", "out"], {}),
    "what is numbered is no prefix": (["towers.0.fc"], ["fc"], {}),
    "layers that are no prefix": (["a", "b", "m.fc"], ["", "fc"], {"fc": "m.fc"}),
    "the model itself": (["m.fc", "m"], ["fc", ""], {"fc": "m.fc"}),
    "numbers of other things and a prefix": (["0", "2", "4", "m.fc"], ["0", "1", "2", "fc"], {"fc": "m.fc"}),
    "no more than four prefixes, the greatest first": (
        ["a.p", "b.q", "d.r", "e.s", "z.t", "z.u"], ["p", "q", "r", "s", "t", "u"],
        {"t": "z.t", "u": "z.u", "p": "a.p", "q": "b.q", "r": "d.r"},
    ),
    "from 1 after other numbers": (["x.0", "conv1", "conv2"], ["conv0", "conv1"], {"conv0": "conv1", "conv1": "conv2"}),
    "a norm in the model and in its part": (
        ["m.norm", "m.encoder.norm"], ["norm", "encoder.norm"], {"norm": "m.norm", "encoder.norm": "m.encoder.norm"},
    ),
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


DIFFERENCES = [
    ("fc", "fc", ""),
    ("a_fc", "a.fc", "written otherwise"),
    ("bert.a.fc", "a.fc", "without the prefix 'bert'"),
    ("x.y.a.fc", "a_fc", "without the prefix 'x.y'"),
    ("a.layers.0", "a.0", "without words for containers"),
    ("m.a.layers.1", "a.0", "without the prefix 'm', without words for containers, numbered from another number"),
]


@pytest.mark.parametrize(("source", "target", "difference"), DIFFERENCES)
def test_it_is_said_how_a_name_is_written_differently(source: str, target: str, difference: str) -> None:
    assert name_pairs([source], [target]) == [(source, target, difference)]


def test_words_for_containers_count_where_there_are_no_others() -> None:
    assert without_containers(("layer", "block")) == ("layer", "block")
    assert name_pairs(["layer"], ["block"]) == []


def test_what_suits_another_too_is_not_the_only_one() -> None:
    linear, conv = ("linear", {"weight": (3, 3)}), ("conv", {"weight": (3, 3, 1)})
    source = kinds_manifest({"x.a": linear, "y.b": conv})
    crossed = plan_manifests(source, kinds_manifest({"q.b": linear, "p.a": conv}))
    assert len(crossed.guesses) == len(crossed.moves) == 2
    alone = plan_manifests(kinds_manifest({"x.a": linear}), kinds_manifest({"p.c": conv}))
    assert alone.complete and not alone.guesses


@pytest.mark.parametrize(("name", "guessed"), [("b", {"x.weight"}), ("c", {"x.weight", "c.weight"})])
def test_what_has_a_like_of_its_own_side_is_not_the_only_one(name: str, guessed: set[str]) -> None:
    """Whether that one has a pair by name or none."""
    plan = plan_manifests(squares("a", "b"), squares("x", name))
    assert {move.target for move in plan.guesses} == guessed


def test_the_only_one_is_certain_where_everything_has_its_place() -> None:
    source = manifest({"a": {"weight": (3, 4)}, "b": {"weight": (4, 3)}})
    plan = plan_manifests(source, manifest({"x": {"weight": (4, 3)}, "y": {"weight": (3, 4)}}))
    assert {move.target: move.sources[0] for move in plan.moves} == {"x.weight": "b.weight", "y.weight": "a.weight"}
    assert not plan.guesses
    for target in ({"x": (4, 3)}, {"x": (4, 3), "y": (3, 4), "z": (5, 4)}):  # one side has more
        plan = plan_manifests(source, manifest({layer: {"weight": shape} for layer, shape in target.items()}))
        assert len(plan.guesses) == len(plan.moves) >= 1


# -- ranks


def test_how_much_two_names_have_in_common() -> None:
    assert similarity(("a", "q"), ("a", "query")) == 1
    assert similarity(("a",), ("b",)) == similarity((), ()) == similarity(("a",), ()) == similarity((), ("a",)) == 0
    assert similarity(("a", "b", "c"), ("x", "b", "y", "c", "z")) == 2 / 5
    assert similarity(("c", "a", "b"), ("a", "b", "x")) == similarity(("a", "b", "x"), ("c", "a", "b")) == 2 / 4
    assert similarity(("q", "x", "z"), ("y", "z", "q")) == 1 / 4
    assert similarity(("x", "q"), ("y", "q")) == 2 / 3 > similarity(("q", "x"), ("q", "y")) == 1 / 3
    assert similarity(("q", "x", "y"), ("z", "q")) == 1 / 3.5  # the last word of one only
    assert similarity(("a", 0), ("a", 1)) == 1 / 2.1 > similarity(("a", 0), ("b", 0)) == 0.1 / 2.1


def test_of_unequal_many_only_what_stands_out_is_paired() -> None:
    few, many = ["w.query", "v.k"], ["x.q", "y.q", "z.key"]
    assert by_words(many, few) == {"v.k": "z.key"}
    assert by_words(few, many) == {"z.key": "v.k"}
    assert by_words(["a.q", "a.k", "a.z"], few) == {"w.query": "a.q", "v.k": "a.k"}
    assert by_words([], few) == by_words(few, []) == {}


def test_words_that_say_little_are_not_worth_another_order() -> None:
    assert by_words(["a", "b", "c"], ["x", "y", "z"]) == {"x": "a", "y": "b", "z": "c"}
    # The words of two of twenty layers gain less than they may be wrong.
    sources, targets = [[f"{side}.{i}.{'ab'[i % 2]}x" for i in range(20)] for side in "st"]
    sources[:2], targets[:2] = ["s.q", "s.k"], ["t.k", "t.q"]
    assert by_words(sources, targets)["t.k"] == "s.q"
    assert by_words(["s.a", "s.b", "s.q", "s.k"], ["t.key", "t.query", "t.c", "t.d"]) == {
        "t.key": "s.k", "t.query": "s.q", "t.c": "s.a", "t.d": "s.b",
    }  # fmt: skip


def test_the_rest_keeps_its_order_wherever_it_stands() -> None:
    pairs = {"t.key": "s.k", "t.query": "s.q", "t.c": "s.a", "t.d": "s.b"}
    assert by_words(["s.q", "s.k", "s.a", "s.b"], ["t.c", "t.d", "t.key", "t.query"]) == pairs


def test_numbers_are_ranks_among_those_of_one_place() -> None:
    keys = ordinal_keys(["0.conv", "3.conv", "3.bn.7", "other.5"])
    assert keys == [(0, "conv"), (1, "conv"), (1, "bn", 0), ("other", 0)]


def test_the_order_decides_where_words_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, targets = ["k", "v", "q"], ["query", "key", "value"]
    monkeypatch.setattr("multiparam.transfers.ranking.MOST_RANKED", 3)
    assert by_words(sources, targets) == {"query": "q", "key": "k", "value": "v"}
    monkeypatch.setattr("multiparam.transfers.ranking.MOST_RANKED", 2)
    assert by_words(sources, targets) == {"query": "k", "key": "v", "value": "q"}


def test_the_order_of_calls_counts_first_calls_and_what_never_ran_is_last() -> None:
    rank = by_calls(["b", "a", "b"], ["y", "x"])
    assert rank(["c", "a", "b"], ["x", "y", "z"]) == {"y": "b", "x": "a", "z": "c"}
    assert by_calls(["b", "a"], ["x", "y"])(["c", "a", "b"], ["x", "y", "z"]) == {"x": "b", "y": "a", "z": "c"}
    assert by_calls(["a", "b"], ["x", "y"])(["a", "b"], ["z", "y", "x"]) == {"x": "a", "y": "b"}


def test_pairs_that_are_known_are_taken_where_both_are_there() -> None:
    rank = by_pairs({"y": "a", "z": "gone", "gone": "b"})
    assert rank(["a", "b", "c"], ["x", "y", "z"]) == {"y": "a", "x": "b", "z": "c"}


def test_what_suits_is_asked_once_of_what_is_alike_and_nothing_is_taken_twice() -> None:
    kinds = {"source": {"a": 1, "b": 2, "c": 1}, "target": {"x": 1, "y": 2, "z": 1}}
    asked = list[tuple[str, str]]()

    def suits(source: str, target: str) -> bool:
        asked.append((source, target))
        return kinds["source"][source] == kinds["target"][target]

    pairs = ranked(["a", "b", "c"], ["x", "y", "z"], suits, lambda side, name: kinds[side][name], by_order)
    assert pairs == {"x": "a", "z": "c", "y": "b"}
    assert asked == [("a", "x"), ("b", "x"), ("b", "y")]


def test_without_scipy_the_cheapest_pair_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = np.array([[3.0, 1.0, 4.0], [0.0, 0.5, 4.0]])
    assert assignment(costs) == [(0, 1), (1, 0)]
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert assignment(costs) == [(0, 1), (1, 0)]
    assert assignment(costs.T) == [(0, 1), (1, 0)]
    assert assignment(np.zeros((2, 3))) == [(0, 0), (1, 1)]


def test_an_assignment_costs_least() -> None:
    costs = np.random.default_rng(0).normal(size=(6, 6))
    chosen = assignment(costs)
    assert sorted(i for i, _ in chosen) == sorted(j for _, j in chosen) == list(range(6))
    assert sum(costs[i, j] for i, j in chosen) <= np.trace(costs)


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


TABLE = {"weight": (9, 4)}


NORM = {"weight": (4,), "bias": (4,)}


APART = kinds_manifest({
    "emb.word_embeddings": ("embedding", TABLE), "emb.position_embeddings": ("embedding", {"weight": (7, 4)}),
    "emb.LayerNorm": ("layernorm", NORM),
})  # fmt: skip


INSIDE = kinds_manifest({
    "bert.emb": ("TheirEmbeddings", {**TABLE, "position_embeddings": (7, 4)}),
    "bert.emb.LayerNorm": ("layernorm", NORM),
})  # fmt: skip


@pytest.mark.parametrize("back", [False, True])
def test_an_array_may_be_held_by_the_layer_around_it(back: bool) -> None:
    plan = plan_manifests(*((INSIDE, APART) if back else (APART, INSIDE)))
    pairs = {("emb.word_embeddings.weight", "bert.emb.weight"), ("emb.LayerNorm.bias", "bert.emb.LayerNorm.bias"),
             ("emb.LayerNorm.weight", "bert.emb.LayerNorm.weight"),
             ("emb.position_embeddings.weight", "bert.emb.position_embeddings")}  # fmt: skip
    assert {(m.target, *m.sources) if back else (*m.sources, m.target) for m in plan.moves} == pairs
    assert plan.complete and not plan.guesses and not plan.unused
    again = plan_manifests(*plan.sides, plan.rules())  # type: ignore[misc]
    assert {(m.target, m.sources) for m in again.moves} == {(m.target, m.sources) for m in plan.moves}
    assert plan.inverse().complete and not plan.inverse().guesses


def test_an_array_of_another_shape_stays_where_it_is() -> None:
    other = kinds_manifest({"bert.emb": ("TheirEmbeddings", {**TABLE, "position_embeddings": (8, 4)})})
    assert "bert.emb.position_embeddings" in plan_manifests(APART, other).missing


@pytest.mark.parametrize(
    ("kind", "leaves", "fits"),
    [
        ("embedding", TABLE, True),
        ("layernorm", NORM, True),
        ("batchnorm", {**NORM, "running_mean": (4,), "running_var": (4,)}, True),
        ("rmsnorm", {"weight": (4,)}, False),
        ("layernorm", {"weight": (4,)}, False),  # the other may add 1 to it
        ("linear", {"weight": (4, 4)}, False),  # the other may have its inputs first
        ("linear", {"weight": (4, 4), "bias": (4,)}, False),
    ],
)
def test_what_a_class_may_be_that_is_not_known(kind: str, leaves: dict[str, tuple[int, ...]], fits: bool) -> None:
    known, unknown = kinds_manifest({"a.x": (kind, leaves)}), kinds_manifest({"b.y": ("Theirs", leaves)})
    for source, target in ((known, unknown), (unknown, known)):
        assert plan_manifests(source, target).complete is fits


def test_a_bias_beside_a_separable_convolution_is_that_of_its_second_part() -> None:
    parts = {"c.depthwise": ("conv", {"weight": (4, 1, 3)}), "c.pointwise": ("conv", {"weight": (6, 4, 1)})}
    source = kinds_manifest({"c": ("Theirs", {"bias": (6, 1)}), **parts})
    target = kinds_manifest({**parts, "c.pointwise": ("conv", {"weight": (6, 4, 1), "bias": (6,)})})
    for one, other in ((source, target), (target, source)):
        plan = plan_manifests(one, other)
        assert plan.complete and not plan.guesses and not plan.unused and len(plan.moves) == 3


@pytest.mark.parametrize("back", [False, True])
def test_a_list_of_experts_is_one_array(back: bool) -> None:
    one = kinds_manifest({"mlp.experts": ("Experts", {"w1": (3, 5, 4), "w3": (3, 5, 4)})})
    names = [f"mlp.experts.{i}.{w}" for i in range(3) for w in ("w1", "w3")]
    several = kinds_manifest({name: ("linear", {"weight": (5, 4)}) for name in names})
    plan = plan_manifests(*((one, several) if back else (several, one)))
    assert plan.complete and not plan.guesses and not plan.unused
    if back:
        assert {m.target: m.sources for m in plan.moves}["mlp.experts.2.w1.weight"] == ("mlp.experts.w1",)
    else:
        members = tuple(f"mlp.experts.{i}.w3.weight" for i in range(3))
        assert {m.target: m.sources for m in plan.moves}["mlp.experts.w3"] == members
        assert plan.moves[0].make().shape == (3, 5, 4)
