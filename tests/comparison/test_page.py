"""A comparison's page: what it says of a document, read by a parser, and how it looks in a browser."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiparam.comparison.reports.html.layers import FLOOR, TOP, plots
from multiparam.comparison.reports.html.page import to_html
from multiparam.comparison.reports.html.text import option_text, readable, short, shortened

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SCHEMA = json.loads(resources.files("multiparam.comparison").joinpath("schemas/comparison.json").read_text("utf-8"))
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = """"><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;"""


# Documents


def check(what: str, distance: Any = None, *, network: str = "", dtype: str = "", **more: Any) -> dict[str, Any]:
    bound = None if distance is None else more.pop("bound", 1024)
    agrees = more.pop("agrees", distance is None or (distance != "inf" and distance <= bound))
    return {
        "network": network,
        "check": what,
        "agrees": agrees or bool(more.get("expected")),
        "dtype": dtype,
        "distance_eps": distance,
        "bound_eps": bound,
        "detail": "",
        "expected": "",
    } | more


def layer(name: str, inputs: Any, output: Any, *, first: bool = False, **more: Any) -> dict[str, Any]:
    dtype = {"network": "", "dtype": "float64", "bound_eps": 1024}
    return dtype | {"reference": name, "layer": name, "inputs_eps": inputs, "output_eps": output, "first": first} | more


def layers(count: int, part: int | None = None, **more: Any) -> list[dict[str, Any]]:
    """A chain whose distances grow slowly, and jump in the layer ``part``."""
    kinds = "n1", "attention", "n2", "up", "down"
    found, before = [], 0.0
    for i in range(count):
        after = 0.0 if i == 0 else 3 + 2 * math.sin(i) + i / 3
        if part is not None and i >= part:
            after = 8.5e9 * (1 + (i - part) / 5)
        found.append(layer(f"b{i // 5}.{kinds[i % 5]}", before, after, first=i == part, **more))
        before = after
    return found


def histogram(name: str, shift: int = 0, what: str = "value") -> dict[str, Any]:
    counts = [round(900 * math.exp(-(((i - 19.5) / 7) ** 2))) for i in range(40)]
    names = {"network": "", "parameter": name, "reference": name, "what": what, "low": -0.3, "high": 0.3}
    return names | {"reference_counts": counts, "counts": [counts[(i - shift) % 40] for i in range(40)]}


