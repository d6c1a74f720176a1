"""Projections and blocks that one side packs and the other has apart, on manifests alone: no framework is needed."""

from __future__ import annotations

import numpy as np
import pytest
from support.manifests import kinds_manifest, manifest, squares

from multiparam.transfers.manifest import Manifest
from multiparam.transfers.plan import Plan, plan_manifests
from multiparam.transfers.regroup import parts_of

GUESS = "guess: rows in blocks, in the order of the name"
LINEAR = {"weight": (4, 4), "bias": (4,)}
ATTENTION = {"in_proj_weight": (12, 4), "in_proj_bias": (12,)}


def linears(*names: str) -> dict[str, tuple[str, dict[str, tuple[int, ...]]]]:
    return dict.fromkeys(names, ("linear", LINEAR))


def pairs(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {move.target: move.sources for move in plan.moves}


def apart(*names: str, leaf: str = "weight") -> tuple[str, ...]:
    return tuple(f"{name}.{leaf}" for name in names)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("q", ("q",)), ("key_proj", ("k",)), ("w_v", ("v",)), ("qkv", ("q", "k", "v")), ("to_qkv", ("q", "k", "v")),
        ("to_kv", ("k", "v")), ("c_attn", ("q", "k", "v")), ("qkv_proj", ("q", "k", "v")), ("v_k", ("v", "k")),
        ("gate_up_proj", ("gate", "up")), ("kqv", ()), ("q_norm", ()), ("q_q", ()), ("proj", ()), ("qkv_norm", ()),
        ("c_attn_norm", ()), ("1", ()),
    ],
)  # fmt: skip
def test_the_name_of_a_layer_says_which_projections_it_holds(name: str, parts: tuple[str, ...]) -> None:
    assert parts_of(name) == parts


@pytest.mark.parametrize("layer", ["", "net.attn"])
@pytest.mark.parametrize("order", [("query", "key", "value"), ("value", "query", "key")])
@pytest.mark.parametrize("way_out", ["out_proj", "proj", "c_proj", "to_out", "o"])
def test_projections_are_the_rows_of_an_attention_layer(layer: str, order: tuple[str, ...], way_out: str) -> None:
    dot = f"{layer}." if layer else ""
    several = kinds_manifest(linears(*(f"{dot}{name}" for name in order), f"{dot}{way_out}", f"{dot}norm_x"))
    one = kinds_manifest({layer: ("attention", ATTENTION), **linears(f"{dot}out_proj", f"{dot}norm_x")})
    one.layers[layer] = {leaf: entry._replace(name=f"{dot}{leaf}") for leaf, entry in one.layers[layer].items()}
    several.read = one.read = lambda name: np.ones((12, 4), "float32")
    plan = plan_manifests(several, one)
    assert plan.complete and not plan.guesses and not plan.unused
    rows = [f"{dot}{name}" for name in ("query", "key", "value")]
    assert pairs(plan)[f"{dot}in_proj_weight"] == apart(*rows)
    assert pairs(plan)[f"{dot}in_proj_bias"] == apart(*rows, leaf="bias")
    assert pairs(plan)[f"{dot}out_proj.weight"] == (f"{dot}{way_out}.weight",)
    assert pairs(plan)[f"{dot}norm_x.weight"] == (f"{dot}norm_x.weight",)
    back = plan_manifests(one, several)
    assert back.complete and not back.guesses and not back.unused
    assert pairs(back)[f"{dot}key.bias"] == (f"{dot}in_proj_bias",)


@pytest.mark.parametrize("packed", ["qkv", "c_attn"])
def test_the_order_of_rows_in_one_linear_layer_is_a_guess_unless_a_rule_says_it(packed: str) -> None:
    several = kinds_manifest(linears("a.k", "a.v", "a.q", "a.proj", "b"))
    one = kinds_manifest({f"a.{packed}": ("linear", {"weight": (12, 4), "bias": (12,)}), **linears("a.proj", "b")})
    for source, target in ((several, one), (one, several)):
        plan = plan_manifests(source, target)
        assert plan.complete and not plan.unused
        of_projections = {name for name in pairs(plan) if name.split(".")[1] in ("q", "k", "v", packed)}
        assert {move.target for move in plan.guesses} == of_projections
        assert {move.why for move in plan.guesses} == {GUESS}
    assert pairs(plan_manifests(several, one))[f"a.{packed}.weight"] == apart("a.q", "a.k", "a.v")


