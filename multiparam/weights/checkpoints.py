"""Checkpoints of a training: which of their parts holds the weights of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ..core.relayed import Relayed
from ..errors import InvalidArgument
from .trees import Within

# Under which key trainers keep the weights themselves, where they keep others beside them.
WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow|teacher|best)([._]|$)|^n_averaged", re.IGNORECASE)


def weights_within(state: Mapping[str, np.ndarray], names: Collection[str]) -> tuple[Mapping[str, np.ndarray], int]:
    """The part of a state that has a model's names, and how many of them it has.

    The part is found by what stands before the names: a key of the training's (``state_dict``), a module's around the
    model (``module.``, ``model.net.``), or both. Other keys of the training's are in ``left_out``; what stands beside
    the model in the same part keeps its name.

    Args:
        state: A file, or a mapping name -> array.
        names: The model's names.

    Returns:
        The state itself where its names are the model's, or nothing before them would make them so.

    Raises:
        InvalidArgument: Several parts have the names alike, and nothing says which are the weights.
    """
    known = set(names)
    counts: Counter[str] = Counter()
    for stored in state:
        prefix, rest = "", stored
        while True:
            if rest in known:
                counts[prefix] += 1
            head, dot, rest = rest.partition(".")
            if not dot:
                break
            prefix += head + dot
    if not counts:
        return state, 0
    most = max(counts.values())
    if getattr(state, "own_layouts", False) or 2 * most < len(known):  # a few names alike, as of biases, are no part
        return state, counts[""]
    prefix = _chosen([prefix for prefix, count in counts.items() if count == most], state)
    groups = getattr(state, "groups", ())
    if not prefix:
        return state, most
    return Part(state, prefix, {group for group in groups if prefix.startswith(f"{group}.")}), most


def _chosen(prefixes: list[str], state: Mapping[str, Any]) -> str:
    if "" in prefixes:
        return ""
    plain = [prefix for prefix in prefixes if not AVERAGED.search(prefix)] or prefixes
    for key in WEIGHTS:
        by_key = [prefix for prefix in plain if prefix.partition(".")[0] == key]
        if len(by_key) == 1:
            return by_key[0]
    if len(plain) > 1:
        where = ", ".join(repr(prefix.rstrip(".")) for prefix in plain[:6])
        raise InvalidArgument(
            f"The model's names are there {len(plain)} times, within {where}. Say which: mp.read(path, "
            f"within={plain[0].rstrip('.')!r})."
        )
    return plain[0]


class Part(Relayed):
    """A state without what stands before the model's names."""

    def __init__(self, state: Mapping[str, np.ndarray], prefix: str, inside: Collection[str]) -> None:
        self._within = Within(state, prefix.rstrip("."))
        self.own_layouts = self._within.own_layouts
        self._state = state
        # Of a part of a checkpoint what stands beside the model in the same part is its neighbour, the rest is not.
        group = f"{next(iter(inside))}." if inside else ""
        self._beside = [name for name in state if name.startswith(group) and not name.startswith(prefix)]
        self._beside = [name for name in self._beside if name not in self._within]
        others = [name.partition(".")[0] for name in state if not name.startswith(group)]
        self.left_out = (*dict.fromkeys(others), *getattr(state, "left_out", ()))

    def origin(self, name: str) -> tuple[Mapping[str, np.ndarray], str]:
        return self._within if name in self._within else self._state, name

    def __iter__(self) -> Iterator[str]:
        yield from self._within
        yield from self._beside

    def __len__(self) -> int:
        return len(self._within) + len(self._beside)