def pair(model: str, checks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    agrees = all(each["agrees"] for each in checks)
    empty: dict[str, Any] = {"parted": "", "hints": [], "layers": [], "histograms": []}
    return {"model": model, "agrees": agrees, "checks": checks} | empty | more


def document(*pairs: dict[str, Any], reference: str = "torch", **more: Any) -> dict[str, Any]:
    model = {"backend": "jax", "version": "0.7.1", "title": "jax FlaxLanguage", "parameters": 18432, "source": ""}
    models = {reference: model | {"backend": "torch", "version": "2.13.0", "title": "torch Language"}}
    packages = {"numpy": "1.26.4", "torch": "2.13.0", "jax": "0.7.1", "flax": "0.12.0"}
    return {
        "format": "multiparam-comparison-1",
        "multiparam": "0.1.0",
        "agrees": all(each["agrees"] for each in pairs),
        "reference": reference,
        "models": models | {each["model"]: model for each in pairs if each["model"] != reference},
        "environments": [
            {"name": "here", "python": "3.11.2", "platform": "Linux 6.1 x86_64", "packages": packages},
        ],
        "options": {
            "inputs": [{"shape": [2, 5], "dtype": "int64"}],
            "objective": "mean of squared outputs",
            "sync": "torch",
            "steps": 0,
            "optimizer": "sgd",
            "lr": 0.01,
            "seed": None,
        },
        "bounds_eps": {"output": 1024, "layer": 1024, "gradient": 16384, "training": 65536},
        "pairs": list(pairs),
    } | more


def held(outputs: Any = 12.4, gradients: Any = 31.5, count: int = 13) -> list[dict[str, Any]]:
    """The checks of one pair."""
    return [
        *(check(what) for what in ("structure", "options", "ties", "values")),
        check("outputs", outputs, dtype="float64"),
        check(f"{count} layers on the way", outputs, dtype="float64"),
        check("gradients", gradients, dtype="float32", bound=16384),
    ]


def agreeing() -> dict[str, Any]:
    return document(pair("flax", held(), layers=layers(13), histograms=[histogram("b0.up.weight")]))


def parted(count: int = 40, part: int = 5, model: str = "flax") -> dict[str, Any]:
    chain = layers(count, part)
    checks = held(6.03e11, 2.2e9, count)
    detail = f"{chain[part]['reference']}: eps is 1e-05 there, 1e-06 here"
    checks[1] |= {"agrees": False, "detail": detail}
    where = f"at layer {chain[part]['reference']}: its inputs agree (12 eps) and its output does not (8.5e+09 eps)"
    return pair(
        model,
        checks,
        parted=where,
        hints=[detail],
        layers=chain,
        histograms=[histogram(f"b{i}.up.weight", i % 3 == 1, what) for i in range(3) for what in ("value", "gradient")],
    )


def disagreeing(count: int = 40, part: int = 5) -> dict[str, Any]:
    return document(parted(count, part))


def two_pairs() -> dict[str, Any]:
    here = agreeing()["environments"][0]
    there = here | {"name": "run.safetensors", "platform": "Linux 5.15 aarch64"}
    there["packages"] = here["packages"] | {"numpy": "2.3.0", "tensorflow": "2.21.0"}
    found = document(
        parted(8, 3), pair("keras", held(), layers=layers(8), histograms=[histogram("b0.up.weight")]),
        environments=[here, there],
    )  # fmt: skip
    found["models"]["keras"] = found["models"]["keras"] | {"backend": "tensorflow", "source": "run.safetensors"}
    return found


ZOO = "mlp", "nested", "tied", "digits-mlp", "cnn"
REASON = "MXNet computes a batch's variance over n - 1 values in training and over n in inference."


def zoo() -> dict[str, Any]:
    """As of the built-in networks: the reference's float32 is held against its float64."""
    pairs = []
    for model in ("torch", "mxnet", "jax", "tensorflow"):
        checks, chain = [], []
        for network in ZOO:
            for what in ("structure", "ties", "initial values"):
                checks.append(check(what, network=network))
            if model != "torch":
                chain += layers(len(network), network=network)
            for dtype in ("float64", "float32"):
                if (model, dtype) != ("torch", "float64"):
                    for what, far, bound in (("output", 1.3, 32), ("gradients", 5.1, 256), ("sgd", 2.4, 1024),
                                             ("momentum", 14.2, 1024), ("adam", 138.4, 1024)):  # fmt: skip
                        checks.append(check(what, far * len(model) / 4, network=network, dtype=dtype, bound=bound))
                    if network == "cnn":
                        reason = REASON if model == "mxnet" else ""
                        far = 3.3e13 if reason else 1.8
                        checks.append(check("statistics", far, network=network, dtype=dtype, expected=reason))
        pairs.append(pair(model, checks, layers=chain))
    return document(*pairs, options={"models": list(ZOO), "steps": 10, "seed": 0})


def many_histograms() -> dict[str, Any]:
    many = [histogram(f"encoder.layers.{i}.weight", (i % 4 == 0) * (i % 9)) for i in range(150)]
    return document(pair("flax", held(), histograms=many))


def long_names() -> dict[str, Any]:
    name = "encoder." + "a_very_long_name_without_a_break" * 8 + ".q_proj"
    hebrew = "שכבה.משקל"
    chain = [layer(name, 0.5, 3.0), layer(hebrew, 3.0, 6e9, first=True, layer=f"{name}.x"), layer("", 6e9, 7e9)]
    checks = [*held(6e11), check("ties", agrees=False, detail=f"{name} and {hebrew} are tied here, not there; " * 9)]
    where = f"at layer {name} -> {name}.x: its inputs agree (3 eps) and its output does not (6e+09 eps)"
    more = {"parted": where, "hints": [f"{name}: eps"], "layers": chain, "histograms": [histogram(name, 3)]}
    return document(pair(f"flax {name}", checks, **more), reference=f"torch {hebrew}")


def without_numbers() -> dict[str, Any]:
    """Distances that are infinite, null and zero."""
    chain = [
        layer("embed", None, 0), layer("body", 0, None), layer("norm", 0, "inf", first=True),
        layer("head", "inf", "inf"), layer("out", None, None, bound_eps=None),
    ]  # fmt: skip
    checks = [*held("inf", None, 5)]
    return document(pair("flax", checks, parted="at layer norm: its inputs agree (0 eps)", layers=chain))


def hostile() -> dict[str, Any]:
    found = document(
        pair(HOSTILE, held("inf"), parted=f"at layer {HOSTILE}", hints=[HOSTILE],
             layers=[layer(HOSTILE, 0, "inf", first=True)], histograms=[histogram(HOSTILE, 2)]),
        reference=f"torch{HOSTILE}",
        options={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
    )  # fmt: skip
    found["pairs"][0]["checks"] += [check(HOSTILE, agrees=False, detail=HOSTILE), check("x", 9e9, expected=HOSTILE)]
    found["pairs"][0]["checks"][-1]["network"] = HOSTILE
    found["environments"].append({"name": HOSTILE, "python": HOSTILE, "platform": "", "packages": {HOSTILE: HOSTILE}})
    return found


def bare() -> dict[str, Any]:
    """As little as a document may hold, and a key of a later version."""
    found = document(pair("flax", []), options={}, bounds_eps={})
    return found | {"later": {"more": 1}}


DOCUMENTS = {
    "agreeing": agreeing,
    "disagreeing": disagreeing,
    "three layers": lambda: disagreeing(3, 1),
    "two hundred layers": lambda: disagreeing(200, 170),
    "two pairs": two_pairs,
    "zoo": zoo,
    "many histograms": many_histograms,
    "long names": long_names,
    "without numbers": without_numbers,
    "hostile": hostile,
    "bare": bare,
}


# A parser that is strict where browsers are not


class Element:
    def __init__(self, tag: str, attributes: dict[str, str], parent: Element | None) -> None:
        self.tag = tag
        self.attributes = attributes
        self.parent = parent
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(each if isinstance(each, str) else each.text for each in self.children)

    def walk(self) -> Iterator[Element]:
        yield self
        for each in self.children:
            if isinstance(each, Element):
                yield from each.walk()

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of a tag, with these attributes; ``class_`` is one of its classes."""
        wanted = attributes.pop("class_", None)
        return [
            each
            for each in self.walk()
            if each.tag == tag
            and (wanted is None or wanted in each.attributes.get("class", "").split())
            and attributes.items() <= each.attributes.items()
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    def within(self, tag: str) -> bool:
        return self.parent is not None and (self.parent.tag == tag or self.parent.within(tag))


class Reader(HTMLParser):
    """Builds a tree, and insists that every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute stands twice: {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def read(found: dict[str, Any]) -> Element:
    reader = Reader()
    reader.feed(to_html(found))
    reader.close()
    assert reader.at is reader.root, f"<{reader.at.tag}> is left open"
    return reader.root


@cache
def page_of(name: str) -> Element:
    return read(DOCUMENTS[name]())


def rows(page: Element) -> dict[str, list[str]]:
    """The table of checks: the first cell of each row and the others."""
    table = page.one("table", class_="checks")
    cells = [[" ".join(cell.text.split()) for cell in row.children if isinstance(cell, Element)]
             for row in table.all("tr")]  # fmt: skip
    return {first: others for first, *others in cells}


each_document = pytest.mark.parametrize("name", DOCUMENTS)


# The schema


@each_document
def test_documents_are_as_the_schema_says(name: str) -> None:
    text = json.dumps(DOCUMENTS[name](), allow_nan=False)
    jsonschema.validate(json.loads(text), SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] and all(part.get("description") for part in SCHEMA["properties"].values())
    objects = [part for part in (SCHEMA, *SCHEMA["$defs"].values()) if part.get("type") == "object"]
    assert len(objects) == 8
    assert all(part["additionalProperties"] is True and part["required"] for part in objects)


def without(*path: Any) -> dict[str, Any]:
    return changed(None, *path, drop=True)


def changed(value: Any, *path: Any, drop: bool = False) -> dict[str, Any]:
    found = disagreeing()
    part: Any = found
    for key in path[:-1]:
        part = part[key]
    if drop:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        without("reference"),
        without("pairs", 0, "layers"),
        without("pairs", 0, "checks", 0, "expected"),
        without("models", "flax", "source"),
        changed("multiparam-comparison-2", "format"),
        changed("yes", "agrees"),
        changed("infinite", "pairs", 0, "checks", 4, "distance_eps"),
        changed(-1.0, "pairs", 0, "layers", 0, "output_eps"),
        changed("weights", "pairs", 0, "histograms", 0, "what"),
        changed([-1], "pairs", 0, "histograms", 0, "counts"),
        changed([], "environments"),
    ],
)
def test_the_schema_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


# What the page says


@each_document
def test_a_page_is_whole(name: str) -> None:
    """Every element is closed, every id is there once, and every reference leads to one."""
    page = page_of(name)
    ids = [each.attributes["id"] for each in page.walk() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for each in page.walk():
        for key in ("href", "aria-labelledby"):
            if key in each.attributes:
                assert each.attributes[key].removeprefix("#") in ids
    assert page.one("html").attributes["lang"] == "en"
    assert page.one("h1").text == page.one("head").one("title").text


@each_document
def test_a_page_loads_and_runs_nothing(name: str) -> None:
    text = to_html(DOCUMENTS[name]())
    assert not re.search(r"https?:|url\(|@import", text)
    page = page_of(name)
    assert not [each for each in page.walk() if each.tag in ("script", "img", "link", "iframe", "object", "base")]
    assert not [key for each in page.walk() for key in each.attributes if key in ("src", "srcset") or key[:2] == "on"]
    assert all(each.attributes["href"].startswith("#") for each in page.walk() if "href" in each.attributes)
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


@each_document
def test_plots_and_tables_can_be_read_without_seeing(name: str) -> None:
    page = page_of(name)
    for plot in page.all("svg"):
        assert plot.attributes["role"] == "img" and len(plot.attributes["aria-label"]) > 20
    for table in page.all("table"):
        assert table.all("th") and all(head.attributes["scope"] for head in table.all("th"))
        assert table.all("th", scope="col")
        assert all(row.all("th") for row in table.all("tr") if "detail" not in row.attributes.get("class", ""))
    for sign in page.all("span", class_="sign"):
        assert sign.attributes["aria-hidden"] == "true"
    marks = [re.findall(r"\w+", cell.text) for cell in page.one("main").all("span", class_="cell")]
    assert all({"agrees", "apart"} & set(words) for words in marks)


def test_a_document_is_left_as_it_was() -> None:
    found = hostile()
    to_html(found)
    assert found == hostile()


def test_the_page_imports_no_framework() -> None:
    heavy = {"torch", "jax", "tensorflow", "mxnet", "matplotlib"}
    code = f"import sys, multiparam.comparison.reports.html.page; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# The verdict


def apart(what: str, network: str = "") -> list[dict[str, Any]]:
    return [check("structure"), check(what, network=network, agrees=False)]


LAYER = "at layer b1.n1: its inputs agree (12 eps) and its output does not (8.5e+09 eps)"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (agreeing(), "They agree"),
        (zoo(), "They agree"),
        (disagreeing(), "They do not agree: flax parts from torch at layer b1.n1"),
        (two_pairs(), "They do not agree: flax parts from torch at layer b0.up"),
        (
            document(pair("flax", apart("outputs"), parted="between layers a and b, whose inputs are 3e+04 eps apart")),
            "They do not agree: flax parts from torch between layers a and b",
        ),
        (
            document(pair("flax", apart("outputs"), parted="after layer b, whose output agrees")),
            "They do not agree: flax parts from torch after layer b",
        ),
        (
            document(pair("flax", apart("outputs"), parted="somewhere")),
            "They do not agree: flax parts from torch somewhere",
        ),
        (document(pair("flax", apart("values"))), "They do not agree: flax differs from torch in values"),
        (
            document(pair("flax", apart("adam", "cnn") + apart("sgd", "cnn") + apart("sgd", "mlp"))),
            "They do not agree: flax differs from torch in cnn and mlp",
        ),
        (
            document(pair("torch", apart("adam", "cnn"))),
            "They do not agree: torch differs from its own reference run in cnn",
        ),
        (
            document(*(pair(name, apart("values")) for name in ("a", "b", "c", "d", "e"))),
            "They do not agree: a, b, c and 2 more differ from torch",
        ),
        (
            document(pair("a", apart("values"), parted=LAYER), pair("b", apart("values")), pair("c", held())),
            "They do not agree: a and b differ from torch",
        ),
    ],
)
def test_the_verdict_is_a_sentence(found: dict[str, Any], says: str) -> None:
    page = read(found)
    assert page.one("h1").text == says