def test_keys_and_values_in_one_and_queries_apart() -> None:
    several = kinds_manifest(linears("a.q", "a.k", "a.v"))
    two = kinds_manifest({**linears("a.to_q"), "a.to_kv": ("linear", {"weight": (8, 4), "bias": (8,)})})
    plan = plan_manifests(several, two)
    assert plan.complete and pairs(plan)["a.to_kv.weight"] == apart("a.k", "a.v")
    assert pairs(plan)["a.to_q.bias"] == ("a.q.bias",)
    assert "a.to_kv.weight" in {move.target for move in plan.guesses}


def test_the_gate_and_the_way_up_of_each_block() -> None:
    several = kinds_manifest(linears(*(f"{i}.mlp.{name}_proj" for i in range(2) for name in ("up", "gate", "down"))))
    one = kinds_manifest({
        layer: of for i in range(2) for layer, of in {
            f"{i}.mlp.gate_up_proj": ("linear", {"weight": (8, 4), "bias": (8,)}), **linears(f"{i}.mlp.down_proj"),
        }.items()
    })  # fmt: skip
    plan = plan_manifests(several, one)
    assert plan.complete and not plan.unused
    assert pairs(plan)["1.mlp.gate_up_proj.weight"] == apart("1.mlp.gate_proj", "1.mlp.up_proj")
    assert {move.target.split(".")[2] for move in plan.guesses} == {"gate_up_proj"}


def test_sides_that_pack_alike_stay_as_they_are() -> None:
    source, target = kinds_manifest(linears("a.q", "a.k", "a.v")), kinds_manifest(linears("m.a.q", "m.a.k", "m.a.v"))
    plan = plan_manifests(source, target)
    assert pairs(plan)["m.a.k.weight"] == ("a.k.weight",) and not plan.guesses
    assert not any(match.parts for match in plan.matches)


def test_what_is_no_projection_is_not_gathered() -> None:
    one = kinds_manifest({"a": ("attention", ATTENTION), **linears("b")})
    tables = kinds_manifest({f"a.{name}": ("embedding", {"weight": (4, 4)}) for name in "qkv"} | linears("b"))
    vectors = manifest({f"a.{name}": {"weight": (4,)} for name in "qkv"} | {"b": LINEAR})
    two = kinds_manifest(linears("a.q", "a.k", "b"))
    for source in (tables, vectors, two):
        plan = plan_manifests(source, one)
        assert pairs(plan) == {"b.weight": ("b.weight",), "b.bias": ("b.bias",)}
        assert "a.in_proj_weight" in plan.missing


# -- blocks that are one array


def stacked(**shapes: tuple[int, ...]) -> Manifest:
    return manifest({name.replace("__", "."): {"weight": shape} for name, shape in shapes.items()}, "Theirs")


@pytest.mark.parametrize("names", [("h.{}.w", "h.w"), ("net.w_{}", "net.w"), ("layers.{}.w", "blocks.w")])
def test_blocks_in_any_order_are_stacked_by_their_numbers(names: tuple[str, str]) -> None:
    blocks = [names[0].format(i) for i in range(3)]
    several = manifest({blocks[i]: {"weight": (3, 3)} for i in (2, 0, 1)} | {"b": {"weight": (5, 5)}}, "Theirs")
    one = manifest({"b": {"weight": (5, 5)}, names[1]: {"weight": (3, 3, 3)}}, "Theirs")
    plan = plan_manifests(several, one)
    assert pairs(plan)[f"{names[1]}.weight"] == apart(*blocks)
    back = plan_manifests(one, several)
    one.read = lambda name: np.arange(27.0).reshape(3, 3, 3)
    made = {move.target: move.make() for move in plan_manifests(one, several).moves if move.target != "b.weight"}
    assert back.complete and made[f"{blocks[2]}.weight"].tolist() == np.arange(18.0, 27).reshape(3, 3).tolist()


