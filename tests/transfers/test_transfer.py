"""Weights from one framework's model into another's: layer by layer, with every refusal and every note."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.flavours import NEEDS, in_framework
from support.library_models import (
    F64,
    FIRST,
    FLAVOURS,
    Torch,
    bits,
    drawn,
    far,
    fill,
    library,
    model,
    net_input,
    turned,
)

import multiparam as mp

pytest.importorskip("torch")
import torch

pytestmark = pytest.mark.xdist_group("transfer")  # one worker imports all frameworks, and keeps the models
IMAGE, SEQUENCE, VOLUME = drawn("i", (2, 4, 7, 6)), drawn("s", (2, 4, 9)), drawn("v", (2, 2, 4, 5, 3))
ROWS, STEPS, TOKENS = drawn("r", (5, 6)), drawn("t", (2, 3, 8)), np.array([[1, 0, 4], [2, 3, 3]])


# -- one layer of each kind


class Kind(NamedTuple):
    x: np.ndarray
    make: Mapping[str, Callable[[Any], Any]]  # flavour -> its layer; "keras" is tf_keras too, unless it has its own
    image: bool = True  # whether axis 1 is the channels


def both(f: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    return {"linen": f, "nnx": f}


def flax_rnn(cell: str) -> dict[str, Callable[[Any], Any]]:
    return {"linen": lambda f: f.RNN(getattr(f, cell)(5)), "nnx": lambda f: f.RNN(nnx_cell(f, cell))}


def nnx_cell(f: Any, cell: str) -> Any:
    return getattr(f, cell)(8, 5, **({"dtype": f.dtype} if cell == "SimpleCell" else {}))  # else it is float32


def flax_rnns(cell: str) -> dict[str, Callable[[Any], Any]]:
    one = flax_rnn(cell)
    return {flavour: lambda f, make=make: f.Bidirectional(make(f), make(f)) for flavour, make in one.items()}


S = {"return_sequences": True}
G = {"layout": "NTC", "input_size": 8}
NOT_2 = {"tf_keras": None}
KINDS: dict[str, Kind] = {
    "linear": Kind(ROWS, {
        "torch": lambda t: t.Linear(6, 3), "gluon": lambda g: g.Dense(3), "linen": lambda f: f.Dense(3),
        "nnx": lambda f: f.Linear(6, 3), "keras": lambda k: k.Dense(3),
    }),
    "conv 1d": Kind(SEQUENCE, {
        "torch": lambda t: t.Conv1d(4, 3, 3, 2), "gluon": lambda g: g.Conv1D(3, 3, 2),
        "linen": lambda f: f.Conv(3, (3,), (2,), "VALID"), "nnx": lambda f: f.Conv(4, 3, (3,), (2,), padding="VALID"),
        "keras": lambda k: k.Conv1D(3, 3, 2),
    }),
    "conv 2d": Kind(IMAGE, {
        "torch": lambda t: t.Conv2d(4, 3, (3, 5), padding="same"), "gluon": lambda g: g.Conv2D(3, (3, 5), padding=(1,
            2)),
        "linen": lambda f: f.Conv(3, (3, 5)), "nnx": lambda f: f.Conv(4, 3, (3, 5)),
        "keras": lambda k: k.Conv2D(3, (3, 5), padding="same"),
    }),
    "conv 3d": Kind(VOLUME, {
        "torch": lambda t: t.Conv3d(2, 3, 2, bias=False), "gluon": lambda g: g.Conv3D(3, 2, use_bias=False),
        "linen": lambda f: f.Conv(3, (2, 2, 2), padding="VALID", use_bias=False),
        "nnx": lambda f: f.Conv(2, 3, (2, 2, 2), padding="VALID", use_bias=False),
        "keras": lambda k: k.Conv3D(3, 2, use_bias=False),
    }),
    "conv, grouped": Kind(IMAGE, {
        "torch": lambda t: t.Conv2d(4, 6, 3, groups=2), "gluon": lambda g: g.Conv2D(6, 3, groups=2),
        "linen": lambda f: f.Conv(6, (3, 3), padding="VALID", feature_group_count=2),
        "nnx": lambda f: f.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2),
        "keras": lambda k: k.Conv2D(6, 3, groups=2),
    }),
    "conv, depthwise": Kind(IMAGE, {
        "torch": lambda t: t.Conv2d(4, 8, 3, groups=4), "gluon": lambda g: g.Conv2D(8, 3, groups=4),
        "linen": lambda f: f.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        "nnx": lambda f: f.Conv(4, 8, (3, 3), padding="VALID", feature_group_count=4),
        "keras": lambda k: k.DepthwiseConv2D(3, depth_multiplier=2),
    }),
    "conv transpose 1d": Kind(SEQUENCE, {
        "torch": lambda t: t.ConvTranspose1d(4, 3, 3, 2), "gluon": lambda g: g.Conv1DTranspose(3, 3, 2),
        "linen": lambda f: f.ConvTranspose(3, (3,), (2,), "VALID"),
        "nnx": lambda f: f.ConvTranspose(4, 3, (3,), (2,), padding="VALID"),
        "keras": lambda k: k.Conv1DTranspose(3, 3, 2),
    }),
    "conv transpose 2d": Kind(IMAGE, {
        "torch": lambda t: t.ConvTranspose2d(4, 3, (3, 2)), "gluon": lambda g: g.Conv2DTranspose(3, (3, 2)),
        "linen": lambda f: f.ConvTranspose(3, (3, 2), padding="VALID", transpose_kernel=True),
        "nnx": lambda f: f.ConvTranspose(4, 3, (3, 2), padding="VALID"),
        "keras": lambda k: k.Conv2DTranspose(3, (3, 2)),
    }),
    "embedding": Kind(TOKENS, {
        "torch": lambda t: t.Embedding(5, 4), "gluon": lambda g: g.Embedding(5, 4), "linen": lambda f: f.Embed(5, 4),
        "nnx": lambda f: f.Embed(5, 4), "keras": lambda k: k.Embedding(5, 4),
    }, False),
    "layer norm": Kind(ROWS, {
        "torch": lambda t: t.LayerNorm(6, 2**-10), "gluon": lambda g: g.LayerNorm(epsilon=2**-10),
        "linen": lambda f: f.LayerNorm(2**-10), "nnx": lambda f: f.LayerNorm(6, epsilon=2**-10),
        "keras": lambda k: k.LayerNormalization(epsilon=2**-10),
    }),
    "batch norm": Kind(IMAGE, {
        "torch": lambda t: t.BatchNorm2d(4, 2**-10), "gluon": lambda g: g.BatchNorm(epsilon=2**-10),
        "linen": lambda f: f.BatchNorm(True, momentum=0.9, epsilon=2**-10),
        "nnx": lambda f: f.BatchNorm(4, use_running_average=True, momentum=0.9, epsilon=2**-10),
        "keras": lambda k: k.BatchNormalization(momentum=0.9, epsilon=2**-10),
    }),
    "group norm": Kind(IMAGE, {
        "torch": lambda t: t.GroupNorm(2, 4, 2**-10), "linen": lambda f: f.GroupNorm(2, epsilon=2**-10),
        "nnx": lambda f: f.GroupNorm(4, 2, epsilon=2**-10),
        "keras": lambda k: k.GroupNormalization(2, epsilon=2**-10),
    }),
    "instance norm": Kind(IMAGE, {
        "torch": lambda t: t.InstanceNorm2d(4, 2**-10, affine=True),
        "gluon": lambda g: g.InstanceNorm(epsilon=2**-10, scale=True),
            "linen": lambda f: f.InstanceNorm(epsilon=2**-10),
        "nnx": lambda f: f.InstanceNorm(4, epsilon=2**-10),
    }),
    "rms norm": Kind(ROWS, {
        "torch": lambda t: t.RMSNorm(6, 2**-10), "linen": lambda f: f.RMSNorm(2**-10),
        "nnx": lambda f: f.RMSNorm(6, epsilon=2**-10), "keras": lambda k: k.RMSNormalization(epsilon=2**-10), **NOT_2,
    }),
    "prelu": Kind(ROWS, {"torch": lambda t: t.PReLU(), "gluon": lambda g: g.PReLU(), **both(lambda f: f.PReLU())}),
    "rnn": Kind(STEPS, {
        "torch": lambda t: t.RNN(8, 5, batch_first=True), "gluon": lambda g: g.RNN(5, activation="tanh", **G),
        **flax_rnn("SimpleCell"), "keras": lambda k: k.SimpleRNN(5, **S),
    }, False),
    "lstm": Kind(STEPS, {
        "torch": lambda t: t.LSTM(8, 5, batch_first=True), "gluon": lambda g: g.LSTM(5, **G),
        "linen": flax_rnn("LSTMCell")["linen"], "nnx": flax_rnn("OptimizedLSTMCell")["nnx"],
        "keras": lambda k: k.LSTM(5, **S),
    }, False),
    "lstm both ways": Kind(STEPS, {
        "torch": lambda t: t.LSTM(8, 5, batch_first=True, bidirectional=True),
        "gluon": lambda g: g.LSTM(5, bidirectional=True, **G),
        "linen": flax_rnns("OptimizedLSTMCell")["linen"], "nnx": flax_rnns("LSTMCell")["nnx"],
        "keras": lambda k: k.Bidirectional(k.LSTM(5, **S)),
    }, False),
    "lstm of two layers": Kind(STEPS, {
        "torch": lambda t: t.LSTM(8, 5, 2, batch_first=True), "gluon": lambda g: g.LSTM(5, 2, **G),
        "keras": lambda k: k.RNN(k.StackedRNNCells([k.LSTMCell(5), k.LSTMCell(5)]), **S),
    }, False),
    "lstm with projection": Kind(STEPS, {
        "torch": lambda t: t.LSTM(8, 5, batch_first=True, proj_size=3), "gluon": lambda g: g.LSTM(5,
            projection_size=3, **G),
    }, False),
    "gru": Kind(STEPS, {
        "torch": lambda t: t.GRU(8, 5, batch_first=True), "gluon": lambda g: g.GRU(5, **G), **flax_rnn("GRUCell"),
        "keras": lambda k: k.GRU(5, **S),
    }, False),
    "gru both ways": Kind(STEPS, {
        "torch": lambda t: t.GRU(8, 5, batch_first=True, bidirectional=True),
        "gluon": lambda g: g.GRU(5, bidirectional=True, **G), **flax_rnns("GRUCell"),
        "keras": lambda k: k.Bidirectional(k.GRU(5, **S)),
    }, False),
    "attention": Kind(STEPS, {
        "torch": lambda t: t.MultiheadAttention(8, 2, batch_first=True),
        "linen": lambda f: f.MultiHeadDotProductAttention(2), "nnx": lambda f: f.MultiHeadAttention(2, 8, decode=False),
        "keras": lambda k: k.MultiHeadAttention(2, 4),
    }, False),
}  # fmt: skip


def forward_of(flavour: str, kind: str) -> Callable[..., Any]:
    if kind == "attention":
        given = {"torch": lambda x: (x, x, x), "nnx": lambda x: (x,)}.get(flavour, lambda x: (x, x))
        return lambda net, x: net.layer(*given(x))[0] if flavour == "torch" else net.layer(*given(x))
    if flavour == "torch" and not KINDS[kind].image and kind != "embedding":
        return lambda net, x: net.layer(x)[0]
    return lambda net, x: net.layer(x)


def layer_model(flavour: str, kind: str, dtype: str = F64) -> mp.Model:
    """The one model of its sort, with whatever numbers it was left with."""
    return _layer_model(flavour, kind, dtype)


@functools.cache
def _layer_model(flavour: str, kind: str, dtype: str) -> mp.Model:
    case = KINDS[kind]
    make = case.make.get(flavour, case.make.get(flavour.removeprefix("tf_")))
    return model(flavour, {"layer": make}, forward_of(flavour, kind), shown(case, flavour), dtype)


def shown(case: Kind, flavour: str) -> np.ndarray:
    return turned(case.x, flavour) if case.image and case.x.ndim > 2 else case.x


_outputs: dict[Any, np.ndarray] = {}


def output(flavour: str, kind: str, dtype: str = F64) -> np.ndarray:
    """What the model gives now; run once for the same numbers, since Flax compiles its loops at each call."""
    case, net = KINDS[kind], layer_model(flavour, kind, dtype)
    key = flavour, kind, dtype, *bits(net).items()
    if key not in _outputs:
        y = mp.to_numpy(net(net_input(flavour, shown(case, flavour), dtype)))
        _outputs[key] = turned(y, flavour, back=True) if case.image and y.ndim > 2 else y
    return _outputs[key]


def source_of(flavour: str, kind: str, dtype: str, without_n: bool) -> mp.Model:
    """A model with numbers; ``without_n``: with no recurrent bias of a GRU's gate n, as NNX has none."""
    net = fill(layer_model(flavour, kind, dtype))
    for name, p in net.parameters().items():
        if without_n and ("bias_hh" in name or "bias_hn" in name):
            p[-5:] = 0
    return net


