"""``multiparam inspect``: what it shows of models and files, and what it says where it cannot."""

from __future__ import annotations

import json
import math
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
from multiparam.weights import summary
from multiparam.weights.histograms import groups, histograms
from multiparam.weights.summary import Row, stats

pytestmark = pytest.mark.xdist_group("cli")
torch_too = pytest.mark.needs("torch")

TORCH = dedent("""\
    import numpy as np
    import torch
    from torch import nn

    def make():
        torch.manual_seed(0)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        net = nn.Sequential(*layers)
        net[3].weight = net[2].weight
        net[0].bias.requires_grad_(False)
        with torch.no_grad():
            net[0].bias[0], net[0].bias[1] = float("nan"), float("inf")
        return net

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.LazyLinear(2)

    def lazy():
        return nn.Sequential(nn.LazyLinear(3))

    def with_inputs():
        return lazy(), np.ones((1, 5), "float32")

    def wrapped():
        import multiparam as mp
        return mp.wrap(make())

    net = nn.Linear(2, 2)
    rate = 0.1

    def boom():
        print("this went to the user")
        raise ValueError("no such [config]: x.yaml")

    def leave():
        raise SystemExit("bye")

    def number():
        return 3
""")


@pytest.fixture
def home(home: Path) -> Path:
    (home / "users.py").write_text(TORCH)
    return home


def run(*arguments: str, columns: str = "200") -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": columns})


def lines(result: Any) -> list[list[str]]:
    """The words of each line."""
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines() if line.strip()]


def content(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


STATE = {
    "h.0.weight": np.arange(6, dtype="float32").reshape(2, 3),
    "h.2.bias": np.array([1, np.nan, -np.inf], "float64"),
    "h.10.bias": np.array([], "float32"),
    "h.10.count": np.array(7, "int64"),
}


@pytest.fixture
def file(home: Path) -> str:
    return mp.save(STATE, "w.safetensors").name


# -- what is shown


@torch_too
def test_a_model_as_a_table(home: Path) -> None:
    shown = lines(run("users.py:make"))
    assert shown[0] == ["torch", "Sequential"]
    assert shown[1] == ["name", "kind", "shape", "dtype", "count", "state", "also", "called"]
    assert ["0.weight", "linear", "(8,", "4)", "float32", "32", "trainable"] in shown
    assert ["0.bias", "linear", "(8,)", "float32", "8", "frozen"] in shown
    assert ["1.running_mean", "batchnorm", "(8,)", "float32", "8", "buffer"] in shown
    assert ["2.weight", "linear", "(8,", "8)", "float32", "64", "trainable", "3.weight"] in shown
    assert " ".join(shown[-1]) == "8 arrays: 120 parameters, 112 trainable, 8 frozen, 17 in buffers; 552 bytes."


@torch_too
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_no_name_is_cut_however_narrow_the_terminal(home: Path, columns: str) -> None:
    result = run("users.py:make", "--stats", columns=columns)
    for text in ("1.num_batches_tracked", "running_mean", "(8, 8)", "NaN", "inf", "3.weight"):
        assert text in result.stdout


@torch_too
def test_a_model_as_a_tree(home: Path) -> None:
    result = run("users:make", "--tree", "--stats")
    words = re.sub(r"[│├└─\s]+", " ", result.stdout)
    assert "0 linear 40 weight (8, 4) float32 trainable norm" in words
    assert "1 NaN 1 inf" in words
    assert "3 linear weight = 2.weight" in words
    assert " 0 NaN" not in words


@torch_too
def test_a_model_as_json(home: Path) -> None:
    found = content("users.py:make", "--stats")
    assert found["format"] == "multiparam-inspect-1" and found["source"] == "torch Sequential"
    rows = {row["name"]: row for row in found["parameters"]}
    assert list(rows) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
        "2.weight",
    ]  # fmt: skip
    tied = rows["2.weight"]
    assert (tied["aliases"], tied["transposed"], tied["shape"], tied["bytes"]) == (["3.weight"], [], [8, 8], 256)
    assert (rows["0.bias"]["state"], rows["0.bias"]["stats"]["nan"], rows["0.bias"]["stats"]["inf"]) == ("frozen", 1, 1)
    assert rows["1.running_var"]["stats"] == {"norm": math.sqrt(8), "min": 1, "max": 1, "mean": 1, "nan": 0, "inf": 0}
    assert found["totals"] == {"parameters": 120, "trainable": 112, "frozen": 8, "buffers": 17, "bytes": 552}


