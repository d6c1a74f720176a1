"""The project's own source, parsed: modules, what they import, and what they define."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "multiparam").rglob("*.py"))
ADAPTERS = sorted((ROOT / "backends").rglob("*.py"))


def relative(path: Path) -> str:
    """A file's path as tests and people name it."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "backends" else parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"))


MODULES = {module_of(path): path for path in [*CORE, *ADAPTERS]}


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name in it or None) of every import, in functions and for types only too; a relative one in full."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{whole}.{alias.name}"
                yield (inner, None) if inner in MODULES else (whole, alias.name)


def own_modules(path: Path) -> set[str]:
    """The project's modules that a file imports."""
    return {module for module, _ in imported(path) if module in MODULES} - {module_of(path)}


def roots(path: Path) -> set[str]:
    """The root packages that a file imports, its own among them."""
    return {module.partition(".")[0] for module, _ in imported(path)}


def is_private(name: str) -> bool:
    """Whether a name is its module's, or its class', own business."""
    return name.startswith("_") and not name.startswith("__")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file, nested ones too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def is_own(node: ast.Attribute) -> bool:
    """Whether it is an attribute of the object or class that the code is in."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_members(path: Path) -> set[str]:
    """The private members that a file's classes define, in their bodies or on self."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                targets = getattr(each, "targets", [getattr(each, "target", None)])
                names |= {getattr(each, "name", ""), *(getattr(target, "id", "") for target in targets)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            names.add(node.attr)
    return {name for name in names if is_private(name)}
