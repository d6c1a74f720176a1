"""What a reference lists: everything public says what it takes, gives and raises, in sections, with an example."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import multiparam as mp
import multiparam.adapter as mpa

MODULES = (mp, mp.nn, mp.init, mp.losses, mpa)
DUNDERS = ("__getitem__", "__call__")  # that a reader would look up


def of_ours(thing: Any) -> bool:
    return getattr(thing, "__module__", "").startswith("multiparam")


def public() -> Iterator[tuple[str, Any]]:
    """Every function and class that users or authors of adapters reach, and the classes' own methods."""
    for module in MODULES:
        names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in names:
            thing = getattr(module, name)
            if isinstance(thing, ModuleType) or not of_ours(thing):
                continue
            where = f"{module.__name__}.{name}"
            if inspect.isclass(thing):
                yield where, thing
                for key, member in vars(thing).items():
                    if inspect.isfunction(member) and (not key.startswith("_") or key in DUNDERS):
                        yield f"{where}.{key}", member
            elif callable(thing):
                yield where, thing


PUBLIC = dict(public())
FUNCTIONS = {where: thing for where, thing in PUBLIC.items() if not inspect.isclass(thing)}


def arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def section(text: str, title: str) -> str:
    """The text of a section; nothing where there is none."""
    match = re.search(rf"^ *{title}:\n((?:(?: {{4,}}.*)?\n)*)", f"{text}\n", re.MULTILINE)
    return match[1] if match else ""


@pytest.mark.parametrize("where", PUBLIC)
def test_it_says_what_it_is(where: str) -> None:
    text = inspect.getdoc(PUBLIC[where]) or ""
    first = text.partition("\n\n")[0]
    assert first.rstrip().endswith((".", ":", ")")) and len(first) > 12, text


@pytest.mark.parametrize("where", FUNCTIONS)
def test_it_says_what_it_takes_and_gives(where: str) -> None:
    function = FUNCTIONS[where]
    text = inspect.getdoc(function) or ""
    described = section(text, "Args")
    assert [name for name in arguments(function) if not re.search(rf"\*{{0,2}}\b{name}\b", described)] == []
    if inspect.signature(function).return_annotation not in (None, "None", inspect.Signature.empty):
        assert section(text, "Returns") or section(text, "Yields"), text


@pytest.mark.parametrize("name", [name for name in mp.__all__ if f"multiparam.{name}" in PUBLIC])
def test_what_users_import_has_an_example(name: str) -> None:
    thing = getattr(mp, name)
    if not (inspect.isclass(thing) and issubclass(thing, (Exception, Warning))):
        assert ">>>" in (inspect.getdoc(thing) or "")
