"""The page's table of checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .text import brief_dtype, short


@dataclass(frozen=True)
class Mark:
    """One check in its cell."""

    state: str  # agrees, apart or expected
    eps: float | str | None
    note: int = 0  # the number of the reason why a difference is expected


@dataclass
class CheckRow:
    """One check of all models; where one has it twice, both are shown."""

    check: str
    dtype: str
    cells: dict[str, list[Mark]]
    bounds: list[str] = field(default_factory=list)
    details: list[tuple[str, str, str]] = field(default_factory=list)  # model, state, text

    @property
    def agrees(self) -> bool:
        """Whether all models do."""
        return all(mark.state != "apart" for marks in self.cells.values() for mark in marks)


@dataclass
class CheckTable:
    """Rows by network, and the reasons that they refer to."""

    models: list[str]
    networks: dict[str, list[CheckRow]]
    reasons: list[str]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> CheckTable:
        """A column for each model that has a check: the reference too, where it was held against itself."""
        models = [pair["model"] for pair in document["pairs"]]
        checks = [(pair["model"], check) for pair in document["pairs"] for check in pair["checks"]]
        reasons = list(dict.fromkeys(check["expected"] for _, check in checks if check["expected"]))
        keys = _row_keys(document["pairs"])
        rows = {key: CheckRow(key[1], brief_dtype(key[2]), {name: [] for name in models}) for key in keys}
        for model, check in checks:
            row = rows[_key(check)]
            row.cells[model].append(_mark(check, reasons))
            bound = short(check["bound_eps"])
            row.bounds += [bound] * (bool(bound) and bound not in row.bounds)
            if check["detail"]:
                row.details.append((model, row.cells[model][-1].state, check["detail"]))
        networks = list(dict.fromkeys(key[0] for key in rows))
        return cls(models, {name: [rows[key] for key in rows if key[0] == name] for name in networks}, reasons)


def _key(check: Mapping[str, Any]) -> tuple[str, str, str]:
    return check["network"], check["check"], check["dtype"]


def _row_keys(pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """As they were made, and what only a later model has where that has it. A check's dtypes are next to each other,
    float64 first: that is where models must agree."""
    order: list[tuple[str, str]] = []
    for pair in pairs:
        at = 0
        for network, what in (_key(check)[:2] for check in pair["checks"]):
            if (network, what) not in order:
                order.insert(at, (network, what))
            at = order.index((network, what)) + 1
    keys = {_key(check) for pair in pairs for check in pair["checks"]}
    return sorted(keys, key=lambda key: (order.index(key[:2]), key[2] != "float64", key[2]))


def _mark(check: Mapping[str, Any], reasons: Sequence[str]) -> Mark:
    if not check["agrees"]:
        return Mark("apart", check["distance_eps"])
    if check["expected"]:
        return Mark("expected", check["distance_eps"], reasons.index(check["expected"]) + 1)
    return Mark("agrees", check["distance_eps"])
