"""``multiparam convert``: plans, transfers and files, their exit codes, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from support.command_line import command
from typer.testing import CliRunner

import multiparam as mp
from multiparam import errors
from multiparam.cli.commands import app
from multiparam.core import registry
from multiparam.weights import writers
from multiparam.weights.metadata import describe

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.needs("torch")]
jax_too = pytest.mark.needs("jax")
tensorflow_too = pytest.mark.needs("tensorflow")
mxnet_too = pytest.mark.needs("mxnet")

TORCH = dedent("""\
    import torch
    from torch import nn

    def sized(*sizes, tied=False, dtype=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, sizes[0]), nn.ReLU(), *(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))
        if tied:
            net[3].weight = net[2].weight
        return net.to(dtype)

    def one():
        return sized(8, 2)

    def other():
        net = sized(8, 2)
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        return net

    def tied():
        return sized(8, 8, 8, tied=True)

    def larger():
        return sized(8, 2, 3)

    def double():
        return sized(8, 2, dtype=torch.float64)

    def sharp():
        return nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))

    def boom():
        raise RuntimeError("no GPU here")

    def norm():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
""")
FLAX = dedent("""\
    import numpy as np
    from flax import linen as nn, nnx

    def one():
        return nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), np.ones((1, 4), "float32")

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            setattr(self, "0", nnx.Linear(4, 8, rngs=rngs))
            setattr(self, "2", nnx.Linear(8, 2, rngs=rngs))
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return getattr(self, "2")(nnx.relu(getattr(self, "0")(x)))
""")
KERAS = dedent("""\
    import keras
    from keras import layers

    def one():
        return keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.ReLU(), layers.Dense(2)])

    def other():
        return keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(2)])

    def layer():
        dense = layers.Dense(2)
        dense.build((None, 4))
        return dense
""")
GLUON = dedent("""\
    from multiparam_mxnet.load import load
    mx = load()
    from mxnet.gluon import nn

    def one():
        net = nn.HybridSequential()
        net.add(nn.Dense(8, in_units=4), nn.Activation("relu"), nn.Dense(2, in_units=8))
        net.initialize()
        return net
""")


@pytest.fixture(autouse=True)
def users_code(home: Path) -> None:
    for name, text in (("nets", TORCH), ("flaxes", FLAX), ("kerases", KERAS), ("gluons", GLUON)):
        Path(f"{name}.py").write_text(text)
    np.savez("x.npz", np.random.default_rng(0).normal(size=(5, 4)).astype("float32"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["convert", *arguments], env={"COLUMNS": "200"})


def done(*arguments: str, code: int = 0) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return re.sub(r"[\s│]+", " ", result.output)


def net(name: str) -> Any:
    """A torch model of the user's code."""
    from multiparam.cli import references

    return references.model(f"nets.py:{name}").native


def values(name: str) -> dict[str, np.ndarray]:
    return {key: p.detach().numpy() for key, p in net(name).state_dict().items()}


def same(found: Any, truth: dict[str, np.ndarray]) -> bool:
    return set(found) == set(truth) and all(
        found[name].dtype == a.dtype and np.array_equal(found[name], a) for name, a in truth.items()
    )


def rules(**names: str | None) -> str:
    Path("rules.json").write_text(json.dumps(names))
    return "rules.json"


# -- into a model


def test_torch_to_torch_prints_the_plan_and_the_report() -> None:
    said = done("nets.py:one", "nets.py:other", "--verify", "x.npz", "--output", "w.pt")
    assert "torch Sequential → torch Sequential source target" in said
    assert "0.weight → 0.weight" in said and "2.bias → 2.bias" in said
    assert "4 parameters and buffers transferred" in said
    assert "Verified: the models agree, 0 eps apart (bound 256)." in said
    assert said.index("source target") < said.index("transferred") < said.index("Written: w.pt, ")
    import torch

    assert same({k: v.numpy() for k, v in torch.load("w.pt", weights_only=True).items()}, values("one"))


