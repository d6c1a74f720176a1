"""How far rounding alone moves what a model gives: measured, by moving what it is given.

A pass in float64 need not be one: published models normalise, or take a softmax, in float32 whatever comes in. Such a
part shows when inputs are moved by less than it can see. Their effect then does not shrink with the move: it stays at
the part's own rounding, which is the noise floor of the outputs. What is far above it is no rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.arrays import dtype_kind
from ..core.distances import EPS
from ..core.outputs import Outputs, outputs_distance

WIDE = 2.0**-10  # a move that every precision sees: it gives the amplification from inputs to outputs
# Moves that float64 sees. One that rounds to float32 jumps by its own eps, 2**-24, at few numbers for a small one and
# at many for a large one, so that somewhere on this ladder the jump is far more than the move; as bfloat16 by 2**-8.
NARROW = tuple(2.0**-n for n in (40, 35, 32, 31, 30, 28, 24, 20, 16))
DRAWS = 2  # of each move: the largest response counts
BESIDE = 2.0**-13  # no number of float32 or less is where this leads
COARSEST = 2.0**-8  # the unit roundoff of bfloat16: nothing that rounds moves more than that
FLOAT32 = 2.0**-24  # its unit roundoff
# Moves of which each makes every number round to another one: of float32, whose rounding is far below their bend, and
# of both half precisions.
BEYOND = tuple(tuple(2.0 ** (n - unit) for n in by) for unit, by in ((24, (2, 4, 6)), (11, (1, 2, 3)), (8, (1, 2, 3))))
STRAIGHT = 2.0**-6  # of a move: how far from a straight line it may be without a part that is deaf to a smaller one
FINE = 2.0**-40  # what float64 itself may round
FLAT = 3.0  # what grows more from the smallest of three moves to the largest is a bend, and no rounding
COARSE = 8.0  # times what the amplification explains: then something rounds coarser than float64
MARGIN = 8.0  # times the floor: what two models of one function may be apart

Run = Callable[[float, int], Outputs]
"""(size, seed) -> the outputs in float64 where what goes in is moved by as much of each number."""


def relative_distance(a: Outputs, b: Outputs) -> float:
    """``max|b - a| / max|a|`` of the worst output; infinite where no rounding explains it."""
    return outputs_distance(a, b, lambda truth, value: "float64").eps * EPS["float64"]


def response(run: Run, size: float) -> float:
    """The largest relative move of the outputs where what goes in moves by ``size``."""
    still = run(0.0, 0)
    return max(relative_distance(still, run(size, seed)) for seed in range(1, DRAWS + 1))


def noise_floor(run: Run) -> float:
    """How far rounding alone moves the outputs of a float64 pass, relative to the largest; 0.0 where all is float64.

    Args:
        run: Gives the outputs of passes whose inputs are moved.

    Returns:
        The floor: the largest response to a move that is far more than the move explains.

    >>> def narrow(size, seed):
    ...     x = np.linspace(1, 2, 9) * (1 + size * np.random.default_rng(seed).uniform(-1, 1, 9))
    ...     return {"": np.tanh(x).astype("float32").astype("float64")}
    >>> 2**-26 < noise_floor(narrow) < 2**-22, noise_floor(lambda size, seed: {"": np.ones(3) + size * (1 + seed)})
    (True, 0.0)
    """
    still = run(0.0, 0)
    if relative_distance(still, run(0.0, 0)) > 0:
        return 0.0  # two passes of the same inputs differ, as where dropout is on: that is no rounding
    amplification = response(run, WIDE) / WIDE
    if not np.isfinite(amplification):
        return 0.0  # whole numbers jump, and infinities: nothing here is measured in floats
    if _is_smooth(run, still):
        return 0.0
    moves = enumerate(size for size in NARROW for _ in range(DRAWS))
    responses = [(size, relative_distance(still, run(size, seed))) for seed, size in moves]
    jumps = [moved for size, moved in responses if np.isfinite(moved) and moved > COARSE * amplification * size]
    # A move that changes nothing at all is below what a part can tell, which is then some times as much. Not so of
    # larger ones, to which what has steps may be deaf.
    unseen = [4 * size * amplification for size, moved in responses if moved == 0 and size <= FLOAT32]
    return min(max([*jumps, *unseen, second_difference(run)]), COARSE * amplification * COARSEST)


def _is_smooth(run: Run, still: Outputs) -> bool:
    """Whether nothing rounds coarser than float64, in few passes: a small move is straight but for its bend, and a
    large one is so many times as much, which it is not where a part is deaf to the small one."""
    small, back, large = (run(size, 1) for size in (BEYOND[0][0], -BEYOND[0][0], WIDE))
    times = WIDE / BEYOND[0][0]

    def ahead(name: str, leaf: Any) -> Any:
        near: Any = small[name]
        return leaf + times * (near - leaf) if _are_floats(leaf, near) else leaf

    straight = {name: ahead(name, leaf) for name, leaf in still.items()}
    bend = relative_distance(still, _mirrored(still, small, back))
    return bend < FINE and relative_distance(straight, large) < STRAIGHT * relative_distance(still, large)


def second_difference(run: Run) -> float:
    """That of the outputs where what goes in moves by some times the unit roundoff of a narrower dtype: how far a part
    that rounds to it moves them; 0.0 where none does.

    What is linear cancels in it, so that moves may be so large that every number of the part rounds to another one:
    of few numbers, small moves may reach none that counts. A bend grows with the move, rounding does not.
    """
    still = run(0.0, 0)

    def second(size: float) -> float:
        draws = range(1, 1 + (DRAWS if size < WIDE else 1))
        moves = ((run(size, seed), run(-size, seed)) for seed in draws)
        return max(relative_distance(still, _mirrored(still, up, down)) for up, down in moves)

    floor = 0.0
    for sizes in BEYOND:
        responses = [second(size) for size in sizes]
        if all(map(np.isfinite, responses)) and responses[-1] <= FLAT * min(responses):
            floor = max(floor, min(responses))
    return floor if floor > FINE else 0.0


def _mirrored(still: Outputs, up: Outputs, down: Outputs) -> Outputs:
    """The outputs as if they were linear: half way between those of two opposite moves."""

    def between(name: str, leaf: Any) -> Any:
        a: Any = up[name]
        b: Any = down[name]
        return (a + b) / 2 if _are_floats(leaf, a, b) else leaf

    return {name: between(name, leaf) for name, leaf in still.items()}


def as_float64(array: np.ndarray) -> np.ndarray:
    """An array of floats in float64, where half the sum of two is exact; others as they are."""
    return array.astype(np.float64) if dtype_kind(array.dtype.name) == "f" else array


def _are_floats(*leaves: Any) -> bool:
    return all(isinstance(each, np.ndarray) and each.dtype.kind in "fc" for each in leaves)


def moved(array: np.ndarray, size: float, seed: int) -> np.ndarray:
    """An array with each number moved by up to ``size`` of itself; whole numbers as they are.

    All moves, also one of nothing, start beside the numbers themselves, which a narrower dtype may hold exactly.

    >>> bool(np.abs(moved(np.ones(3), 0.5, 1) - 1).max() <= 0.501), moved(np.arange(3), 0.5, 1).tolist()
    (True, [0, 1, 2])
    """
    if dtype_kind(array.dtype.name) != "f":
        return array
    beside = 1 + BESIDE * np.random.default_rng(0).uniform(0.5, 1, array.shape)
    factor = 1 + size * np.random.default_rng(seed).uniform(-1, 1, array.shape)
    return np.asarray(array.astype(np.float64) * beside * factor)