@torch_too
def test_a_transposed_tie_is_marked(home: Path) -> None:
    (home / "tied.py").write_text(
        "import torch, multiparam as mp\n"
        "def make():\n"
        "    layers = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 3, bias=False)\n"
        "    net = mp.wrap(torch.nn.Sequential(*layers))\n"
        "    net.tie('1.weight', '0.weight', transpose=True)\n"
        "    return net\n"
    )
    (row,) = content("tied.py:make")["parameters"]
    assert (row["aliases"], row["transposed"]) == (["1.weight"], ["1.weight"])
    assert "1.weight (transposed)" in run("tied.py:make").stdout
    assert "= 0.weight, transposed" in run("tied.py:make", "--tree").stdout


@torch_too
def test_a_model_as_markdown(home: Path) -> None:
    shown = run("users.py:make", "--format", "markdown", "--select", "2.*").stdout.splitlines()
    assert shown == [
        "`torch Sequential`",
        "",
        "| name | kind | shape | dtype | count | state | also called |",
        "| --- | --- | --- | --- | ---: | --- | --- |",
        "| `2.weight` | linear | (8, 8) | float32 | 64 | trainable | 3.weight |",
        "",
        "1 of 8 arrays: 64 parameters, all trainable; 256 bytes.",
    ]


def test_a_file_says_what_it_knows_and_that_it_knows_no_more(file: str) -> None:
    shown = lines(run(file, "--stats"))
    assert shown[1] == ["name", "shape", "dtype", "count", "norm", "min", "max", "mean", "NaN", "inf"]
    assert ["h.2.bias", "(3,)", "float64", "3", "1", "1", "1", "1", "1", "1"] in shown
    assert ["h.10.bias", "(0,)", "float32", "0", "0", "0", "0"] in shown
    assert "The file does not say kinds" in " ".join(shown[-1])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_numbers_in_names_are_counted(home: Path, suffix: str) -> None:
    from safetensors.numpy import save_file

    state = {f"h.{i}.w": np.zeros(1, "float32") for i in (0, 1, 10, 2)}
    path = home / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else np.savez(path, **state)
    assert [row["name"] for row in content(path.name)["parameters"]] == ["h.0.w", "h.1.w", "h.2.w", "h.10.w"]


def test_a_sharded_file_and_its_folder(home: Path) -> None:
    (home / "model").mkdir()
    index = mp.save({"a": np.zeros(64), "b": np.ones(64)}, home / "model" / "w.safetensors", shard_size=512)
    for source in (str(index), "model", "model/w.safetensors"):
        assert content(source)["totals"] == {"parameters": 128, "bytes": 1024}


@torch_too
def test_a_saved_model_is_shown_as_the_model(home: Path) -> None:
    import torch

    assert run("users.py:make").exit_code == 0
    net = sys.modules["users"].make()
    mp.save(mp.wrap(net), "w.safetensors")
    one, other = content("w.safetensors"), content("users.py:make")
    assert one["totals"] == other["totals"]
    assert all(each in other["parameters"] for each in one["parameters"])  # the file has the buffers last
    torch.save(net.state_dict(), "w.pt")
    found = content("w.pt")
    assert [row["name"] for row in found["parameters"]][:2] == ["0.weight", "0.bias"]
    assert found["totals"] == {"parameters": 201, "bytes": 808}


