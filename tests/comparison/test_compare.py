"""``mp.compare``: two hand-written implementations of one model agree; for what is said of mistakes see
``test_mistakes.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

import multiparam as mp
from multiparam import errors
from multiparam.cli.commands import app
from multiparam.comparison.reports.json import to_document
from multiparam.comparison.reports.junit import to_junit
from multiparam.comparison.reports.markdown import to_markdown

torch = pytest.importorskip("torch")
linen = pytest.importorskip("flax.linen")
keras = pytest.importorskip("keras")
pytestmark = [pytest.mark.needs("torch", "jax", "tensorflow"), pytest.mark.xdist_group("transfer")]

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 5))
IMAGES = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype("float32")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: Any, mask: Any) -> Any:
        y = self.n1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.down(torch.nn.functional.gelu(self.up(self.n2(x))))


class Language(torch.nn.Module):
    """A small transformer, as PyTorch users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.b0, self.b1 = Block(), Block()
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Any) -> Any:
        n = tokens.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        return self.head(self.norm(self.b1(self.b0(self.embed(tokens), mask), mask)))


def flax_language(mistake: str = "") -> Any:
    """The same as Flax users write it, with one mistake."""

    class FlaxBlock(linen.Module):
        mistake: str = ""

        def setup(self) -> None:
            self.n1 = linen.LayerNorm(epsilon=1e-6 if self.mistake == "eps" else 1e-5)
            self.n2 = linen.LayerNorm(epsilon=1e-5)
            self.attn = linen.MultiHeadDotProductAttention(4 if self.mistake == "heads" else 2)
            self.up, self.down = linen.Dense(16), linen.Dense(8)

        def __call__(self, x: Any) -> Any:
            y = self.n1(x)
            mask = None if self.mistake == "mask" else linen.make_causal_mask(np.ones(x.shape[:2]))
            x = x + self.attn(y, y, mask=mask)
            return x + self.down(linen.gelu(self.up(self.n2(x)), approximate=False))

    class FlaxLanguage(linen.Module):
        def setup(self) -> None:
            self.embed = linen.Embed(11, 8)
            self.b0, self.b1 = FlaxBlock(), FlaxBlock(mistake)
            self.norm, self.head = linen.LayerNorm(epsilon=1e-5), linen.Dense(11, use_bias=False)

        def __call__(self, tokens: Any) -> Any:
            return self.head(self.norm(self.b1(self.b0(self.embed(tokens)))))

    net = mp.wrap(FlaxLanguage(), TOKENS)
    net.tie("head.weight", "embed.weight")
    return net


def language() -> mp.Model:
    torch.manual_seed(0)
    return mp.wrap(Language())


def test_two_clean_implementations_agree() -> None:
    found = mp.compare({"torch": language(), "flax": flax_language()}, TOKENS, sync="torch", steps=3)
    assert found.agrees, str(found)
    by_name = {check.check: check for check in reversed(found.checks)}
    assert by_name["outputs"].dtype == "float64" and by_name["outputs"].distance < 64  # type: ignore[operator]
    assert by_name["13 layers on the way"].agrees and by_name["3 steps of sgd"].agrees
    assert str(found).startswith("flax agrees with torch")


@pytest.mark.parametrize("mistake, option", [("heads", "b1.attn: heads is 2 there, 4 here"), ("mask", "")])
def test_what_an_attention_does_otherwise_is_placed_at_its_layer(mistake: str, option: str) -> None:
    source, target = language(), flax_language(mistake)
    found = mp.compare({"torch": source, "flax": target}, TOKENS, sync="torch")
    options = next(check for check in found.checks if check.check == "options")
    assert not found.agrees and options.detail == option
    assert found.pairs[0].parted.startswith("at layer b1.attn: its inputs agree")
    assert found.pairs[0].hints == ([option] if option else [])
    assert target.dtype == "float32" and source.dtype == "float32"  # they were in float64 only for a while


@pytest.mark.parametrize(
    "change, hint",
    [
        (lambda a: a.reshape(3, 8, 8)[[1, 0, 2]].reshape(24, 8), "in another order: its parts [1, 0, 2]"),
        (lambda a: a + 1, ""),
    ],
    ids=["queries and keys swapped", "other values"],
)
def test_weights_that_differ_are_named(change: Any, hint: str) -> None:
    source, target = language(), flax_language()
    mp.transfer(source, target)
    target["b1.attn.in_proj_weight"].assign(change(source["b1.attn.in_proj_weight"].numpy()))
    found = mp.compare({"torch": source, "flax": target}, TOKENS)
    values = next(check for check in found.checks if check.check == "values")
    assert not values.agrees and values.detail == "b1.attn.in_proj_weight"
    assert hint in " ".join(found.pairs[0].hints)
    assert found.pairs[0].parted.startswith("at layer b1.attn")


def test_a_square_kernel_transposed_is_recognised() -> None:
    a, b = (mp.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4))) for _ in range(2))
    b["0.weight"].assign(a["0.weight"].numpy().T.copy())
    b["0.bias"].assign(a["0.bias"].numpy())
    found = mp.compare({"a": a, "b": b}, np.eye(4, dtype="float32"))
    assert "0.weight is the transpose of 0.weight" in found.pairs[0].hints