def lines(found: dict[str, Any]) -> list[str]:
    """What is said below the verdict."""
    said = read(found).one("div", class_="more")
    return [" ".join(each.text.split()) for each in said.walk() if each.tag in ("li", "p")]


def test_below_the_verdict_is_why() -> None:
    assert lines(agreeing()) == ["flax agrees with torch: 7 checks hold."]
    assert lines(disagreeing()) == [
        "Its inputs agree (12 eps) and its output does not (8.5e+09 eps). "
        "4 of 7 checks fail: options, outputs f64, 40 layers on the way f64 and gradients f32."
    ]
    assert lines(document(pair("flax", apart("values")))) == ["1 of 2 checks fails: values."]


def test_each_of_several_models_has_its_line() -> None:
    assert lines(zoo()) == [
        "✓ torch agrees with its own reference run. 41 checks hold.",
        "✓ mxnet agrees with torch. 67 checks hold; 2 differences are expected.",
        "✓ jax agrees with torch. 67 checks hold.",
        "✓ tensorflow agrees with torch. 67 checks hold.",
    ]
    flax, keras = lines(two_pairs())
    assert flax.startswith("✗ flax parts from torch at layer b0.up. Its inputs agree")
    assert keras == "✓ keras agrees with torch. 7 checks hold."


