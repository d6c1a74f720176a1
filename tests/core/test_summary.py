"""The summary of a model: what is in it, in text and in HTML."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

X = np.ones((2, 4), "float32")
BUFFERS = {"torch": (9, 72), "mxnet": (8, 64), "jax": (8, 64), "tensorflow": (8, 64)}  # PyTorch counts batches


def made(backend: str) -> mp.Model:
    shared = nn.Linear(4)
    layers = shared, nn.ReLU(), shared, nn.BatchNorm(), nn.Residual(nn.Linear(4)), nn.Linear(4), nn.Linear(2)
    net = mp.build(nn.Sequential(*layers), X, backend=backend)
    net.tie("5.weight", "4.body.weight")
    net.freeze("6.weight")
    return net


@pytest.mark.filterwarnings("ignore::multiparam.MultiparamWarning")
def test_each_layer_has_a_row_and_each_array_counts_once(backend: str) -> None:
    net = made(backend)
    buffers, memory = BUFFERS.get(backend, (8, 64))
    lines = str(net.summary(X)).splitlines()
    assert lines[0] == f"{backend} {type(net.native).__name__}"
    assert lines[1].split() == ["layer", "kind", "output", "parameters", "buffers", "trainable", "memory", "ties"]
    cells = [" ".join(line.split()) for line in lines[2:-1]]
    assert cells == [
        "0 linear (2, 4) 20 yes 80 bytes also 2",
        f"3 batchnorm (2, 4) 8 {buffers} yes {memory} bytes",
        "4.body linear (2, 4) 20 yes 80 bytes",
        "5 linear (2, 4) 4 yes 16 bytes weight is 4.body.weight",
        "6 linear (2, 2) 10 partly 40 bytes",
    ]
    total = 248 - 32 + memory
    numbers = "62 parameters, 54 trainable, 8 frozen"
    assert lines[-1] == f"5 layers, {numbers}, {buffers} in buffers; {total} bytes."
    assert sum(p.size for p in net) == 62


@pytest.mark.filterwarnings("ignore::multiparam.MultiparamWarning")
def test_nothing_is_run_without_inputs(backend: str) -> None:
    net = made(backend)
    text = str(net.summary())
    assert "output " not in text and text.endswith("net.summary(X) shows the shapes of outputs.")
    assert repr(net.summary()) == (
        f"<Summary of {backend} {type(net.native).__name__}: 5 layers, 62 parameters, 54 trainable, 8 frozen, "
        f"{BUFFERS.get(backend, (8, 64))[0]} in buffers>"
    )


def test_a_model_of_no_parameters() -> None:
    torch: Any = pytest.importorskip("torch")
    summary = mp.wrap(torch.nn.ReLU()).summary(X)
    assert str(summary) == "torch ReLU\nNo parameters." and "no parameters" in summary._repr_html_()


@pytest.mark.needs("torch")
def test_parameters_held_directly_transposed_ties_and_outputs_of_several_arrays() -> None:
    torch: Any = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3))
            self.a, self.b = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 4, bias=False)
            self.lstm = torch.nn.LSTM(4, 2)

        def forward(self, x: Any) -> Any:
            return self.lstm(self.b(self.a(x) * self.scale))

    net = mp.wrap(Net())
    net.tie("b.weight", "a.weight", transpose=True)
    rows = {row.name: row for row in net.summary(X).rows}
    assert (rows["(itself)"].count, rows["(itself)"].bytes) == (3, 12)
    assert (rows["b"].count, rows["b"].ties) == (0, "weight is a.weight transposed")
    assert rows["lstm"].output == "((2, 2), ((1, 2), (1, 2)))"
    assert rows["lstm"].count == sum(p.numel() for p in net.native.lstm.parameters())


@pytest.mark.needs("torch")
def test_shapes_that_are_not_known_yet_are_said_to_be_so() -> None:
    torch: Any = pytest.importorskip("torch")
    net = mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3)))
    net.native.append(torch.nn.LazyLinear(2))
    with pytest.warns(mp.MultiparamWarning, match="has changed"):
        lines = str(net.summary()).splitlines()
    assert lines[3].split() == ["1", "LazyLinear", "?", "?"] or lines[3].split() == ["1", "linear", "?", "?"]
    assert "15 parameters" in lines[-1] and "Not counted: '1', whose shapes are not known" in lines[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "2 layers, 23 parameters, all trainable; 92 bytes." in str(net.summary(X))


@pytest.mark.needs("torch")
def test_notebooks_get_tables_in_which_names_are_text() -> None:
    torch: Any = pytest.importorskip("torch")
    net = mp.wrap(torch.nn.ModuleDict({"<b>": torch.nn.Linear(4, 3)}))
    page = net._repr_html_()
    assert page.startswith("<table>") and "&lt;b&gt;" in page and "<b>" not in page
    assert repr(net) == "<Model torch ModuleDict: 2 parameters>" and repr(net[0]) == "<Group '<b>': 2 parameters>"
    assert repr(net.select("*.bias")) == "<Group: 1 parameters>"
    loaded = net.load_state_dict({f"more.{i}": X for i in range(9)}, strict=False)
    assert "missing=('<b>.weight', '<b>.bias')" in repr(loaded) and "<9 names: more.0, more.1, more.2, ...>" in repr(
        loaded
    )
    assert "&lt;b&gt;.weight, &lt;b&gt;.bias" in loaded._repr_html_() and "more.8" in loaded._repr_html_()
