"""Two models and the right verdict, two hundred times: no false alarm, no false agreement, no traceback."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import multiparam as mp

torch = pytest.importorskip("torch")

from support import traps, traps_of_layers  # noqa: E402

pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread")]


def seen(net: Any) -> dict[str, Any]:
    """What a comparison has to leave as it was."""
    return {
        "state": {name: value.double().numpy() for name, value in net.state_dict().items()},
        "modes": [module.training for module in net.modules()],
        "flags": [parameter.requires_grad for parameter in net.parameters()],
        "grads": [parameter.grad for parameter in net.parameters()],
    }


def verdict(found: Any) -> str:
    pair = found.pairs[0]
    return "agrees" if pair.agrees else "undecided" if pair.undecided else "disagrees"


@pytest.mark.parametrize("trap", [pytest.param(trap, id=trap.name) for trap in (*traps.TRAPS, *traps_of_layers.TRAPS)])
def test_the_verdict_is_right(trap: Any) -> None:
    models = trap.models()
    before, given = {name: seen(model) for name, model in models.items()}, copy.deepcopy(trap.inputs)
    if trap.right == traps.RAISES:
        with pytest.raises(mp.MultiparamError, match=trap.says):
            mp.compare(models, trap.inputs, **trap.options)
    else:
        found = mp.compare(models, trap.inputs, **trap.options)
        assert verdict(found) == trap.right, str(found)
        assert trap.says in str(found)
    np.testing.assert_equal(trap.inputs, given)
    for name, model in models.items():
        np.testing.assert_equal(seen(model), before[name])
