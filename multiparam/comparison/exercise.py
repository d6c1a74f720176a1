"""What the inputs of a comparison could show: a parameter whose gradient is zero has had no say in the outputs.

Rows of an embedding that no token looks up, positions that no sequence reaches, units that a ReLU keeps at zero:
whatever values they have, outputs and gradients agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

LEAST = 0.005  # a share that is worth a word
SHOWN = 4  # parameters that a text names, those first of which least was exercised


def unexercised(gradients: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> dict[str, float]:
    """The share of each parameter that inputs did not exercise.

    Args:
        gradients: Name -> gradient, of an objective of all outputs.
        kinds: Name -> the kind of its layer: of an embedding whole rows are counted.

    Returns:
        Name -> share from 0 to 1, largest first; only of those of which a half per cent or more was not.

    >>> unexercised({"embed.weight": np.array([[0.0, 1.0], [0.0, 0.0]])}, {"embed.weight": "embedding"})
    {'embed.weight': 0.5}
    """
    shares = {name: _idle_share(grad, kinds.get(name, "")) for name, grad in gradients.items()}
    return dict(sorted(((n, s) for n, s in shares.items() if s >= LEAST), key=lambda item: (-item[1], item[0])))


def _idle_share(gradient: np.ndarray, kind: str) -> float:
    if not gradient.size:
        return 0.0
    idle = gradient == 0
    if kind == "embedding" and gradient.ndim > 1:
        idle = idle.reshape(len(gradient), -1).all(1)
    return float(idle.mean())


def in_words(shares: Mapping[str, float]) -> str:
    """Those shares as the end of a sentence; nothing where there are none.

    >>> in_words({"embed.weight": 0.5, "fc.weight": 0.126})
    '50 % of embed.weight, 13 % of fc.weight'
    """
    texts = [f"{100 * share:.0f} % of {name}" for name, share in shares.items()]
    more = f" and of {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
