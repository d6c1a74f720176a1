"""The kit as others use it: installed, for an adapter that is a package of its own; and projects that do not ask."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import distributions
from pathlib import Path

import pytest

from multiparam import testing

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.xdist_group("plugin"), pytest.mark.needs("autograd", "hatchling")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """multiparam and the example adapter, as wheels, in a folder of their own."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [*pip, str(ROOT), str(ROOT / "tests" / "support" / "plugin")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def test_a_wheel_has_its_types_its_licence_and_few_dependencies(installed: Path) -> None:
    """What type checkers and people who install it look for."""
    for package in ("multiparam", "multiparam_torch", "multiparam_mxnet", "multiparam_jax", "multiparam_tensorflow"):
        assert (installed / package / "py.typed").is_file()
    (about,) = distributions(name="multiparam", path=[str(installed)])
    assert [text for text in about.requires or [] if "extra ==" not in text] == ["numpy>=1.26"]
    assert about.metadata["License-Expression"] == "MIT"
    assert (about.read_text("licenses/LICENSE") or "").startswith("MIT License")
    for name in ("torch", "mxnet", "jax", "tensorflow"):
        assert f"typer>=0.12; extra == '{name}'" in (about.requires or [])


def run(where: Path, installed: Path, *command: str) -> tuple[int, str]:
    """Python in a folder, with what is installed first on its path: its exit status and what it says."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [each for each in environment if each.startswith(("PYTEST_", "MULTIPARAM_"))]:
        del environment[name]
    done = subprocess.run(
        [sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def kit(where: Path, installed: Path, *arguments: str) -> tuple[int, str]:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--backend", "autograd")
    return run(where, installed, "-m", "pytest", "--pyargs", "multiparam.testing", *options, *arguments)


def patch(where: Path, code: str) -> None:
    """A plugin of pytest that changes the adapter before the tests."""
    head = "import multiparam_autograd.adapter as a\n"
    (where / "conftest.py").write_text(head + textwrap.dedent(code))


def test_the_example_adapter_passes_the_kit(installed: Path, tmp_path: Path) -> None:
    code, text = kit(tmp_path, installed)
    assert code == 0, text
    found = re.search(r"autograd: (access.*)", text)
    assert found, text
    counts = dict(each.rsplit(" ", 1) for each in found[1].split(", "))
    assert set(counts) == {"access", "build", "grad", "init", "parameters", "property", "state", "tie", "transfer"}
    assert all(good == of for good, of in (count.split("/") for count in counts.values()))
    assert "skipped" not in text and "failed" not in text


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_compare_has_it_as_a_column(installed: Path, tmp_path: Path) -> None:
    program = "import sys; from multiparam.cli.app import main; sys.exit(main())"
    options = ("--backend", "torch", "--backend", "autograd", "--model", "digits-mlp", "--steps", "2")
    code, text = run(tmp_path, installed, "-c", program, "compare", *options)
    assert code == 0, text
    assert re.search(r"torch\s+autograd\s+bound", text) and "All agree" in text


LAYERS = [name for name in testing.FEATURES if name.startswith("nn.")]


@pytest.mark.parametrize(
    "name", ["nn.Conv", *(pytest.param(n, marks=pytest.mark.slow) for n in LAYERS if n != "nn.Conv")]
)
def test_what_is_declared_is_expected_to_fail_and_told(installed: Path, tmp_path: Path, name: str) -> None:
    """An adapter without one of the layers passes, once it says so: every test that needs it is marked."""
    patch(
        tmp_path,
        f"""
        a.AutogradAdapter.unsupported = {{{name!r}: "not here"}}
        make = a.make
        def without(node, build, dtype):
            if isinstance(node.layer, a.{name}):
                raise a.Unsupported("not here")
            return make(node, build, dtype)
        a.make = without
        """,
    )
    code, text = kit(tmp_path, installed, "-p", "conftest")
    assert code == 0, text
    assert re.search(rf"expected to fail, \d+ tests: autograd declares '{name}': not here", text)


@pytest.mark.slow
def test_what_is_declared_and_works_fails(installed: Path, tmp_path: Path) -> None:
    patch(tmp_path, 'a.AutogradAdapter.unsupported = {"nn.LayerNorm": "surely not"}')
    code, text = kit(tmp_path, installed, "-p", "conftest", "-k", "layer and norm")
    assert code == 1 and "[XPASS(strict)] autograd declares 'nn.LayerNorm'" in text


@pytest.mark.slow
def test_a_declaration_that_no_test_looks_at_fails(installed: Path, tmp_path: Path) -> None:
    patch(tmp_path, 'a.AutogradAdapter.unsupported = {"nn.Konv": "misspelt"}')
    code, text = kit(tmp_path, installed, "-p", "conftest", "-k", "declaration")
    assert code == 1 and "autograd declares 'nn.Konv'; the kit knows" in text


FAULT = "a.AutogradAdapter.mse = lambda self, y, t: a.anp.sum((y - t) ** 2)"


def test_a_failure_names_the_verb_and_the_backend(installed: Path, tmp_path: Path) -> None:
    patch(tmp_path, FAULT)
    code, text = kit(tmp_path, installed, "-p", "conftest", "-k", "backpropagation")
    assert code == 1
    assert "grad is not what it should be in backend 'autograd'" in text
    assert "FAILS grad, backend autograd: test_grad.py::test_gradients_are_those_of_backpropagation" in text


LIST = """
[xfail]
"test_grad.py::test_gradients_are_those_of_backpropagation" = "sums of squares"
"test_losses_are_means[autograd]" = "sums of squares"