def test_hints_come_next_and_name_the_models() -> None:
    page = page_of("disagreeing")
    assert [each.attributes["aria-labelledby"] for each in page.all("section")] == [
        "hints", "checks", "layers", "histograms", "models", "options", "environment",
    ]  # fmt: skip
    assert page.one("ul", class_="hints").text.strip() == "flax b1.n1: eps is 1e-05 there, 1e-06 here"
    assert "“There” is torch, the reference; “here” is the model that a line begins with." in page.text
    assert page_of("two pairs").one("ul", class_="hints").text.split()[0] == "flax"
    assert not page_of("agreeing").all("ul", class_="hints")


def test_all_places_where_they_part_are_shown_with_one_sort_of_arrow() -> None:
    faults = [
        {"where": "at layer a -> a_1: its inputs agree", "at_layer": True, "lines": [], "hints": []},
        {"where": "between layers b and c", "at_layer": False, "lines": ["net.py:3-4 here"], "hints": []},
    ]
    several = document(pair("flax", held("inf"), parted=faults[0]["where"], faults=faults))
    page = read(several)
    section = next(each for each in page.all("section") if each.attributes["aria-labelledby"] == "places")
    items = [each.text.strip() for each in section.all("li")]
    assert items == ["flax at layer a → a_1: its inputs agree", "flax between layers b and c (net.py:3-4 here)"]
    assert " -> " not in page.text
    one = document(pair("flax", held("inf"), parted="at layer a", faults=faults[:1]))
    assert "Where they part" not in to_html(one)