class Residual(torch.nn.Module):
    """A small residual network, as PyTorch users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.conv = torch.nn.Conv2d(4, 4, 3, 1, 1)
        self.out = torch.nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.stem(x)))
        return self.out((x + self.conv(x)).flatten(1))


def keras_residual() -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, 2, name="stem")(layers.ZeroPadding2D(1)(image))
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name="norm")(x))
    x = layers.Add()([x, layers.Conv2D(4, 3, padding="same", name="conv")(x)])
    return keras.Model(image, layers.Dense(5, name="out")(layers.Flatten()(x)))


def residual() -> mp.Model:
    torch.manual_seed(0)
    native = Residual()
    for _ in range(3):
        native(torch.randn(8, 3, 8, 8))
    return mp.wrap(native)


def test_a_residual_network_in_two_data_orders_agrees() -> None:
    objective = mp.losses.cross_entropy
    models = {"torch": residual(), "keras": keras_residual()}
    found = mp.compare(models, IMAGES, targets=np.array([1, 3]), objective=objective, sync="torch")
    wrong = [check for check in found.checks if not check.agrees]
    assert not wrong
    options = next(check for check in found.checks if check.check == "options")  # padding is a layer of its own there
    assert "it makes no difference that" in options.expected and "padding is (1, 1) there, (0, 0)" in options.expected
    assert next(check for check in found.checks if check.check == "outputs").dtype == "float64"


@pytest.mark.parametrize("sync", ["torch", None])
def test_a_port_that_permutes_before_it_flattens_agrees(sync: str | None) -> None:
    """Layers do not say so: a plan supposes that channels last are flattened last."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 5)
    ours = mp.wrap(torch.nn.Sequential(*layers))
    image = keras.Input((8, 8, 3))
    y = keras.layers.Permute((3, 1, 2))(keras.layers.Conv2D(4, 3)(image))
    theirs = mp.wrap(keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(y))))
    if sync is None:
        assert mp.transfer(ours, theirs, accept_guesses=True, verify=IMAGES).agrees
    found = mp.compare({"torch": ours, "keras": theirs}, IMAGES, sync=sync)
    assert found.agrees, str(found)


def test_a_model_that_casts_its_output_is_judged_in_its_own_dtype() -> None:
    class Cast(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x).float()

    torch.manual_seed(0)
    native = Cast(3, 2)
    plain = torch.nn.Linear(3, 2)
    plain.load_state_dict(native.state_dict())
    found = mp.compare({"cast": native, "plain": plain}, np.eye(3, dtype="float32"))
    assert found.agrees and {check.dtype for check in found.checks} == {"", "float32"}


def test_three_models_and_a_bound_of_ones_own() -> None:
    spec = mp.nn.Sequential(mp.nn.Linear(4), mp.nn.Tanh(), mp.nn.Linear(2))
    nets = {name: mp.build(spec, np.ones((1, 3)), backend=name, seed=1) for name in ("torch", "jax", "tensorflow")}
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    found = mp.compare(nets, x)
    assert found.agrees and [pair.name for pair in found.pairs] == ["jax", "tensorflow"]
    strict = mp.compare(nets, x, rtol_eps=1e-9)
    assert not strict.agrees and set(strict.bounds.values()) == {1e-9} and "bound 1e-09" in str(strict)


def test_comparing_leaves_the_models_as_they_were() -> None:
    source, target = language(), flax_language()
    mp.transfer(source, target)
    before = [net.state_dict() for net in (source, target)]
    mp.compare({"torch": source, "flax": target}, TOKENS, steps=2, optimizer="adam", lr=0.001)
    for net, state in zip((source, target), before, strict=True):
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_wrong_usage_is_said() -> None:
    with pytest.raises(errors.InvalidArgument, match="two models"):
        mp.compare({"torch": language()}, TOKENS)
    with pytest.raises(errors.InvalidArgument, match="sync='jx' names no model"):
        mp.compare({"torch": language(), "flax": flax_language()}, TOKENS, sync="jx")
    with pytest.raises(errors.InvalidArgument, match="does not run on these inputs"):
        mp.compare({"torch": language(), "flax": flax_language()}, TOKENS.astype("float32") + 0.5)


def test_the_written_forms_say_the_same() -> None:
    found = mp.compare({"torch": language(), "flax": flax_language("eps")}, TOKENS, sync="torch")
    data = json.loads(json.dumps(to_document(found)))
    assert data["format"] == "multiparam-comparison-1" and data["agrees"] is False
    assert data["pairs"][0]["parted"] == found.pairs[0].parted and len(data["pairs"][0]["layers"]) == 13
    text = to_markdown(found)
    assert text.startswith("**Not all agree** with `torch`") and found.pairs[0].parted in text
    suite = ElementTree.fromstring(to_junit(found))[0]
    wrong = [case.get("name") for case in suite if case.find("failure") is not None]
    assert suite.get("name") == "flax" and int(suite.get("failures", "0")) == len(wrong) and "outputs float64" in wrong


