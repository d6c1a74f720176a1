"""A comparison as JSON: the document that the page is made of, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ... import __version__
from ..judge import Check, json_number
from ..results import Comparison, Pair

FORMAT = "multiparam-comparison-1"


def to_document(comparison: Comparison) -> dict[str, Any]:
    """Plain data, see schemas/comparison.json. A distance that is infinite, as between other shapes, is ``"inf"``."""
    return {
        "format": FORMAT,
        "multiparam": __version__,
        "agrees": comparison.agrees,
        "reference": comparison.reference,
        "models": {name: dict(model) for name, model in comparison.models.items()},
        "environments": [dict(each) for each in comparison.environments],
        "options": dict(comparison.options),
        "bounds_eps": dict(comparison.bounds),
        "pairs": [_pair(pair, comparison.bounds) for pair in comparison.pairs],
    }


def to_json(comparison: Comparison) -> str:
    """The document as text."""
    return json.dumps(to_document(comparison), indent=1, ensure_ascii=False) + "\n"


def _pair(pair: Pair, bounds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model": pair.name,
        "agrees": pair.agrees,
        "parted": pair.parted,
        "faults": [
            {"where": each.where, "at_layer": each.at_layer, "lines": list(each.lines), "hints": list(each.hints)}
            for each in pair.faults
        ],
        "hints": pair.hints,
        "checks": [_check(check) for check in pair.checks],
        "layers": [
            {"network": network, "reference": layer.reference, "layer": layer.name, "dtype": pair.dtype,
             "inputs_eps": json_number(layer.inputs), "output_eps": json_number(layer.output),
             "bound_eps": bounds["layer" if "layer" in bounds else "output"], "first": i == pair.first.get(network)}
            for network, layers in pair.layers.items()
            for i, layer in enumerate(layers)
        ],
        "histograms": [{"network": "", **vars(each)} for each in pair.histograms],
        "unexercised": dict(pair.unexercised),
    }  # fmt: skip


def _check(check: Check) -> dict[str, Any]:
    return {"network": check.network, "check": check.check, "agrees": check.agrees, "dtype": check.dtype,
            "distance_eps": json_number(check.distance), "bound_eps": check.bound, "detail": check.detail,
            "expected": check.expected}  # fmt: skip