# The table of checks


def test_a_row_for_each_check_and_a_column_for_each_model() -> None:
    found = rows(page_of("two pairs"))
    assert found["check"] == ["flaxjax 0.7.1", "kerastensorflow 0.7.1", "bound"]
    assert found["structure"] == ["✓ agrees", "✓ agrees", ""]
    assert found["outputs f64"] == ["6e11 ✗ apart", "12 ✓ agrees", "1024"]
    assert found["gradients f32"] == ["2.2e9 ✗ apart", "32 ✓ agrees", "16384"]
    assert found["8 layers on the way f64"] == ["6e11 ✗ apart", "\N{EN DASH}not checked", "1024"]


def test_a_check_that_only_a_later_model_has_stands_where_that_has_it() -> None:
    order = list(rows(page_of("two pairs")))
    assert order.index("13 layers on the way f64") == order.index("outputs f64") + 1


def test_the_reference_has_a_column_where_it_is_held_against_itself() -> None:
    found = rows(page_of("zoo"))
    assert [name for name in found if found[name] == []] == list(ZOO)
    assert found["check"][0] == "torch2.13.0"
    assert found["sgd f64"][0] == "ref." and found["sgd f32"][0] == "3 ✓ agrees"
    assert len(rows(page_of("agreeing"))["check"]) == 2


def test_dtypes_of_a_check_are_next_to_each_other() -> None:
    order = [name for name in rows(page_of("zoo")) if name.startswith(("output", "adam"))]
    assert order == ["output f64", "output f32", "adam f64", "adam f32"]


def test_a_failing_row_is_followed_by_what_was_found() -> None:
    table = page_of("disagreeing").one("table", class_="checks")
    (detail,) = table.all("tr", class_="detail")
    assert detail.text.strip() == "b1.n1: eps is 1e-05 there, 1e-06 here"
    around = [each for each in detail.parent.children if isinstance(each, Element)] if detail.parent else []
    before = around[around.index(detail) - 1]
    assert "apart" in before.attributes["class"].split() and before.text.startswith("options")
    (detail,) = page_of("two pairs").all("tr", class_="detail")
    assert detail.text.strip().startswith("flax: ")


def test_a_long_detail_is_folded() -> None:
    text = "a and b are tied here, not there; " * 40
    (detail,) = read(document(pair("flax", [check("ties", agrees=False, detail=text)]))).all("tr", class_="detail")
    folded = detail.one("details")
    assert len(folded.one("summary").text) < 220 and text in folded.text


def test_an_expected_difference_leads_to_its_reason_which_is_told_once() -> None:
    page = page_of("zoo")
    assert rows(page)["statistics f64"][1] == "3.3e13 ✓ agrees, difference expected, reason 1"
    (reason,) = page.one("ol", class_="reasons").all("li")
    assert reason.attributes["id"] == "reason-1" and reason.text == REASON
    assert {link.attributes["href"] for link in page.all("a")} == {"#reason-1"}


def test_two_checks_of_one_name_are_both_shown() -> None:
    found = document(pair("flax", [check("ties"), check("ties", agrees=False)]))
    assert rows(read(found))["ties"][0] == "✓ agrees ✗ apart"


def test_infinite_distances_and_none() -> None:
    page = page_of("without numbers")
    assert rows(page)["outputs f64"] == ["∞ ✗ apart", "1024"]
    assert rows(page)["gradients f32"] == ["✓ agrees", ""]
    titles = [each.text for each in page.one("section", **{"aria-labelledby": "layers"}).all("title")]
    assert titles[0] == "1. embed f64: inputs not compared, output 0 eps, bound 1024"
    assert titles[2] == "3. norm f64: inputs 0 eps, output infinitely far, bound 1024"


# The plot of layers


