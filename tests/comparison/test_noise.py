"""The measured noise floor, over functions written by hand and over models of each framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multiparam as mp
from multiparam.comparison import noise
from multiparam.core.outputs import Outputs

W = np.random.default_rng(0).normal(size=(16, 16)) / 4
X = np.random.default_rng(1).normal(size=(64, 16)).astype("float32")


def runs(function: Any) -> noise.Run:
    return lambda size, seed: {"": function(noise.moved(X, size, seed))}


def narrow(dtype: Any, where: int) -> Any:
    """Three layers, one of which computes in another dtype whatever comes in."""

    def function(x: np.ndarray) -> np.ndarray:
        for i in range(3):
            x = np.tanh(x.astype(dtype).astype(np.float64) @ W) if i == where else np.tanh(x @ W)
        return x

    return function


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize(("dtype", "unit"), [(np.float32, 2.0**-24), (np.float16, 2.0**-11)])
def test_a_part_that_rounds_coarser_is_measured(dtype: Any, unit: float, where: int) -> None:
    assert unit / 16 < noise.noise_floor(runs(narrow(dtype, where))) < unit * 16


def test_a_pass_in_float64_has_no_floor() -> None:
    assert noise.noise_floor(runs(narrow(np.float64, 0))) == 0


def test_what_is_random_or_jumps_has_no_floor() -> None:
    random = np.random.default_rng(2)
    assert noise.noise_floor(runs(lambda x: x * random.integers(0, 2, x.shape))) == 0
    assert noise.noise_floor(runs(lambda x: (x > 0).astype(int))) == 0
    assert noise.noise_floor(runs(lambda x: x * np.nan)) == 0


def by_moves(moves: Callable[[float, int], float]) -> tuple[noise.Run, list[tuple[float, int]]]:
    """A pass whose second number moves by what a function says, beside a text and a count; and what is asked of it."""
    asked: list[tuple[float, int]] = []

    def run(size: float, seed: int) -> Outputs:
        asked.append((size, seed))
        return {"y": np.array([1.0, 0.5 + moves(size, seed)]), "text": "a", "count": np.array([3])}

    return run, asked


def at(moves: dict[float, float]) -> Callable[[float, int], float]:
    """Moves that are as large as what goes in moves, but for some sizes."""
    return lambda size, seed: moves.get(size, size)


LADDER = [(size, seed) for seed, size in enumerate(s for s in noise.NARROW for _ in range(2))]
GLANCE = [(0.0, 0), (0.0, 0), (0.0, 0), (noise.WIDE, 1), (noise.WIDE, 2), (2.0**-22, 1), (-(2.0**-22), 1),
          (noise.WIDE, 1)]  # fmt: skip
FIRST = [*GLANCE, *LADDER]
ROUGH = {2.0**-22: 2.0**-22 + 2.0**-37}  # so that a glance does not see that all is smooth


def second(*sizes: float) -> list[tuple[float, int]]:
    """What the second difference asks for: both ways, two draws of each small move."""
    draws = {size: (1, 2) if size < noise.WIDE else (1,) for size in sizes}
    return [(sign * size, seed) for size in sizes for seed in draws[size] for sign in (1, -1)]


FARTHER = second(*(2.0**-n for n in (22, 20, 18, 10, 9, 8, 7, 6, 5)))


def test_the_largest_of_two_draws_is_the_response() -> None:
    run, asked = by_moves(lambda size, seed: size * (seed == 2))
    assert noise.response(run, 2.0**-9) == 2.0**-9 and asked == [(0.0, 0), (2.0**-9, 1), (2.0**-9, 2)]


def test_what_moves_as_its_inputs_do_has_no_floor() -> None:
    run, asked = by_moves(at({}))
    assert noise.noise_floor(run) == 0.0 and asked == GLANCE
    # Eight times as far is no jump; nor is a large step.
    run, asked = by_moves(at({**ROUGH, 2.0**-31: 2.0**-28, 2.0**-20: 0.0}))
    assert noise.noise_floor(run) == 0.0 and asked == [*FIRST, (0.0, 0), *FARTHER]


@pytest.mark.parametrize(
    "moves", [{2.0**-22: 2.0**-22 + 2.0**-39}, {2.0**-22: 0.0, -(2.0**-22): 0.0}, {noise.WIDE: 1.02 * noise.WIDE}]
)
def test_what_bends_or_is_deaf_to_small_moves_is_looked_at_closely(moves: dict[float, float]) -> None:
    run, asked = by_moves(at(moves))
    noise.noise_floor(run)
    assert asked[: len(FIRST)] == FIRST
    assert noise.noise_floor(by_moves(at({2.0**-22: 2.0**-22 + 2.0**-40}))[0]) == 0.0


def test_what_jumps_at_a_wide_move_is_not_measured() -> None:
    assert noise.noise_floor(by_moves(at({noise.WIDE: np.inf, 2.0**-31: 2.0**-26}))[0]) == 0.0


def test_a_jump_is_the_floor_and_is_looked_at_from_farther_away() -> None:
    run, asked = by_moves(at({**ROUGH, 2.0**-31: 2.0**-26}))
    assert noise.noise_floor(run) == 2.0**-26
    assert asked == [*FIRST, (0.0, 0), *FARTHER]


def test_what_a_part_cannot_tell_is_a_quarter_of_what_it_can() -> None:
    run, _ = by_moves(at({**ROUGH, noise.FLOAT32: 0.0}))
    assert noise.noise_floor(run) == 4 * noise.FLOAT32


def test_nothing_rounds_coarser_than_bfloat16() -> None:
    run, _ = by_moves(at({**ROUGH, 2.0**-31: 0.125}))
    assert noise.noise_floor(run) == 8 * 2.0**-8


@pytest.mark.parametrize(
    "times, floor", [((1, 2, 3), 2.0**-20), ((2, 3, 1), 2.0**-20), ((1, 2, 4), 2.0**-26), ((1, 2, np.inf), 2.0**-26)]
)
def test_what_does_not_grow_with_the_move_is_rounding(times: tuple[float, ...], floor: float) -> None:
    """And what does is a bend."""
    sizes = [sign * size for size in (2.0**-22, 2.0**-20, 2.0**-18) for sign in (1, -1)]
    even = dict(zip(sizes, (2.0**-20 * n for n in times for _ in range(2)), strict=True))
    assert noise.noise_floor(by_moves(at({2.0**-31: 2.0**-26, **even}))[0]) == floor


def test_what_goes_as_far_the_other_way_is_no_bend() -> None:
    odd = {sign * size: sign * 2.0**-20 for size in (2.0**-22, 2.0**-20, 2.0**-18) for sign in (1, -1)}
    assert noise.noise_floor(by_moves(at({2.0**-31: 2.0**-26, **odd}))[0]) == 2.0**-26


def test_numbers_are_moved_each_by_itself_and_begin_beside_themselves() -> None:
    runs_from, size = np.ones(1000), 2.0**-3
    still = noise.moved(runs_from, 0.0, 1)
    assert 1 + 2.0**-14 <= still.min() < still.max() <= 1 + 2.0**-13 and len(set(still)) > 900
    assert np.array_equal(still, noise.moved(runs_from, 0.0, 2))
    first, again, second = (noise.moved(runs_from, size, seed) / still - 1 for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    for factors in (first, second):
        assert -size <= factors.min() < -0.9 * size and 0.9 * size < factors.max() <= size
        assert len(set(factors)) > 900 and abs(factors.mean()) < size / 8


def torch_island(order: str, eps: float = 1e-5) -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.n, self.b = torch.nn.Linear(16, 16), torch.nn.LayerNorm(16, eps), torch.nn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            g = self.a(x).float()
            e = torch.exp(g - g.max(-1, keepdim=True).values)
            total = e.sum(-1, keepdim=True) if order == "sum" else e.flip(-1).cumsum(-1)[..., -1:]
            return self.b(self.n((e / total).to(x.dtype)))

    return Net()


def linen_island(x: Any, eps: float = 1e-5) -> Any:
    import jax.numpy as jnp
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            g = linen.Dense(16, name="a")(x).astype(jnp.float32)
            p = linen.softmax(g).astype(x.dtype)
            return linen.Dense(4, name="b")(linen.LayerNorm(eps, name="n", use_fast_variance=False)(p))

    return mp.wrap(Net(), x)


@pytest.mark.parametrize("other", ["torch", pytest.param("linen", marks=pytest.mark.needs("jax"))])
@pytest.mark.parametrize(("eps", "agrees"), [(1e-5, True), (1e-6, False), (1.2e-5, False)])
@pytest.mark.needs("torch")
def test_an_island_of_float32_is_no_false_alarm_and_hides_no_eps(other: str, eps: float, agrees: bool) -> None:
    candidate = torch_island("cumsum", eps) if other == "torch" else linen_island(X, eps)
    found = mp.compare({"a": torch_island("sum"), "b": candidate}, X, sync="a")
    computed = [check for check in found.checks if check.check in ("outputs", "gradients")]
    assert all(check.agrees for check in computed) == agrees, str(found)
    assert found.agrees == agrees


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("factor", [1.0, 1.003])
def test_models_of_half_precision_are_judged_in_float64(dtype: str, factor: float) -> None:
    import torch

    class Scaled(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.factor = torch.nn.Linear(16, 4), factor

        def forward(self, x: Any) -> Any:
            return self.body(x) * self.factor

    models = {name: Scaled(f).to(getattr(torch, dtype)) for name, f in (("a", 1.0), ("b", factor))}
    before = {name: [p.data_ptr() for p in model.parameters()] for name, model in models.items()}
    found = mp.compare(models, X)
    assert found.agrees == (factor == 1.0) and found.checks[4].dtype == "float64"
    assert {name: [p.data_ptr() for p in model.parameters()] for name, model in models.items()} == before
    assert all(str(p.dtype) == f"torch.{dtype}" for p in models["a"].parameters())