@pytest.mark.needs("tensorflow")
def test_a_keras_model(home: Path) -> None:
    (home / "kn.py").write_text(
        "import keras\n"
        "def make():\n"
        "    return keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])\n"
        "def unbuilt():\n"
        "    return keras.Sequential([keras.layers.Dense(2)])\n"
    )
    rows = content("kn:make")["parameters"]
    assert [(row["name"], row["kind"], row["shape"]) for row in rows] == [
        ("0.weight", "conv", [4, 1, 3, 3]),
        ("0.bias", "conv", [4]),
    ]
    np.savez("x.npz", np.ones((1, 3), "float32"))
    assert content("kn:unbuilt", "--inputs", "x.npz")["totals"]["parameters"] == 8
    refused("is not built", 3, "kn:unbuilt")


# -- what is chosen


def test_select_and_its_totals(file: str) -> None:
    found = content(file, "--select", "*.bias", "--select", "h.0.*")
    assert {row["name"] for row in found["parameters"]} == {"h.0.weight", "h.2.bias", "h.10.bias"}
    assert found["totals"]["parameters"] == 9
    assert "3 of 4 arrays, 9 numbers" in run(file, "--select", "*.bias", "--select", "h.0.*").stdout


@torch_too
def test_kind_and_aliases_select(home: Path) -> None:
    assert [r["name"] for r in content("users.py:make", "--kind", "linear")["parameters"]] == [
        "0.weight", "0.bias", "2.weight",
    ]  # fmt: skip
    assert [r["name"] for r in content("users.py:make", "--select", "3.*")["parameters"]] == ["2.weight"]
    refused("Nothing matches any name of kind 'liner'. Did you mean 'linear'?", 2, "users.py:make", "--kind", "liner")


def test_nothing_selected(file: str) -> None:
    refused("Nothing matches 'h.0.wieght'. Did you mean 'h.0.weight'?", 2, file, "--select", "h.0.wieght")
    refused("The file does not say the kinds", 2, file, "--kind", "linear")


# -- statistics


def test_statistics_are_of_the_finite_numbers() -> None:
    found = stats(np.array([3, -4, np.nan, np.inf, -np.inf], "float32"))
    assert (found.norm, found.min, found.max, found.mean, found.nan, found.inf) == (5, -4, 3, -0.5, 1, 2)
    assert stats(np.array([np.nan])) == summary.Stats(0.0, None, None, None, 1, 0)
    assert stats(np.zeros((0, 3))) == summary.Stats(0.0, None, None, None, 0, 0)
    assert stats(np.array([3j, 4])) == summary.Stats(5.0, None, None, None, 0, 0)
    assert stats(np.array([True, False])).mean == 0.5


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_a_norm_neither_overflows_nor_vanishes(scale: float) -> None:
    assert stats(np.array([3.0, 4.0]) * scale).norm == pytest.approx(5 * scale)


def test_statistics_of_many_numbers_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "CHUNK", 1000)
    array = np.random.default_rng(0).normal(size=(123, 77)).astype("float32")
    found, wide = stats(array), array.astype("float64")
    assert found.norm == pytest.approx(np.linalg.norm(wide), rel=1e-12)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert (found.min, found.max) == (wide.min(), wide.max())