def has(flavour: str, kind: str) -> bool:
    make = KINDS[kind].make
    return make.get(flavour, make.get(flavour.removeprefix("tf_"))) is not None


PAIRS = [
    pytest.param(a, b, kind, id=f"{a}-{b}-{kind}", marks=pytest.mark.needs(NEEDS[a], NEEDS[b]))
    for kind in KINDS
    for a, b in itertools.combinations(FLAVOURS, 2)
    if has(a, kind) and has(b, kind)
]
# In eps: Flax has running statistics, and NNX attention's softmax, in float32
ROUGH = {("nnx", "attention"): 1e9, ("linen", "batch norm"): 1e9, ("nnx", "batch norm"): 1e9}


def summed(state: Mapping[str, np.ndarray], gru: bool) -> dict[str, np.ndarray]:
    """A recurrent layer's numbers as far as every framework keeps them: biases that are added, added."""
    found = {name: a for name, a in state.items() if "bias" not in name}
    for name, ih in ((name, a) for name, a in state.items() if "bias_ih" in name):
        n = len(ih) // 3 * 2 if gru else len(ih)
        hh, hn = (state.get(name.replace("bias_ih", leaf)) for leaf in ("bias_hh", "bias_hn"))
        apart = hh[n:] if hh is not None else hn if hn is not None else np.zeros(len(ih) - n)
        found[name] = np.concatenate([ih[:n] + (0 if hh is None else hh[:n]), ih[n:], apart])
    return found


