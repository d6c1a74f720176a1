"""Recordings: what is judged from files is what is judged of live models, in any environment, golden files included."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import multiparam as mp
from multiparam import errors
from multiparam.cli.commands import app
from multiparam.comparison import recording as recordings
from multiparam.comparison.networks import (
    judge_networks,
    open_network_files,
    open_networks,
    record_networks,
    write_networks,
)
from multiparam.comparison.recording import KEY, open_recording, open_subjects
from multiparam.comparison.reports.json import to_document
from multiparam.comparison.schemas import problems
from multiparam.comparison.zoo import ZOO
from multiparam.core.state import spec
from multiparam.weights.safetensors import Tensor, TensorFile, write_safetensors

X = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype("float32")
GOLDEN = Path(__file__).parent / "golden" / "networks.safetensors"
LABELS = np.array([0, 1, 2, 0, 1])
nn = mp.nn
SPEC = nn.Sequential(
    nn.Conv(4, 3, bias=False), nn.BatchNorm(), nn.Tanh(), nn.Flatten(), nn.Linear(8), nn.LayerNorm(), nn.Linear(3)
)
TASK: dict[str, Any] = {"targets": LABELS, "objective": mp.losses.cross_entropy, "steps": 2, "optimizer": "adam"}


def built(backend: str, **changes: Any) -> mp.Model:
    net = mp.build(SPEC, X, backend=backend, seed=1)
    for name, change in changes.items():
        net[name.replace("_", ".", 1)].assign(change(net[name.replace("_", ".", 1)].numpy()))
    return net


def plain(found: Any) -> dict[str, Any]:
    """A comparison without what says where its sides come from."""
    data = json.loads(json.dumps(to_document(found)))
    for name in ("environments", "options"):
        del data[name]
    for said in data["models"].values():
        del said["source"], said["title"]
    return data


# -- models


def test_files_are_judged_as_live_models_are(backend: str, tmp_path: Path) -> None:
    reference, other = built("torch"), built(backend, **{"4_weight": lambda w: w * 1.01})
    live = mp.compare({"one": reference, "two": other}, X, **TASK)
    for name, net in (("one", reference), ("two", other)):
        mp.record(tmp_path / f"{name}.safetensors", net, X, **TASK)
    files = mp.compare({name: tmp_path / f"{name}.safetensors" for name in ("one", "two")})
    assert not live.agrees and plain(files) == plain(live)
    assert live.pairs[0].parted.startswith("at layer 4: its inputs agree") and len(live.pairs[0].layers[""]) == 5
    mixed = mp.compare({"one": tmp_path / "one.safetensors", "two": other})
    assert plain(mixed) == plain(live) and mixed.environments[0]["name"] == "one.safetensors"


def test_a_golden_file_is_agreed_with_and_catches_a_planted_drift(backend: str, tmp_path: Path) -> None:
    golden = mp.record(tmp_path / "golden.safetensors", built("torch"), X, **TASK)
    good = mp.compare({"now": built(backend)}, against=golden)
    assert good.agrees, str(good)
    assert good.reference == "golden" and [check.check for check in good.checks].count("outputs") == 2
    assert {"gradients", "2 steps of adam"} <= {check.check for check in good.checks}
    drift = mp.compare({"now": built(backend, **{"1_running_var": lambda v: v * (1 + 1e-5)})}, against=golden)
    wrong = {check.check for check in drift.checks if not check.agrees}
    assert {"values", "outputs"} <= wrong and drift.pairs[0].parted.startswith("at layer 1: its inputs agree")


def test_each_model_is_held_against_its_own_golden_one(tmp_path: Path) -> None:
    models = {"small": built("torch"), "other": built("torch", **{"6_bias": lambda b: b + 1})}
    golden = mp.record(tmp_path / "golden.safetensors", models, X)
    assert mp.compare(models, against=golden).agrees
    swapped = {"small": models["other"], "other": models["small"]}
    assert not any(pair.agrees for pair in mp.compare(swapped, against=golden).pairs)
    names = [each.name for each in open_subjects("g", golden)]
    assert names == ["small@g", "other@g"]


def test_weights_can_come_from_a_recording(backend: str, tmp_path: Path) -> None:
    golden = mp.record(tmp_path / "golden.safetensors", built("torch"), X)
    other = mp.build(SPEC, X, backend=backend, seed=2)
    assert not mp.compare({"now": other}, against=golden).agrees
    assert mp.compare({"now": other}, against=golden, sync="golden").agrees
    np.testing.assert_array_equal(other["4.weight"].numpy(), built("torch")["4.weight"].numpy())


@pytest.mark.needs("torch", "tensorflow")
@pytest.mark.xdist_group("tensorflow")
def test_ties_rules_and_channels_last_travel_through_files(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 2)]
    ours = mp.wrap(torch.nn.Sequential(*layers))
    image = keras.Input((6, 6, 3))
    y = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name="conv")(image)
    theirs = mp.wrap(keras.Model(image, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(y))))
    rules = {"0": "conv", "3": "head"}
    mp.transfer(ours, theirs, rules, accept_guesses=True)
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype("float32")
    paths = {
        "ours": mp.record(tmp_path / "ours.safetensors", ours, x),
        "theirs": mp.record(tmp_path / "theirs.safetensors", theirs, np.moveaxis(x, 1, -1)),
    }
    found = mp.compare(paths, rules=rules)
    assert found.agrees, str(found)
    assert [(layer.name, layer.cut) for layer in found.pairs[0].layers[""]] == [("conv", "tanh"), ("head", "")]
    assert mp.compare(dict(reversed(paths.items())), rules={"conv": "0", "head": "3"}).agrees


def test_a_recording_is_of_its_own_inputs_and_objective(tmp_path: Path) -> None:
    golden = mp.record(tmp_path / "golden.safetensors", built("torch"), X, **TASK)
    for inputs, change, said in (
        (X + 1, {}, "recorded on other inputs"),
        (X, {"targets": LABELS[::-1]}, "recorded on other targets"),
        (X, {"objective": mp.losses.mse}, "recorded with objective 'cross_entropy', not 'mse'"),
        (X, {"steps": 3}, "recorded with steps 2, not 3"),
    ):
        with pytest.raises(errors.InvalidArgument, match=said):
            mp.compare({"now": built("torch")}, inputs, **{**TASK, **change}, against=golden)
    with pytest.raises(errors.InvalidArgument, match="on inputs"):
        mp.compare({"a": built("torch"), "b": built("torch")})

    def own(net: mp.Model, x: Any) -> Any:
        return (net(x) ** 2).mean()

    named = mp.record(tmp_path / "own.safetensors", built("torch"), X, objective=own)
    with pytest.raises(errors.InvalidArgument, match="objective is 'own': give it as objective="):
        mp.compare({"now": built("torch")}, against=named)
    assert mp.compare({"now": built("torch")}, objective=own, against=named).agrees


def test_only_the_layers_asked_for_are_in_it(tmp_path: Path) -> None:
    path = mp.record(tmp_path / "run.safetensors", built("torch"), X, layers=["4", "6"])
    assert open_subjects("run", path)[0].passes["float64"]()[1].layers == ["4", "6"]
    found = mp.compare({"a": built("torch"), "b": built("torch")}, X, layers=["4"])
    assert [layer.name for layer in found.pairs[0].layers[""]] == ["4"]


def test_equal_arrays_are_in_it_once(tmp_path: Path) -> None:
    spec = nn.Sequential(nn.Linear(2), nn.Linear(2))
    net = mp.build(spec, np.ones((1, 2)), backend="torch")
    path = mp.record(tmp_path / "run.safetensors", net, np.ones((1, 2), "float32"))
    with TensorFile(path) as file:
        digests = [recordings.digest(file[name]) for name in file]
    assert len(set(digests)) == len(digests)


def test_names_that_look_like_places_stay_apart(tmp_path: Path) -> None:
    writer = recordings.RecordingWriter()
    values = [writer.add({"b": np.ones(1)}, "a"), writer.add(np.zeros(1), "a/b"), writer.add(np.ones(1), "c")]
    writer.write(tmp_path / "run.safetensors", {"values": values})
    with TensorFile(tmp_path / "run.safetensors") as file:
        assert [recordings.load_arrays(each, file) for each in values] == [{"b": 1.0}, 0.0, 1.0]


# -- files that are not what they should be


def rewritten(path: Path, change: Any, to: Path | None = None) -> Path:
    """A recording with another document."""
    with TensorFile(path) as file:
        document = json.loads(file.metadata[KEY])
        changed = change(document) or document
        other = to or path.with_name("other.safetensors")
        arrays = {name: file[name] for name in file}
        with other.open("wb") as out:
            tensors = [Tensor(name, *spec(array), lambda array=array: array) for name, array in arrays.items()]
            write_safetensors(out, tensors, {KEY: json.dumps(changed)})
    return other


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    return mp.record(
        folder / "run.safetensors", mp.build(nn.Linear(2), np.ones((1, 3)), backend="torch"), np.ones((1, 3), "float32")
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d.update(format="2.0", multiparam="9.0"),
            r"of format 2\.0, written by multiparam 9\.0; this one, .* 1\.x",
        ),
        (lambda d: d.update(format="nonsense"), "of format nonsense"),
        (lambda d: d.pop("format"), "of format None"),
        (lambda d: d.pop("environment"), "'environment' is a required property"),
        (lambda d: d["models"]["model"].pop("passes"), "'passes' is a required property"),
        (lambda d: d["models"]["model"].update(dtypes=["float65"]), "'float65' is not one of"),
        (lambda d: d["models"]["model"]["values"].update(weight={"tensor": "gone"}), "there is no array 'gone'"),
        (lambda d: d["models"]["model"]["dtypes"].append("float16"), "no pass in float16"),
        (lambda d: d.update(models={}), "no models"),
        (lambda d: d["task"].update(keywords=None), "None is not of type 'array'"),
        (lambda d: d["task"].update(keywords=["x", "y", "z"]), "more keywords than inputs"),
    ],
)
def test_a_document_that_is_not_right_is_said(recording: Path, change: Any, said: str) -> None:
    broken = rewritten(recording, lambda d: change(d) and None)
    with pytest.raises(errors.FileError, match=said):
        open_subjects("run", broken)


def places(thing: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a document is."""
    keys = list(thing) if isinstance(thing, dict) else list(range(len(thing))) if isinstance(thing, list) else []
    return [place for key in keys for place in ((*path, key), *places(thing[key], (*path, key)))]


