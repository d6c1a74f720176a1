"""Tie: one storage under several names, whose gradients add up; untie gives each its own again."""

from __future__ import annotations

import numpy as np
import pytest

import multiparam as mp
from multiparam import nn

from .networks import X, Y, arrays, assert_close, deep, deep_spec, feature, state_of
from .reference import forward, gradients


def test_a_tie_is_one_storage_seen_through_both_names(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    assert net.ties() == [("2.weight", "4.weight")]
    assert net["4.weight"] is net["2.weight"]
    assert len(net.parameters()) == 7
    net["4.weight"][0, 0] = 100
    assert net["2.weight"].numpy()[0, 0] == 100


def test_a_tied_network_computes_with_the_shared_values(backend: str) -> None:
    net = deep(backend)
    net(X)
    net.tie("4.weight", "2.weight")
    net.tie("4.bias", "2.bias")
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    np.testing.assert_array_equal(state["4.weight"], state["2.weight"])
    assert_close(mp.to_numpy(net(X)), forward(deep_spec(), state, X))


@pytest.mark.parametrize("how", ["shared layer", "tied afterwards", "tied after a step"])
def test_tied_gradients_are_the_sum_over_all_uses(backend: str, how: str) -> None:
    net = deep(backend, shared=how == "shared layer")
    step = net.value_and_grad(mp.losses.mse)
    if how == "tied after a step":
        step(X, Y)
    if how != "shared layer":
        for leaf in ("weight", "bias"):
            net.tie(f"4.{leaf}", f"2.{leaf}")
    truth = gradients(deep_spec(), state_of(net), X, Y)
    _, grads = step(X, Y)
    assert list(grads) == ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]
    for leaf in ("weight", "bias"):
        assert_close(grads[f"2.{leaf}"], truth[f"2.{leaf}"] + truth[f"4.{leaf}"])
        assert_close(net[f"4.{leaf}"].grad, truth[f"2.{leaf}"] + truth[f"4.{leaf}"])
        for layer in (0, 6):
            assert_close(grads[f"{layer}.{leaf}"], truth[f"{layer}.{leaf}"])


def test_tied_gradients_are_those_of_an_untied_twin_added_up(backend: str) -> None:
    net, twin = deep(backend, shared=True), deep(backend)
    for name, p in net.parameters(aliases=True).items():
        twin[name].assign(p.numpy())
    _, grads = net.value_and_grad(mp.losses.mse)(X, Y)
    _, untied = twin.value_and_grad(mp.losses.mse)(X, Y)
    apart = arrays(untied)
    for leaf in ("weight", "bias"):
        assert_close(grads[f"2.{leaf}"], apart[f"2.{leaf}"] + apart[f"4.{leaf}"])


def test_a_tie_survives_training_and_a_second_tie(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    for _ in range(2):
        step(X, Y)
        opt.step()
    net.tie("4.bias", "2.bias")
    step(X, Y)
    opt.step()
    assert net.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert_close(mp.to_numpy(net(X)), forward(deep_spec(), state, X))


def test_a_chain_of_ties_is_one_group(backend: str) -> None:
    square = nn.Sequential(nn.Linear(4), nn.Linear(4), nn.Linear(4))
    net = mp.build(square, X, backend=backend, dtype="float64")
    net.tie("1.weight", "0.weight")
    net.tie("2.weight", "1.weight")
    assert net.ties() == [("0.weight", "1.weight", "2.weight")]
    net.untie("1.weight")
    assert net.ties() == [("0.weight", "2.weight")]


def test_tying_a_shared_layer_ties_all_its_positions(backend: str) -> None:
    net = deep(backend, shared=True)
    extra = mp.build(nn.Sequential(nn.Linear(8), (lambda s: nn.Sequential(s, s))(nn.Linear(8))), X, backend=backend)
    assert extra.tie("1.1.bias", "0.bias") is extra["1.0.bias"]
    assert extra.ties() == [("0.bias", "1.0.bias", "1.1.bias"), ("1.0.weight", "1.1.weight")]
    assert net.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]


def test_untie_gives_independent_storage_with_the_same_values(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    before = net["2.weight"].numpy()
    net.untie("4.weight")
    assert net.ties() == [] and net["4.weight"] is not net["2.weight"]
    np.testing.assert_array_equal(net["4.weight"].numpy(), before)
    net["4.weight"][:] = 0
    np.testing.assert_array_equal(net["2.weight"].numpy(), before)
    state = {name: p.numpy() for name, p in net.parameters().items()}
    assert_close(mp.to_numpy(net(X)), forward(deep_spec(), state, X))


def test_untying_the_first_name_leaves_the_others_tied(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.Linear(4), nn.Linear(4), nn.Linear(4)), X, backend=backend)
    net.tie("1.weight", "0.weight")
    net.tie("2.weight", "0.weight")
    net.untie("0.weight")
    assert net.ties() == [("1.weight", "2.weight")]


def test_a_parameter_held_from_before_a_tie_still_means_its_name(backend: str) -> None:
    net = deep(backend)
    p = net["4.weight"]
    net.tie("4.weight", "2.weight")
    p[0, 0] = 7
    assert net["2.weight"].numpy()[0, 0] == 7 and p.names == ("2.weight", "4.weight")


def test_a_compiled_step_is_not_stale_after_tie_and_untie(backend: str) -> None:
    net = deep(backend)
    step = net.value_and_grad(mp.losses.mse)
    step(X, Y)
    net.tie("4.weight", "2.weight")
    loss, grads = step(X, Y)
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((forward(deep_spec(), state, X) - Y) ** 2), rel=1e-12)
    assert "4.weight" not in grads
    net.untie("4.weight")
    net["4.weight"][:] = 0
    loss, grads = step(X, Y)
    state = {name: p.numpy() for name, p in net.parameters(aliases=True).items()}
    assert mp.to_numpy(loss).item() == pytest.approx(np.mean((forward(deep_spec(), state, X) - Y) ** 2), rel=1e-12)
    assert "4.weight" in grads


