"""What is expected of a command: its version, its help, any encoding of its output, a reader that goes away."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import multiparam as mp
from multiparam.cli.commands import COMMANDS, app, help_of
from multiparam.core import registry

COMMAND = [sys.executable, "-m", "multiparam"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **plain, **environment}
    )


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0 and done.stdout.strip() == f"multiparam {mp.__version__}"


def test_help_is_short_too_and_offers_completion() -> None:
    long, short = run("--help"), run("-h")
    assert long.stdout == short.stdout and short.returncode == 0
    assert "compare" in long.stdout and "completion" in long.stdout
    assert run("convert", "-h").returncode == 0


@pytest.mark.parametrize("command", ["backends", "inspect", "convert", "compare", "record"])
def test_paragraphs_fill_their_lines(command: str) -> None:
    lines = [line.strip() for line in run(command, "--help").stdout.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line[:1].isalpha() and following[:1].isalpha():
            assert len(line) + 1 + len(following.split()[0]) >= 76, line


@pytest.mark.parametrize("arguments", [("--no-such-option",), ("no-such-command",), ("convert",)])
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_any_encoding_does(tmp_path: Path, encoding: str) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((2, 3), "float32"))
    output = tmp_path / "o.safetensors"
    done = subprocess.run(
        [*COMMAND, "convert", str(tmp_path / "w.npz"), str(output)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert list(mp.read(output)) == ["weight"]
    assert ("→" if encoding == "utf-8" else "->") in done.stdout.decode(encoding)


@pytest.mark.skipif(os.name == "nt", reason="it takes the signal away, to do as Windows does")
def test_a_reader_that_goes_away_is_no_disagreement_without_the_signal_either(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((2, 3), "float32"))
    code = "import signal; del signal.SIGPIPE; from multiparam.cli.app import main; main()"
    command = [sys.executable, "-c", code, "inspect", str(tmp_path / "w.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait() == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_goes_away_is_no_disagreement(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((2, 3), "float32"))
    process = subprocess.Popen(
        [*COMMAND, "inspect", str(tmp_path / "w.npz")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() not in (0, 1) and "Traceback" not in error


def test_the_list_says_what_each_command_says_of_itself() -> None:
    assert {name: help_of(name).partition("\n\n")[0] for name in COMMANDS} == COMMANDS


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys; from multiparam.cli.commands import app; app(['--help'], standalone_mode=False); "
        "print(sorted({'numpy', 'jinja2', 'multiparam.cli.convert', 'multiparam.core.model'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_that_is_misspelt_gets_the_nearest_one() -> None:
    done = CliRunner().invoke(app, ["comapre"])
    assert done.exit_code == 2 and "Did you mean 'compare'?" in done.output


def test_pip_lines_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    line = 'pip install "multiparam[torch]" --extra-index-url https://download.example.org/whl/cpu'
    info = registry.BackendInfo("torch", recognises=(), arrays=(), requires=("not_there",), adapter="", install=line)
    monkeypatch.setattr(registry, "registered", lambda: {"torch": info})
    done = CliRunner().invoke(app, ["backends"], env={"COLUMNS": "40"})
    assert done.exit_code == 0 and done.output.splitlines() == [f"torch not installed. Try: {line}"]
