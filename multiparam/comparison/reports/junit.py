"""A comparison as JUnit's XML, which CI services read."""

from __future__ import annotations

from xml.etree import ElementTree

from ..results import Comparison


def to_junit(comparison: Comparison) -> str:
    """Each check a test case, each model a suite."""
    suites = ElementTree.Element("testsuites", name="multiparam compare")
    for pair in comparison.pairs:
        wrong = [check for check in pair.checks if not check.agrees]
        suite = ElementTree.SubElement(
            suites, "testsuite", name=pair.name, tests=str(len(pair.checks)), failures=str(len(wrong))
        )
        for check in pair.checks:
            name = " ".join(filter(None, (check.network, check.check, check.dtype)))
            case = ElementTree.SubElement(suite, "testcase", classname=pair.name, name=name)
            if not check.agrees:
                eps = "" if check.distance is None else f"{check.distance:.3g} eps of {check.dtype}"
                message = f"{eps}, bound {check.bound:g}" if eps else check.detail
                text = "\n".join(filter(None, (check.detail, f"They part first {pair.parted}." if pair.parted else "")))
                ElementTree.SubElement(case, "failure", message=message).text = text
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)