MODELS = """
import torch

def one():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))

def other():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3, eps=1e-3))
"""


BY_KEYWORD = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2, dtype=torch.float64)

class First(Net):
    def forward(self, features, *, scale):
        return scale * self.fc(features)

class Second(Net):
    def forward(self, scale, features):
        return scale * self.fc(features)
"""


@pytest.mark.needs("torch")
def test_the_command_line_passes_arrays_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that take the same arguments in another order: by position the first takes none of it."""
    monkeypatch.chdir(tmp_path)
    Path("by_keyword.py").write_text(BY_KEYWORD)
    scale, features = np.linspace(1, 4, 12).reshape(4, 3)[:, :1], np.random.default_rng(0).normal(size=(4, 3))
    np.savez("x.npz", scale=scale, features=features)
    np.savez("xy.npz", scale=scale, features=features, target=np.zeros((4, 2)))
    Path("agree.toml").write_text(
        'inputs = "xy.npz"\nkeywords = true\nobjective = "mse"\nsync = "a"\n'
        '[models]\na = "by_keyword.py:First"\nb = "by_keyword.py:Second"\n'
    )

    def said(*line: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(line))
        return done.exit_code, done.output

    pair = ("by_keyword.py:First", "by_keyword.py:Second")
    both = ("compare", *pair, "--sync", "First", "--inputs")
    code, text = said(*both, "x.npz", "--keywords")
    assert code == 0 and "agrees with" in text, text
    code, text = said(*both, "xy.npz", "--objective", "mse", "--keywords")
    assert code == 0, text
    assert said("compare", "agree.toml")[0] == 0
    assert said(*both, "x.npz")[0] == 3
    code, text = said("convert", *pair, "--verify", "x.npz", "--keywords")
    assert code == 0 and "the models agree" in text, text
    record = ("record", pair[0], "--inputs", "x.npz", "--output", "run.safetensors")
    assert said(*record)[0] == 3 and said(*record, "--keywords")[0] == 0
    code, text = said("inspect", pair[0], "--inputs", "x.npz", "--keywords")
    assert code == 0 and "fc.weight" in text
    for line in (("convert", *pair, "--dry-run"), ("inspect", pair[0]), ("compare", *pair), ("compare",)):
        assert said(*line, "--keywords")[0] == 2


def test_the_command_line_takes_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets_of_compare.py").write_text(MODELS)
    np.savez("x.npz", x=np.eye(4, dtype="float32"), y=np.zeros((4, 3), "float32"))
    run, given = CliRunner(), ["--inputs", "x.npz", "--objective", "mse"]
    both = ["compare", "a=nets_of_compare.py:one", "b=nets_of_compare.py:one", *given]
    good = run.invoke(app, [*both, "--json", "r.json", "--junit", "r.xml", "--markdown", "r.md"])
    assert good.exit_code == 0 and "b agrees with a" in good.output
    assert json.loads(Path("r.json").read_text())["agrees"] and Path("r.md").read_text().startswith("**All agree**")
    other = ["compare", "nets_of_compare.py:one", "nets_of_compare.py:other", *given]
    bad = run.invoke(app, [*other, "--sync", "one"])
    assert bad.exit_code == 1 and "at layer 1" in bad.output and "eps is 1e-05 there, 0.001 here" in bad.output
    for line, code, said in (
        (both[:3], 2, "on inputs"),
        (["compare", "--sync", "a"], 2, "models of yours"),
        ([*both[:3], "--inputs", "x.npz", "--objective", "mes"], 2, "No objective 'mes'"),
        (["compare", "nets_of_compare.py:one", "nets_of_compare.py:nothing", "--inputs", "x.npz"], 3, "'nothing'"),
    ):
        found = run.invoke(app, line)
        assert found.exit_code == code and said in found.output, found.output


def one_way(torch_first: bool) -> dict[str, Any]:
    """A GRU whose biases PyTorch keeps as two and Flax as one and a part."""
    torch.manual_seed(0)
    gru = mp.wrap(torch.nn.GRU(3, 4, batch_first=True))
    flax = mp.wrap(linen.RNN(linen.GRUCell(4)), np.ones((2, 5, 3), "float32"))
    both = {"torch": gru, "flax": flax}
    return both if torch_first else dict(reversed(both.items()))


@pytest.mark.parametrize("torch_first", [True, False])
def test_gradients_of_biases_that_are_summed_or_cut_are_matched_too(torch_first: bool) -> None:
    models = one_way(torch_first)
    reference = next(iter(models))
    sequence = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")

    def objective(net: mp.Model, x: Any) -> Any:
        y = net(x)
        y = y[0] if isinstance(y, tuple) else y  # PyTorch gives the last state too
        return (y**2).mean()

    mp.transfer(models[reference], next(net for name, net in models.items() if name != reference))
    found = mp.compare(models, sequence, objective=objective)
    gradients = next(check for check in found.checks if check.check == "gradients")
    assert gradients.agrees and gradients.distance < 1024, str(found)  # type: ignore[operator]