OTHERS = [None, -1, 1.5, "", "x", [], {}, {"tensor": "task/inputs/0"}, [["a"]], True, "float64", 10**30]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["models", "networks"]))
def test_any_other_document_is_judged_or_refused(recording: Path, data: st.DataObject, which: str) -> None:
    def changed(document: dict[str, Any]) -> None:
        *path, last = data.draw(st.sampled_from(places(document)))
        at: Any = document
        for key in path:
            at = at[key]
        if data.draw(st.booleans()):
            at[last] = data.draw(st.sampled_from(OTHERS))
        else:
            del at[last]

    source = recording if which == "models" else GOLDEN
    with tempfile.TemporaryDirectory() as folder:
        broken = rewritten(source, changed, Path(folder) / "other.safetensors")
        try:
            if which == "models":
                to_document(mp.compare({"a": broken, "b": recording}))
            else:
                to_document(judge_networks(open_network_files([GOLDEN, broken])[0], {}))
        except errors.MultiparamError:
            pass


def test_a_minor_version_and_keys_to_come_are_read(recording: Path) -> None:
    newer = rewritten(recording, lambda d: d.update(format="1.7", weather="fine"))
    assert [each.model for each in open_subjects("run", newer)] == ["model"]


def test_a_weight_file_and_a_damaged_one_are_no_recordings(recording: Path, tmp_path: Path) -> None:
    weights = mp.save(built("torch"), tmp_path / "w.safetensors")
    with pytest.raises(errors.FileError, match=r"is no recording\. multiparam record writes one"):
        open_recording(weights)
    data = bytearray(recording.read_bytes())
    data[-3] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(data)
    with pytest.raises(errors.FileError, match="are not those that were written"):
        mp.compare({"a": damaged, "b": recording})