def counted(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only PyTorch counts."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("a", "b", "kind"), PAIRS)
@pytest.mark.quick(
    "torch-keras*", "linen-torch*", "nnx-keras*", "gluon-linen*", "keras-gluon*", "tf_keras-nnx*", "torch-nnx*"
)
def test_there_and_back(a: str, b: str, kind: str) -> None:
    gru, without_n = kind.startswith("gru"), kind.startswith("gru") and "nnx" in (a, b)
    dtype = "float32" if kind == "instance norm" and "gluon" in (a, b) else F64  # MXNet's has no float64
    bound = max(ROUGH.get((each, kind), 64) for each in (a, b))
    cast = kind == "batch norm" and bool({"linen", "nnx"} & {a, b})  # Flax keeps running statistics in float32
    for one, other in ((a, b), (b, a)):
        source, target = source_of(one, kind, dtype, without_n), fill(layer_model(other, kind, dtype), "another")
        before, expected = counted(source.state_dict()), output(one, kind, dtype)
        plan = mp.plan(source, target, cast=cast)
        assert plan.complete and not plan.guesses and not plan.unused and not plan.options and not plan.ties
        assert {move.target for move in plan.moves} == counted(target.state_dict()).keys()
        report = mp.transfer(source, target, cast=cast)
        assert report.plan.moves == plan.moves and not report.agrees and report.distance is None
        assert far(output(other, kind, dtype), expected) <= bound

        fill(source, "a third")
        mp.transfer(target, source, cast=cast)
        after = counted(source.state_dict())
        if any("bias_hh" in name or "bias_hn" in name for name in {*before, *plan_targets(plan)}):
            assert far(output(one, kind, dtype), expected) <= bound
            before, after = summed(before, gru), summed(after, gru)
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert np.array_equal(value, after[name]), name


def plan_targets(plan: Any) -> set[str]:
    return {move.target for move in plan.moves}


# -- matching, mostly in PyTorch: the rest is the core's

L = torch.nn.Linear


def seq(*layers: Any) -> mp.Model:
    return fill(mp.wrap(torch.nn.Sequential(*layers)))


def named(**layers: Any) -> mp.Model:
    return fill(mp.wrap(torch.nn.ModuleDict(layers)))


def blank(net: mp.Model) -> mp.Model:
    return fill(net, "blank")


def pairs_of(plan: Any) -> set[tuple[str, str]]:
    return {(name, move.target) for move in plan.moves for name in move.sources}


RULES: dict[str, Any] = {
    "globs on names and layers": {"encoder.*": "body.*", "head": "out", "old": None},
    "globs inside": {"*coder.0": "body.0", "encoder.*.weight": "body.*.weight", "e*.1.bias": "body.1.bias",
        "head*": "out*",
        "old.*": None},
    "regular expressions": {
        re.compile(r"encoder\.(\d)\.(?P<leaf>\w+)"): r"body.\1.\g<leaf>", "re:(?:head)(.*)": r"out\1", "old": None,
    },
    "the first counts": {"encoder.*": "body.*", "head": "out", "old": None, "*": "nowhere.*"},
    "a function": lambda name: None if name[0] == "o" else name.replace("encoder", "body").replace("head", "out"),
    "rules.toml": '[rename]\n"encoder.*" = "body.*"\nhead = "out"\n"re:old.*" = false\n',
    "rules.json": '{"encoder.*": "body.*", "head": "out", "old": null}',
    "more.json": '{"re:(encoder)\\\\.(.*)": "body.\\\\2", "head": "out", "old": false}',
}  # fmt: skip


@pytest.mark.parametrize("how", RULES)
def test_rules(how: str, tmp_path: Any) -> None:
    rules = RULES[how]
    if isinstance(rules, str):
        (tmp_path / how).write_text(rules)
        rules = tmp_path / how if how != "more.json" else str(tmp_path / how)
    source = named(encoder=torch.nn.Sequential(L(4, 3), L(3, 3)), old=L(3, 3), head=L(3, 2))
    target = blank(named(body=torch.nn.Sequential(L(4, 3), L(3, 3)), out=L(3, 2)))
    plan = mp.plan(source, target, rules)
    assert plan.complete and not plan.guesses and {move.why for move in plan.moves} == {"rule"}
    assert plan.unused == ["old.weight", "old.bias"]
    mp.transfer(source, target, rules)
    for name, p in target.parameters().items():
        theirs = source[name.replace("body", "encoder").replace("out", "head")]
        assert np.array_equal(p.numpy(), theirs.numpy())


WRONG_RULES: dict[str, tuple[Any, type[Exception], str]] = {
    "fits nothing": ({"headd.*": "0.*"}, mp.errors.InvalidArgument, "'headd.*'.*Did you mean 'head"),
    "an expression that fits nothing": ({re.compile("x.*"): "0"}, mp.errors.InvalidArgument, "'x.*' fits no"),
    "no expression": ({"re:(": "0"}, mp.errors.InvalidArgument, "'re:\\('"),
    "more stars": ({"head": "*.0"}, mp.errors.InvalidArgument, "more \\*"),
    "two of one name": ({"encoder": "x", "head": "x"}, mp.errors.InvalidArgument, "called 'x.weight'.*'head.weight'"),
    "one another has": ({"encoder": "head"}, mp.errors.InvalidArgument, "'head.weight'"),
    "a group that is not there": ({"re:head.*": "\\1"}, mp.errors.InvalidArgument, "head"),
    "a named group that is not there": ({"re:head.*": "\\g<no>"}, mp.errors.InvalidArgument, "head"),
    "a number": ({"head": 5}, mp.errors.WrongType, "head"),
    "a number as pattern": ({5: "head"}, mp.errors.WrongType, "int"),
    "a function to a number": (lambda name: 5, mp.errors.WrongType, "int"),
    "a list": ([("head", "x")], mp.errors.WrongType, "list"),
    "a.json": ("{", mp.errors.FileError, "a.json"),
    "b.json": ('["head"]', mp.errors.FileError, "holds no rules"),
    "c.json": ('{"head": 5}', mp.errors.FileError, "holds no rules"),
    "d.json": ("[" * 100_000, mp.errors.FileError, "d.json"),
    "e.toml": ("rename = ", mp.errors.FileError, "TOML"),
    "f.toml": ('[options]\nhead = "x"', mp.errors.FileError, "holds no rules"),
    "g.toml": (b"\xff\xfe", mp.errors.FileError, "g.toml"),
}


@pytest.mark.parametrize("what", WRONG_RULES)
def test_wrong_rules(what: str, tmp_path: Any) -> None:
    rules, error, text = WRONG_RULES[what]
    if "." in what:
        (tmp_path / what).write_bytes(rules if isinstance(rules, bytes) else rules.encode())
        rules = tmp_path / what
    source, target = named(encoder=L(3, 3), head=L(3, 3)), blank(named(encoder=L(3, 3), head=L(3, 3)))
    before = bits(target)
    for act in (mp.plan, mp.transfer):
        with pytest.raises(error, match=text):
            act(source, target, rules)
    assert bits(target) == before


@pytest.mark.parametrize("how", ["mapping", "file"])
def test_a_rule_leads_to_a_layer_without_a_name(how: str, tmp_path: Any) -> None:
    rules: Any = {"layer": ""}
    if how == "file":
        rules = tmp_path / "rules.json"
        rules.write_text('{"layer": ""}')
    target = mp.wrap(L(3, 2))
    mp.transfer(source := named(layer=L(3, 2)), target, rules)
    assert np.array_equal(target["weight"].numpy(), source["layer.weight"].numpy())


N = torch.nn
STRUCTURES: dict[str, tuple[Callable[[], mp.Model], Callable[[], mp.Model], dict[str, str] | None]] = {
    # what goes where, by layer; None: nothing may
    "in order": (lambda: named(a=L(3, 3), b=L(3, 3)), lambda: named(x=L(3, 3), y=L(3, 3)), {"x": "a", "y": "b"}),
    "by shape, with layers left over": (
        lambda: named(a=L(3, 4), b=L(4, 3), c=L(3, 2)), lambda: named(x=L(3, 2), y=L(3, 4)), {"x": "c", "y": "a"},
    ),
    "by kind": (
        lambda: named(a=N.LayerNorm(3), b=N.BatchNorm1d(3), c=L(2, 2)),
        lambda: named(x=N.BatchNorm1d(3), y=N.LayerNorm(3)), {"x": "b", "y": "a"},
    ),
    "two ways": (lambda: named(a=L(3, 3), b=L(3, 3), c=L(1, 1)), lambda: named(x=L(3, 3)), None),
    "two ways, the other end": (lambda: named(a=L(3, 3)), lambda: named(x=L(3, 3), y=L(3, 3)), None),
    "some by name": (
        lambda: named(a=L(3, 3), b=L(3, 3), c=L(3, 3)), lambda: named(c=L(3, 3), a=L(3, 3), x=L(3, 3)),
        {"c": "c", "a": "a", "x": "b"},
    ),
    "numbers that count other things": (
        lambda: seq(L(4, 3), N.ReLU(), L(3, 3), N.ReLU(), L(3, 2)), lambda: seq(L(4, 3), L(3, 3), L(3, 2)),
        {"0": "0", "1": "2", "2": "4"},
    ),
    "numbers that count other things, all of one shape": (
        lambda: seq(L(3, 3), N.ReLU(), L(3, 3), N.ReLU(), L(3, 3)), lambda: seq(L(3, 3), L(3, 3), L(3, 3)),
        {"0": "0", "1": "2", "2": "4"},
    ),
    "a bias fewer": (lambda: named(a=L(3, 3), b=L(3, 2, False)), lambda: named(x=L(3, 2), y=L(3, 3)), {"x": "b",
        "y": "a"}),
}  # fmt: skip


# Each layer is the only one of its kind and shape, on both sides, and all have a partner: nothing to guess.
CERTAIN = ("numbers that count other things", "a bias fewer")


@pytest.mark.parametrize("what", STRUCTURES)
def test_structure(what: str) -> None:
    make, other, expected = STRUCTURES[what]
    source, target = make(), blank(other())
    before, plan = bits(target), mp.plan(source, target)
    assert all(move.why != "rule" for move in plan.moves)
    if what in CERTAIN:
        assert {move.why for move in plan.moves} == {"the only one of its kind and shape"} and not plan.guesses
        assert not mp.transfer(source, target).plan.missing
        for layer, at in (expected or {}).items():
            assert np.array_equal(target[f"{layer}.weight"].numpy(), source[f"{at}.weight"].numpy()), layer
        return
    with pytest.raises(mp.errors.TransferError, match="guess" if expected else "missing") as error:
        mp.transfer(source, target)
    assert str(plan) in str(error.value) and bits(target) == before
    if expected is None:
        assert plan.missing and not plan.moves
        with pytest.raises(mp.errors.TransferError, match="missing"):
            mp.transfer(source, target, accept_guesses=True)
        assert bits(target) == before
        return
    assert plan.guesses and {move.target.split(".")[0] for move in plan.moves} == set(expected)
    assert not mp.transfer(source, target, accept_guesses=True).plan.missing
    for layer, at in expected.items():
        assert np.array_equal(target[f"{layer}.weight"].numpy(), source[f"{at}.weight"].numpy()), layer


def test_names_win_over_order() -> None:
    source, target = named(a=L(3, 3), b=L(3, 3)), blank(named(b=L(3, 3), a=L(3, 3)))
    plan = mp.plan(source, target)
    assert pairs_of(plan) == {(name, name) for name in target.parameters()} and {m.why for m in plan.moves} == {"name"}
    mp.transfer(source, target)
    assert bits(target) == {name: source[name].numpy().tobytes() for name in target.parameters()}


# -- a linear layer behind a flattened image


def flatten_forward(flavour: str) -> Callable[..., Any]:
    if flavour == "gluon":
        return lambda net, x: net.fc(net.conv(x).flatten())
    return lambda net, x: net.fc(net.conv(x).reshape((len(x), -1)))


KERAS_FLAT = {"conv": lambda k: k.Conv2D(3, 2), "flat": lambda k: k.Flatten(), "fc": lambda k: k.Dense(5)}
FLAT: dict[str, dict[str, Any]] = {
    "torch": {"conv": lambda t: t.Conv2d(4, 3, 2), "fc": lambda t: t.Linear(90, 5)},
    "gluon": {"conv": lambda g: g.Conv2D(3, 2), "fc": lambda g: g.Dense(5)},
    "linen": {"conv": lambda f: f.Conv(3, (2, 2), padding="VALID"), "fc": lambda f: f.Dense(5)},
    "nnx": {"conv": lambda f: f.Conv(4, 3, (2, 2), padding="VALID"), "fc": lambda f: f.Linear(90, 5)},
    "keras": KERAS_FLAT,
    "tf_keras": KERAS_FLAT,
}


@functools.cache
def flat_model(flavour: str) -> mp.Model:
    forward = flatten_forward(flavour)
    if "keras" in flavour:
        forward = lambda net, x: net.fc(net.flat(net.conv(x)))  # noqa: E731
    return model(flavour, FLAT[flavour], forward, turned(IMAGE, flavour))


@functools.cache
def built(backend: str) -> mp.Model:
    names = {"conv": mp.nn.Conv(3, 2), "flat": mp.nn.Flatten(), "fc": mp.nn.Linear(5)}
    return mp.build(mp.nn.Sequential(names), IMAGE, backend=backend, dtype=F64)


SIDES = [*FLAVOURS, *(f"built {flavour}" for flavour in ("torch", "gluon", "linen", "keras"))]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(a, b, marks=pytest.mark.needs(*(NEEDS[each.removeprefix("built ")] for each in (a, b))))
        for a, b in itertools.permutations(SIDES, 2)
    ],
)
@pytest.mark.quick(
    "torch-*", "*-built torch", "keras-built linen", "nnx-gluon", "built keras-nnx", "built gluon-tf_keras"
)
def test_the_order_of_flattening(a: str, b: str) -> None:
    def of(side: str) -> mp.Model:
        flavour = side.removeprefix("built ")
        return flat_model(side) if flavour == side else built(NEEDS[flavour])

    source, target = fill(of(a)), fill(of(b), "another")
    plan = mp.plan(source, target)
    channels_first = {side: side in FIRST or side.startswith("built") for side in (a, b)}
    moved = channels_first[a] != channels_first[b]
    orders = {True: "first", False: "last"}
    text = f"3 channels were flattened {orders[channels_first[a]]}, here {orders[channels_first[b]]}"
    assert (text in str(plan)) == moved == ("flattened" in str(plan)) and plan.complete
    assert [move.target for move in plan.guesses] == ["fc.weight"] * moved
    if moved:  # nothing says that there was a flattening, so it is not taken silently
        with pytest.raises(mp.errors.TransferError, match="guess"):
            mp.transfer(source, target)
    mp.transfer(source, target, accept_guesses=moved)
    same = np.array_equal(source["fc.weight"].numpy(), target["fc.weight"].numpy())
    assert same != moved

    def run(side: str, net: mp.Model) -> np.ndarray:
        flavour = side if side in FLAVOURS else "torch"
        return mp.to_numpy(net(net.adapter.from_numpy(turned(IMAGE, flavour))))

    assert far(run(b, target), run(a, source)) <= 64
    before = source["fc.weight"].numpy()
    fill(source, "a third")
    mp.transfer(target, source, accept_guesses=moved)
    assert np.array_equal(source["fc.weight"].numpy(), before)


