"""The command line, and the judge behind ``multiparam compare``."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import multiparam as mp
from multiparam import cli, registry
from multiparam.comparison.judge import BOUNDS, Check, distance, judge, worst
from multiparam.comparison.networks import judge_networks
from multiparam.comparison.record import Run
from multiparam.comparison.report import verdict

pytestmark = pytest.mark.xdist_group("cli")  # they share what importing the frameworks costs

QUICK = ["compare", "--model", "mlp", "--steps", "2"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.delenv(registry.VARIABLE, raising=False)

    def invoke(*arguments: str, **environment: str) -> Any:
        return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160", **environment})

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
    monkeypatch.setattr(registry.info("torch"), "requires", ("no_such_module",))
    result = run("backends")
    assert result.exit_code == 0
    assert 'torch not installed. Try: pip install "multiparam[torch]"' in said(result)


def test_backends_lists_the_others_when_one_is_broken(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_adapter.py").write_text("raise OSError('libfoo.so.5: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry.info("torch"), "adapter", "broken_adapter:Adapter")
    monkeypatch.setattr(registry.info("torch"), "requires", ("json",))
    monkeypatch.setattr(registry.info("torch"), "_backend", None)
    result = run("backends")
    assert result.exit_code == 0
    assert "jax" in said(result)
    assert "libfoo.so.5" in said(result)


def test_the_command_shows_its_help_in_a_fresh_interpreter() -> None:
    code = "import sys; from multiparam.cli import main; sys.argv = ['multiparam', '--help']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "compare" in done.stdout


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
    monkeypatch.setattr(registry.info("torch"), "requires", ("no_such_module",))
    monkeypatch.setattr(registry.info("torch"), "_backend", None)
    monkeypatch.setattr(sys, "argv", ["multiparam", "compare", "--backend", "torch"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3
    assert 'pip install "multiparam[torch]"' in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_what_nobody_foresaw_is_shown_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
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
    monkeypatch.setattr(importlib.import_module("multiparam.comparison.record"), "build", perturbed)
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


# -- the judge: distance


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


EPS = 2.0**-52


def test_the_distance_is_in_eps_of_the_largest_element() -> None:
    assert distance(array(1, 4 + 8 * EPS), array(1, 4), "float64") == 2
    assert distance(array(1 + 8 * EPS, 4), array(1, 4), "float64") == 2


def test_float32_is_measured_in_its_own_eps() -> None:
    assert distance(np.array([1 + 2**-23], np.float32), array(1), "float32") == 1


def test_equal_arrays_have_distance_zero() -> None:
    assert distance(array(1, 2), array(1, 2), "float64") == 0
    assert distance(array(0, 0), array(0, 0), "float64") == 0
    assert distance(array(), array(), "float64") == 0
    assert distance(array(math.nan, math.inf), array(math.nan, math.inf), "float64") == 0


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (array(1, 2), array(1, 2, 3)),
        (array(1), np.array(1.0)),
        (array(math.nan, 1), array(1, 1)),
        (array(1, 1), array(math.nan, 1)),
        (array(math.inf), array(1)),
        (array(math.inf), array(-math.inf)),
        (array(1e-300), array(0)),
    ],
    ids=["shape", "rank", "nan", "nan in the truth", "infinity", "two infinities", "a zero truth"],
)
def test_what_cannot_be_measured_is_infinitely_far(value: np.ndarray, truth: np.ndarray) -> None:
    assert distance(value, truth, "float64") == math.inf


def test_the_worst_array_is_named() -> None:
    truth = {"a": array(1), "b": array(1), "c": array(1)}
    values = {"a": array(1 + EPS), "b": array(1 + 4 * EPS), "c": array(1)}
    assert worst(values, truth, "float64") == (4, "b")


def test_other_names_are_infinitely_far_and_named() -> None:
    assert worst({"a": array(1), "c": array(1)}, {"a": array(1), "b": array(1)}, "float64") == (math.inf, "b, c")


def test_nothing_at_all_is_no_distance() -> None:
    assert worst({}, {}, "float64") == (0, "")


# -- the judge: checks


def made(backend: str, dtype: str) -> Run:
    value = {"0.weight": np.array([[1.0, 2.0]]), "0.bias": array(0.5)}
    trained = {name: {"0.weight": np.array([[0.9, 1.9]]), "0.bias": array(0.4)} for name in ("sgd", "momentum", "adam")}
    return Run(
        backend,
        dtype,
        names=["0.weight", "0.bias"],
        shapes=[(1, 2), (1,)],
        kinds=["linear", "linear"],
        ties=[("0.weight", "1.weight")],
        values=value,
        output=np.array([[3.0]]),
        grads={"0.weight": np.array([[0.1, 0.2]]), "0.bias": array(0.3)},
        trained=trained,
        buffers={name: {"1.running_mean": array(0.7)} for name in trained},
    )


def runs(**changes: Any) -> list[Run]:
    """Two backends in both dtypes; the second one's float32 run is changed."""
    names = [("one", "float64"), ("one", "float32"), ("two", "float64"), ("two", "float32")]
    found = [made(*name) for name in names]
    found[-1] = replace(found[-1], **changes)
    return found


def wrong(checks: list[Check]) -> dict[tuple[str, str, str], str]:
    return {(check.check, check.backend, check.dtype): check.detail for check in checks if not check.agrees}