def deep(*names: str, front: tuple[int, ...] = (), shape: tuple[int, ...] = (3, 3)) -> Manifest:
    """Blocks of three layers each, and a head."""
    leaves = {"a.q": {"weight": (*front, *shape)}, "a.o": {"weight": (*front, *shape), "bias": (*front, 3)}}
    blocks = {f"{name}.{layer}": each for name in names for layer, each in leaves.items()}
    return manifest({**blocks, "head": {"weight": (5, 5)}}, "Theirs")


@pytest.mark.parametrize(("several", "one"), [("net.layers.{}", "h"), ("enc.layer_{}", "body.scan"), ("{}", "stages")])
def test_the_only_stack_of_such_blocks_is_theirs_whatever_it_is_called(several: str, one: str) -> None:
    names = [several.format(i) for i in range(12)]
    apart_, together = deep(*names), deep(one, front=(12,))
    plan, back = plan_manifests(apart_, together), plan_manifests(together, apart_)
    assert plan.complete and back.complete and not plan.guesses and not back.guesses
    assert pairs(plan)[f"{one}.a.o.bias"] == apart(*(f"{name}.a.o" for name in names), leaf="bias")
    assert pairs(back)[f"{names[11]}.a.q.weight"] == (f"{one}.a.q.weight",)


def experts(block: str, inside: str, numbers: range, *, packed: bool) -> Manifest:
    """Blocks of four experts each, and of a norm."""
    shapes = {"gate": (3, 5), "down": (5, 3)}
    leaves = {f"{block.format(i)}.{'' if packed else f'{inside}.{e}.'}{name}": ((4, *shape) if packed else shape)
              for i in numbers for e in range(4) for name, shape in shapes.items()}  # fmt: skip
    norms = {f"{block.format(i)}.norm": (7,) for i in numbers}
    return manifest({name: {"weight": shape} for name, shape in (leaves | norms).items()}, "Theirs")


def test_stacks_of_one_shape_are_told_apart_by_the_blocks_they_are_in() -> None:
    several = experts("model.layers.{}.moe", "experts", range(11), packed=False)
    together = experts("blocks.{}.moe", "", range(11), packed=True)
    plan, back = plan_manifests(several, together), plan_manifests(together, several)
    assert plan.complete and back.complete and not plan.guesses and not back.guesses
    names = [f"model.layers.10.moe.experts.{e}.gate" for e in range(4)]
    assert pairs(plan)["blocks.10.moe.gate.weight"] == apart(*names)
    assert pairs(back)[f"{names[3]}.weight"] == ("blocks.10.moe.gate.weight",)


def test_stacks_that_one_side_numbers_from_one_are_not_shifted() -> None:
    several = experts("model.layers.{}.moe", "experts", range(3), packed=False)
    together = experts("blocks.{}.moe", "", range(1, 4), packed=True)
    for plan in (plan_manifests(several, together), plan_manifests(together, several)):
        assert all(number_of(move.sources[0]) == number_of(move.target) for move in plan.moves), pairs(plan)


def number_of(name: str) -> int:
    """Which block, in order."""
    return int(name.split(".")[1 if name.startswith("b") else 2]) - name.startswith("b")


@pytest.mark.parametrize(
    ("several", "together"),
    [
        (deep("x.0", "x.1", "y.0", "y.1"), deep("h", front=(2,))),  # either
        (deep("x.0", "x.1"), deep("h", "k", front=(2,))),  # either
        (deep("x.0", "x.1"), deep("h", front=(3,))),  # another number
        (deep("x.0", "x.1"), deep("h", front=(2,), shape=(3, 4))),  # another shape
    ],
)
def test_a_stack_that_could_be_of_others_is_nobodys(several: Manifest, together: Manifest) -> None:
    for plan in (plan_manifests(several, together), plan_manifests(together, several)):
        assert list(pairs(plan)) == ["head.weight"]
        assert plan.missing


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1), (0, 2, 3)])
def test_blocks_of_which_one_is_missing_are_not_stacked(numbers: tuple[int, ...]) -> None:
    several = squares(*(f"h.{i}.w" for i in numbers), kind="Theirs")
    assert plan_manifests(several, stacked(h__w=(3, 3, 3))).missing == ["h.w.weight"]