UNFLATTENED: dict[str, tuple[Any, Any]] = {
    # PyTorch's layers, Keras' layers; the last linear layer must be left alone
    "global pooling": ({"conv": lambda t: t.Conv2d(4, 6, 2)}, {"conv": lambda k: k.Conv2D(6, 2)}),
    "a linear layer between": (
        {"conv": lambda t: t.Conv2d(4, 3, 2), "a": lambda t: t.Linear(3, 6)},
        {"conv": lambda k: k.Conv2D(3, 2), "a": lambda k: k.Dense(6)},
    ),
    "more channels normalised": (  # as DenseNet, which joins the outputs of many convolutions
        {"conv": lambda t: t.Conv2d(4, 3, 2), "norm": lambda t: t.BatchNorm2d(6, 1e-3)},
        {"conv": lambda k: k.Conv2D(3, 2), "norm": lambda k: k.BatchNormalization(momentum=0.9)},
    ),
    "a recurrent layer between": (  # as networks that read text from images
        {"conv": lambda t: t.Conv2d(4, 3, 2), "rnn": lambda t: t.LSTM(3, 6, batch_first=True)},
        {"conv": lambda k: k.Conv2D(3, 2), "rnn": lambda k: k.LSTM(6)},
    ),
    "an embedding between": (
        {"conv": lambda t: t.Conv2d(4, 3, 2), "embed": lambda t: t.Embedding(4, 6)},
        {"conv": lambda k: k.Conv2D(3, 2), "embed": lambda k: k.Embedding(4, 6)},
    ),
}


@pytest.mark.needs("torch", "tensorflow")
@pytest.mark.parametrize("what", UNFLATTENED)
def test_what_is_not_flattened_is_left_alone(what: str) -> None:
    mine, theirs = UNFLATTENED[what]
    source = fill(mp.wrap(Torch(None, **{n: make(torch.nn) for n, make in mine.items()}, fc=L(6, 2)).double()))

    def forward(net: Any, x: Any) -> Any:  # what comes of it does not matter here
        x = net.conv(x)
        if hasattr(net, "embed"):
            net.embed(np.zeros((1, 1), int))
        if hasattr(net, "rnn"):
            return net.fc(net.rnn(x[:, 0]))
        if hasattr(net, "norm"):
            import keras

            x = net.norm(keras.ops.concatenate([x, x], -1))
        x = net.a(x) if hasattr(net, "a") else x
        return net.fc(x if x.shape[-1] == 6 else net.embed(np.zeros((1,), int)))

    target = model("keras", {**theirs, "fc": lambda k: k.Dense(2)}, forward, turned(IMAGE, "keras"))
    plan = mp.plan(source, target)
    assert plan.complete and "flattened" not in str(plan)
    mp.transfer(source, target)
    assert np.array_equal(source["fc.weight"].numpy(), target["fc.weight"].numpy())


