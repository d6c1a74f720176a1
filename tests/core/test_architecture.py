"""The house, read from the source: who may import whom, whose private names are whose, and how long a thing may be."""

from __future__ import annotations

import ast
import collections
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.interpreter import FRAMEWORKS
from support.sources import (
    ADAPTERS,
    CORE,
    MODULES,
    ROOT,
    functions,
    imported,
    is_own,
    is_private,
    module_of,
    own_modules,
    private_members,
    relative,
    roots,
    tree_of,
)

from multiparam.core import protocol

OWN = {
    "multiparam_torch": {"torch"},
    "multiparam_mxnet": {"mxnet"},
    "multiparam_jax": {"jax", "flax", "optax", "msgpack", "orbax"},
    "multiparam_tensorflow": {"tensorflow", "keras", "tf_keras"},
}
BACKENDS = {"torch", "mxnet", "jax", "tensorflow"}
BOTH = [*CORE, *ADAPTERS]

# From the ground up: a module imports from its own floor and from those below. The lazy front door is no floor.
FLOORS = (
    ("multiparam.errors", "multiparam.paths"),
    ("multiparam.nn", "multiparam.zoo", "multiparam.initializers", "multiparam.drawing"),
    ("multiparam.core",),
    ("multiparam.losses",),
    ("multiparam.weights",),
    ("multiparam.adapter",),
    ("multiparam.transfers",),
    ("multiparam.comparison",),
    ("multiparam.cli", "multiparam.__main__"),
    ("multiparam.testing",),
)
# Words that a command of the command line and the function it runs have in common: to users they are one thing.
ONE_MEANING = {"compare", "record", "main", "transfer"}

MOST_LINES, MOST_FUNCTION = 400, 60
MOST_FIELDS, MOST_MEMBERS = 10, 24


def floor(module: str) -> int:
    """The number of a module's floor."""
    return next(i for i, names in enumerate(FLOORS) if any(f"{module}.".startswith(f"{name}.") for name in names))


def test_there_are_files_to_read() -> None:
    assert {"multiparam/core/model.py", "multiparam/comparison/judge.py"} <= {relative(path) for path in CORE}
    assert {path.parent.name for path in ADAPTERS} == set(OWN)
    assert len({floor(module) for module in MODULES if module.startswith("multiparam.")}) == len(FLOORS)


# -- imports


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_the_core_imports_no_framework_and_no_adapter(path: Path) -> None:
    assert not roots(path) & (FRAMEWORKS | OWN.keys())


def test_no_module_is_reached_from_itself() -> None:
    graph = {module: own_modules(path) for module, path in MODULES.items() if path.name != "__init__.py"}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    assert [module for module in graph if module in reached(module)] == []


@pytest.mark.parametrize("path", [path for path in CORE if module_of(path) != "multiparam"], ids=relative)
def test_no_import_runs_back_up(path: Path) -> None:
    mine = floor(module_of(path))
    assert {module for module in own_modules(path) - {"multiparam"} if floor(module) > mine} == set()


@pytest.mark.parametrize("path", ADAPTERS, ids=relative)
def test_an_adapter_imports_only_its_page_and_its_own_framework(path: Path) -> None:
    package = path.relative_to(ROOT / "backends").parts[0]
    allowed = {"multiparam", "numpy", "ml_dtypes", package} | OWN[package] | set(sys.stdlib_module_names)
    assert roots(path) <= allowed
    of_ours = {module for module, _ in imported(path) if module.partition(".")[0] == "multiparam"}
    assert of_ours <= {"multiparam.adapter", "multiparam.errors", "multiparam.nn", "multiparam.paths"}


@pytest.mark.parametrize("package", OWN)
def test_an_adapters_front_door_imports_only_the_core(package: str) -> None:
    assert roots(ROOT / "backends" / package / "__init__.py") == {"multiparam"}


