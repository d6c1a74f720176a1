"""Who may know whom, read from the source; and what an import brings along, in a fresh interpreter."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "mxnet", "jax", "jaxlib", "flax", "optax", "tensorflow", "keras", "tf_keras"}
OWN = {
    "multiparam_torch": {"torch"},
    "multiparam_mxnet": {"mxnet"},
    "multiparam_jax": {"jax", "flax", "optax"},
    "multiparam_tensorflow": {"tensorflow", "keras", "tf_keras"},
}
BACKENDS = {"torch", "mxnet", "jax", "tensorflow"}
CORE = sorted((ROOT / "multiparam").rglob("*.py"))
ADAPTERS = sorted((ROOT / "backends").rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def roots(path: Path) -> set[str]:
    """The root modules a file imports, wherever in it; relative imports are the package's own."""
    return {module.partition(".")[0] for module in _modules(ast.parse(path.read_text()))}


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def test_there_are_files_to_read() -> None:
    assert {"multiparam/model.py", "multiparam/comparison/judge.py"} <= {relative(path) for path in CORE}
    assert {path.parent.name for path in ADAPTERS} == set(OWN)


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_the_core_imports_no_framework_and_no_adapter(path: Path) -> None:
    assert not roots(path) & (FRAMEWORKS | OWN.keys())


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_the_core_compares_nothing_with_a_backends_name(path: Path) -> None:
    tree = ast.parse(path.read_text())
    compared = [
        constant.value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Compare, ast.MatchValue))
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    ]
    assert not BACKENDS & {value for value in compared if isinstance(value, str)}


@pytest.mark.parametrize("path", ADAPTERS, ids=relative)
def test_an_adapter_imports_only_the_core_and_its_own_framework(path: Path) -> None:
    package = path.relative_to(ROOT / "backends").parts[0]
    allowed = {"multiparam", "numpy", "ml_dtypes", package} | OWN[package] | set(sys.stdlib_module_names)
    assert roots(path) <= allowed


@pytest.mark.parametrize("package", OWN)
def test_an_adapters_front_door_imports_only_the_core(package: str) -> None:
    assert roots(ROOT / "backends" / package / "__init__.py") == {"multiparam"}


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = f"import sys; print(*sorted({FRAMEWORKS!r} & sys.modules.keys()))"


def test_importing_multiparam_imports_no_framework() -> None:
    assert python(f"import multiparam as mp; mp.nn, mp.init, mp.wrap, mp.backends(); {LOADED}") == ""


@pytest.mark.needs("torch")
def test_wrapping_a_torch_model_imports_no_other_framework() -> None:
    code = "import torch, multiparam as mp; net = mp.wrap(torch.nn.Linear(3, 2)); net(torch.ones(1, 3))"
    assert python(f"{code}; {LOADED}") == "torch"


@pytest.mark.needs("torch")
def test_building_in_torch_imports_no_other_framework() -> None:
    code = "import numpy, multiparam as mp; mp.build(mp.nn.Linear(2), numpy.ones((1, 3)), backend='torch')"
    assert python(f"{code}; {LOADED}") == "torch"


@pytest.mark.needs("mxnet")
def test_loading_mxnet_leaves_numpy_and_the_import_function_alone() -> None:
    code = """
import builtins, sys, numpy
def names():  # but for submodules, which MXNet may import like anyone
    return {name for name in dir(numpy) if "numpy." + name not in sys.modules}
before, values, importer = names(), dict(vars(numpy)), builtins.__import__
gone = [name for name in ("bool", "product", "in1d", "PZERO") if not hasattr(numpy, name)]
from multiparam_mxnet.load import load
load()
assert builtins.__import__ is importer
assert names() <= before and not before - set(dir(numpy)), names() ^ before
assert all(vars(numpy)[name] is value for name, value in values.items())
assert not any(hasattr(numpy, name) for name in gone)
print(*gone)
"""
    assert python(code) != ""  # some of what MXNet reads was gone, and is still


@pytest.mark.needs("mxnet")
def test_after_load_a_plain_import_of_mxnet_works() -> None:
    code = """
from multiparam_mxnet.load import load
mx = load()
import mxnet
from mxnet.gluon import nn
assert mxnet is mx and load() is mx
print(mxnet.np.ones(2).sum().item())
"""
    assert python(code) == "2.0"


@pytest.mark.needs("torch")
def test_the_hash_seed_of_the_interpreter_changes_no_parameter() -> None:
    code = """
import hashlib, numpy, multiparam as mp
spec = mp.nn.Sequential(mp.nn.Conv(4, 3), mp.nn.BatchNorm(), mp.nn.Flatten(), ("head", mp.nn.Linear(5)))
net = mp.build(spec, numpy.ones((2, 3, 6, 6)), backend="torch", seed=3)
net.init(mp.init.orthogonal(), "head.weight", seed=4)
digest = hashlib.sha256()
for name, value in net.state_dict().items():
    digest.update(name.encode() + value.tobytes())
print(digest.hexdigest())
"""
    one, other = python(code, PYTHONHASHSEED="1"), python(code, PYTHONHASHSEED="2")
    assert len(one) == 64
    assert one == other