# -- refusals, sums and constants


def one(flavour: str, make: Callable[[Any], Any], x: np.ndarray = ROWS, dtype: str = F64, **more: Any) -> mp.Model:
    """A model with this layer, with numbers."""
    forward = (lambda net, x: net.layer(x)[0]) if more.get("first") else (lambda net, x: net.layer(x))
    return fill(model(flavour, {"layer": make}, forward, x, dtype), more.get("seed", ""))


def t_layer(layer: Any) -> mp.Model:
    return fill(mp.wrap(Torch(lambda net, x: net.layer(x), layer=layer).double()))


def gluon_group_norm() -> mp.Model:
    return one("gluon", lambda g: g.GroupNorm(2), IMAGE, "float32")


def zeroed(net: mp.Model, *names: str) -> mp.Model:
    for name in names:
        net[name][...] = 0
    return net


def tied(*, transpose: bool = False, size: int = 3) -> mp.Model:
    net = named(enc=L(3, size), dec=L(size, 3) if transpose else L(3, size))
    net.tie("dec.weight", "enc.weight", transpose=transpose)
    return fill(net)


GRU = KINDS["gru"].make
REFUSED: dict[str, tuple[tuple[str, ...], Callable[[], mp.Model], Callable[[], mp.Model], tuple[str, ...]]] = {
    # frameworks, source, target, what the error names
    "a recurrent bias of n, into NNX": (
        ("torch", "jax"), lambda: fill(layer_model("torch", "gru")), lambda: layer_model("nnx", "gru"),
        ("layer -> layer: bias_hh_l0 of the gate n is not zero",),
    ),
    "a recurrent bias of n, from linen into NNX": (
        ("jax",), lambda: fill(layer_model("linen", "gru")), lambda: layer_model("nnx", "gru"),
        ("layer -> layer: bias_hn_l0 is not zero",),
    ),
    "a gru that resets before": (
        ("torch", "tensorflow"), lambda: fill(layer_model("torch", "gru")),
        lambda: one("keras", lambda k: k.GRU(5, reset_after=False, **S), STEPS),
        ("layer -> layer: one GRU resets after",),
    ),
    "a gru that resets before, back": (
        ("mxnet", "tensorflow"), lambda: one("keras", lambda k: k.GRU(5, reset_after=False, **S), STEPS),
        lambda: layer_model("gluon", "gru"), ("layer -> layer: one GRU resets after",),
    ),
    "lstm and rnn": (("torch",), lambda: named(a=N.LSTM(3, 3)), lambda: named(a=N.RNN(3, 3)), ("'lstm'", "'rnn'",
        "a -> a")),
    "kinds": (("torch",), lambda: named(a=N.LayerNorm(3)), lambda: named(a=N.BatchNorm1d(3)), ("'layernorm'",
        "'batchnorm'")),
    "conv and its transpose": (
        ("torch", "jax"), lambda: t_layer(N.Conv2d(3, 3, 3)), lambda: one("nnx", lambda f: f.ConvTranspose(3, 3, (3,
            3))),
        ("'conv'", "'conv_transpose'"),
    ),
    "shapes": (("torch",), lambda: named(a=L(3, 4), b=L(4, 3)), lambda: named(a=L(3, 5), b=L(4, 3)),
        ("weight is (4, 3)", "(5, 3)")),
    "a grouped convolution": (
        ("torch", "tensorflow"), lambda: t_layer(N.Conv2d(4, 6, 3)), lambda: layer_model("keras", "conv, grouped"),
        ("weight is (6, 4, 3, 3)", "(6, 2, 3, 3)"),
    ),
    "dtype": (("torch",), lambda: fill(mp.wrap(L(3, 2).double())), lambda: mp.wrap(L(3, 2)), ("weight is float64",
        "cast=True")),
    "MXNet's group norm": (
        ("torch", "mxnet"), gluon_group_norm, lambda: fill(mp.wrap(Torch(None, layer=N.GroupNorm(2, 4)))),
        ("layer -> layer: MXNet's GroupNorm scales by group",),
    ),
    "into MXNet's group norm": (
        ("torch", "mxnet"), lambda: fill(mp.wrap(Torch(None, layer=N.GroupNorm(2, 4)))), gluon_group_norm,
        ("layer -> layer: MXNet's GroupNorm scales by group",),
    ),
    "other values for a tied target": (
        ("torch",), lambda: named(enc=L(3, 3), dec=L(3, 3)), tied, ("enc.weight and dec.weight are tied",
            "different values"),
    ),
    "values for a tied, transposed target": (
        ("torch",), lambda: named(enc=L(3, 4), dec=L(4, 3)), lambda: tied(transpose=True, size=4),
            ("different values",),
    ),
    "a plain tie for a transposed one": (
        ("torch",), tied, lambda: tied(transpose=True), ("enc.weight and dec.weight are tied", "different values"),
    ),
    "a transposed tie for a plain one": (("torch",), lambda: tied(transpose=True), tied, ("different values",)),
    "a bias": (("torch",), lambda: named(a=L(3, 2)), lambda: named(a=L(3, 2, False)),
        ("a -> a: the target has no bias",)),
    "a bias, into Keras": (
        ("torch", "tensorflow"), lambda: t_layer(L(6, 3)), lambda: one("keras", lambda k: k.Dense(3, use_bias=False)),
        ("the target has no bias, and this one is not all 0",),
    ),
    "a scale": (
        ("torch", "tensorflow"), lambda: fill(mp.wrap(Torch(None, layer=N.LayerNorm(6)).double())),
        lambda: one("keras", lambda k: k.LayerNormalization(scale=False)),
        ("has no weight, and this one is not all 1",),
    ),
    "missing": (("torch",), lambda: named(a=L(3, 2)), lambda: named(a=L(3, 2), b=L(3, 3)), ("b.weight", "b.bias",
        "partial")),
}  # fmt: skip


@pytest.mark.parametrize("what", [pytest.param(w, marks=pytest.mark.needs(*case[0])) for w, case in REFUSED.items()])
def test_refused(what: str) -> None:
    _, make, other, named_there = REFUSED[what]
    source, target = make(), fill(other(), "another")
    before, plan = (bits(source), bits(target)), mp.plan(source, target)
    assert not plan.complete
    with pytest.raises(mp.errors.TransferError) as error:
        mp.transfer(source, target, accept_guesses=True)
    for text in named_there:
        assert text in str(error.value)
    assert (bits(source), bits(target)) == before and str(plan) in str(error.value)


@pytest.mark.needs("torch")
def test_partial_leaves_the_rest() -> None:
    source, target = named(a=L(3, 2), c=L(7, 7)), blank(named(a=L(3, 2), b=L(3, 3)))
    before = bits(target)
    report = mp.transfer(source, target, partial=True)
    assert report.plan.missing == ["b.weight", "b.bias"] and report.plan.unused == ["c.weight", "c.bias"]
    after = bits(target)
    assert {n for n in after if after[n] != before[n]} == {"a.weight", "a.bias"}


def test_cast() -> None:
    wide, narrow = fill(mp.wrap(L(3, 2).double())), blank(mp.wrap(L(3, 2)))
    mp.transfer(wide, narrow, cast=True)
    assert np.array_equal(narrow["weight"].numpy(), wide["weight"].numpy().astype("float32"))
    assert narrow["weight"].dtype == "float32"
    whole = mp.wrap(torch.nn.Embedding(2, 3))
    state = {"weight": np.ones((2, 3), "complex64")}
    with pytest.raises(mp.errors.TransferError, match=r"weight is complex64, weight is float32$"):
        mp.transfer(state, whole, cast=True)