@pytest.mark.parametrize("count", [1, 3, 40, 200])
def test_the_first_layer_apart_is_marked_and_named(count: int) -> None:
    part = count * 2 // 3
    name = f"b{part // 5}.{('n1', 'attention', 'n2', 'up', 'down')[part % 5]}"
    plot = read(disagreeing(count, part)).one("figure", class_="layers")
    assert f"First apart at layer {name}, number {part + 1} of {count}: " in plot.one("figcaption").text
    assert plot.one("svg").attributes["aria-label"] == plot.one("figcaption").one("p").text
    assert plot.one("text", class_="first-text").text == f"first apart: {name}"
    x = float(plot.one("line", class_="first").attributes["x1"].removesuffix("%"))
    assert x == pytest.approx(100 * (part + 0.5) / count, abs=0.01)
    marks = [float(mark.attributes["x"].removesuffix("%")) for mark in plot.all("rect", class_="of-apart")]
    assert min(marks) == x and len(marks) == count - part
    (row,) = [row for row in plot.one("table").all("tr") if "first apart" in row.text]
    assert row.one("th").text.startswith(name)


def test_a_plot_in_which_all_agree_marks_nothing() -> None:
    plot = page_of("agreeing").one("figure", class_="layers")
    assert not plot.all("line", class_="first") and not plot.all("rect", class_="of-apart")
    assert "all within the bound. The largest distance is 7.6 eps." in plot.one("figcaption").text


def test_every_layer_has_its_numbers_in_words() -> None:
    plot = page_of("disagreeing").one("figure", class_="layers")
    assert len(plot.all("title")) == 40 and len(plot.one("tbody").all("tr")) == 40
    assert plot.all("title")[5].text.startswith("6. b1.n1 f64: inputs 2.81973 eps, output 8.5e+09 eps")
    assert len(plot.one("g", class_="names").all("text")) == 40


def test_a_plot_for_each_network_and_model() -> None:
    found = agreeing()
    found["pairs"][0]["layers"] = layers(3, network="mlp") + layers(4, network="cnn")
    drawn = read(found).all("figure", class_="layers")
    assert [plot.one("h3").text for plot in drawn] == ["flax, mlp", "flax, cnn"]
    assert [len(plot.all("title")) for plot in drawn] == [3, 4]


def test_of_many_plots_only_those_that_show_something_are_open() -> None:
    chains = [each for network in ZOO for each in layers(3, 1 if network == "tied" else None, network=network)]
    section = read(document(pair("flax", held(), layers=chains))).one("section", **{"aria-labelledby": "layers"})
    shown = [each for each in section.all("figure", class_="layers") if each.parent is section]
    assert [plot.one("h3").text for plot in shown] == ["flax, tied"]
    (folded,) = [each for each in section.all("details") if each.parent is section]
    assert folded.all("summary")[0].text == "4 more, in which all layers are within the bound"
    assert len(folded.all("svg")) == 4 and "open" not in folded.attributes


def test_both_names_of_a_layer_are_given_where_they_differ() -> None:
    chain = [layer("fc1", 0, 1, layer="dense_0"), layer("", 1, 2)]
    titles = read(document(pair("flax", held(), layers=chain))).one("svg").all("title")
    assert [title.text.partition(" f64")[0] for title in titles] == ["1. fc1 → dense_0", "2. the model"]


FAR = st.none() | st.just("inf") | st.floats(0, allow_infinity=False) | st.sampled_from([0, 5e-324, 1.7e308, 1024.0])
CHAINS = st.lists(st.tuples(FAR, FAR, FAR), min_size=1, max_size=70)


@settings(max_examples=60, deadline=None)
@given(chain=CHAINS)
def test_whatever_the_distances_all_that_is_drawn_lies_in_the_plot(chain: list[tuple[Any, Any, Any]]) -> None:
    made = [layer(f"l{i}", a, b, bound_eps=bound) for i, (a, b, bound) in enumerate(chain)]
    (plot,) = plots(pair("flax", [], layers=made), "torch")
    for point in plot.points:
        assert 0 <= point.left < point.x < point.left + plot.width <= 100.01
        for y in (point.inputs, point.output, point.bound):
            assert y is None or TOP - 1 <= y <= FLOOR
    assert 2 <= len(plot.ticks) <= 9 and all(TOP - 1 <= y <= FLOOR for y, _ in plot.ticks)
    assert 1 <= len(plot.numbers) <= 9
    drawn = [(eps, y) for layer, point in zip(made, plot.points, strict=True)
             for eps, y in ((layer["inputs_eps"], point.inputs), (layer["output_eps"], point.output))
             if eps is not None and y is not None]  # fmt: skip
    heights = [y for _, y in sorted(drawn, key=lambda each: float(each[0]))]
    assert heights == sorted(heights, reverse=True), "what is farther apart is drawn higher"


# Histograms


def test_histograms_that_differ_come_first_and_are_open() -> None:
    differing, same = page_of("many histograms").one("section", **{"aria-labelledby": "histograms"}).all("details")
    assert "open" in differing.attributes and "open" not in same.attributes
    assert differing.one("summary").text == "33 differ" and len(differing.all("svg")) == 33
    assert same.one("summary").text == "117 are the same" and len(same.all("svg")) == 117


