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
from typing import Any

import pytest
from hypothesis import settings

# No test depends on time: a machine may be shared, and a deadline then says nothing of the code.
settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")


@pytest.hookimpl(tryfirst=True)  # before the kit's, which skips what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``quick(glob, ...)``, the parametrizations that no glob fits are slow ones."""
    for item in items:
        quick = item.get_closest_marker("quick")
        if quick is not None and not any(fnmatchcase(item.callspec.id, glob) for glob in quick.args):  # type: ignore[attr-defined]
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