def test_ties_are_seen_in_the_native_model(backend: str) -> None:
    """Native code goes on with it: a look at the same object finds them."""
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    assert net.check() == []
    assert net.ties() == [("2.weight", "4.weight")]


WRONG: dict[str, tuple[tuple[str, str], type[Exception]]] = {
    "another shape": (("0.weight", "2.weight"), mp.errors.ShapeError),
    "an unknown target": (("9.weight", "2.weight"), mp.errors.ParameterNotFound),
    "an unknown source": (("2.weight", "9.weight"), mp.errors.ParameterNotFound),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_tie_that_does_not_fit_is_an_error_and_changes_nothing(backend: str, case: str) -> None:
    net = deep(backend)
    before = net.state_dict()
    names, error = WRONG[case]
    with pytest.raises(error):
        net.tie(*names)
    assert net.ties() == [] and list(net.state_dict()) == list(before)
    with pytest.raises(mp.errors.TieError):
        net.untie("2.weight")


def test_one_layer_at_two_positions_cannot_be_untied(backend: str) -> None:
    net = deep(backend, shared=True)
    with pytest.raises(mp.errors.TieError):
        net.untie("4.weight")
    assert net.ties() == [("2.weight", "4.weight"), ("2.bias", "4.bias")]


@feature("nn.BatchNorm")
def test_a_buffer_cannot_be_tied(backend: str) -> None:
    net = mp.build(nn.Sequential(nn.BatchNorm(), nn.BatchNorm()), X, backend=backend)
    with pytest.raises(mp.errors.TieError):
        net.tie("1.running_mean", "0.running_mean")


def test_an_untied_parameter_trains_by_itself(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    net.untie("4.weight")
    step, opt = net.value_and_grad(mp.losses.mse), net.optimizer("sgd", lr=0.1)
    before = state_of(net)
    _, grads = step(X, Y)
    truth = gradients(deep_spec(), before, X, Y)
    opt.step()
    for name in ("2.weight", "4.weight"):
        assert_close(grads[name], truth[name])
        assert_close(net[name].numpy(), before[name] - 0.1 * truth[name])


def test_an_untied_parameter_stays_frozen(backend: str) -> None:
    net = deep(backend)
    net.tie("4.weight", "2.weight")
    net.freeze("2.weight")
    net.untie("4.weight")
    assert not net["4.weight"].trainable and not net["2.weight"].trainable


def autoencoder(backend: str) -> mp.Model:
    """Layer 2's weight is the transpose of layer 0's."""
    spec = nn.Sequential(nn.Linear(3), nn.Tanh(), nn.Linear(4))
    net = mp.build(spec, X, backend=backend, dtype="float64", seed=2)
    net.tie("2.weight", "0.weight", transpose=True)
    return net


@feature("transposed ties")
def test_a_transposed_tie_is_one_storage_in_two_shapes(backend: str) -> None:
    net = autoencoder(backend)
    assert net["2.weight"].shape == (4, 3) and net["0.weight"].shape == (3, 4)
    assert net.ties() == [("0.weight", "2.weight")] and list(net.parameters()) == ["0.weight", "0.bias", "2.bias"]
    net["2.weight"].assign(np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(net["0.weight"].numpy(), np.arange(12.0).reshape(4, 3).T)


@feature("transposed ties")
def test_a_transposed_tie_adds_up_its_gradients(backend: str) -> None:
    net = autoencoder(backend)
    spec = nn.Sequential(nn.Linear(3), nn.Tanh(), nn.Linear(4))
    state = state_of(net)
    assert_close(net(X), forward(spec, state, X))
    _, grads = net.value_and_grad(mp.losses.mse)(X, X)
    truth = gradients(spec, state, X, X)
    assert_close(grads["0.weight"], truth["0.weight"] + truth["2.weight"].T)
    assert "2.weight" not in grads


@feature("transposed ties")
@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_a_transposed_tie_can_be_undone(backend: str, name: str) -> None:
    net = autoencoder(backend)
    before = state_of(net)
    net.untie(name)
    assert net.ties() == []
    for each, value in state_of(net).items():
        np.testing.assert_array_equal(value, before[each])
    net["0.weight"][:] = 0
    np.testing.assert_array_equal(net["2.weight"].numpy(), before["2.weight"])


@feature("nn.Embedding")
def test_an_embedding_and_an_output_layer_share_a_table(backend: str) -> None:
    """Both (V, D), whatever the framework's own layouts are."""
    tokens = np.array([[0, 2], [4, 1]])
    spec = nn.Sequential(nn.Embedding(5, 3), nn.Linear(5, bias=False))
    net = mp.build(spec, tokens, backend=backend, dtype="float64")
    net.tie("1.weight", "0.weight")
    table = net["0.weight"].numpy()
    assert net["1.weight"] is net["0.weight"] and table.shape == (5, 3)
    assert_close(net(tokens), table[tokens] @ table.T)
    target = np.zeros((2, 2, 5))
    _, grads = net.value_and_grad(mp.losses.mse)(tokens, target)
    delta = 2 * (table[tokens] @ table.T) / target.size
    truth = np.einsum("nsv,nsd->vd", delta, table[tokens])
    np.add.at(truth, tokens, delta @ table)
    assert_close(grads["0.weight"], truth)