@jax_too
def test_to_linen_and_back() -> None:
    done("nets.py:one", "flaxes.py:one", "--verify", "x.npz", "--output", "w.msgpack")
    found = mp.read("w.msgpack")
    assert np.array_equal(found["params.layers_0.kernel"], values("one")["0.weight"].T)
    done("nets.py:one", "flaxes.py:one", "--output", "w.safetensors")
    assert same(mp.read("w.safetensors"), values("one"))
    done("w.safetensors", "nets.py:other", "--output", "back.pt")
    assert same(mp.read("back.pt"), values("one"))


@jax_too
def test_to_nnx() -> None:
    done("nets.py:one", "flaxes.py:Net", "--verify", "x.npz", "--output", "w.msgpack")
    found = mp.read("w.msgpack")
    assert set(found) == {"0.kernel", "0.bias", "2.kernel", "2.bias"}
    assert np.array_equal(found["2.kernel"], values("one")["2.weight"].T)


@tensorflow_too
def test_to_keras_by_kind_and_shape() -> None:
    line = "nets.py:one", "kerases.py:other", "--output", "w.weights.h5"
    assert "the only one of its kind and shape" in done(*line)
    assert "the models agree" in done(*line, "--verify", "x.npz")
    from multiparam.cli import references

    keras = references.model("kerases.py:other").native
    keras.load_weights("w.weights.h5")
    assert np.array_equal(keras.get_weights()[2], values("one")["2.weight"].T)


@mxnet_too
def test_to_gluon() -> None:
    done("nets.py:one", "gluons.py:one", "--verify", "x.npz", "--output", "w.params")
    from multiparam.cli import references

    gluon = references.model("gluons.py:one").native
    gluon.load_parameters("w.params")
    assert same({name: p.data().asnumpy() for name, p in gluon._collect_params_with_prefix().items()}, values("one"))


def test_verification_needs_no_output() -> None:
    before = sorted(os.listdir())
    assert "the models agree" in done("nets.py:one", "nets.py:other", "--verify", "x.npz")
    assert sorted(set(os.listdir()) - {"__pycache__"}) == sorted(set(before) - {"__pycache__"})


def test_models_that_disagree_exit_with_1_and_nothing_is_written() -> None:
    said = done("nets.py:one", "nets.py:sharp", "--verify", "x.npz", "--output", "w.pt", code=1)
    assert "the models DISAGREE" in said and "They part first at what is between layers 0 and 2" in said
    assert "w.pt was not written." in said
    assert not Path("w.pt").exists()


def test_a_dry_run_that_would_be_done() -> None:
    said = done("nets.py:one", "nets.py:other", "--output", "w.pt", "--dry-run")
    assert "0.weight → 0.weight" in said and "A transfer would be done." in said
    assert re.search(
        r"It reads [\d.]+ \w+ and writes [\d.]+ \w+, and holds at most [\d.]+ \w+ beside the model\.", said
    )
    assert not Path("w.pt").exists()


def test_a_dry_run_that_would_be_refused_exits_with_1() -> None:
    said = done("nets.py:one", "nets.py:larger", "--dry-run", code=1)
    assert "Missing, nothing makes them: 3.weight 3.bias" in said
    assert "A transfer would be refused: 2 missing (--partial leaves them as they are)." in said
    done("nets.py:one", "nets.py:larger", "--dry-run", "--partial")


def test_partial_leaves_the_rest_as_it_is() -> None:
    said = done("nets.py:one", "nets.py:larger", "--output", "w.safetensors", code=3)
    assert "Nothing was transferred: 2 missing" in said
    said = done("nets.py:one", "nets.py:larger", "--output", "w.safetensors", "--partial")
    assert "2 of the target that nothing makes are as they were." in said
    assert same(mp.read("w.safetensors"), {**values("larger"), **values("one")})


def test_cast() -> None:
    said = done("nets.py:double", "nets.py:one", "--output", "w.safetensors", code=3)
    assert "0.weight is float64, 0.weight is float32; say --cast to convert it" in said
    done("nets.py:double", "nets.py:one", "--output", "w.safetensors", "--cast")
    assert mp.read("w.safetensors")["0.weight"].dtype == "float32"


