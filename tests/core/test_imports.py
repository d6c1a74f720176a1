"""What an import brings along, in a fresh interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.interpreter import LOADED, python


def test_importing_multiparam_imports_no_framework() -> None:
    assert python(f"import multiparam as mp; mp.nn, mp.init, mp.wrap, mp.backends(); {LOADED}") == ""


EXTRAS = {"typer", "click", "rich", "jinja2", "jsonschema", "sklearn", "matplotlib", "h5py", "ml_dtypes", "pytest"}


def test_multiparam_needs_numpy_only() -> None:
    """None of the extras is there, and all that users reach can be imported, the command line's front door too."""
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); import multiparam.cli.app, multiparam as mp; "
    assert int(python(f"{code}mp.backends(); print(len([getattr(mp, name) for name in mp.__all__]))")) > 20


def test_importing_multiparam_is_quick() -> None:
    """Told by what is loaded, since times are the machine's: one module, and not even numpy before it is needed."""
    code = (
        "import sys, multiparam as mp; print(*(name for name in sys.modules if name.startswith(('multip', 'numpy'))))"
    )
    assert python(code) == "multiparam"
    assert python(f"{code}; mp.wrap, mp.backends(); print(*{EXTRAS!r} & sys.modules.keys())") == "multiparam"


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


CHOICES = {
    "use": "import multiparam as mp; mp.use('mxnet')",
    "use by another name": "import multiparam as mp; mp.use('gluon')",
    "a block": "import multiparam as mp\nwith mp.use('mxnet'): pass",
    "the environment": "import os; os.environ['MULTIPARAM_BACKEND'] = 'mxnet'; import multiparam",
}


@pytest.mark.needs("mxnet")
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.quick("use", "the environment")
def test_after_the_backend_is_chosen_a_plain_import_of_mxnet_works(choice: str) -> None:
    code = f"""
import builtins, importlib.util, sys
importer = builtins.__import__
{choice}
assert "mxnet" not in sys.modules and builtins.__import__ is importer
assert importlib.util.find_spec("mxnet").origin.endswith("__init__.py")
import mxnet as mx
assert builtins.__import__ is importer and mx.__spec__.origin == mx.__file__
from mxnet.gluon import nn
print(mx.np.ones(2).sum().item())
"""
    assert python(code) == "2.0"


@pytest.mark.needs("mxnet")
def test_a_users_own_file_imports_mxnet_plainly(tmp_path: Path) -> None:
    lines = ["import mxnet as mx", "def make():", "    net = mx.gluon.nn.Dense(2, in_units=3)", "    net.initialize()"]
    (tmp_path / "nets.py").write_text("\n".join([*lines, "    return net"]))
    code = f"""
from multiparam.cli.commands import app
app(["inspect", {str(tmp_path / "nets.py:make")!r}], standalone_mode=False)
"""
    assert "weight" in python(code)


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
