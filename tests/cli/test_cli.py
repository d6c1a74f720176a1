"""The command line, and the judge behind ``multiparam compare``."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import command
from typer.testing import CliRunner

import multiparam as mp
from multiparam.cli import commands
from multiparam.cli.app import main
from multiparam.comparison.judge import BOUNDS
from multiparam.core import registry

pytestmark = pytest.mark.xdist_group("cli")  # they share what importing the frameworks costs

MAIN = "from multiparam.cli.app import main; main()"
QUICK = ["compare", "--model", "mlp", "--steps", "2"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.delenv(registry.VARIABLE, raising=False)

    def invoke(*arguments: str, **environment: str) -> Any:
        return CliRunner().invoke(commands.app, arguments, env={"COLUMNS": "160", **environment})

    return invoke


def said(result: Any) -> str:
    """What was printed, without boxes and line breaks."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.output)


# -- backends


def test_backends_lists_every_backend_and_its_version(run: Callable[..., Any]) -> None:
    result = run("backends")
    assert result.exit_code == 0
    for name, status in mp.backends().items():
        assert f"{name} {status}" in said(result)


def test_backends_shows_the_pip_line_of_one_that_is_missing(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.info("torch"), "_requires", ("no_such_module",))
    result = run("backends")
    assert result.exit_code == 0
    assert 'torch not installed. Try: pip install "multiparam[torch]"' in said(result)