def test_one_array_is_held_at_a_time(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from multiparam.weights.safetensors import TensorFile

    alive: list[Any] = []
    read = TensorFile.__getitem__

    def watch_calls(self: TensorFile, name: str) -> np.ndarray:
        assert not [each for each in alive if each() is not None]
        array = read(self, name)
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(TensorFile, "__getitem__", watch_calls)
    assert run(file).exit_code == 0 and not alive
    assert run(file, "--stats").exit_code == 0 and len(alive) == 4


# -- the picture


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("name", ["p.png", "p.svg"])
def test_a_picture(file: str, home: Path, name: str) -> None:
    assert run(file, "--plot", name).exit_code == 0
    assert (home / name).read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert sorted(os.listdir()) == sorted([name, "users.py", file])


@pytest.mark.needs("matplotlib")
def test_a_picture_that_cannot_be(file: str) -> None:
    refused("No picture ends in '.xyz'. There are: ", 2, file, "--plot", "p.xyz")
    refused("nothing to draw", 2, file, "--plot", "p.png", "--select", "*.count")
    refused("there is no folder 'no'", 2, file, "--plot", "no/p.png")


def test_without_matplotlib_the_pip_line(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    refused('pip install "multiparam[plot]"', 3, file, "--plot", "p.png")


def row(name: str, array: np.ndarray) -> Row:
    return Row(name, "", array.shape, array.dtype.name, "", (), (), lambda: array)


def test_a_histogram_counts_every_finite_number() -> None:
    array = np.array([*np.arange(64.0), np.nan, np.inf])
    (edges, heights) = histograms([row("0.weight", array)])["weight"]
    assert (edges[0], edges[-1], len(heights)) == (0, 63, 8)
    assert heights.tolist() == [1] * 8
    constant = histograms([row("0.bias", np.full(3, 5.0))])["bias"]
    assert constant[0][0] < 5 < constant[0][-1] and constant[1].sum() == 1
    assert histograms([row("0.bias", np.full(3, np.nan))]) == {}


def test_groups_are_layers_or_blocks_of_them_when_those_are_many() -> None:
    rows = [row(f"h.{i}.{j}.weight", np.zeros(1)) for i in range(4) for j in range(5)]
    assert len(groups(rows)) == 20
    assert list(groups(rows, limit=10)) == ["h.0", "h.1", "h.2", "h.3"]
    assert list(groups([*rows, row("top", np.zeros(1))], limit=3)) == ["h", ""]


# -- models by reference


@torch_too
@pytest.mark.parametrize("reference", ["users.py:wrapped", "users:make", "./users.py:make"])
def test_what_a_callable_may_give(home: Path, reference: str) -> None:
    assert content(reference)["totals"]["parameters"] == 120


@torch_too
def test_example_inputs_from_the_callable_or_a_file(home: Path) -> None:
    assert content("users.py:with_inputs")["parameters"][0]["shape"] == [3, 5]
    np.savez("x.npz", np.ones((1, 7)))
    assert content("users.py:lazy", "--inputs", "x.npz")["parameters"][0]["shape"] == [3, 7]
    refused("let users.py:lazy give (model, *example_inputs)", 3, "users.py:lazy")


@torch_too
def test_a_model_in_the_place_of_the_callable(home: Path) -> None:
    assert content("users.py:net")["totals"]["parameters"] == 6


@torch_too
def test_modules_in_packages_and_neighbours_of_files(home: Path) -> None:
    (home / "pack").mkdir()
    (home / "pack" / "__init__.py").touch()
    (home / "pack" / "json.py").write_text("import sizes\nimport torch\nmake = lambda: torch.nn.Linear(sizes.N, 1)\n")
    (home / "pack" / "sizes.py").write_text("N = 3\n")
    standard = sys.modules["json"]
    assert content("pack/json.py:make")["totals"]["parameters"] == 4
    assert sys.modules["json"] is standard
    (home / "pack" / "nets.py").write_text("from .sizes import N\nfrom torch.nn import Linear\nclass A:\n  make = "
                                           "staticmethod(lambda: Linear(N, 2))\n")  # fmt: skip
    assert content("pack.nets:A.make")["totals"]["parameters"] == 8


# -- what cannot be


def refused(sentence: str, code: int, *arguments: str) -> str:
    result = run(*arguments)
    said = re.sub(r"[\s│]+", " ", result.output)
    assert result.exit_code == code, result.output
    assert sentence in said
    assert "Traceback" not in said
    return said


@torch_too
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("users.py:mak", "users.py has no 'mak'. Did you mean 'make'?"),
        ("users:Own.wrong", "users has no 'Own.wrong'"),
        ("no_such_module:make", "There is no module 'no_such_module'"),
        ("users.inner:make", "There is no module 'users.inner'"),
        ("no/such.py:make", "There is no file 'no/such.py'."),
        ("users.py:number", "users.py:number gives no model. No backend recognises an object of type 'int'"),
        ("users.py:rate", "'rate' in users.py is float, neither a callable nor a model"),
        ("users.py:boom", "boom() of users.py raises ValueError: no such [config]: x.yaml"),
        ("users.py:leave", "leave() of users.py raises SystemExit: bye"),
        ("users.py", "users.py:make"),
        ("users", "There is no file 'users'. A model is package.module:callable or path/to/file.py:callable."),
        ("no.pt", "There is no file 'no.pt'."),
        ("no.safetensors", "There is no file 'no.safetensors'."),
        ("empty", "The folder 'empty' holds no weight file"),
        ("w.foo", "or ends in '.foo'"),
        ("bad.safetensors", "bad.safetensors"),
    ],
)
def test_what_cannot_be_shown(home: Path, source: str, sentence: str) -> None:
    (home / "empty").mkdir()
    (home / "w.foo").write_bytes(b"of no format")
    (home / "bad.safetensors").write_bytes(b"garbage, which is no header")
    refused(sentence, 3, source)