def test_rules() -> None:
    mp.save({f"body.{name}": a for name, a in values("one").items()}, "w.safetensors")
    done("w.safetensors", "nets.py:other", "--rules", rules(**{"body.*": "*"}), "--output", "v.safetensors")
    assert same(mp.read("v.safetensors"), values("one"))


def test_rules_are_saved_for_review_and_used_again() -> None:
    Path("twin.py").write_text(
        "from torch import nn\n"
        "make = lambda: nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(3)))\n"
        "other = lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))\n"
    )
    done("twin.py:make", "twin.py:other", "--dry-run", "--save-rules", "r.toml", code=1)
    lines = Path("r.toml").read_text().splitlines()
    assert lines[0] == "[rules]" and '"0.0" = "1"  # guess: order, kind and shape' in lines
    done(
        "twin.py:make", "twin.py:other", "--rules", "r.toml", "--output", "w.safetensors", "--save-rules", "again.toml"
    )
    assert '"0.0" = "1"' in Path("again.toml").read_text() and "guess" not in Path("again.toml").read_text()
    assert done("nets.py:one", "v.safetensors", "--save-rules", "r.toml", code=2)


def test_options_that_differ_are_said() -> None:
    text = "make = lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, eps=0.1))\n"
    Path("eps.py").write_text(f"from torch import nn\n{text}")
    said = done("nets.py:norm", "eps.py:make", "--output", "w.pt")
    assert "These will make outputs differ: 1: eps is 1e-05 there, 0.1 here" in said


# -- into a file


def test_a_models_state_as_safetensors() -> None:
    said = done("nets.py:tied", "w.safetensors")
    assert re.search(r"2.weight → 2.weight \(8, 8\) float32 3.weight", said)
    assert "Written: w.safetensors, 5 arrays, " in said
    expected = mp.save(mp.wrap(net("tied")), "expected.safetensors")
    assert Path("w.safetensors").read_bytes() == expected.read_bytes()


def test_a_files_ties_and_what_it_says_survive() -> None:
    done("nets.py:tied", "a.safetensors")
    done("a.safetensors", "b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_names_after_rules() -> None:
    done("nets.py:tied", "a.safetensors")
    said = done("a.safetensors", "b.safetensors", "--rules", rules(**{"2": "in", "3": "out", "0.bias": None}))
    assert "0.bias left out" in said
    found = mp.read("b.safetensors")
    assert set(found) == {"0.weight", "in.weight", "in.bias", "out.bias"}
    about = describe(found)["parameters"]["in.weight"]
    assert (about["aliases"], about["kind"], about["trainable"]) == (["out.weight"], "linear", True)


def test_an_alias_stands_in_for_a_name_that_is_left_out() -> None:
    done("nets.py:tied", "a.safetensors", "--rules", rules(**{"2.weight": None}))
    assert np.array_equal(mp.read("a.safetensors")["3.weight"], values("tied")["2.weight"])


def test_a_transposed_tie_survives_either_way_round() -> None:
    layers = [mp.nn.Linear(3, bias=False), mp.nn.Linear(4, bias=False)]
    model = mp.build(mp.nn.Sequential(*layers), np.ones((1, 4)), backend="torch")
    weight = model["0.weight"].numpy()
    model.tie("1.weight", "0.weight", transpose=True)
    mp.save(model, "a.safetensors")
    done("a.safetensors", "a.pt")
    found = mp.read("a.pt")
    assert np.array_equal(found["0.weight"], weight) and np.array_equal(found["1.weight"], weight.T)
    done("a.safetensors", "b.safetensors", "--rules", rules(**{"0": "z"}))
    done("b.safetensors", "b.pt")
    assert same(mp.read("b.pt"), {"z.weight": weight, "1.weight": weight.T})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".params", pytest.param(".msgpack", marks=jax_too)])
def test_a_file_in_every_format_that_arrays_alone_make(suffix: str) -> None:
    state = {
        "a.weight": np.arange(6, dtype="float32").reshape(2, 3),
        "a.count": np.array(3, "int64"),
        "b\\.c.half": np.ones((1, 2), "float16"),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 2), "float64"),
    }
    mp.save(state, "w.safetensors")
    done("w.safetensors", f"w{suffix}")
    assert same(mp.read(f"w{suffix}"), state)


