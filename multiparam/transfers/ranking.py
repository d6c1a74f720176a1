"""Candidates for layers whose names do not lead to each other: ranked by the words they share, then by order.

What comes out of here is a guess until numbers prove it. It never contradicts a name: where two layers of the same
place end in the same word, they are not paired with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .names import Key, Token, ordinal_keys

GAIN = 0.1  # mean similarity that another order than that of definition must win
MOST_RANKED = 400  # layers of one kind and shape that the assignment is solved for; of more, their order decides

# Words of the field for one thing, for ranking only.
SYNONYMS: Mapping[Token, Token] = {
    word: words[0]
    for words in (
        ("norm", "ln", "bn", "layernorm", "batchnorm", "normalization", "batch", "rmsnorm"),
        ("attention", "attn", "mha", "multihead"),
        ("convolution", "conv", "conv1d", "conv2d", "conv3d"),
        ("linear", "dense", "fc", "proj", "projection"),
        ("embedding", "emb", "embed", "embeddings", "wte"),
        ("query", "q"),
        ("key", "k"),
        ("value", "v"),
        ("out", "o", "output"),
        ("mlp", "ffn", "feed", "forward", "intermediate"),
        ("head", "classifier", "logits", "predictions"),
        ("encoder", "enc"),
        ("decoder", "dec"),
        ("downsample", "shortcut"),
    )
    for word in words
}


def similarity(source: Key, target: Key) -> float:
    """How much two names have in common: the words of the weightiest common subsequence, of those that either has;
    numbers count little, since they count other things, and a common last word counts once more.

    >>> similarity(("encoder", 0, "attn", "q"), ("enc", 0, "attention", "query")) > similarity(("k",), ("v",))
    True
    """
    a, b = ([SYNONYMS.get(token, token) for token in key] for key in (source, target))
    total = sum(map(_weight, [*a, *b])) / 2
    last = bool(a and b) and a[-1] == b[-1] and isinstance(a[-1], str)
    return (_common(a, b) + last) / (total + 1)


def _weight(token: Token) -> float:
    return 0.1 if isinstance(token, int) else 1.0


def _common(a: Sequence[Token], b: Sequence[Token]) -> float:
    """The weight of the weightiest common subsequence of two short sequences."""
    row = [0.0] * (len(b) + 1)
    for token in a:
        above, row = row, [0.0]
        for j, other in enumerate(b):
            row.append(above[j] + _weight(token) if token == other else max(above[j + 1], row[j]))
    return row[-1]


Ranking = Callable[[Sequence[str], Sequence[str]], dict[str, str]]  # sources, targets -> target layer: source layer


def ranked(
    sources: Sequence[str],
    targets: Sequence[str],
    suits: Callable[[str, str], bool],
    group: Callable[[str, str], object],
    ranking: Ranking,
) -> dict[str, str]:
    """The best candidate for each target layer.

    Args:
        sources: The source's layers that have no partner, in order.
        targets: The target's.
        suits: Whether a source layer can go into a target layer.
        group: A key of a side's layer, ``group("source", name)``: layers of one key suit the same others.
        ranking: Pairs layers that all suit each other: :func:`by_words`, :func:`by_order` or that of :func:`by_calls`.

    Returns:
        target layer -> source layer, each source layer at most once.
    """
    pairs: dict[str, str] = {}
    by_group: dict[object, list[str]] = {}
    for name in targets:
        by_group.setdefault(group("target", name), []).append(name)
    free = dict.fromkeys(sources)
    for members in by_group.values():
        fitting: dict[object, bool] = {}
        candidates = []
        for name in free:
            key = group("source", name)
            if key not in fitting:
                fitting[key] = suits(name, members[0])
            if fitting[key]:
                candidates.append(name)
        for target, source in ranking(candidates, members).items():
            pairs[target] = source
            del free[source]
    return pairs


def by_words(sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """An assignment within layers that all suit each other: most common words, then order.

    >>> by_words(["attn.k", "attn.v", "attn.q"], ["self.query", "self.key", "self.value"])
    {'self.query': 'attn.q', 'self.key': 'attn.k', 'self.value': 'attn.v'}
    """
    if not sources or not targets:
        return {}
    if max(len(sources), len(targets)) > MOST_RANKED:
        return by_order(sources, targets)
    source_keys, target_keys = ordinal_keys(sources), ordinal_keys(targets)
    scores = np.array([[similarity(s, t) for s in source_keys] for t in target_keys])
    apart = np.subtract.outer(np.arange(len(targets)), np.arange(len(sources)))
    best = assignment(apart**2 * 1e-8 - scores)  # squares cost least in order
    if len(sources) != len(targets):
        return {targets[i]: sources[j] for i, j in best if _stands_out(scores, i, j)}
    gain = sum(scores[i, j] for i, j in best) - np.trace(scores)
    if gain < GAIN * len(best):
        return by_order(sources, targets)  # words that say so little are not worth another order
    return {targets[i]: sources[j] for i, j in best}


def _stands_out(scores: np.ndarray, i: int, j: int) -> bool:
    """Whether no other pair of a row or a column is as good."""
    return bool((scores[i] == scores[i, j]).sum() == 1 and (scores[:, j] == scores[i, j]).sum() == 1)


def by_order(sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """In order of definition."""
    return dict(zip(targets, sources, strict=False))


def by_pairs(pairs: Mapping[str, str]) -> Ranking:
    """A ranking with some pairs, target layer -> source layer, and the rest in order of definition.

    >>> by_pairs({"y": "a"})(["a", "b", "c"], ["x", "y", "z"])
    {'y': 'a', 'x': 'b', 'z': 'c'}
    """

    def ranking(sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
        known = {target: pairs[target] for target in targets if pairs.get(target) in sources}
        taken = set(known.values())
        left = [source for source in sources if source not in taken]
        return {**known, **by_order(left, [target for target in targets if target not in known])}

    return ranking


def by_calls(source_calls: Sequence[str], target_calls: Sequence[str]) -> Ranking:
    """A ranking in order of execution.

    Args:
        source_calls: The source's layers in the order in which they ran.
        target_calls: The target's.
    """

    def ranking(sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
        return by_order(_as_called(sources, source_calls), _as_called(targets, target_calls))

    return ranking


def _as_called(layers: Sequence[str], calls: Sequence[str]) -> list[str]:
    """Layers in the order of their first calls, those that never ran last."""
    places = {layer: i for i, layer in reversed(list(enumerate(calls)))}
    return sorted(layers, key=lambda layer: places.get(layer, len(calls)))


def assignment(costs: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns that cost least together, each once.

    scipy solves it where it is installed, as it is with jax and scikit-learn; else the cheapest pair is taken first.

    >>> assignment(np.array([[1.0, 2.0], [0.0, 5.0]]))
    [(0, 1), (1, 0)]
    """
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError:
        return _greedy(costs)
    rows, columns = linear_sum_assignment(costs)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]


def _greedy(costs: np.ndarray) -> list[tuple[int, int]]:
    columns: dict[int, int] = {}  # row -> column
    for i, j in sorted(np.ndindex(costs.shape), key=lambda place: float(costs[place])):
        if i not in columns and j not in columns.values():
            columns[i] = j
    return sorted(columns.items())