def test_what_cannot_be_recorded_leaves_no_file(recording: Path, tmp_path: Path) -> None:
    for path, models, said in (
        (tmp_path / "run.pt", built("torch"), "a .safetensors file, not 'run.pt'"),
        (tmp_path / "run.safetensors", {"a": recording}, "not recordings of them"),
        (tmp_path / "run.safetensors", built("torch"), "does not run on these inputs"),
    ):
        with pytest.raises(errors.InvalidArgument, match=said):
            mp.record(path, models, np.ones((2, 9), "float32"))
    assert not list(tmp_path.iterdir())


# -- the networks built in

QUICK: dict[str, Any] = {"steps": 1, "seed": 0}
needs_data = pytest.mark.needs("torch", "sklearn")


@needs_data
def test_networks_from_files_are_judged_as_live_ones_are(tmp_path: Path) -> None:
    names = [name for name, installed in mp.backends().items() if installed and name in ("torch", "jax")]
    runs = record_networks(["mlp", "cnn"], names, **QUICK)
    live = judge_networks(runs, {})
    for name in names:
        write_networks(tmp_path / f"{name}.safetensors", [run for run in runs if run.backend == name], **QUICK)
    found, options, environments = open_network_files([tmp_path / f"{name}.safetensors" for name in names])
    again = judge_networks(found, {}, environments)
    assert options == QUICK and live.agrees and plain(again) == plain(live)
    twice, _, _ = open_network_files([tmp_path / "torch.safetensors", tmp_path / "torch.safetensors"])
    assert {run.column for run in twice} == {"torch"}


