"""Environment variables before any import; fixtures. ``--backend`` and the rest: multiparam/testing/plugin.py."""

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
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No test depends on time: a machine may be shared, and a deadline then says nothing of the code.
settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")


@pytest.hookimpl(tryfirst=True)  # before the kit's, which skips what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow are the tests that tests/slow.txt lists, and what no glob of a test's mark ``quick(glob, ...)`` fits."""
    measured = {*(Path(__file__).parent / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()}
    for item in items:
        if item.nodeid in measured:
            item.add_marker(pytest.mark.slow)
        quick = item.get_closest_marker("quick")
        if quick is not None and not any(fnmatchcase(item.callspec.id, glob) for glob in quick.args):  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.slow)
    for name, count in ROTATED.items():
        rotate([item for item in items if getattr(item, "originalname", "") == name], count)


# Tests of the kit that run every layer in every backend, whose steps are compiled: in how many backends the quick run
# has each layer. In the backends' turn, so that each of these has its share; what layers compute is tested in all.
ROTATED = {"test_a_layer_agrees_with_float64_in_float32": 1, "test_gradients_are_the_slope_of_the_loss": 2}


def rotate(items: list[Any], count: int) -> None:
    """Of a test of cases and backends, leave each case so many backends, in turn; the rest are slow ones."""
    backends, cases = ([*dict.fromkeys(each.callspec.params[key] for each in items)] for key in ("backend", "case"))
    for item in items:
        place = backends.index(item.callspec.params["backend"]) + cases.index(item.callspec.params["case"])
        if place % len(backends) >= count:
            item.add_marker(pytest.mark.slow)


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
