"""A comparison as JSON, as a markdown summary for a job, as JUnit's XML, and as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ... import __version__
from ...weights.atomic import write_text_atomically
from ..judge import Check, plain
from ..models import Comparison, Pair

FORMAT = "multiparam-comparison-1"


def as_json(found: Comparison) -> dict[str, Any]:
    """Plain data, see schemas/comparison.json. A distance that is infinite, as between other shapes, is ``"inf"``."""
    return {
        "format": FORMAT,
        "multiparam": __version__,
        "agrees": found.agrees,
        "reference": found.reference,
        "models": {name: dict(said) for name, said in found.models.items()},
        "environments": [dict(each) for each in found.environments],
        "options": dict(found.options),
        "bounds_eps": dict(found.bounds),
        "pairs": [_pair(pair, found.bounds) for pair in found.pairs],
    }


def _pair(pair: Pair, bounds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "model": pair.name,
        "agrees": pair.agrees,
        "parted": pair.parted,
        "hints": pair.hints,
        "checks": [_check(check) for check in pair.checks],
        "layers": [
            {"network": network, "reference": layer.reference, "layer": layer.name, "dtype": pair.dtype,
             "inputs_eps": plain(layer.inputs), "output_eps": plain(layer.output),
             "bound_eps": bounds["layer" if "layer" in bounds else "output"], "first": i == pair.first.get(network)}
            for network, layers in pair.layers.items()
            for i, layer in enumerate(layers)
        ],
        "histograms": [{"network": "", **vars(each)} for each in pair.histograms],
    }  # fmt: skip


def _check(check: Check) -> dict[str, Any]:
    return {"network": check.network, "check": check.check, "agrees": check.agrees, "dtype": check.dtype,
            "distance_eps": plain(check.distance), "bound_eps": check.bound, "detail": check.detail,
            "expected": check.expected}  # fmt: skip


def as_markdown(found: Comparison) -> str:
    """Verdict first, then a table for each model; of one that agrees it is folded."""
    named = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    lines = [f"**{'All agree' if found.agrees else 'Not all agree'}** with `{found.reference}` ({named})."]
    for pair in found.pairs:
        lines += ["", f"### {pair.name}", ""]
        if pair.parted:
            lines += [f"They part first {_cell(pair.parted)}.", ""]
        lines += [f"* {_cell(hint)}" for hint in pair.hints] + [""] * bool(pair.hints)
        if pair.agrees:
            lines += [f"<details><summary>{len(pair.checks)} checks agree</summary>", ""]
        lines += ["| check | | distance | bound | |", "| --- | --- | ---: | ---: | --- |"]
        lines += [_row(check) for check in pair.checks]
        if pair.agrees:
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _row(check: Check) -> str:
    far = "" if check.distance is None else f"{check.distance:.3g} eps"
    bound = "" if check.bound is None else f"{check.bound:g}"
    notes = " ".join(filter(None, (check.detail, f"expected: {check.expected}" if check.expected else "")))
    return f"| {_name(check)} | {'✓' if check.agrees else '**✗**'} | {far} | {bound} | {_cell(notes)} |"


def _name(check: Check) -> str:
    return " ".join(filter(None, (check.network, check.check, check.dtype)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def as_junit(found: Comparison) -> str:
    """Each check a test case, each model a suite."""
    suites = ElementTree.Element("testsuites", name="multiparam compare")
    for pair in found.pairs:
        wrong = [check for check in pair.checks if not check.agrees]
        suite = ElementTree.SubElement(
            suites, "testsuite", name=pair.name, tests=str(len(pair.checks)), failures=str(len(wrong))
        )
        for check in pair.checks:
            case = ElementTree.SubElement(suite, "testcase", classname=pair.name, name=_name(check))
            if not check.agrees:
                apart = None if check.distance is None else f"{check.distance:.3g} eps of {check.dtype}"
                far = "" if apart is None else f"{apart}, bound {check.bound:g}"
                text = "\n".join(filter(None, (check.detail, f"They part first {pair.parted}." if pair.parted else "")))
                ElementTree.SubElement(case, "failure", message=far or check.detail).text = text
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


def write(found: Comparison, paths: Mapping[str, Path | None]) -> None:
    """Write a comparison in the forms that have a path; each file appears whole or not at all. To what is no ordinary
    file, such as /dev/stdout, it is written as it is."""
    for form, path in paths.items():
        if path is not None:
            _put(path, WRITERS[form](found))


def _put(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():
        path.write_text(text, "utf-8")
    else:
        write_text_atomically(path, text)


def _json(found: Comparison) -> str:
    return json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"


def _html(found: Comparison) -> str:
    from .html import as_html

    return as_html(as_json(found))


WRITERS: Mapping[str, Callable[[Comparison], str]] = {
    "json": _json,
    "markdown": as_markdown,
    "junit": as_junit,
    "html": _html,
}
