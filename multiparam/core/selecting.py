"""Which parameters selectors stand for: globs, Parameters, groups, lists, predicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

from .. import paths
from ..errors import ParameterNotFound
from .parameter import Parameter, parameter_at, storage_of
from .store import Store

# A Group is an iterable of Parameters.
Selector = Union[str, Parameter, Iterable[str], Iterable[Parameter], Callable[[Parameter], bool], None]


def chosen_slots(
    store: Store, known: Mapping[int, str], selectors: Sequence[Selector], kind: str | None
) -> tuple[int, ...]:
    """The slots of parameters, without buffers, that any of some selectors matches.

    Args:
        store: The model's.
        known: Slot -> its name where is looked, in definition order.
        selectors: As for :meth:`multiparam.Group.select`; none at all: every parameter.
        kind: A glob over the kinds of layers; None: any kind.

    Returns:
        Their indices, in definition order.

    Raises:
        ParameterNotFound: Nothing matches.
    """
    slots = store.table.slots
    predicates = [_predicate(selector) for selector in selectors] or [lambda parameter, names: True]
    # By storage first: a parameter that is tied is chosen by any of its names, and then under all it has here.
    names: dict[int, set[str]] = {}
    for i, name in known.items():
        names.setdefault(id(slots[i].storage), set()).update((store.table.names[i], name))
    chosen = {
        key: any(test(parameter_at(store, store.table.first[key]), list(each)) for test in predicates)
        for key, each in names.items()
    }
    inside = tuple(
        i
        for i in known
        if not slots[i].buffer and chosen[id(slots[i].storage)] and (kind is None or paths.matches(slots[i].kind, kind))
    )
    if not inside:
        texts = [s for s in selectors if isinstance(s, str)]
        shown = ", ".join(map(repr, texts)) or "this selector"
        of_kind = f" of kind {kind!r}" if kind else ""
        hint = paths.did_you_mean(texts[0], [store.table.names[i] for i in known]) if texts else ""
        raise ParameterNotFound(f"No parameter matches {shown}{of_kind}. {hint}".rstrip())
    return inside


def _predicate(selector: Selector) -> Callable[[Parameter, list[str]], bool]:
    """A selector as a test of a Parameter and all its names."""
    if selector is None:
        return lambda parameter, names: True
    if isinstance(selector, str):
        return lambda parameter, names: any(paths.matches(name, selector) for name in names)
    if isinstance(selector, Parameter):
        return lambda parameter, names: storage_of(parameter) is storage_of(selector)
    if not isinstance(selector, Iterable):
        return lambda parameter, names: bool(selector(parameter))
    each: list[Any] = list(selector)  # a model can be called, too: what it holds comes first
    chosen = {id(storage_of(one)) for one in each if isinstance(one, Parameter)}
    patterns = [one for one in each if not isinstance(one, Parameter)]
    return lambda parameter, names: (
        id(storage_of(parameter)) in chosen
        or any(paths.matches(name, pattern) for name in names for pattern in patterns)
    )