def test_the_example_adapter_imports_only_the_adapters_page() -> None:
    folder = ROOT / "tests" / "support" / "plugin" / "multiparam_autograd"
    modules = {
        node.module
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("multiparam")
    }
    assert modules == {"multiparam.adapter"}


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_no_branch_outside_an_adapter_names_a_backend(path: Path) -> None:
    compared = [
        constant.value
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.Compare, ast.MatchValue))
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    ]
    assert not BACKENDS & {value for value in compared if isinstance(value, str)}


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_test_imports_another(path: Path) -> None:
    modules = {
        node.module or ""
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert [module for module in modules if "test_" in module] == []


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_test_has_a_deadline(path: Path) -> None:
    """A shared machine may be slow at any moment; what is quick enough is measured in benchmarks/."""
    deadlines = [
        keyword.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "deadline"
    ]
    assert [value for value in deadlines if not (isinstance(value, ast.Constant) and value.value is None)] == []


# -- names


@pytest.mark.parametrize("path", BOTH, ids=relative)
def test_no_module_imports_another_ones_private_name(path: Path) -> None:
    names = [name for module, name in imported(path) if module in MODULES and name is not None]
    assert [name for name in names if is_private(name)] == []


def test_no_module_uses_a_private_member_of_another_ones_class() -> None:
    members = {path: private_members(path) for path in BOTH}
    everywhere = set().union(*(members[path] for path in CORE))
    uses = [
        f"{relative(path)}:{node.lineno} {node.attr}"
        for path in BOTH
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in everywhere - members[path]
        if not is_own(node)
    ]
    assert uses == []


def test_a_public_name_means_one_thing() -> None:
    where: dict[str, list[str]] = collections.defaultdict(list)
    for path in CORE:
        if "testing" in path.parts:
            continue
        for node in tree_of(path).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                where[node.name].append(relative(path))
    assert {name: places for name, places in where.items() if len(places) > 1 and name not in ONE_MEANING} == {}


def test_backend_is_a_name_and_adapter_the_object() -> None:
    annotated = [
        f"{relative(path)}:{argument.lineno} {argument.arg}: {ast.unparse(argument.annotation)}"
        for path in BOTH
        for function in functions(path)
        for argument in [*function.args.args, *function.args.kwonlyargs]
        if argument.annotation is not None
        if (argument.arg == "backend" and "str" not in ast.unparse(argument.annotation))
        or (argument.arg == "adapter" and "Adapter" not in ast.unparse(argument.annotation))
    ]
    registration = [each for each in annotated if each.startswith("multiparam/core/registry.py")]
    assert len(registration) == 1  # BackendInfo says where its adapter is, as text, since nothing is imported for it
    assert annotated == registration


# Everyday words for what has a term: see docs/glossary.md. Two names of errors are as users say it.
NO_TERMS = {"said", "found", "mine", "theirs", "turned", "unturned", "thing", "stuff"}
SAID_SO = {"ParameterNotFound", "not_found"}


def names_made(path: Path) -> Iterator[str]:
    """What a module gives a name: functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


@pytest.mark.parametrize("path", BOTH, ids=relative)
def test_names_are_terms(path: Path) -> None:
    words = {name: re.findall(r"[A-Z]?[a-z]+", name) for name in names_made(path) if name not in SAID_SO}
    assert {name for name, each in words.items() if NO_TERMS.intersection(word.lower() for word in each)} == set()


# -- sizes


@pytest.mark.parametrize("path", BOTH, ids=relative)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", BOTH, ids=relative)
def test_a_function_can_be_read_on_one_screen(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions(path)}
    assert {name: length for name, length in lengths.items() if length > MOST_FUNCTION} == {}


def test_a_slot_is_what_an_adapter_states() -> None:
    assert len(dataclasses.fields(protocol.Slot)) <= MOST_FIELDS


def to_write(interface: Any) -> list[str]:
    """The members of a protocol that have no default: those whose body is a docstring only, and bare annotations."""
    (node,) = ast.parse(inspect.getsource(interface)).body
    assert isinstance(node, ast.ClassDef)
    bare = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and each.value is None]  # type: ignore[union-attr]
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    return [*bare, *(each.name for each in methods if len(each.body) == 1 and isinstance(each.body[0], ast.Expr))]


def test_an_adapter_writes_few_members() -> None:
    interfaces = (protocol.Storage, protocol.Host, protocol.NativeOptimizer, protocol.Adapter)
    members = {interface.__name__: to_write(interface) for interface in interfaces}
    assert "read" in members["Storage"] and "options" not in members["Host"]
    assert sum(map(len, members.values())) <= MOST_MEMBERS, members
