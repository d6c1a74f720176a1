"""What the inputs of a comparison did not exercise is said: nobody knows whether it is right."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam.comparison.exercise import in_words, unexercised
from multiparam.comparison.reports.html.page import to_html
from multiparam.comparison.reports.json import to_document, to_json
from multiparam.comparison.reports.markdown import to_markdown

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch")]


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 2)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.embed(tokens))


def test_rows_that_no_token_looks_up() -> None:
    tokens = np.array([[0, 1, 1], [2, 0, 1]])
    found = mp.compare({"a": Words(), "b": Words()}, tokens)
    assert found.agrees and found.pairs[0].unexercised == {"embed.weight": 5 / 8}
    assert "These inputs did not exercise 62 % of embed.weight." in str(found)
    assert json.loads(to_json(found))["pairs"][0]["unexercised"] == {"embed.weight": 5 / 8}
    assert "did not exercise 62 % of embed.weight" in to_markdown(found)
    assert "62 % of <code>embed.weight</code>" in to_html(to_document(found))
    everything = mp.compare({"a": Words(), "b": Words()}, np.arange(8)[None])
    assert not everything.pairs[0].unexercised and "exercise" not in str(everything)


def test_units_that_a_relu_keeps_at_zero() -> None:
    layers = torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
    native = torch.nn.Sequential(*layers)
    with torch.no_grad():
        native[0].bias[:] = torch.tensor([-100.0, 100, 100, 100])
    found = mp.compare({"a": native, "b": native}, np.random.default_rng(0).normal(size=(5, 3)).astype("float32"))
    assert found.pairs[0].unexercised == {"0.bias": 0.25, "0.weight": 0.25, "2.weight": 0.25}


def test_shares() -> None:
    grads = {"a": np.array([0.0, 1, 2]), "b": np.ones(3), "c": np.zeros(3), "d": np.zeros(0), "e": np.eye(300)[:1]}
    assert unexercised(grads, {}) == {"c": 1.0, "e": pytest.approx(299 / 300), "a": pytest.approx(1 / 3)}
    assert unexercised({"w": np.array([[0.0, 1], [0, 0]])}, {"w": "embedding"}) == {"w": 0.5}
    assert unexercised({"w": np.array([[0.0, 1], [0, 0]])}, {}) == {"w": 0.75}
    assert in_words({}) == "" and in_words({str(i): 0.5 for i in range(6)}).endswith("50 % of 3 and of 2 more")