def test_a_histogram_says_how_many_numbers_lie_elsewhere() -> None:
    one = histogram("w") | {"low": -1.25, "high": 1e-3, "reference_counts": [0, 4, 2], "counts": [1, 3, 2]}
    figure = read(document(pair("flax", held(), histograms=[one]))).one("figure", class_="histogram")
    assert figure.one("p").text == "1 of 6 numbers in another bin"
    label = "Histogram of the value of w from -1.25 to 0.001: 1 of 6 numbers in another bin."
    assert figure.one("svg").attributes["aria-label"] == label
    assert figure.one("svg").attributes["viewbox"] == "0 0 3 30"
    assert figure.one("path", class_="reference").attributes["d"] == "M0,30H1V0H2V15H3V30Z"
    assert figure.one("path", class_="other").attributes["d"] == "M0,30V22.5H1V7.5H2V15H3V30Z"


@pytest.mark.parametrize("counts", [([], []), ([0, 0], [0, 0]), ([3], [1]), ([10**9, 1], [10**9, 0])])
def test_odd_histograms_are_drawn_too(counts: tuple[list[int], list[int]]) -> None:
    one = histogram("w") | {"low": 0.0, "high": 0.0, "reference_counts": counts[0], "counts": counts[1]}
    figure = read(document(pair("flax", held(), histograms=[one]))).one("figure", class_="histogram")
    heights = re.findall(r"V([\d.]+)", figure.one("path", class_="reference").attributes["d"])
    assert all(0 <= float(height) <= 30 for height in heights)
    assert ("another bin" in figure.text) == (counts[0] != counts[1])


# Environment


def test_what_differs_between_environments_is_marked() -> None:
    table = page_of("two pairs").one("section", **{"aria-labelledby": "environment"}).one("table")
    heads = [row.one("th", scope="row").text for row in table.one("tbody").all("tr")]
    assert [head.split()[0] for head in heads if "differs" in head] == ["platform", "numpy", "tensorflow"]


def test_options_are_written_as_people_do() -> None:
    terms = page_of("disagreeing").one("dl")
    said = dict(zip([each.text for each in terms.all("dt")], [each.text for each in terms.all("dd")], strict=True))
    assert said["inputs"] == "(2, 5) of int64" and said["seed"] == "none" and said["lr"] == "0.01"
    assert said["bounds, in eps"] == "output 1024, layer 1024, gradient 16384, training 65536"
    assert option_text({"shape": 3, "dtype": "int64"}) == '{"shape": 3, "dtype": "int64"}'


# Names that mean harm


def test_names_are_text_wherever_they_stand() -> None:
    page = page_of("hostile")
    assert not page.all("script") and not page.all("img")
    assert "><script>" in page.one("h1").text and "{{ 7 * 7 }}&amp;" in page.one("h1").text
    for section in ("hints", "checks", "layers", "histograms", "models", "options", "environment"):
        assert HOSTILE in page.one("section", **{"aria-labelledby": section}).text, section


def test_marks_that_turn_or_hide_text_are_shown() -> None:
    found = document(pair("fl\u202eax\x00\x1b", apart("values")))
    assert read(found).one("h1").text == r"They do not agree: fl\u202eax\u0000\u001b differs from torch in values"
    to_html(document(pair("\ud800", apart("values")))).encode()


def test_text_from_right_to_left_stays_by_itself() -> None:
    assert readable("שכבה.1") == "\u2068שכבה.1\u2069"
    assert shortened(readable("שכבה" * 20), 9) == "\u2068שכבה…שכבה\u2069"
    assert readable("naïve 層") == "naïve 層"


@pytest.mark.parametrize("eps", [0, 1e-320, 9.96, 99999.6, 1e5, 1.7e308, float("nan")])
def test_distances_are_short(eps: float) -> None:
    assert len(short(eps)) <= 8


# In a browser

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = "light", "dark"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
in_browser = pytest.mark.xdist_group("browser")
each_size = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium; without one the tests are skipped, but not where they are the point."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "no Chromium or no chromedriver on this machine: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield started
    started.quit()


@pytest.fixture(scope="session")
def look(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Chrome]:
    """Opens a document's page, with everything unfolded, at a size and in a colour scheme."""
    folder = tmp_path_factory.mktemp("pages")

    def opened(found: dict[str, Any], size: str = "desktop", scheme: str = "light") -> Chrome:
        path = folder / "page.html"
        path.write_text(to_html(found), "utf-8")
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(path.as_uri())
        browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
        return browser

    return opened


def boxes(page: Chrome, *selectors: str) -> list[dict[str, float]]:
    """Where the first of what each selector names is, from the upper left of what one sees."""
    script = "return [...arguments].map(each => document.querySelector(each).getBoundingClientRect().toJSON())"
    found: list[dict[str, float]] = page.execute_script(script, *selectors)
    return found


