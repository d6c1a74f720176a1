"""One foreign pair: two models of one architecture, what is right between them, and what multiparam makes of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from report import ATTEMPTS

import multiparam as mp

RIGHT = "right"  # the target is as the truth says
WRONG = "wrong"  # it is not, and nothing said so
NOTICED = "noticed"  # it is not, and the report says that the models disagree
REFUSED = "refused"  # an error of multiparam's own, and nothing was written
FAILED = "failed"  # any other error, or the end of the process
OUTCOMES = (RIGHT, WRONG, NOTICED, REFUSED, FAILED)

SAME = 3e-4  # of the largest number: float32 outputs of one function written twice stay below it


class Outcome(NamedTuple):
    """What came of one attempt, the first line of the reason, and the seconds it took."""

    word: str
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Pair:
    """Two models of one architecture.

    Attributes:
        source: The wrapped source, with noise where a fresh model is constant; or a file.
        target: Makes the wrapped target, with values of its own.
        judge: What is wrong with a target after the transfer, in a few words; empty where it is right.
        inputs: Example inputs of the source that the target takes in the same order; None where there are none.
        truth: target name -> source names, where names say what is right; for manifests.
    """

    source: Any
    target: Callable[[], mp.Model]
    judge: Callable[[mp.Model], str]
    inputs: tuple[Any, ...] | None = None
    truth: Callable[[mp.Model], Mapping[str, Any]] | None = field(default=None, repr=False)

    def example_of(self, target: mp.Model) -> tuple[Any, ...] | None:
        """The inputs as a target takes them: images with their channels where its framework has them."""
        last = target.backend in ("jax", "tensorflow")
        if self.inputs is None:
            return None
        return tuple(np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last and x.ndim == 4 else x for x in self.inputs)


def measure(pair: Pair) -> dict[str, Outcome]:
    """The three attempts at a pair, each into a fresh target where the one before wrote anything."""
    found: dict[str, Outcome] = {}
    target = pair.target()
    for attempt in ATTEMPTS:
        if attempt == "guesses" and found["bare"].word not in (REFUSED, FAILED):
            found[attempt] = found["bare"]  # there was nothing to accept
            continue
        if attempt == "inputs" and pair.inputs is None:
            continue
        found[attempt], wrote = _attempt(pair, target, attempt)
        if wrote:
            target = pair.target()
    return found


def _attempt(pair: Pair, target: mp.Model, attempt: str) -> tuple[Outcome, bool]:
    """One attempt, and whether it may have written into the target."""
    options: dict[str, Any] = {"guesses": {"accept_guesses": True}, "inputs": {"verify": pair.inputs}}.get(attempt, {})
    started, note = time.perf_counter(), ""
    try:
        try:
            report = mp.transfer(pair.source, target, **options)
        except mp.errors.TransferError as error:
            if attempt != "inputs" or "guesses" not in first_line(error):
                raise
            # Inputs are to prove guesses; where they alone do not let them pass, the user is told to accept them.
            report, note = mp.transfer(pair.source, target, accept_guesses=True, **options), "guesses accepted; "
    except mp.MultiparamError as error:
        return Outcome(REFUSED, first_line(error), time.perf_counter() - started), False
    except Exception as error:
        traceback.print_exc()
        return Outcome(FAILED, f"{type(error).__name__}: {first_line(error)}", time.perf_counter() - started), True
    seconds = time.perf_counter() - started
    differs = report.distance is not None and not report.agrees
    said = f"reported {report.distance:.3g} eps apart" if differs else ""
    wrong = pair.judge(target)
    if wrong:
        return Outcome(NOTICED if differs else WRONG, note + "; ".join(filter(None, (wrong, said))), seconds), True
    return Outcome(RIGHT, note + said, seconds), True


def first_line(error: BaseException) -> str:
    """The first line of an error's text, and of a plan in it what is missing or refused first."""
    lines = str(error).strip().splitlines() or [""]
    details = [
        f"{title} {lines[at + 1].strip()}"
        for title in ("missing", "refused")
        for at in range(1, len(lines) - 1)
        if lines[at].startswith(title)
    ]
    return "; ".join([lines[0][:140].replace("Nothing was transferred: ", ""), *(text[:120] for text in details)])


# -- what sections share


def noisy(values: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Values in which a wrong pair shows: noise on vectors, and on whatever is constant in a fresh model."""
    if values.dtype.kind != "f" or not values.size or (values.ndim > 1 and values.min() != values.max()):
        return values
    if "var" in name.rpartition(".")[2]:
        return (values * rng.uniform(0.5, 1.5, values.shape)).astype(values.dtype)
    return (values + 0.2 * rng.normal(size=values.shape)).astype(values.dtype)


def noisy_torch(module: Any, seed: int = 0) -> Any:
    """A torch module with noise in what its state holds, written by torch."""
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            values = tensor.detach().numpy()
            tensor.copy_(torch.from_numpy(np.asarray(noisy(values, name, rng))))
    return module.eval()


def noisy_model(net: mp.Model, seed: int = 0) -> mp.Model:
    """The same for a wrapped model of a framework that has no state of its own."""
    rng = np.random.default_rng(seed)
    for name, p in {**net.parameters(), **net.buffers()}.items():
        p.assign(noisy(p.numpy(), name, rng))
    return net


def ids(shape: tuple[int, ...], high: int = 99, seed: int = 0) -> np.ndarray:
    """Token ids; small ones have meanings of their own."""
    return np.random.default_rng(seed).integers(5, high, shape).astype(np.int32)


def image(size: int, batch: int = 2, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Images, channels first."""
    return np.random.default_rng(seed).normal(size=(batch, channels, size, size)).astype(np.float32)


def arrays(output: Any) -> list[np.ndarray]:
    """Every array of a native output, in its own order."""
    if output is None or isinstance(output, (bool, int, float, str)):
        return []
    if hasattr(output, "items"):
        return [array for each in output.values() for array in arrays(each)]
    if isinstance(output, (list, tuple)):
        return [array for each in output for array in arrays(each)]
    if hasattr(output, "asnumpy"):
        return [output.asnumpy()]
    return [output.detach().numpy() if hasattr(output, "detach") else np.asarray(output)]


def apart(ours: Any, theirs: Any) -> str:
    """What differs between the first arrays of two native outputs; empty where they are the same.

    Images with their channels last are brought to channels first by their shape.
    """
    a, b = arrays(ours)[0], arrays(theirs)[0]
    if a.ndim == 4 and a.shape != b.shape:
        b = np.moveaxis(b, -1, 1)
    if a.shape != b.shape:
        return f"outputs are {a.shape} and {b.shape}"
    scale = max(float(np.abs(a).max()), 1e-30)
    far = float(np.abs(a.astype("f8") - b.astype("f8")).max()) / scale
    return "" if far < SAME else f"native outputs {far:.1e} apart"


def worst(ours: Any, theirs: Any) -> str:
    """What differs between two native outputs, array by array; empty where nothing does."""
    pairs = list(zip(arrays(ours), arrays(theirs), strict=False))
    return next(filter(None, (apart(a, b) for a, b in pairs)), "")


def unequal(truth: Mapping[str, np.ndarray], target: Mapping[str, np.ndarray]) -> str:
    """What differs between the arrays that a converter gives and the target's, bit for bit."""
    odd = [name for name, array in truth.items() if name in target and not np.array_equal(array, target[name])]
    return f"{len(odd)} of {len(truth)} arrays differ, {odd[0]} first" if odd else ""