def test_backends_lists_the_others_when_one_is_broken(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_adapter.py").write_text("raise OSError('libfoo.so.5: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry.info("torch"), "adapter", "broken_adapter:Adapter")
    monkeypatch.setattr(registry.info("torch"), "_requires", ("json",))
    monkeypatch.setattr(registry.info("torch"), "_backend", None)
    result = run("backends")
    assert result.exit_code == 0
    assert "jax" in said(result)
    assert "libfoo.so.5" in said(result)


def test_the_command_shows_its_help_in_a_fresh_interpreter() -> None:
    done = command("--help", code=MAIN)
    assert done.returncode == 0
    assert "compare" in done.stdout


@pytest.mark.parametrize("module", ["multiparam", "multiparam.cli"])
def test_python_runs_the_package_as_the_command(module: str) -> None:
    done = command("--help", code=f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
    assert done.returncode == 0 and "compare" in done.stdout


# -- what is not installed


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_the_pip_line_and_no_traceback(package: str) -> None:
    done = command("backends", code=f"sys.modules[{package!r}] = None; {MAIN}")
    line = f'The command line needs {package}, which is not installed. Try: pip install "multiparam[cli]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (3, "", line)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("arguments", [["compare"], ["record"]], ids=lambda arguments: arguments[0])
def test_without_scikit_learn_the_pip_line_and_no_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(*arguments, "--backend", "torch", "--model", "mlp", "--steps", "1")
    assert result.exit_code == 3 and isinstance(result.exception, SystemExit)
    assert 'needs scikit-learn, which is not installed. Try: pip install "multiparam[compare]"' in said(result)


# -- usage errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backend", "toch"], "No backend named 'toch'. Did you mean 'torch'?"),
        (["--model", "mpl"], "no 'mpl'. Did you mean 'mlp'?"),
        (["--modle", "mlp"], "--model"),
        (["--steps", "-1"], "--steps"),
        (["--steps", "two"], "--steps"),
        (["--json", "no/such/folder/result.json"], "there is no folder 'no/such/folder'"),
    ],
)
def test_a_wrong_argument_exits_with_2_and_says_the_cure(
    run: Callable[..., Any], arguments: list[str], sentence: str
) -> None:
    result = run("compare", *arguments)
    assert result.exit_code == 2
    assert sentence in said(result)


def test_an_unknown_command_exits_with_2(run: Callable[..., Any]) -> None:
    assert run("comapre").exit_code == 2


def test_a_backend_in_the_environment_that_nobody_knows_exits_with_2(run: Callable[..., Any]) -> None:
    result = run("compare", MULTIPARAM_BACKEND="toch")
    assert result.exit_code == 2
    assert "Did you mean 'torch'?" in said(result)


def test_a_backend_that_is_not_installed_exits_with_3_and_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry.info("torch"), "_requires", ("no_such_module",))
    monkeypatch.setattr(registry.info("torch"), "_backend", None)
    monkeypatch.setattr(sys, "argv", ["multiparam", "compare", "--backend", "torch"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    assert 'pip install "multiparam[torch]"' in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_what_nobody_foresaw_is_shown_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3 and "out of memory" in capsys.readouterr().err


# -- compare

LOOKED_AT = {"structure", "ties", "initial values", "output", "gradients"}
torch_alone = pytest.mark.needs("torch", "sklearn")
two = pytest.mark.needs("torch", "jax", "sklearn")


@torch_alone
def test_one_backend_is_compared_with_itself_and_says_so(run: Callable[..., Any]) -> None:
    result = run(*QUICK, "--backend", "torch")
    assert result.exit_code == 0, result.output
    assert "Only torch is compared" in said(result)
    assert "All agree" in said(result)


@two
def test_two_backends_agree(run: Callable[..., Any]) -> None:
    result = run(*QUICK, "--backend", "torch", "--backend", "jax")
    assert result.exit_code == 0, result.output
    assert re.search(r"All agree: \d+ checks on 1 models with torch \S+, jax", said(result))
    assert "Only" not in said(result)


@torch_alone
def test_the_environment_names_the_backend(run: Callable[..., Any]) -> None:
    result = run("compare", "--model", "mlp", "--steps", "0", MULTIPARAM_BACKEND="torch")
    assert result.exit_code == 0, result.output
    assert "Only torch is compared" in said(result)


@two
def test_the_option_comes_before_the_environment(run: Callable[..., Any]) -> None:
    result = run("compare", "--model", "mlp", "--steps", "0", "--backend", "torch", MULTIPARAM_BACKEND="jax")
    assert "Only torch is compared" in said(result)


@torch_alone
def test_the_json_holds_the_verdict_the_checks_and_the_versions(run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert run(*QUICK, "--backend", "torch", "--seed", "3", "--json", str(file)).exit_code == 0
    content = json.loads(file.read_text())
    assert content["agrees"] is True and content["reference"] == "torch"
    assert content["models"]["torch"]["version"] == str(registry.info("torch").version())
    assert content["options"] == {"networks": ["mlp"], "steps": 2, "seed": 3}
    assert content["bounds_eps"] == dict(BOUNDS)
    assert content["environments"][0]["packages"]["torch"] == content["models"]["torch"]["version"]
    [pair] = content["pairs"]
    assert {check["check"] for check in pair["checks"]} == LOOKED_AT | {"sgd", "momentum", "adam"}
    assert pair["model"] == "torch" and {check["network"] for check in pair["checks"]} == {"mlp"}
    assert all(check["agrees"] is True for check in pair["checks"])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@torch_alone
def test_without_steps_nothing_is_trained(run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    run("compare", "--model", "mlp", "--steps", "0", "--backend", "torch", "--json", str(file))
    [pair] = json.loads(file.read_text())["pairs"]
    assert {check["check"] for check in pair["checks"]} == LOOKED_AT


@torch_alone
def test_a_json_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")

    def replace(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", replace)
    result = run("compare", "--model", "mlp", "--steps", "0", "--backend", "torch", "--json", str(file))
    assert result.exit_code not in (0, 2)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@two
def test_a_planted_disagreement_exits_with_1_and_is_named(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perturbed(spec: Any, *inputs: Any, backend: str | None = None, **options: Any) -> mp.Model:
        net = mp.build(spec, *inputs, backend=backend, **options)
        if backend == "jax":
            net["2.bias"][0] += np.asarray(1e-3, net["2.bias"].dtype)
        return net

    # the package's attribute of that name is the function
    monkeypatch.setattr(importlib.import_module("multiparam.comparison.runs"), "build", perturbed)
    file = tmp_path / "result.json"
    result = run(*QUICK, "--backend", "torch", "--backend", "jax", "--json", str(file))
    assert result.exit_code == 1
    assert "mlp, initial values, jax: 2.bias" in said(result)
    assert re.search(r"mlp, output float64, jax: output is \S+ eps away \(bound 32\)", said(result))
    assert "All agree" not in said(result)
    content = json.loads(file.read_text())
    assert content["agrees"] is False
    wrong = {
        (check["check"], pair["model"]) for pair in content["pairs"] for check in pair["checks"] if not check["agrees"]
    }
    assert ("initial values", "jax") in wrong
    assert not [pair for pair in wrong if pair[1] == "torch"]
    assert re.search(r"jax parts first at layer 2: its inputs agree .* \(mlp\)", said(result))