NEUTRAL: dict[str, tuple[tuple[str, ...], Callable[[], mp.Model], Callable[[], mp.Model], dict[str, Any]]] = {
    # frameworks, source, target, names that are constants in the target
    "no bias there": (("torch",), lambda: named(a=L(3, 2, False)), lambda: named(a=L(3, 2)), {"a.bias": 0}),
    "no bias there, in Keras": (
        ("torch", "tensorflow"), lambda: one("keras", lambda k: k.Dense(3, use_bias=False)), lambda: t_layer(L(6, 3)),
        {"layer.bias": 0},
    ),
    "a zero bias": (("torch",), lambda: zeroed(named(a=L(3, 2)), "a.bias"), lambda: named(a=L(3, 2, False)), {}),
    "no scale, no shift": (
        ("torch", "tensorflow"), lambda: one("keras", lambda k: k.BatchNormalization(scale=False, center=False), IMAGE),
        lambda: t_layer(N.BatchNorm2d(6)), {"layer.weight": 1, "layer.bias": 0},
    ),
    "an lstm without bias": (
        ("torch", "tensorflow"), lambda: one("keras", lambda k: k.LSTM(5, use_bias=False, **S), STEPS),
        lambda: layer_model("torch", "lstm"), {"layer.bias_ih_l0": 0, "layer.bias_hh_l0": 0},
    ),
    "one bias of two": (
        ("torch", "tensorflow"), lambda: fill(layer_model("keras", "lstm")), lambda: layer_model("torch", "lstm"),
        {"layer.bias_hh_l0": 0},
    ),
    "attention without bias": (
        ("torch",), lambda: named(a=N.MultiheadAttention(4, 2, bias=False)), lambda: named(a=N.MultiheadAttention(4,
            2)),
        {"a.in_proj_bias": 0, "a.out_proj.bias": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", [pytest.param(w, marks=pytest.mark.needs(*case[0])) for w, case in NEUTRAL.items()])
def test_what_one_side_leaves_out(what: str) -> None:
    _, make, other, constants = NEUTRAL[what]
    source, target = make(), fill(other(), "another")
    report = mp.transfer(source, target)
    assert {m.target: m.change for m in report.plan.moves if not m.sources} == {
        name: f"absent there: {value}" for name, value in constants.items()
    }
    for name, value in constants.items():
        assert (target[name].numpy() == value).all()
    for name, p in counted({**target.parameters(), **target.buffers()}).items():
        if name not in constants:
            assert np.array_equal(p.numpy(), source[name].numpy())


@pytest.mark.needs("torch", "tensorflow")
def test_sums_of_biases_say_so() -> None:
    source, target = fill(layer_model("torch", "lstm")), layer_model("keras", "lstm")
    plan = mp.plan(source, target)
    move = next(move for move in plan.moves if move.target == "layer.bias_ih_l0")
    assert move.sources == ("layer.bias_ih_l0", "layer.bias_hh_l0") and move.change == "sum of two biases"
    assert "layer.bias_ih_l0 + layer.bias_hh_l0 -> layer.bias_ih_l0   (sum of two biases)" in str(plan)
    mp.transfer(source, target)
    summed_up = source["layer.bias_ih_l0"].numpy() + source["layer.bias_hh_l0"].numpy()
    assert np.array_equal(target["layer.bias_ih_l0"].numpy(), summed_up) and summed_up.any()


@pytest.mark.needs("torch", "jax")
def test_a_cell_into_a_layer_of_one_and_back() -> None:
    source, target = (
        fill(mp.wrap(Torch(None, layer=N.LSTMCell(8, 5)).double())),
        fill(layer_model("linen", "lstm"), "b"),
    )
    mp.transfer(source, target)
    assert np.array_equal(target["layer.weight_hh_l0"].numpy(), source["layer.weight_hh"].numpy())
    before = summed({n.replace("_l0", ""): a for n, a in target.state_dict().items()}, False)
    fill(source, "a third")
    mp.transfer(target, source)
    after = summed(source.state_dict(), False)
    assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n]) for n in before)


def test_attention_packed_and_split() -> None:
    packed = fill(mp.wrap(Torch(None, a=N.MultiheadAttention(4, 2))))
    state = packed.state_dict()
    w, b = state.pop("a.in_proj_weight"), state.pop("a.in_proj_bias")
    for i, which in enumerate("qkv"):
        state[f"a.{which}_proj_weight"], state[f"a.{which}_proj_bias"] = w[4 * i : 4 * i + 4], b[4 * i : 4 * i + 4]
    target = blank(mp.wrap(Torch(None, a=N.MultiheadAttention(4, 2))))
    report = mp.transfer(state, target)
    assert bits(target) == bits(packed) and "(packed)" in str(report.plan)

    class Split(torch.nn.Module):
        num_heads = 2

        def __init__(self) -> None:
            super().__init__()
            for name, array in state.items():
                if "out_proj" not in name:
                    setattr(self, name[2:], N.Parameter(torch.zeros(array.shape)))
            self.out_proj = L(4, 4)

    mp.register_layer(Split, "attention")
    apart = mp.wrap(Torch(None, a=Split()))
    assert "(split)" in str(mp.transfer(packed, apart).plan)
    assert {name: p.numpy().tobytes() for name, p in apart.parameters().items()} == {
        n: a.tobytes() for n, a in state.items()
    }
    mp.transfer(apart, blank(target))
    assert bits(target) == bits(packed)


# -- what weights do not carry

OPTIONS: dict[str, tuple[Callable[[], mp.Model], Callable[[], mp.Model], tuple[str, ...]]] = {
    "eps": (
        lambda: t_layer(N.LayerNorm(6)), lambda: one("keras", lambda k: k.LayerNormalization()),
        ("layer: eps is 1e-05 there, 0.001 here",),
    ),
    "momentum": (
        lambda: t_layer(N.BatchNorm2d(6)), lambda: one("keras", lambda k: k.BatchNormalization(epsilon=1e-5), IMAGE),
        ("layer: momentum is 0.1 there, 0.01 here, when it trains",),
    ),
    "padding": (
        lambda: t_layer(N.Conv2d(4, 3, 3, 2, 1)), lambda: one("linen", lambda f: f.Conv(3, (3, 3), (2, 2)),
            turned(IMAGE, "linen")),
        ("layer: padding is (1, 1) there, same here",),
    ),
    "stride and dilation": (
        lambda: t_layer(N.Conv1d(4, 3, 3)), lambda: t_layer(N.Conv1d(4, 3, 3, 2, dilation=2)),
        ("layer: stride is (1,) there, (2,) here", "layer: dilation is (1,) there, (2,) here"),
    ),
    "activation": (
        lambda: one("gluon", lambda g: g.Dense(3, "tanh")), lambda: one("keras", lambda k: k.Dense(3, "relu")),
        ("layer: activation is tanh there, relu here",),
    ),
    "a recurrent layer's": (
        lambda: one("gluon", lambda g: g.RNN(5, **G), STEPS), lambda: one("keras", lambda k: k.SimpleRNN(5, **S),
            STEPS),
        ("layer: activation is relu there, tanh here",),
    ),
    "groups": (
        lambda: t_layer(N.GroupNorm(2, 4)), lambda: one("nnx", lambda f: f.GroupNorm(4, 4, epsilon=1e-5)),
        ("layer: groups is 2 there, 4 here",),
    ),
    "heads": (
        lambda: t_layer(N.MultiheadAttention(8, 2)), lambda: one("nnx", lambda f: f.MultiHeadAttention(4, 8,
            decode=False)),
        ("layer: heads is 2 there, 4 here",),
    ),
}  # fmt: skip


@pytest.mark.needs("mxnet", "jax", "tensorflow")
@pytest.mark.parametrize("what", OPTIONS)
def test_options(what: str) -> None:
    make, other, expected = OPTIONS[what]
    source, target = make(), fill(other(), "another")
    plan = mp.plan(source, target)
    assert tuple(plan.options) == expected and plan.complete
    report = mp.transfer(source, target)
    assert "these will make outputs differ:" in str(plan)
    for text in expected:
        assert text in str(plan) and f"Outputs will differ: {text}" in str(report)
    assert not mp.plan(source, source).options


# -- ties


def test_a_tie_that_the_target_has_not() -> None:
    source, target = tied(), blank(named(enc=L(3, 3), dec=L(3, 3)))
    report = mp.transfer(source, target)
    (text,) = report.plan.ties
    assert (
        text.startswith("enc.weight and dec.weight are tied there") and text in str(report) and text in str(report.plan)
    )
    assert np.array_equal(target["dec.weight"].numpy(), source["enc.weight"].numpy()) and not target.ties()
    eval(text.partition("say ")[2], {"net": target})  # the cure
    assert target.ties() == source.ties() and not mp.plan(source, target).ties