@needs_data
def test_a_network_that_drifts_is_placed(tmp_path: Path) -> None:
    runs = record_networks(["mlp"], ["torch"], **QUICK)
    write_networks(tmp_path / "golden.safetensors", runs, **QUICK)
    golden, _, _ = open_networks(tmp_path / "golden.safetensors")
    call = runs[0].calls[1]
    drifted = replace(
        runs[0], label="now", output=runs[0].output * 1.001,
        calls=[runs[0].calls[0], call._replace(outputs=(call.outputs[0] * 1.001,))],
    )  # fmt: skip
    found = judge_networks([*golden, drifted, replace(runs[1], label="now")], {})
    assert not found.agrees
    assert found.pairs[1].parted.startswith("at layer 2: its inputs agree") and found.pairs[1].first == {"mlp": 1}


@needs_data
@pytest.mark.slow
def test_a_kink_that_leaks_in_one_framework_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thousandth: training of smooth networks would never show it."""
    import torch
    from multiparam_torch import build

    runs = record_networks(["joined"], ["torch"], **QUICK)
    again = [replace(run, label="again") for run in record_networks(["joined"], ["torch"], **QUICK)]
    assert judge_networks([*runs, *again], {}).agrees
    monkeypatch.setitem(build.PLAIN, nn.ReLU, lambda: torch.nn.LeakyReLU(1e-3))
    leaking = [replace(run, label="leaking") for run in record_networks(["joined"], ["torch"], **QUICK)]
    write_networks(tmp_path / "golden.safetensors", runs, **QUICK)
    golden, _, _ = open_networks(tmp_path / "golden.safetensors")
    found = judge_networks([*golden, *leaking], {})
    assert {"output", "gradients"} <= {check.check for check in found.pairs[1].checks if not check.agrees}
    assert found.pairs[1].parted.startswith("between layers 0 and 3.body.0")


def test_the_networks_built_in_have_every_layer() -> None:
    def kinds(layer: nn.Layer) -> set[str]:
        below = [layer.body] if isinstance(layer, nn.Residual) else getattr(layer, "layers", ())
        return {type(layer).__name__}.union(*map(kinds, below))

    every = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Layer)}
    used = set().union(*(kinds(network.spec()) for network in ZOO.values()))
    assert every - used == {"Layer", "Container", "Join", "Dropout"}  # which draws other numbers in each framework


def test_the_schema_knows_what_is_written(recording: Path) -> None:
    _, document = open_recording(recording)
    assert problems(document, "recording") == []
    assert problems({**document, "task": {}}, "recording")


# -- the command line

NETS = """
import torch

def make(eps=1e-5):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3, eps=eps))

def other():
    return make(1e-3)

def broken(net, x, y):
    raise KeyError("weather")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recorded_nets.py").write_text(NETS)
    np.savez("x.npz", x=np.eye(4, dtype="float32"), y=np.zeros((4, 3), "float32"))
    return tmp_path


