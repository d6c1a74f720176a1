"""Sources that have their arrays from other states: a part of a checkpoint, shards, other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .slots import Box
from .state import ArraySpec, Source, state_block, state_spec, verify_state


class Relayed(Source):
    """Arrays that other states have, under other names. A subclass says where each is by :meth:`origin`."""

    def origin(self, name: str) -> tuple[Mapping[str, Any], str]:
        """The state that has an array, and its name there. Raises KeyError for an unknown name."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> np.ndarray:
        state, stored = self.origin(name)
        array: np.ndarray = state[stored]
        return array

    def spec(self, name: str) -> ArraySpec:
        return state_spec(*self.origin(name))

    def verify(self, name: str) -> None:
        verify_state(*self.origin(name))

    def block(self, name: str, box: Box) -> np.ndarray:
        return state_block(*self.origin(name), box)

    def verify_block(self, name: str, box: Box) -> None:
        state, stored = self.origin(name)
        if isinstance(state, Source):
            state.verify_block(stored, box)

    def read_into(self, name: str, out: np.ndarray) -> bool:
        state, stored = self.origin(name)
        return isinstance(state, Source) and state.read_into(stored, out)