[skip]
"test_property.py::*" = "too slow for us"
"""


@pytest.mark.slow
def test_a_project_has_its_own_list(installed: Path, tmp_path: Path) -> None:
    patch(tmp_path, FAULT)
    (tmp_path / "list.toml").write_text(LIST)
    chosen = ("-k", "backpropagation or losses_are_means or property", "-p", "conftest", "-rs")
    code, text = kit(tmp_path, installed, *chosen, "--conformance", "list.toml")
    assert code == 0, text
    assert "3 skipped" in text and "3 xfailed" in text and "too slow for us" in text
    assert "expected to fail, 3 tests: sums of squares" in text
    (tmp_path / "conftest.py").write_text("")
    code, text = kit(tmp_path, installed, *chosen, "--conformance", "list.toml")
    assert code == 1 and "[XPASS(strict)] sums of squares" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[xfail]\n"test_grad.py::test_gone" = "old"', "fit no test: 'test_grad.py::test_gone'"),
        ('[xfial]\n"test_grad.py::*" = "misspelt"', "takes the tables [xfail] and [skip]"),
        ('[skip]\n"test_grad.py::*" = ""', "needs its reason"),
        ("[skip", "cannot be read"),
    ],
    ids=["unused", "table", "reason", "toml"],
)
@pytest.mark.quick("reason")
def test_a_list_that_is_wrong_is_an_error(installed: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmultiparam_conformance = list.toml\n")
    (tmp_path / "list.toml").write_text(content)
    code, text = kit(tmp_path, installed, "-c", "pytest.ini", "--collect-only")
    assert code != 0 and message in text, text


def test_a_backend_that_is_not_there_is_an_error_of_usage(installed: Path, tmp_path: Path) -> None:
    code, text = run(tmp_path, installed, "-m", "pytest", "--pyargs", "multiparam.testing", "--backend", "autogard")
    assert code == 4 and "Did you mean 'autograd'?" in text


PROJECT = {
    "conftest.py": """
        import pytest

        def pytest_addoption(parser):
            parser.addoption("--backend", default="theirs")
            parser.addoption("--slow", action="store_true")
            parser.getgroup("x").addoption("--conformance", type=int, default=3)

        @pytest.fixture
        def backend(request):
            return request.config.getoption("--backend")
        """,
    "test_theirs.py": """
        import sys
        import pytest

        @pytest.mark.slow
        @pytest.mark.needs("nothing at all")
        def test_it(backend, request):
            assert backend == "mine"
            assert request.config.getoption("--conformance") == 5
            assert not {"numpy", "torch", "hypothesis", "multiparam.core.registry"} & sys.modules.keys()
        """,
}


def test_a_project_that_does_not_ask_notices_nothing(installed: Path, tmp_path: Path) -> None:
    """Its options, fixtures and marks of the same names are its own, and nothing is imported."""
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    plugins = ("-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:cacheprovider")
    code, text = run(tmp_path, installed, "-m", "pytest", "-q", *plugins, "--backend", "mine", "--conformance", "5")
    assert code == 0 and "1 passed" in text and "conformance ==" not in text, text
    code, text = run(tmp_path, installed, "-m", "pytest", "--help", *plugins)
    assert code == 0 and "--multiparam-backend" in text