@pytest.mark.needs("torch")
def test_models_on_the_command_line(folder: Path) -> None:
    def said(*line: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, list(line))
        return found.exit_code, found.output

    given = ["--inputs", "x.npz", "--objective", "mse"]
    two = ["recorded_nets.py:make", "recorded_nets.py:other"]
    np.savez("wide.npz", np.ones((2, 9), "float32"))
    models = "[models]\na = 'recorded_nets.py:make'\nb = 'recorded_nets.py:other'\n"
    Path("synced.toml").write_text(f"sync = 'a'\ninputs = 'x.npz'\n{models}")
    code, text = said("record", "one=recorded_nets.py:make", *given, "--output", "one.safetensors", "--steps", "2")
    assert code == 0, text
    assert said("record", "recorded_nets.py:other", *given, "--output", "two.safetensors", "--steps", "2")[0] == 0
    code, text = said("compare", "one.safetensors", "two.safetensors", "--html", "r.html", "--json", "r.json")
    assert code == 1 and "two DISAGREES with one" in text and "at layer 1" in text and "eps is 1e-05" in text
    report = json.loads(Path("r.json").read_text())
    assert len(report["environments"]) == 2 and problems(report, "comparison") == []
    assert Path("r.html").read_text().lower().startswith("<!doctype html>")
    code, text = said("compare", "one=recorded_nets.py:make", "--against", "one.safetensors")
    assert code == 0 and "one agrees with one" in text
    code, text = said("compare", "recorded_nets.py:other", "--against", "one.safetensors")
    assert code == 1 and "other DISAGREES with one" in text
    for line, wanted, what in (
        (["record", "recorded_nets.py:make"], 2, "models are run on inputs"),
        (["record", "one.safetensors", *given], 2, "recorded already"),
        (["record", "synced.toml"], 2, "own weights: sync is for compare"),
        (["record", "recorded_nets.py:make", *given, "--output", "run.pt"], 2, "a .safetensors file"),
        (["record", "recorded_nets.py:make", *given, "--seed", "1"], 2, "networks built in"),
        (["record", "--inputs", "x.npz"], 2, "models of yours"),
        (["compare", "one.safetensors", "gone.safetensors"], 3, "gone.safetensors"),
        (["compare", "one.safetensors", "two.safetensors", "--seed", "1"], 2, "networks built in"),
        (["compare", "--against", "one.safetensors"], 2, "two models"),
        (["record", "recorded_nets.py:make", "--inputs", "wide.npz"], 3, "make does not run on these inputs"),
        (["compare", *two, *given[:2], "--objective", "recorded_nets.py:broken"], 3, "broken cannot be taken in make"),
        (["compare", *two, *given[:2], "--objective", "recorded_nets.py:gone"], 3, "has no 'gone'"),
    ):
        code, text = said(*line)
        assert code == wanted and what in text.replace("\n", " "), (line, code, text)


@needs_data
def test_networks_on_the_command_line(folder: Path) -> None:
    def said(*line: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, list(line))
        return found.exit_code, " ".join(found.output.split())

    network = ["--model", "mlp", "--backend", "torch", "--steps", "1"]
    assert said("record", *network, "--output", "a.safetensors")[0] == 0
    assert said("record", *network, "--output", "b.safetensors", "--seed", "0")[0] == 0
    code, text = said("compare", "a.safetensors", "b.safetensors", "--junit", "r.xml", "--html", "r.html")
    assert code == 0 and "@a @b bound" in text and "All agree" in text and Path("r.xml").exists()
    code, text = said("compare", "--against", "a.safetensors", "--backend", "torch")
    assert code == 0 and "torch@a" in text and "torch@here" in text
    code, text = said("compare", "--against", "a.safetensors", "--backend", "torch", "--steps", "2")
    assert code == 2 and "was recorded with steps 1" in text
    assert said("record", *network, "--seed", "7", "--output", "c.safetensors")[0] == 0
    code, text = said("compare", "a.safetensors", "c.safetensors")
    assert code == 2 and "'c.safetensors' was recorded with steps 1, seed 7, others with steps 1, seed 0" in text
    code, text = said("compare", "a.safetensors", "--inputs", "x.npz")
    assert code == 2 and "models of yours" in text


def test_recordings_are_judged_without_any_framework(recording: Path) -> None:
    """In a process in which no framework can be imported."""
    code = f"""
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "jax", "jaxlib", "flax", "mxnet", "tensorflow", "keras", "tf_keras"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import multiparam as mp
found = mp.compare({{"a": {str(recording)!r}, "b": {str(recording)!r}}})
assert found.agrees, str(found)
print(len(found.checks))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 5, done.stderr


@pytest.mark.needs("sklearn")
@pytest.mark.quick("torch", "tensorflow")
def test_the_golden_file_of_this_repository_still_holds(backend: str) -> None:
    """Recorded once, by multiparam record --backend torch --model mlp --model tied --model cnn --steps 3 --layers none:
    whatever is upgraded must still compute it, and read it."""
    line = ["compare", "--against", str(GOLDEN), "--backend", backend]
    found = CliRunner().invoke(app, line)
    assert found.exit_code == 0, found.output
    assert "All agree" in found.output


@pytest.mark.needs("torch", "sklearn")
def test_a_drift_from_the_golden_file_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an upgrade that changes an eps by a hundredth would make it."""

    def drifted(spec: Any, *inputs: Any, **options: Any) -> mp.Model:
        net = mp.build(spec, *inputs, **options)
        for module in net.native.modules():
            if hasattr(module, "running_mean"):
                module.eps *= 1.01
        return net

    monkeypatch.setattr(importlib.import_module("multiparam.comparison.runs"), "build", drifted)
    found = CliRunner().invoke(app, ["compare", "--against", str(GOLDEN), "--backend", "torch"])
    assert found.exit_code == 1 and "cnn, output float64" in found.output and "mlp, " not in found.output
