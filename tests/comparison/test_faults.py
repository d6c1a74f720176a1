"""Mistakes of ports in models as they are published: each is found and placed, and several at once each are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")

from tests.support import foreign_models as foreign  # noqa: E402

pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread")]
TOKENS = np.random.default_rng(0).integers(0, foreign.WORDS, (2, foreign.TIME))
TOKENS[0, 0] = 3
IMAGES = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype("float32")


class Planted(NamedTuple):
    """Mistakes in a model, the places where they are in order, and parts of what is hinted."""

    model: str
    mistakes: str
    places: tuple[str, ...]
    hints: tuple[str, ...] = ()


EPS_1, EPS_2 = (f"at layer layer.1.norm{n}:" for n in (1, 2))
GELU = "between layers layer.1.intermediate and layer.1.output,"
ATTENTION = "between layers h.1.c_attn and h.1.c_proj,"
PLANTED = (
    Planted("Bert", "eps", (EPS_1, EPS_2), ("layer.1.norm1: eps is 1e-12 there, 1e-05 here",)),
    Planted("Bert", "gelu", (GELU,), ("after the layer there is exact gelu there, tanh's gelu here",)),
    Planted("Bert", "row", ("at layer words:",), ("words.weight",)),
    Planted(
        "Bert", "eps gelu row", ("at layer words:", EPS_1, GELU, EPS_2), ("tanh's gelu here", "eps is 1e-12 there")
    ),
    Planted("Vit", "q,k", ("between layers layers.1.v and layers.1.out,",)),
    Planted(
        "Vit",
        "q,k last",
        ("between layers layers.1.v and layers.1.out,", "between layers norm and head,"),
        ("norm is called there, not here",),
    ),
    Planted("Bart", "scale", ("between layers positions and norm,",)),
    Planted("Bart", "offset", ("between layers words and positions, whose inputs are other whole numbers",)),
    Planted("Bart", "scale offset", ("between layers words and positions,", "between layers positions and norm,")),
    Planted("Llama", "eps", ("at layer layers.1.input_norm:",)),
    Planted("Llama", "gate", ("between layers layers.1.up and layers.1.down,",)),
    Planted("Llama", "eps gate", ("at layer layers.1.input_norm:", "between layers layers.1.up and layers.1.down,")),
    Planted("Gpt", "heads", (ATTENTION,)),
    Planted("Gpt", "mask", (ATTENTION,)),
    Planted("Gpt", "heads gelu", (ATTENTION, "between layers h.1.c_fc and h.1.c_out,"), ("tanh's gelu there",)),
)
NAMES = {"q,k": "q and k", "last": "no last norm"}


def model(kind: str, mistakes: str = "") -> Any:
    names = [NAMES.get(each, each) for each in mistakes.split()]
    return foreign.spoiled(foreign.settled(getattr(foreign, kind)(names)), names)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.model} {planted.mistakes}")
def test_mistakes_in_published_models_are_each_found_and_placed(planted: Planted) -> None:
    inputs = IMAGES if planted.model == "Vit" else TOKENS
    found = mp.compare({"theirs": model(planted.model), "port": model(planted.model, planted.mistakes)}, inputs)
    assert not found.agrees
    pair = found.pairs[0]
    places = [str(fault) for fault in pair.faults]
    assert len(places) == len(planted.places), str(found)
    assert all(place.startswith(expected) for place, expected in zip(places, planted.places, strict=True)), str(found)
    assert pair.parted == places[0]
    for hint in planted.hints:
        assert hint in str(found)


@pytest.mark.parametrize("kind", ["Bert", "Vit", "Bart", "Llama", "Gpt"])
def test_equal_models_have_no_fault(kind: str) -> None:
    found = mp.compare({"theirs": model(kind), "port": model(kind)}, IMAGES if kind == "Vit" else TOKENS)
    assert found.agrees and not found.pairs[0].faults


def test_code_between_layers_is_named_by_its_lines() -> None:
    found = mp.compare({"theirs": model("Bert"), "port": model("Bert", "gelu")}, TOKENS)
    with open(foreign.__file__, encoding="utf-8") as file:
        line = next(i for i, text in enumerate(file, 1) if "F.gelu(self.intermediate(x)" in text)
    place = f"tests/support/foreign_models.py:{line}"
    assert found.pairs[0].faults[0].lines == [f"{place} here", f"{place} there"]


def test_pairs_that_agree_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    forward = foreign.Bert.forward

    def counting(self: Any, tokens: Any) -> Any:
        calls.append("")
        return forward(self, tokens)

    monkeypatch.setattr(foreign.Bert, "forward", counting)
    assert mp.compare({"theirs": model("Bert"), "port": model("Bert")}, TOKENS).agrees
    assert len(calls) <= 6  # in float64, in float32 and with a gradient, of two models
