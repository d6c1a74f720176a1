"""What the checks of a pair mean together: which of them decide, and which only say where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..core.arrays import dtype_kind
from ..core.outputs import Outputs
from ..transfers.plan import WHEN_IT_TRAINS
from .judge import Check
from .results import Pair
from .subjects import NamedArrays

NOTHING = "every number of the outputs is 0, and so is every gradient: these inputs, or weights, show nothing"


def settle_zeros(pair: Pair, outputs: Outputs, grads: NamedArrays) -> None:
    """Zeros agree with any function of zeros: where outputs and gradients are nothing else, nothing can be told."""
    at = next((i for i, check in enumerate(pair.checks) if check.check == "outputs"), None)
    arrays = [leaf for leaf in outputs.values() if not isinstance(leaf, str)]
    told = len(arrays) < len(outputs) or any(array.size and _is_more(array) for array in arrays)
    if at is None or not pair.checks[at].agrees or told or any(np.any(grad) for grad in grads.values()):
        return
    pair.checks[at] = Check("", "outputs", pair.name, False, detail=NOTHING, undecided=True)


def _is_more(array: np.ndarray) -> bool:
    """Whether there is another number than zero, or what is told otherwise."""
    return dtype_kind(array.dtype.name) not in "fc" or bool(np.any(array != 0))


def settle_layers(pair: Pair) -> None:
    """Outputs and gradients decide: where they agree, layers that differ on the way are shown, and do not overrule
    them. One model may have an activation, a flattening or a scale inside a layer that the other has beside it."""
    decisive = [check for check in pair.checks if check.check in ("outputs", "gradients", "values")]
    layers = next((i for i, check in enumerate(pair.checks) if check.check.endswith("layers on the way")), None)
    if layers is None or pair.checks[layers].agrees or not all(check.agrees for check in decisive):
        return
    if not any(check.check == "gradients" for check in decisive):
        return
    pair.checks[layers] = replace(
        pair.checks[layers],
        agrees=True,
        bound=None,
        expected="outputs and gradients agree: layers are cut otherwise",
    )
    pair.parted, pair.hints, pair.faults = "", [], []
    pair.first.clear()


def settle_options(pair: Pair) -> None:
    """An option is what a layer does, not how it is written: ``SAME`` pads nothing where the stride is the kernel's
    size and divides the input's, and padding may be a layer of its own. Where float64 outputs, measured against no
    noise, and gradients agree, options that evaluation looks at have made no difference, which is said."""
    at = next((i for i, check in enumerate(pair.checks) if check.check == "options"), None)
    exact = [c for c in pair.checks if c.check == "outputs" and c.dtype == "float64" and c.floor is None]
    gradients = [c for c in pair.checks if c.check == "gradients" and c.distance is not None]
    if at is None or pair.checks[at].agrees or not exact or not gradients:
        return
    options = pair.checks[at]
    in_training = [item for item in options.items if item.endswith(WHEN_IT_TRAINS)]
    if not in_training and all(check.agrees for check in exact + gradients):
        why = f"outputs and gradients agree: on these inputs it makes no difference that {options.detail}"
        pair.checks[at] = replace(options, agrees=True, expected=why)