def test_a_transposed_tie_that_the_target_has_not() -> None:
    source, target = tied(transpose=True, size=4), blank(named(enc=L(3, 4), dec=L(4, 3)))
    (text,) = mp.transfer(source, target).plan.ties
    assert np.array_equal(target["dec.weight"].numpy(), target["enc.weight"].numpy().T)
    eval(text.partition("say ")[2], {"net": target})
    assert target.ties() == source.ties()


TIED_TARGETS = {
    "plain": (lambda: tied(), lambda: tied()),
    "transposed": (lambda: tied(transpose=True, size=4), lambda: tied(transpose=True, size=4)),
    "transposed, square": (lambda: tied(transpose=True), lambda: tied(transpose=True)),
    "equal values": (lambda: apart(False), lambda: tied()),
    "equal values, transposed": (lambda: apart(True, 4), lambda: tied(transpose=True, size=4)),
    "equal values, transposed, square": (lambda: apart(True), lambda: tied(transpose=True)),
}


def apart(transpose: bool, size: int = 3) -> mp.Model:
    net = named(enc=L(3, size), dec=L(size, 3) if transpose else L(3, size))
    value = net["enc.weight"].numpy()
    net["dec.weight"].assign(value.T if transpose else value)
    return net


@pytest.mark.parametrize("what", TIED_TARGETS)
def test_a_tied_target(what: str) -> None:
    make, other = TIED_TARGETS[what]
    source, target = make(), blank(other())
    report = mp.transfer(source, target)
    assert not report.plan.ties and not report.plan.missing and len(target.ties()) == 1
    for name in ("enc.weight", "dec.weight", "enc.bias", "dec.bias"):
        assert np.array_equal(target[name].numpy(), source[name].numpy()), name


@pytest.mark.needs("jax", "tensorflow")
@pytest.mark.parametrize("flavour", ["linen", "keras"])
@pytest.mark.parametrize("transpose", [False, True])
def test_ties_into_other_frameworks(flavour: str, transpose: bool, tmp_path: Any) -> None:
    layers = {"linen": lambda f: f.Dense(3), "keras": lambda k: k.Dense(3)}
    both_layers = dict.fromkeys(("enc", "dec"), layers[flavour])
    target = model(flavour, both_layers, lambda net, x: net.dec(net.enc(x)), ROWS[:, :3], "float32")
    source = tied(transpose=transpose)
    target.tie("dec.weight", "enc.weight", transpose=transpose)
    for each in (source, mp.save(source, tmp_path / "w.safetensors"), source.state_dict()):
        mp.transfer(each, blank(target))
        for name in target.parameters(aliases=True):
            assert np.array_equal(target[name].numpy(), source[name].numpy())
    target.untie("dec.weight")
    for each in (source, tmp_path / "w.safetensors"):
        report = mp.transfer(each, blank(target))
        assert len(report.plan.ties) == 1 and not report.plan.unused
        assert np.array_equal(target["dec.weight"].numpy(), source["dec.weight"].numpy())


# -- verification


def chain(eps: float, activation: Any = None) -> mp.Model:
    forward = lambda net, x: net.c(torch.relu(net.norm(net.a(x))))  # noqa: E731
    return fill(mp.wrap(Torch(forward, a=L(6, 4), norm=N.LayerNorm(4, eps), c=L(4, 3))))


def keras_chain(eps: float = 1e-5, activation: str | None = None, name: str = "a") -> mp.Model:
    layers = {
        name: lambda k: k.Dense(4, activation), "norm": lambda k: k.LayerNormalization(epsilon=eps),
        "relu": lambda k: k.ReLU(), "c": lambda k: k.Dense(3),
    }  # fmt: skip
    return model("keras", layers, lambda net, x: net.c(net.relu(net.norm(getattr(net, name)(x)))), ROWS, "float32")


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize(
    ("target", "rules", "parted"),
    [
        (lambda: keras_chain(), None, ""),
        (lambda: keras_chain(0.1), None, "layer norm ("),
        (lambda: keras_chain(activation="tanh"), None, "what is between layers a and norm ("),
        (
            lambda: keras_chain(activation="tanh", name="first"),
            {"a": "first"},
            "what is between layers a -> first and norm (",
        ),
    ],
)
def test_verification(target: Any, rules: Any, parted: str) -> None:
    report = mp.transfer(chain(1e-5), target(), rules, verify=ROWS)
    assert report.agrees == (not parted) and (report.distance < 16 if not parted else report.distance > 1e4)
    assert report.parted.startswith(parted) and bool(report.parted) == bool(parted)
    assert ("the models agree" if not parted else "DISAGREE") in str(report) and f"{report.distance:.3g}" in str(report)
    assert bool(report.plan.options) == (parted == "layer norm (")


@pytest.mark.needs("jax", "tensorflow")
def test_where_a_built_model_and_a_native_one_part() -> None:
    """Inside a built model channels are last where the library has them so; outside they are first."""
    spec = mp.nn.Sequential(
        {"conv": mp.nn.Conv(3, 2), "norm": mp.nn.BatchNorm(), "flat": mp.nn.Flatten(), "fc": mp.nn.Linear(5)}
    )
    layers = {**KERAS_FLAT, "norm": lambda k: k.BatchNormalization(epsilon=0.1, momentum=0.9)}
    forward = lambda net, x: net.fc(net.flat(net.norm(net.conv(x))))  # noqa: E731
    native = fill(model("keras", layers, forward, turned(IMAGE, "keras")))
    source = fill(mp.build(spec, IMAGE, backend="jax", dtype=F64))
    report = mp.transfer(source, native, verify=IMAGE)
    assert not report.agrees and report.parted.startswith("layer norm (")
    report = mp.transfer(native, source, verify=turned(IMAGE, "keras"))
    assert not report.agrees and report.parted.startswith("layer norm (")


def test_verification_by_another_bound_and_behind_all_layers() -> None:
    source, target = chain(1e-5), chain(1e-5)
    target.native._forward = lambda net, x: net.c(torch.relu(net.norm(net.a(x)))) * (1 + 2**-12)
    assert mp.transfer(source, target, verify=ROWS, bound=4096).agrees
    report = mp.transfer(source, target, verify=ROWS)
    assert not report.agrees and "outputs of all layers with parameters agree" in report.parted
    target.native._forward = lambda net, x: net.c(torch.relu(net.norm(net.a(x))))[:, :2]
    report = mp.transfer(source, target, verify=ROWS)
    assert report.distance == float("inf") and "(5, 3)" in report.parted and "(5, 2)" in report.parted
    assert not mp.transfer(source, target).agrees  # not verified


@pytest.mark.needs("mxnet", "jax", "tensorflow")
@pytest.mark.parametrize("flavour", [f for f in FLAVOURS if f != "tf_keras"])
def test_verification_turns_images_and_takes_several_inputs(flavour: str) -> None:
    image = IMAGE.astype("float32")
    tokens = np.array([1, 0])

    def forward(net: Any, x: Any, t: Any) -> Any:
        return net.conv(x), net.embed(t)

    layers = {"conv": KINDS["conv 2d"].make[flavour], "embed": KINDS["embedding"].make[flavour]}
    make = {"conv": KINDS["conv 2d"].make["torch"], "embed": KINDS["embedding"].make["torch"]}
    source = fill(mp.wrap(Torch(forward, **{name: of(torch.nn) for name, of in make.items()})))
    target = model(flavour, layers, forward, turned(image, flavour), "float32", tokens)
    report = mp.transfer(source, target, verify=(image, tokens))
    assert report.agrees and report.distance < 16
    shown_there = tuple(
        mp.to_numpy(source.native_array(turned(each, flavour) if each.ndim > 2 else each)) for each in (image, tokens)
    )
    report = mp.transfer(target, blank(source), verify=shown_there)  # as the source has them
    assert report.agrees and report.distance < 16
    target["conv.bias"] += 1
    again = mp.transfer(source, blank(target), verify=(image, tokens))
    assert again.agrees


def test_a_file_cannot_be_run(tmp_path: Any) -> None:
    source, target = chain(1e-5), blank(chain(1e-5))
    before = bits(target)
    for each in (mp.save(source, tmp_path / "w.safetensors"), source.state_dict()):
        with pytest.raises(mp.errors.InvalidArgument, match="file or a state"):
            mp.transfer(each, target, verify=ROWS)
    assert bits(target) == before