def test_bfloat16_through_torch_and_params() -> None:
    import ml_dtypes

    state = {"w": np.array([1.5, -2], ml_dtypes.bfloat16)}
    mp.save(state, "w.safetensors")
    for path in ("w.pt", "w.params"):
        done("w.safetensors", path)
        found = mp.read(path)["w"]
        assert (found.dtype.name, found.tobytes()) == ("bfloat16", state["w"].tobytes())


@mxnet_too
def test_mxnet_itself_reads_the_params() -> None:
    from multiparam_mxnet.load import load

    done("nets.py:one", "w.params")
    found = load().nd.load("w.params")
    assert same({name: a.asnumpy() for name, a in found.items()}, values("one"))


def test_a_tied_tensor_is_stored_once_in_a_pt() -> None:
    import torch

    done("nets.py:tied", "a.safetensors")
    done("a.safetensors", "a.pt")
    found = torch.load("a.pt", weights_only=True)
    assert found["2.weight"].data_ptr() == found["3.weight"].data_ptr()
    target = net("tied")
    target.load_state_dict(found)


def test_a_dry_run_into_a_file() -> None:
    assert "Nothing was written" in done("nets.py:one", "w.safetensors", "--dry-run")
    assert not Path("w.safetensors").exists()


def test_a_sharded_file_is_replaced_with_its_shards() -> None:
    mp.save(values("one"), "w.safetensors", shard_size=64)
    done("nets.py:one", "w.safetensors")
    assert [path.name for path in Path().glob("*.safetensors*")] == ["w.safetensors"]


