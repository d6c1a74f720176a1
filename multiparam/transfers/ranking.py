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
SYNONYMS: Mapping[str, str] = {
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
    """How much two names have in common: the words of the longest common subsequence, of those that either has; numbers
    count little, since they count other things, and a common last word counts once more.

    >>> similarity(("encoder", 0, "attn", "q"), ("enc", 0, "attention", "query")) > similarity(("k",), ("v",))
    True
    """
    a, b = ([SYNONYMS.get(t, t) if isinstance(t, str) else t for t in key] for key in (source, target))
    common = _common(a, b)
    weight = sum(map(_weight, common))
    total = sum(map(_weight, [*a, *b])) / 2
    last = bool(a and b) and a[-1] == b[-1] and isinstance(a[-1], str)
    return (weight + last) / (total + 1)


def _weight(token: Token) -> float:
    return 0.1 if isinstance(token, int) else 1.0


def _common(a: Sequence[Token], b: Sequence[Token]) -> list[Token]:
    """The longest common subsequence of two short sequences."""
    best: list[list[list[Token]]] = [[[] for _ in range(len(b) + 1)] for _ in range(len(a) + 1)]
    for i, token in enumerate(a):
        for j, other in enumerate(b):
            if token == other:
                best[i + 1][j + 1] = [*best[i][j], token]
            else:
                best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j], key=len)
    return best[-1][-1]


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
    places = np.abs(np.linspace(0, 1, len(targets))[:, None] - np.linspace(0, 1, len(sources))[None, :])
    best = assignment(places * 1e-3 - scores)
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


def by_calls(source_calls: Sequence[str], target_calls: Sequence[str]) -> Ranking:
    """A ranking in order of execution.

    Args:
        source_calls: The source's layers in the order in which they ran.
        target_calls: The target's.
    """
    source_places = {layer: i for i, layer in reversed(list(enumerate(source_calls)))}
    target_places = {layer: i for i, layer in reversed(list(enumerate(target_calls)))}

    def ranking(sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
        last = len(source_places) + len(target_places)
        return by_order(
            sorted(sources, key=lambda layer: source_places.get(layer, last)),
            sorted(targets, key=lambda layer: target_places.get(layer, last)),
        )

    return ranking


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
    pairs: list[tuple[int, int]] = []
    rows, columns = set(range(costs.shape[0])), set(range(costs.shape[1]))
    for flat in np.argsort(costs, axis=None, kind="stable"):
        i, j = divmod(int(flat), costs.shape[1])
        if i in rows and j in columns:
            pairs.append((i, j))
            rows.discard(i)
            columns.discard(j)
    return sorted(pairs)
