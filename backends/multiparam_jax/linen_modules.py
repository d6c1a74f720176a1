"""linen modules as they are written: what their attributes hold, how they run, and where each of them is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import linen
from flax.core.meta import AxisMetadata

from multiparam.adapter import Inputs

Key = tuple[str, ...]  # collection, then the path in its tree
Scope = tuple[str, ...]  # a module's path in flax
T = TypeVar("T")

# Arguments of __call__ that decide whether the module trains, and their value in training
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
ITS_OWN = ("parent", "name", "scope")


def modes_of(module: linen.Module, train: bool) -> dict[str, Any]:
    """The arguments of a module's call that decide whether it trains; none that a field has decided already."""
    parameters = inspect.signature(type(module).__call__).parameters
    undecided = (name for name in MODES if name in parameters and getattr(module, name, None) is None)
    return {name: MODES[name] is bool(train) for name in undecided}


def in_mode(module: linen.Module, train: bool) -> linen.Module:
    """A module that says in a field of its own whether it trains, in a mode; another one as it is."""
    own = field_names(type(module))
    stated = [name for name in MODES if name in own and isinstance(vars(module).get(name), bool)]
    changes: dict[str, Any] = {name: MODES[name] is bool(train) for name in stated}
    return module.clone(**changes) if changes else module


def flat(tree: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """The leaves of nested dicts with their paths, in the dicts' own order; out of their boxes."""
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from flat(child, (*prefix, name))
        else:
            yield (*prefix, name), child.unbox() if isinstance(child, AxisMetadata) else child


def boxes(tree: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, AxisMetadata[Any]]]:
    """The boxes that say how arrays are partitioned (``linen.Partitioned``), without the arrays."""
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from boxes(child, (*prefix, name))
        elif isinstance(child, AxisMetadata):
            yield (*prefix, name), child.replace_boxed(None)


# -- attributes


def made_by(module: linen.Module) -> bool:
    """Whether a module makes submodules in ``setup``."""
    return type(module).setup is not linen.Module.setup


class Held(NamedTuple):
    """A module in an attribute: the attribute, keys in the lists and mappings there, their positions, the module."""

    attribute: str
    keys: tuple[str, ...]
    places: tuple[int, ...]
    module: linen.Module


def attributes(module: linen.Module) -> Iterator[Held]:
    """The modules in a module's attributes, in order; one that is there twice each time."""
    values = vars(module)
    if module.scope is not None:
        hasattr(module, "_multiparam_")  # flax runs setup() when an attribute is missing
    elif made_by(module):
        values = _after_setup(module) or values
    for name, value in values.items():
        if name not in ITS_OWN:
            if isinstance(value, linen.Module):
                yield Held(name, (), (), value)
            elif isinstance(value, (list, tuple, Mapping)):
                for keys, places, child in _inside(value):
                    yield Held(name, keys, places, child)


def _inside(value: Any) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], linen.Module]]:
    names = value.keys() if isinstance(value, Mapping) else getattr(value, "_fields", None) or range(len(value))
    values = value.values() if isinstance(value, Mapping) else value
    for place, (name, each) in enumerate(zip(names, values, strict=False)):
        if isinstance(each, linen.Module):
            yield (str(name),), (place,), each
        elif isinstance(each, (list, tuple, Mapping)):
            for keys, places, child in _inside(each):
                yield (str(name), *keys), (place, *places), child


class _Unbound:
    """A module to the eyes of its own ``setup``, which then makes submodules that are not bound."""

    def __init__(self, module: linen.Module) -> None:
        vars(self).update({field.name: getattr(module, field.name) for field in fields(module)})
        vars(self)["_class"] = type(module)

    def __getattr__(self, name: str) -> Any:
        cls = vars(self)["_class"]
        member = inspect.getattr_static(cls, name)
        if inspect.isfunction(member):
            return inspect.unwrap(member).__get__(self)  # flax' own wrapper wants a bound module
        return member.__get__(self, cls) if hasattr(member, "__get__") else member


def _after_setup(module: linen.Module) -> dict[str, Any] | None:
    """The attributes that ``setup`` gives an unbound module; None where it wants more than fields."""
    unbound = _Unbound(module)
    try:
        unbound.setup()
    except Exception:  # whatever a user's code says of a module that is not bound: it will be
        return None
    return {name: value for name, value in vars(unbound).items() if name != "_class"}


def field_names(cls: Any) -> tuple[str, ...]:
    """The fields of a class of modules, without what says where one is."""
    return tuple(field.name for field in fields(cls) if field.name != "parent")


def stand_in(module: Any) -> Any:
    """A module without what it is bound to, which holds arrays: its class and fields, for its options."""
    if module.scope is None:
        return module
    bare = object.__new__(type(module))
    known = vars(module)
    vars(bare).update({name: known[name] for name in field_names(type(module)) if name in known})
    vars(bare).update(parent=None, scope=None)
    return bare


# -- runs


class Run(NamedTuple):
    """What a forward pass shows.

    Attributes:
        modules: Scope -> the module that was called there, bound.
        called: Scope -> the names of those below it, in the order of their first calls.
        calls: Which scope called which.
        classes: Scope -> the class there, where it is a transformed one of the module that was called.
    """

    modules: dict[Scope, linen.Module]
    called: dict[Scope, list[str]]
    calls: set[tuple[Scope, Scope]]
    classes: dict[Scope, type]


NO_RUN = Run({}, {}, set(), {})


def recorded(forward: Callable[[], Any]) -> tuple[Any, Run]:
    """What a function that runs a module gives, and what was called."""
    run = Run({}, {}, set(), {})
    stack: list[Scope] = []

    def on_call(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if module.scope is None or context.method_name == "setup":
            return call(*args, **kwargs)
        path = module.path
        if path not in run.modules:
            run.modules[path] = module
            if path:
                run.called.setdefault(path[:-1], []).append(path[-1])
        run.calls.update((caller, path) for caller in stack[-1:])
        stack.append(path)
        try:
            return call(*args, **kwargs)
        finally:
            stack.pop()

    with linen.intercept_methods(on_call):
        output = forward()
    for path, module in run.modules.items():
        # What scan and its like make of a class calls, and so shows, one of the class itself.
        state = vars(run.modules[path[:-1]]).get("_state") if path[:-1] in run.modules else None
        outer = getattr(state, "children", {}).get(path[-1]) if path else None
        if isinstance(outer, type(module)) and type(outer) is not type(module):
            run.classes[path] = type(outer)
    return output, run


def run_on_shapes(module: linen.Module, variables: Any, inputs: Inputs, look: Callable[[Run], T]) -> T:
    """What ``look`` makes of a forward pass without numbers, while its modules are bound."""
    looks: list[T] = []
    evaluated = in_mode(module, False)

    def forward(variables: Any) -> Any:
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        options = {"rngs": rngs, "mutable": True, **modes_of(module, False)}
        output, run = recorded(lambda: evaluated.apply(variables, *inputs.positional, **inputs.keywords, **options))
        looks.append(look(run))
        return output

    try:
        jax.eval_shape(forward, variables)
    except jax.errors.ConcretizationTypeError:  # it decides by values, which are there unless shapes are all there is
        if not all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(variables)):
            raise
        looks.clear()
        forward(variables)
    return looks[0]


def initialised(module: linen.Module, rng: Any, inputs: Inputs) -> tuple[Any, Run]:
    """The variables that a module makes, and what it called to make them."""
    options, evaluated = modes_of(module, False), in_mode(module, False)
    return recorded(
        lambda: evaluated.init({"params": rng, "dropout": rng}, *inputs.positional, **inputs.keywords, **options)
    )