@pytest.mark.parametrize("target", ["w.safetensors", "w.pt", "w.params"])
def test_what_cannot_be_finished_leaves_the_old_file_and_nothing_else(
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mp.save(values("one"), "source.safetensors")
    Path(target).write_text("old")
    before = sorted(os.listdir())

    def replace(*_: object) -> None:
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr("os.replace", replace)
    assert "No space left on device" in done("source.safetensors", target, code=3)
    assert Path(target).read_text() == "old"
    assert sorted(os.listdir()) == before


# -- what cannot be


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nets.py:one", "nets.py:other"], 2, "say where the model is saved, or --dry-run or --verify"),
        (["nets.py:one", "w.foo"], 2, "No weight file that can be written ends like 'w.foo'"),
        (["nets.py:one", "w.ptt"], 2, "Did you mean '.pt'?"),
        (["nets.py:one", "w.npz"], 2, "No weight file that can be written"),
        (["nets.py:one", "no/w.pt"], 2, "there is no folder 'no'"),
        (["nets.py:one", "nets.py:other", "--output", "no/w.pt"], 2, "there is no folder 'no'"),
        (["nets.py:one", "nets.py:other", "--output", "w.foo"], 2, "No weight file that can be written"),
        (["nets.py:one", "nets.py:other", "--output", "w.pt", "--to", "torch"], 2, "the suffix of --output says"),
        (["nets.py:one", "w.pt", "--output", "v.pt"], 2, "this one is a file"),
        (["nets.py:one", "w.pt", "--partial"], 2, "this one is a file"),
        (["nets.py:one", "w.pt", "--cast"], 2, "this one is a file"),
        (["nets.py:one", "w.pt", "--verify", "x.npz"], 2, "this one is a file"),
        (["x.npz", "nets.py:one", "--verify", "x.npz"], 2, "only a model can be run"),
        (["nets.py:one", "w.pt", "--to", "troch"], 2, "No format 'troch'. Did you mean 'torch'?"),
        (["nets.py:one", "w.pt", "--to", "mxnet"], 2, "mxnet files end in .params; 'w.pt' does not."),
        (["nets.py:one", "w.pt", "--to", "safetensors"], 2, "safetensors files end in .safetensors"),
        (["nets.py:one", "w.weights.h5"], 2, "only a model of tensorflow can be written as one"),
        (["nets.py:one", "w.weights.h5", "--to", "tensorflow", "--dry-run"], 2, "only a model of tensorflow"),
        (["nets.py:boom", "w.pt"], 3, "boom() of nets.py raises RuntimeError: no GPU here"),
        (["nets.py:one", "nets.py:boom", "--dry-run"], 3, "boom() of nets.py raises RuntimeError: no GPU here"),
        (["nets.py:one", "nets.py:on", "--dry-run"], 3, "nets.py has no 'on'. Did you mean 'one'?"),
        (["no.pt", "w.safetensors"], 3, "There is no file 'no.pt'."),
        (["no.pt", "nets.py:one", "--dry-run"], 3, "There is no file 'no.pt'."),
        (["nets.py:one", "nets.py:other", "--verify", "no.npz"], 3, "No such file or directory: no.npz"),
        (["nets.py:one", "w.pt", "--rules", "no.toml"], 3, "No such file or directory: no.toml"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted(arguments: list[str], code: int, sentence: str) -> None:
    assert sentence in done(*arguments, code=code)
    assert not Path("w.pt").exists()


def test_rules_that_fit_nothing_and_files_that_hold_none() -> None:
    assert "The rule 'body' fits no source name" in done("nets.py:one", "w.pt", "--rules", rules(body="b"), code=2)
    both = rules(**{"0": "a", "2": "a"})
    assert "Two source parameters are called 'a.weight'" in done("nets.py:one", "w.pt", "--rules", both, code=2)
    Path("rules.toml").write_text("[rename\n")
    assert "is not TOML" in done("nets.py:one", "w.pt", "--rules", "rules.toml", code=3)


def test_arrays_a_format_has_not() -> None:
    mp.save({"a": np.zeros(2, "uint32"), "b": np.zeros(2, "complex64")}, "w.safetensors")
    assert "'b' is complex64, which MXNet has not" in done("w.safetensors", "w.params", code=2)
    assert sorted(path.name for path in Path().glob("*.params*")) == []


@jax_too
def test_a_tree_has_no_array_inside_another() -> None:
    mp.save({"a": np.zeros(2), "a.b": np.zeros(2)}, "w.safetensors")
    assert "would stand inside another array" in done("w.safetensors", "w.msgpack", code=2)


@tensorflow_too
def test_a_keras_layer_is_not_saved() -> None:
    assert "has no save_weights: put it in a model" in done("kerases.py:layer", "w.weights.h5", code=3)


@tensorflow_too
def test_a_keras_model_is_written_by_keras_and_not_with_rules() -> None:
    done("kerases.py:one", "w.weights.h5")
    assert "layers.dense.vars.0" in mp.read("w.weights.h5")
    assert "with its own names" in done("kerases.py:one", "v.weights.h5", "--rules", rules(**{"0": "a"}), code=2)


def test_a_framework_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    mp.save(values("one"), "w.safetensors")
    monkeypatch.setattr(registry.info("jax"), "_requires", ("no_such_module",))
    monkeypatch.setitem(sys.modules, "multiparam_jax.files", None)
    assert 'pip install "multiparam[jax]"' in done("w.safetensors", "w.msgpack", code=3)


def test_what_a_writer_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def save(*_: object) -> None:
        raise RuntimeError("disk on fire\nand more")

    monkeypatch.setattr(torch, "save", save)
    assert "'w.pt' cannot be written. RuntimeError: disk on fire" in done("nets.py:one", "w.pt", code=3)


def test_the_writer_of_a_name() -> None:
    assert writers.writer(Path("a.b.safetensors")) == (None, ".safetensors")
    assert writers.writer(Path("w.weights.h5"))[1] == ".weights.h5"
    with pytest.raises(errors.InvalidArgument):
        writers.writer(Path("w.h5"))


# -- the command itself


def test_the_command_in_a_fresh_interpreter() -> None:
    result = command("convert", "nets:one", "w.safetensors", "--to", "safetensors")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith("Written: w.safetensors, 4 arrays, ")
    result = command("convert", "w.safetensors", "nets.py:larger", "--output", "w.pt")
    assert (result.returncode, result.stderr) == (
        3,
        "Nothing was transferred: 2 missing (--partial leaves them as they are).\n",
    )
    assert "Missing, nothing makes them:\n  3.weight\n  3.bias\n" in result.stdout