LOOK = """
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode() && !texts.currentNode.textContent.trim());
const all = selector => [...document.querySelectorAll(selector)], root = document.documentElement;
const over = each => each.getBoundingClientRect().right > innerWidth + 0.5 && !each.closest('.wide, .heard');
const verdict = document.querySelector('h1');
return {
  width: innerWidth,
  scrolls: root.scrollWidth > innerWidth,
  over: all('main *').filter(over).map(each => each.outerHTML.slice(0, 200)),
  first: texts.currentNode.parentElement.closest('header')?.classList[0],
  verdict: verdict.checkVisibility() && verdict.getBoundingClientRect().toJSON(),
  size: parseFloat(getComputedStyle(verdict).fontSize),
  unnamed: all('svg').filter(each => each.role != 'img' || !each.ariaLabel).length,
  loaded: performance.getEntriesByType('resource').map(each => each.name),
  scripts: document.scripts.length,
};
"""


@in_browser
@each_size
@each_document
def test_a_page_fits_its_window_and_the_verdict_is_seen_first(
    name: str, size: str, look: Callable[..., Chrome]
) -> None:
    page = look(DOCUMENTS[name](), size)
    seen = page.execute_script(LOOK)
    width, height = SIZES[size]
    assert seen["width"] == width and not seen["scrolls"] and seen["over"] == []
    assert seen["first"] == "verdict" and seen["size"] > 20
    assert seen["verdict"]["top"] >= 0 and seen["verdict"]["bottom"] <= height
    assert seen["unnamed"] == seen["scripts"] == 0 and seen["loaded"] == []
    assert page.get_log("browser") == []


@in_browser
@each_size
@pytest.mark.parametrize(("count", "part"), [(1, 0), (40, 0), (40, 13), (40, 26), (200, 199)])
def test_the_mark_of_the_first_layer_is_seen(count: int, part: int, size: str, look: Callable[..., Chrome]) -> None:
    found = disagreeing(count, part)
    found["pairs"][0]["layers"][part]["reference"] = "encoder.layers.11.attention.W"
    page = look(found, size)
    plot, line, text, mark = boxes(page, ".plot svg", ".plot line.first", ".plot .first-text", ".plot rect.of-apart")
    assert plot["left"] <= line["left"] <= plot["right"] and line["height"] > 150
    assert text["left"] >= 0 and text["right"] <= SIZES[size][0] and text["width"] > 100
    assert text["height"] > 10, "text keeps its size however many layers there are"
    assert abs((mark["left"] + mark["right"]) / 2 - line["left"]) < 1.5 and mark["width"] > 3
    assert plot["top"] < mark["top"] < plot["bottom"]
    shown = "return getComputedStyle(document.querySelector('.plot line.first')).visibility"
    assert page.execute_script(shown) == "visible"


# The contrast of each piece of text with what is behind it: (ratio, text), of those that are seen.
CONTRAST = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const behind = node => {
  for (; node; node = node.parentElement) {
    const color = numbers(getComputedStyle(node).backgroundColor);
    if (color.length < 4 || color[3] == 1) return color;
  }
  return [255, 255, 255];
};
const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const node = texts.currentNode.parentElement, style = getComputedStyle(node);
  if (!texts.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('title')) continue;
  const ink = numbers(node.closest('svg') ? style.fill : style.color), [a, b] = [light(ink), light(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, node.outerHTML.slice(0, 120)]);
}
return found;
"""


@in_browser
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["disagreeing", "two pairs", "zoo", "hostile"])
def test_text_stands_out_in_light_and_dark(name: str, scheme: str, look: Callable[..., Chrome]) -> None:
    found = look(DOCUMENTS[name](), "desktop", scheme).execute_script(CONTRAST)
    assert len(found) > 15
    assert [each for each in found if each[0] < 4.5] == []


@in_browser
def test_the_dark_page_is_dark(look: Callable[..., Chrome]) -> None:
    color = "return getComputedStyle(document.body).backgroundColor"
    light, dark = (look(agreeing(), "desktop", scheme).execute_script(color) for scheme in SCHEMES)
    assert light == "rgb(255, 255, 255)" and dark == "rgb(21, 24, 28)"


@in_browser
def test_a_wide_table_scrolls_by_itself_and_keeps_its_rows_names(look: Callable[..., Chrome]) -> None:
    found = document(*(pair(f"a model with a name {i}", held()) for i in range(9)))
    page = look(found, "phone")
    table = page.find_element("css selector", ".wide:has(.checks)")
    assert page.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth + 100", table)
    page.execute_script("arguments[0].scrollLeft = 200", table)
    head, around = boxes(page, ".checks tbody th", ".wide")
    assert head["left"] == pytest.approx(around["left"], abs=1)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@in_browser
def test_a_printed_page_is_white_and_whole(look: Callable[..., Chrome]) -> None:
    page = look(two_pairs(), "desktop", "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