@torch_too
def test_the_line_that_raised_is_shown(home: Path) -> None:
    said = refused("raises ValueError", 3, "users.py:boom")
    number = TORCH.splitlines().index('    raise ValueError("no such [config]: x.yaml")') + 1
    assert f"users.py:{number}: raise ValueError(" in said


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import no_such_package\n", "raises ModuleNotFoundError: No module named 'no_such_package'"),
        ("def make(:\n", "SyntaxError: "),
        ("1 / 0\n", "raises ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("reference", ["broken.py:make", "broken:make"])
def test_code_that_does_not_import(home: Path, code: str, sentence: str, reference: str) -> None:
    (home / "broken.py").write_text(code)
    refused(sentence, 3, reference)
    assert "broken" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tree", "--format", "json"], "a tree is text"),
        (["--inputs", "x.npz"], "a file has its shapes already"),
        (["--format", "yaml"], "yaml"),
    ],
)
def test_options_that_do_not_fit(file: str, arguments: list[str], sentence: str) -> None:
    refused(sentence, 2, file, *arguments)


@torch_too
def test_inputs_that_cannot_be_read(home: Path) -> None:
    np.savez("none.npz")
    refused("No such file or directory: x.npz", 3, "users.py:lazy", "--inputs", "x.npz")
    refused("has no arrays", 3, "users.py:lazy", "--inputs", "none.npz")


# -- the command itself


@torch_too
def test_what_user_code_prints_does_not_come_between(home: Path) -> None:
    (home / "loud.py").write_text(f"print('hello')\n{TORCH}")
    done = command("inspect", "loud.py:make", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["totals"]["parameters"] == 120
    assert done.stderr == "hello\n"


def test_a_file_in_a_pipe_is_not_cut_and_imports_no_framework(home: Path) -> None:
    name = ".".join(["a_rather_long_name"] * 9)
    mp.save({name: np.zeros(3)}, "w.safetensors")
    done = command("inspect", "w.safetensors", "--stats")
    assert name in done.stdout and done.stderr == "" and done.returncode == 0
    code = "from multiparam.cli.commands import app; app(['inspect', 'w.safetensors'], standalone_mode=False); "
    code += "print(*{'torch', 'jax', 'tensorflow', 'mxnet', 'matplotlib'} & sys.modules.keys())"
    done = command(code=code)
    assert done.stdout.splitlines()[-1] == "", done.stderr


def test_the_python_names_of_the_errors() -> None:
    from multiparam.cli.references import ReferenceFailed

    assert issubclass(ReferenceFailed, errors.MultiparamError) and issubclass(ReferenceFailed, ImportError)
