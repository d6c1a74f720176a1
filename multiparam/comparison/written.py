"""A comparison of models as JSON, as a markdown summary for a job, and as JUnit's XML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

from .judge import plain
from .models import Comparison

SCHEMA = "multiparam-models-1"


def as_json(found: Comparison) -> dict[str, Any]:
    """Plain data. A distance that is infinite, as between other shapes, is the text ``"inf"``."""
    pairs = [
        {
            "model": pair.name,
            "agrees": all(check.agrees for check in pair.checks),
            "parted": pair.parted,
            "hints": pair.hints,
            "checks": [
                {"check": c.check, "agrees": c.agrees, "dtype": c.dtype, "distance_eps": plain(c.distance),
                 "bound_eps": c.bound, "detail": c.detail}
                for c in pair.checks
            ],
            "layers": [
                {"reference": layer.reference, "layer": layer.name, "inputs_eps": plain(layer.inputs),
                 "output_eps": plain(layer.output)}
                for layer in pair.layers
            ],
        }
        for pair in found.pairs
    ]  # fmt: skip
    return {
        "format": SCHEMA,
        "agrees": found.agrees,
        "reference": found.reference,
        "versions": dict(found.versions),
        "bounds_eps": dict(found.bounds),
        "pairs": pairs,
    }


def as_markdown(found: Comparison) -> str:
    """Verdict first, then a table for each model."""
    named = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    lines = [f"**{'All agree' if found.agrees else 'Not all agree'}** with `{found.reference}` ({named})."]
    for pair in found.pairs:
        lines += ["", f"### {pair.name}", ""]
        if pair.parted:
            lines += [f"They part first {pair.parted}.", ""]
        lines += [f"* {hint}" for hint in pair.hints] + [""] * bool(pair.hints)
        lines += ["| check | | distance | bound | |", "| --- | --- | ---: | ---: | --- |"]
        for check in pair.checks:
            far = "" if check.distance is None else f"{check.distance:.3g} eps"
            bound = "" if check.bound is None else f"{check.bound:g}"
            mark = "✓" if check.agrees else "**✗**"
            lines.append(f"| {check.check} {check.dtype} | {mark} | {far} | {bound} | {_cell(check.detail)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_junit(found: Comparison) -> str:
    """Each check a test case, each model a suite."""
    suites = ElementTree.Element("testsuites", name="multiparam compare")
    for pair in found.pairs:
        wrong = [check for check in pair.checks if not check.agrees]
        suite = ElementTree.SubElement(
            suites, "testsuite", name=pair.name, tests=str(len(pair.checks)), failures=str(len(wrong))
        )
        for check in pair.checks:
            case = ElementTree.SubElement(suite, "testcase", classname=pair.name, name=check.check)
            if not check.agrees:
                apart = None if check.distance is None else f"{check.distance:.3g} eps of {check.dtype}"
                far = "" if apart is None else f"{apart}, bound {check.bound:g}"
                text = "\n".join(filter(None, (check.detail, f"They part first {pair.parted}." if pair.parted else "")))
                ElementTree.SubElement(case, "failure", message=far or check.detail).text = text
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


WRITERS: Mapping[str, Callable[[Comparison], Any]] = {"json": as_json, "markdown": as_markdown, "junit": as_junit}
