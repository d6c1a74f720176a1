"""Environment variables before any import; the ``--backend`` option; one test id per framework."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "agg")
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
        os.environ.setdefault(_threads, "1")

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

import multiparam as mp
from multiparam import registry


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", action="append", default=[], help="Test this backend; repeatable. It must be installed."
    )
    parser.addoption("--slow", action="store_true", help="Run the tests marked slow too.")


def _asked(config: pytest.Config) -> list[str]:
    named = config.getoption("--backend")
    if not named and os.environ.get(registry.VARIABLE):
        named = [os.environ[registry.VARIABLE]]
    for name in named:
        try:
            registry.info(name).require()
        except mp.MultiparamError as error:
            raise pytest.UsageError(str(error)) from None
    return list(named)


def pytest_configure(config: pytest.Config) -> None:
    _asked(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    named = _asked(metafunc.config)
    cases = []
    for name, status in mp.backends().items():
        if named and name not in named:
            continue
        marks = [] if status else [pytest.mark.skip(reason=f"{name}: {status}")]
        cases.append(pytest.param(name, id=name, marks=[*marks, pytest.mark.xdist_group(name)]))
    metafunc.parametrize("backend", cases)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = _asked(config)
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        for marker in item.iter_markers("needs"):
            for name in marker.args:
                known = name in mp.backends()
                if known and named and name not in named:
                    item.add_marker(pytest.mark.skip(reason=f"--backend does not name {name}"))
                elif known and not mp.backends()[name]:
                    item.add_marker(pytest.mark.skip(reason=f"{name}: {mp.backends()[name]}"))
                elif not known and find_spec(name) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{name} is not installed"))


@pytest.fixture
def mx_np() -> Iterator[None]:
    """MXNet's numpy arrays, as d2l's MXNet tab uses them; the mode is the process's, so it is put back."""
    from multiparam_mxnet.load import load

    mx = load()
    mx.npx.set_np()
    yield
    mx.npx.reset_np()


@pytest.fixture(params=["nd", "np"])
def mx(request: pytest.FixtureRequest) -> Any:
    """MXNet with its older arrays, and again with its numpy arrays."""
    if request.param == "np":
        request.getfixturevalue("mx_np")
    from multiparam_mxnet.load import load

    return load()


@pytest.fixture(params=["keras", pytest.param("tf_keras", marks=pytest.mark.needs("tf_keras"))])
def lib(request: pytest.FixtureRequest) -> Any:
    """Either generation of Keras."""
    return pytest.importorskip(request.param)