FAR = 1e-2
NUMBERS = {"0.weight": np.array([[0.1, 0.2 + FAR]]), "0.bias": array(0.3)}
TRAINED = {"0.weight": np.array([[0.9, 1.9]]), "0.bias": array(0.4 + FAR)}


def test_equal_runs_agree_in_every_check() -> None:
    checks = judge("net", runs())
    assert wrong(checks) == {}
    assert [check.check for check in checks if check.backend == "one" and not check.dtype] == [
        "structure", "ties", "initial values",
    ]  # fmt: skip
    assert {check.check for check in checks if (check.backend, check.dtype) == ("two", "float64")} == {
        "output", "gradients", "sgd", "momentum", "adam", "statistics",
    }  # fmt: skip


def test_the_reference_is_not_judged_against_itself() -> None:
    assert not [check for check in judge("net", runs()) if (check.backend, check.dtype) == ("one", "float64")]


@pytest.mark.parametrize(
    ("changes", "check", "dtype", "detail"),
    [
        ({"names": ["0.weight", "0.b"]}, "structure", "", "('0.b', (1,), 'linear')"),
        ({"shapes": [(2, 1), (1,)]}, "structure", "", "('0.weight', (2, 1), 'linear')"),
        ({"kinds": ["linear", "conv"]}, "structure", "", "('0.bias', (1,), 'conv')"),
        ({"names": ["0.weight"], "shapes": [(1, 2)], "kinds": ["linear"]}, "structure", "", "1 of 2"),
        ({"ties": []}, "ties", "", "[], not [('0.weight', '1.weight')]"),
        ({"values": {"0.weight": np.array([[1.0, 2.0]])}}, "initial values", "", "0.bias"),
        ({"values": {"0.weight": np.array([[1.0, 2 + EPS * 4]]), "0.bias": array(0.5)}}, "initial values", "",
         "0.weight"),
        ({"output": np.array([[3 + FAR]])}, "output", "float32", "output"),
        ({"output": np.array([3.0])}, "output", "float32", "output"),
        ({"output": np.array([[math.nan]])}, "output", "float32", "output"),
        ({"grads": NUMBERS}, "gradients", "float32", "0.weight"),
        ({"grads": {"0.weight": np.array([[0.1, 0.2]])}}, "gradients", "float32", "0.bias"),
        ({"trained": made("", "").trained | {"sgd": TRAINED}}, "sgd", "float32", "0.bias"),
        ({"trained": made("", "").trained | {"momentum": TRAINED}}, "momentum", "float32", "0.bias"),
        ({"trained": made("", "").trained | {"adam": TRAINED}}, "adam", "float32", "0.bias"),
        ({"buffers": made("", "").buffers | {"adam": {"1.running_mean": array(FAR)}}}, "statistics", "float32",
         "1.running_mean"),
    ],
)  # fmt: skip
def test_each_check_fails_by_itself_and_names_what_is_wrong(
    changes: dict[str, Any], check: str, dtype: str, detail: str
) -> None:
    found = wrong(judge("net", runs(**changes)))
    assert list(found) == [(check, "two", dtype)]
    assert detail in found[check, "two", dtype]


def test_a_distance_at_the_bound_agrees_and_just_above_does_not() -> None:
    eps = 2.0**-23
    at, above = 2 + 2 * BOUNDS["output"] * eps, 2 + 2 * (BOUNDS["output"] + 1) * eps

    def checks(number: float) -> list[Check]:
        found = [replace(run, output=np.array([[2.0]])) for run in runs()]
        found[-1] = replace(found[-1], output=np.array([[number]]))
        return judge("net", found)

    assert wrong(checks(at)) == {}
    assert list(wrong(checks(above))) == [("output", "two", "float32")]


def test_a_wrong_float64_run_is_found_too() -> None:
    found = runs()
    found[2] = replace(found[2], output=np.array([[3 + 1e-9]]))
    assert list(wrong(judge("net", found))) == [("output", "two", "float64")]


def test_declared_statistics_are_shown_but_not_judged() -> None:
    buffers = made("", "").buffers | {"adam": {"1.running_mean": array(FAR)}}
    checks = judge("net", runs(buffers=buffers, unsupported={"exact running statistics": "its own way"}))
    assert wrong(checks) == {}
    declared = [check for check in checks if check.expected == "its own way"]
    assert [(check.check, check.backend, check.bound) for check in declared] == [("statistics", "two", None)]


VERSIONS = {"one": "1.0", "two": "2.0"}


def test_the_verdict_names_model_check_backend_parameter_and_distance() -> None:
    found = [replace(run, network="net", version=VERSIONS[run.backend]) for run in runs(grads=NUMBERS)]
    lines = verdict(judge_networks(found, {}))
    assert re.fullmatch(r"1 of \d+ checks disagree \(one 1\.0, two 2\.0\):", lines[0])
    assert re.fullmatch(r"  net, gradients float32, two: 0\.weight is \S+ eps away \(bound 256\)", lines[1])
    assert len(lines) == 2


def test_the_verdict_of_agreement_is_one_line() -> None:
    found = judge_networks([replace(run, network="net", version="1.0") for run in runs()], {})
    assert verdict(found) == [f"All agree: {len(found.checks)} checks on 1 models with one 1.0, two 1.0."]