def test_other_things_are_no_sources_and_no_targets() -> None:
    net = mp.wrap(L(3, 2))
    for source, target, error in (
        (net, net.native, "Say mp.wrap"),
        (net.native, net, "Linear"),
        (None, net, "NoneType"),
    ):
        with pytest.raises(mp.errors.WrongType, match=error):
            mp.transfer(source, target)
    with pytest.raises(FileNotFoundError):
        mp.transfer("nowhere.safetensors", net)


# -- from files


@pytest.mark.needs("jax", "tensorflow", "mxnet")
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("kind", ["linear", "gru", "batch norm"])
def test_what_was_saved(flavour: str, kind: str, tmp_path: Any) -> None:
    source, target = source_of("torch", kind, F64, True), fill(layer_model(flavour, kind), "another")
    path = mp.save(source, tmp_path / "w.safetensors")
    report = mp.transfer(path, target, cast=True)
    assert report.plan.complete and not report.plan.options
    assert far(output(flavour, kind), output("torch", kind)) <= max(ROUGH.get((flavour, kind), 64), 64)


@pytest.mark.needs("jax")
def test_what_was_saved_of_another_kind_and_with_other_options(tmp_path: Any) -> None:
    path = mp.save(t_layer(N.LayerNorm(6)), tmp_path / "w.safetensors")
    assert mp.plan(path, layer_model("linen", "layer norm")).options == ["layer: eps is 1e-05 there, 0.0009765625 here"]
    with pytest.raises(mp.errors.TransferError, match="'layernorm', the target is 'batchnorm'"):
        mp.transfer(path, fill(layer_model("linen", "batch norm")), cast=True)


@pytest.mark.needs("jax")
def test_pytorchs_file_with_its_names(tmp_path: Any) -> None:
    source = fill(mp.wrap(torch.nn.Sequential(L(6, 4), N.Tanh(), L(4, 3))))
    torch.save(source.native.state_dict(), tmp_path / "w.pt")
    make = {"enc": lambda f: f.Dense(4), "head": lambda f: f.Dense(3)}
    target = model("linen", make, lambda net, x: net.head(library("linen").tanh(net.enc(x))), ROWS, "float32")
    mp.transfer(tmp_path / "w.pt", target, {"0": "enc", "2": "head"})
    x = ROWS.astype("float32")
    assert far(mp.to_numpy(target(x)), source(x).detach().numpy()) < 16
    state = {name: torch.tensor(p.numpy()) for name, p in source.parameters().items()}
    mp.transfer(state, blank(target), {"0": "enc", "2": "head"})
    assert far(mp.to_numpy(target(x)), source(x).detach().numpy()) < 16


@pytest.mark.needs("mxnet")
def test_gluons_file_with_its_names(tmp_path: Any) -> None:
    g = library("gluon").nn
    native = g.HybridSequential()
    native.add(g.Conv2D(3, 2), g.BatchNorm(), g.Dense(5))
    native.initialize()
    source = fill(mp.wrap(native, IMAGE))
    native.save_parameters(str(tmp_path / "w.params"))
    make = (N.Conv2d(4, 3, 2), N.BatchNorm2d(3), N.Flatten(), L(90, 5))
    target = fill(mp.wrap(torch.nn.Sequential(*make)), "another")
    rules = {"re:2(.*)": r"3\1", "1.gamma": "1.weight", "1.beta": "1.bias"}
    report = mp.transfer(tmp_path / "w.params", target, rules)
    assert report.plan.complete and not report.plan.guesses
    x = IMAGE.astype("float32")
    assert far(target(x).detach().numpy(), mp.to_numpy(source(x))) < 64


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("generation", ["keras"])
def test_keras_file_with_its_names(generation: str, tmp_path: Any) -> None:
    k = library(generation)
    native = k.Sequential(
        [k.Input((6,)), k.layers.Dense(6, use_bias=False, kernel_initializer="identity"), k.layers.Dense(3)]
    )
    native.build((None, 6))
    source = fill(mp.wrap(native))
    native.save_weights(tmp_path / "w.weights.h5")
    with mp.read(tmp_path / "w.weights.h5") as file:
        names = sorted(file)
    assert names == ["layers.dense.vars.0", "layers.dense_1.vars.0", "layers.dense_1.vars.1"]
    target = blank(named(a=L(6, 6, False), b=L(6, 3)))
    rules = {"layers.dense.vars.0": "a.weight", "*.dense_1.vars.0": "b.weight", "*.vars.1": "b.bias"}
    # a file of another program says no kinds, so its layouts are taken as they are: (6, 3) does not fit
    with pytest.raises(mp.errors.TransferError, match=r"weight is \(6, 3\), the target's \(3, 6\)"):
        mp.transfer(tmp_path / "w.weights.h5", target, rules)
    other = k.Sequential([k.Input((6,)), k.layers.Dense(6, use_bias=False), k.layers.Dense(3)])
    other.load_weights(tmp_path / "w.weights.h5")  # Keras itself knows
    mp.transfer(mp.wrap(other), target, {"0": "a", "1": "b"})
    assert np.array_equal(target["b.weight"].numpy(), source["1.weight"].numpy())


# -- what the adapters must let a transfer do


@pytest.mark.needs("mxnet")
def test_a_gluon_model_that_has_run_can_be_written_to() -> None:
    """MXNet keeps a convolution's weight in another memory format from its first forward pass on."""
    x, new = np.ones((2, 64, 9, 9)), {"layer.weight": np.full((64, 64, 3, 3), 0.5, "float32")}
    net = one("gluon", lambda g: g.Conv2D(64, 3, use_bias=False), x, "float32")
    for _ in range(2):
        net(x)
    mp.transfer(new, net)
    assert (net["layer.weight"].numpy() == 0.5).all() and (mp.to_numpy(net(x)) == 288).all()


def test_a_users_own_layer_of_a_known_kind_needs_none_of_its_options() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = N.Parameter(torch.zeros(3))

    mp.register_layer(Own, "layernorm")
    target = mp.wrap(Torch(None, a=Own()))
    mp.transfer(named(a=N.LayerNorm(3, bias=False)), target)
    assert (target["a.weight"].numpy() != 0).any()


# -- what only a run can tell


@in_framework("tensorflow")
@pytest.mark.needs("torch")
def test_a_flattening_that_is_none_is_found_out_by_running_both() -> None:
    """Global pooling over joined branches: the linear layer has a multiple of the last convolution's channels."""
    import keras
    import torch

    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 1)
            self.out = torch.nn.Linear(8, 2)

        def forward(self, x: Any) -> Any:
            return self.out(torch.cat([self.one(x), self.two(x)], 1).mean((2, 3)))

    x = keras.Input((5, 5, 3))
    layers = keras.layers
    joined = layers.Concatenate()([layers.Conv2D(4, 1, name="one")(x), layers.Conv2D(4, 1, name="two")(x)])
    native = keras.Model(x, layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(joined)))
    source, target = mp.wrap(Branches()), mp.wrap(native)
    assert "rows permuted" in str(mp.plan(source, target))
    image = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype("float32")
    report = mp.transfer(source, target, verify=image)
    assert report.agrees and "nothing is flattened before" in str(report.plan)
    np.testing.assert_array_equal(target["out.weight"].numpy(), source["out.weight"].numpy())


@in_framework("tensorflow")
@pytest.mark.parametrize("size", [3, 4], ids=["oblong", "square"])
def test_arrays_in_a_frameworks_own_layout_are_refused_also_where_they_would_fit(tmp_path: Any, size: int) -> None:
    import keras

    native = keras.Sequential([keras.Input((4,)), keras.layers.Dense(size)])
    native.save_weights(tmp_path / "w.weights.h5")
    target = mp.wrap(keras.Sequential([keras.Input((4,)), keras.layers.Dense(size)]))
    before = target.state_dict()
    rules = {"layers.dense.vars.0": "0.weight", "layers.dense.vars.1": "0.bias"}
    with pytest.raises(mp.errors.TransferError, match="as its framework lays it out" if size == 4 else "layers.dense"):
        mp.transfer(tmp_path / "w.weights.h5", target, rules)
    for name, value in target.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
