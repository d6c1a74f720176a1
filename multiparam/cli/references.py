"""Models by reference: ``package.module:callable`` or ``path/to/file.py:callable``. User code is imported here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from ..core import registry
from ..core.construction import wrap
from ..core.model import Model
from ..core.values import UNKNOWN_CURE
from ..errors import FileError, MultiparamError, UnknownShapes, Unrecognised
from ..paths import did_you_mean

REFERENCE = re.compile(r"(?P<where>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<what>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
INSTALLED = re.compile(r"site-packages|dist-packages|^<frozen|[\\/]multiparam|[\\/]lib[\\/]python3")
FORMS = "A model is package.module:callable or path/to/file.py:callable."


class ReferenceFailed(MultiparamError, ImportError):
    """A reference to a model that leads nowhere, or to code that raises."""


def is_reference(text: str) -> bool:
    """Whether a text names a model in code, not a file.

    >>> is_reference("nets.mlp:make"), is_reference("../nets.py:Mlp.small"), is_reference("weights/w.safetensors")
    (True, True, False)
    """
    return REFERENCE.fullmatch(text) is not None and not os.path.exists(text)


Examples = tuple[Any, ...] | Mapping[str, Any]  # by position, or by keyword


def examples(path: Path, keywords: bool = False) -> Examples:
    """The arrays of an npz file: a model's inputs, in its order or by their names. Raises FileError or OSError."""
    from ..weights.formats import Npz

    os.stat(path)  # what is not there is an OSError, as for every file that an option names
    with Npz(path) as file:
        arrays = {name: file[name] for name in file}
    if not arrays:
        raise FileError(f"{str(path)!r} has no arrays. Write example inputs with numpy.savez(path, x).")
    return arrays if keywords else tuple(arrays.values())


def model(reference: str, inputs: Examples = ()) -> Model:
    """The model that a reference names, wrapped.

    The callable takes no arguments and gives a native model, an ``mp.Model``, or a tuple of one and its example inputs;
    ``inputs`` go before those. A model itself may stand in the callable's place. Raises ReferenceFailed where the code
    is not found or raises, Unrecognised for what is no model, and UnknownShapes for one that needs inputs.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ReferenceFailed(f"{reference!r} names no model. {FORMS}")
    where, what = match["where"], match["what"]
    file = where if where.endswith(".py") else ""
    module = _file(Path(where)) if file else _module(where)
    named = _attribute(module, what, where)
    if _is_model(named):
        model_or_tuple = named
    elif callable(named):
        with _user_code(f"{what}() of {where}", file or getattr(module, "__file__", None)):
            model_or_tuple = named()
    else:
        raise ReferenceFailed(f"{what!r} in {where} is {type(named).__name__}, neither a callable nor a model. {FORMS}")
    return _wrapped(model_or_tuple, inputs, reference)


def function(reference: str) -> Any:
    """The function that a reference names, such as an objective. Raises ReferenceFailed for what is none."""
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ReferenceFailed(f"{reference!r} names no function. Say file.py:function.")
    module = _file(Path(match["where"])) if match["where"].endswith(".py") else _module(match["where"])
    named = _attribute(module, match["what"], match["where"])
    if not callable(named):
        raise ReferenceFailed(f"{match['what']!r} in {match['where']} is {type(named).__name__}, and no function.")
    return named


def _wrapped(model_or_tuple: Any, inputs: Examples, reference: str) -> Model:
    """A native model wrapped, with the inputs or else those it came with; one that is wrapped already as it is."""
    is_tuple = isinstance(model_or_tuple, tuple) and model_or_tuple
    native, *examples = model_or_tuple if is_tuple else (model_or_tuple,)
    if isinstance(native, Model):
        return native
    try:
        registry.detect(native)
    except Unrecognised as error:
        raise Unrecognised(f"{reference} gives no model. {error}") from None
    try:
        with _user_code(f"the model of {reference}", None):
            return wrap(native, *([inputs] if isinstance(inputs, Mapping) else inputs or examples))
    except UnknownShapes as error:
        problem = str(error).replace(UNKNOWN_CURE, "").rstrip()  # the cure that is said to callers in Python
        raise UnknownShapes(
            f"{problem}\nOn the command line: let {reference} give (model, *example_inputs), or an mp.Model; "
            "or, to inspect it, say --inputs FILE.npz."
        ) from None


def _is_model(value: Any) -> bool:
    """Whether a value is a model as it is; many are callable, and would run."""
    if isinstance(value, (Model, tuple)):
        return True
    try:
        registry.detect(value)
    except Unrecognised:
        return False
    return True


# -- code that is imported


def _module(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:  # as for python -m, which the command does not go through
        sys.path.insert(0, here)
    try:
        registry.prepare_imports()
        with _user_code(f"the module {name!r}", None):
            return importlib.import_module(name)
    except ReferenceFailed as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
            raise ReferenceFailed(
                f"There is no module {missing.name!r} here or among the installed packages. "
                "For a file, say path/to/file.py:callable."
            ) from None
        raise


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ReferenceFailed(f"There is no file {str(path)!r}.")
    path = path.resolve()
    folder = str(path.parent)
    if folder not in sys.path:  # its neighbours can be imported, as when it is run
        sys.path.insert(0, folder)
    # under its own name, so that its pickles and reprs are right; but json.py of the user's must not become "json"
    name = path.stem if path.stem not in sys.modules else f"_multiparam_{path.stem}"
    registry.prepare_imports()
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, among others, look there
    try:
        with _user_code(str(path.name), str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _attribute(module: ModuleType, what: str, where: str) -> Any:
    owner: Any = module
    for name in what.split("."):
        if not hasattr(owner, name):
            known = [each for each in vars(owner) if not each.startswith("_") and callable(getattr(owner, each, None))]
            raise ReferenceFailed(f"{where} has no {what!r}. {did_you_mean(name, known)}")
        owner = getattr(owner, name)
    return owner


@contextmanager
def _user_code(what: str, file: str | None) -> Iterator[None]:
    """What the user's code raises, a SystemExit too, as a sentence with the place; errors of ours stay as they are."""
    try:
        yield
    except MultiparamError:
        raise
    except (Exception, SystemExit) as error:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        raise ReferenceFailed(f"{what} raises {text}{_place(error.__traceback__, file)}") from error


def _place(at: TracebackType | None, file: str | None) -> str:
    """The innermost line that is the user's: in the file, or else in no installed package, ours included."""
    for frame in reversed(traceback.extract_tb(at)):
        name = frame.filename
        is_users = os.path.realpath(name) == os.path.realpath(file) if file else not INSTALLED.search(name)
        if is_users:
            return f"\n  at {name}:{frame.lineno}: {frame.line}"
    return ""