def test_blocks_that_differ_in_their_leaves_are_not_stacked() -> None:
    several = manifest({"h.0.w": {"weight": (3, 3)}, "h.1.w": {"weight": (3, 3), "bias": (3,)}}, "Theirs")
    assert plan_manifests(several, stacked(h__w=(2, 3, 3))).missing == ["h.w.weight"]


def test_blocks_of_two_stacks_are_not_mixed() -> None:
    names = [f"{word}.{i}.w" for word in ("layers", "blocks") for i in range(3)]
    several = squares(*names, kind="Theirs")
    plan = plan_manifests(several, stacked(stack__w=(3, 3, 3), blocks__w=(3, 3, 3)))
    assert pairs(plan)["blocks.w.weight"] == apart(*names[3:])
    assert {move.target for move in plan.guesses} == {"stack.w.weight"}
    assert not plan_manifests(several, stacked(stack__w=(3, 3, 3))).moves


# -- rules, twins


def test_rules_that_name_every_part_say_the_order_of_rows() -> None:
    several = kinds_manifest(linears("a.k", "a.v", "a.q", "b"))
    one = kinds_manifest({"a.qkv": ("linear", {"weight": (12, 4), "bias": (12,)}), **linears("b")})
    named = {name: name for name in ("a.q", "a.k", "a.v")}
    plan = plan_manifests(several, one, named)
    assert plan.complete and not plan.guesses
    assert {move.target: move.why for move in plan.moves} == {
        "a.qkv.weight": "rule", "a.qkv.bias": "rule", "b.weight": "name", "b.bias": "name",
    }  # fmt: skip
    del named["a.v"]
    plan = plan_manifests(several, one, named)
    assert {move.target for move in plan.guesses} == {"a.qkv.weight", "a.qkv.bias"}


@pytest.mark.parametrize(("names", "guesses"), [(("cross", "self"), 0), (("x", "y"), 4)])
def test_twins_of_one_shape_are_told_apart_by_names_or_are_guesses(names: tuple[str, str], guesses: int) -> None:
    several = kinds_manifest(linears(*(f"{twin}.{part}" for twin in ("self", "cross") for part in "qkv")))
    plan = plan_manifests(several, kinds_manifest(dict.fromkeys(names, ("attention", ATTENTION))))
    assert plan.complete and len(plan.guesses) == guesses
    if not guesses:
        assert pairs(plan)["cross.in_proj_bias"] == apart("cross.q", "cross.k", "cross.v", leaf="bias")


def test_two_ways_out_are_none() -> None:
    several = kinds_manifest(linears("a.q", "a.k", "a.v", "a.o", "a.proj"))
    one = kinds_manifest({"a": ("attention", ATTENTION), **linears("a.o", "a.out_proj")})
    plan = plan_manifests(several, one)
    assert pairs(plan)["a.o.weight"] == ("a.o.weight",)
    assert "a.out_proj.weight" not in {move.target for move in plan.moves if move not in plan.guesses}


# -- arrays in the layer around


def test_an_array_of_a_class_that_is_known_stays_in_it() -> None:
    alone = kinds_manifest({"a.proj": ("Theirs", {"weight": (4, 4)}), "b": ("linear", LINEAR)})
    known = kinds_manifest({"a": ("linear", {"weight": (4, 4), "proj": (4, 4)}), "b": ("linear", LINEAR)})
    assert "a.proj" in plan_manifests(alone, known).missing


def test_an_array_without_a_layer_is_one_of_its_own() -> None:
    alone = kinds_manifest({"pos": ("embedding", {"weight": (7, 4)}), **linears("b")})
    root = kinds_manifest({"": ("Theirs", {"pos": (7, 4)}), **linears("b")})
    root.layers[""] = {"pos": root.layers[""]["pos"]._replace(name="pos")}
    for source, target in ((alone, root), (root, alone)):
        plan = plan_manifests(source, target)
        assert plan.complete and not plan.guesses and len(plan.moves) == 3


def test_an_array_that_two_layers_hold_is_no_certain_pair() -> None:
    two = kinds_manifest({"x": ("Theirs", {"pos": (7, 4)}), "y": ("Theirs", {"pos": (7, 4)})})
    plan = plan_manifests(two, kinds_manifest({"a.pos": ("embedding", {"weight": (7, 4)})}))
    assert len(plan.guesses) == len(plan.moves)
