"""Which layers of two models have one name, written differently: known differences, and no others.

Frameworks and authors write one path in several ways: with a prefix for the model that holds it, with containers such
as ``layers`` in it or not, with ``_``, ``/`` or capitals between the words, numbered from 0 or from 1. Such pairs
are as certain as equal names, as long as a key stands for one layer on each side. What is only similar is for
:mod:`multiparam.transfers.ranking`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Union

Token = Union[str, int]
Key = tuple[Token, ...]

# Letters of other alphabets and signs that separate nothing tell names apart too.
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+|[^\w\s./:\-()\[\],]")
# Words that say only that something is inside something: one author writes them where another does not.
CONTAINERS = frozenset({"layers", "layer", "blocks", "block", "modules", "module", "children", "list", "stack"})
# These only before a number: elsewhere they say something, as the h of w_h.
OF_NUMBERED = frozenset({"h"})
LONGEST_PREFIX = 3  # words


class NamePair(NamedTuple):
    """Two layers of one name, and how they are written differently; nothing where they are not."""

    source: str
    target: str
    difference: str = ""


@lru_cache(1 << 17)  # a plan asks for each name many times
def tokens(name: str) -> Key:
    """The words and numbers of a name, in lower case.

    >>> tokens("encoder.layers_0.SelfAttention.q_proj")
    ('encoder', 'layers', 0, 'self', 'attention', 'q', 'proj')
    """
    return tuple(int(word) if word.isdigit() else word.lower() for word in WORDS.findall(name))


def without_containers(key: Key) -> Key:
    """A key without the words for containers; as it is where nothing else would be left.

    >>> without_containers(("encoder", "layers", 0, "norm"))
    ('encoder', 0, 'norm')
    """
    following = (*key, "")[1:]
    return (
        tuple(
            token
            for token, after in zip(key, following, strict=True)
            if token not in CONTAINERS and not (token in OF_NUMBERED and isinstance(after, int))
        )
        or key
    )


def name_pairs(sources: Sequence[str], targets: Sequence[str]) -> list[NamePair]:
    """The layers that have one name on both sides, from the plainest difference on.

    Args:
        sources: The source's layers.
        targets: The target's.

    Returns:
        Pairs in which no layer stands twice.

    >>> for pair in name_pairs(["bert.layer.1.fc", "bert.layer.2.fc"], ["h_0.fc", "h_1.fc"]):
    ...     print(*pair)
    bert.layer.1.fc h_0.fc without the prefix 'bert', without words for containers, numbered from another number
    bert.layer.2.fc h_1.fc without the prefix 'bert', without words for containers, numbered from another number
    """
    pairs: list[NamePair] = []
    for words, change in (("", lambda key: key), ("without words for containers", without_containers)):
        source_keys = {name: change(tokens(name)) for name in sources}
        target_keys = {name: change(tokens(name)) for name in targets}
        pairs += _equal_keys(source_keys, target_keys, pairs, [words])
        for side, prefix, doubtful in _prefixes(source_keys, target_keys, pairs):
            prefix_text = f"without the prefix {'.'.join(map(str, prefix))!r}"
            sources_left = _stripped(source_keys, prefix, doubtful) if side == "source" else source_keys
            targets_left = _stripped(target_keys, prefix, doubtful) if side == "target" else target_keys
            pairs += _equal_keys(sources_left, targets_left, pairs, [prefix_text, words])
    return pairs


class _Prefix(NamedTuple):
    """A prefix that one side has and the other has not; ``doubtful``: names, but for their numbers, that other layers
    of the side have under another prefix that explains as much, as an encoder and a decoder have them."""

    side: str
    words: Key
    doubtful: frozenset[Key]


def _stripped(keys: Mapping[str, Key], prefix: Key, doubtful: frozenset[Key]) -> dict[str, Key]:
    """Keys without a prefix, those that do not have it left out, and those that are doubtful."""
    n = len(prefix)
    having = {name: key[n:] for name, key in keys.items() if key[:n] == prefix and len(key) > n}
    return {name: key for name, key in having.items() if _shape(key) not in doubtful}


def _prefixes(
    source_keys: Mapping[str, Key], target_keys: Mapping[str, Key], pairs: Iterable[NamePair]
) -> list[_Prefix]:
    """The prefixes that one side has and the other has not, those that explain most names first."""
    paired = {name for pair in pairs for name in (pair.source, pair.target)}
    explained: dict[tuple[str, Key], list[Key]] = {}
    for side, keys, others in (("source", source_keys, target_keys), ("target", target_keys, source_keys)):
        known = {_shape(key) for name, key in others.items() if name not in paired}
        for name, key in keys.items():
            words = next((i for i, token in enumerate(key) if isinstance(token, int)), len(key))
            for n in range(1, min(LONGEST_PREFIX, words, len(key) - 1) + 1):
                if name not in paired and (rest := _shape(key[n:])) in known:
                    explained.setdefault((side, key[:n]), []).append(rest)
    first = sorted(explained, key=lambda prefix: -len(explained[prefix]))[:2]
    return [_Prefix(*prefix, _doubtful(prefix, explained)) for prefix in first]


def _doubtful(prefix: tuple[str, Key], explained: Mapping[tuple[str, Key], Sequence[Key]]) -> frozenset[Key]:
    """What other prefixes of the side explain too, but for those that explain only a part of what this one does."""
    own = set(explained[prefix])
    rivals = (set(rests) for other, rests in explained.items() if other[0] == prefix[0] and other != prefix)
    return frozenset().union(*(rests for rests in rivals if not rests < own))


@lru_cache(1 << 17)
def _shape(key: Key) -> Key:
    """A key whose numbers count as one: sides may number differently."""
    return tuple("#" if isinstance(token, int) else token for token in key)


def _equal_keys(
    source_keys: dict[str, Key], target_keys: dict[str, Key], pairs: Iterable[NamePair], differences: Sequence[str]
) -> list[NamePair]:
    """Pairs of equal names, and of equal keys that stand once on each side, of layers that are in no pair yet."""
    paired_sources, paired_targets = {pair.source for pair in pairs}, {pair.target for pair in pairs}
    shift = _numbering(source_keys.values(), target_keys.values())
    by_key: dict[Key, list[str]] = {}
    for name, key in source_keys.items():
        by_key.setdefault(_renumbered(key, shift), []).append(name)
    counts = Counter(target_keys.values())
    equal = []
    for name, key in target_keys.items():
        candidates = [each for each in by_key.get(key, ()) if each not in paired_sources]
        if name in paired_targets:
            continue
        if name in candidates and source_keys[name] == key:
            equal.append(NamePair(name, name))
            continue
        if len(by_key.get(key, ())) != 1 or counts[key] != 1 or not candidates:
            continue
        source_name = candidates[0]
        numbers = "numbered from another number" if source_keys[source_name] != key else ""
        text = ", ".join(filter(None, [*differences, numbers])) or "written otherwise"
        equal.append(NamePair(source_name, name, text))
    return equal


def _contexts(keys: Iterable[Key]) -> dict[Key, set[int]]:
    """What stands before a number -> all numbers that stand there."""
    numbers: dict[Key, set[int]] = {}
    for key in keys:
        for i, token in enumerate(key):
            if isinstance(token, int):
                numbers.setdefault(_shape(key[:i]), set()).add(token)
    return numbers


def _numbering(source_keys: Iterable[Key], target_keys: Iterable[Key]) -> dict[Key, Callable[[int], int] | None]:
    """How a number of the source is written in the target, by what stands before it, where that is another: one more
    or less, where one side counts from 0 and the other from 1. None where the two number other things."""
    of_source, of_target = _contexts(source_keys), _contexts(target_keys)
    changes: dict[Key, Callable[[int], int] | None] = {}
    for context, numbers in of_source.items():
        others = of_target.get(context)
        if others is None or numbers == others:
            continue
        first, other_first = min(numbers), min(others)
        if {first, other_first} == {0, 1} and {n - first for n in numbers} == {n - other_first for n in others}:
            changes[context] = (other_first - first).__add__
        elif not (first == other_first and (numbers < others or others < numbers)):
            changes[context] = None
    return changes


def _renumbered(key: Key, changes: Mapping[Key, Callable[[int], int] | None]) -> Key:
    tokens: list[Token] = []
    for i, token in enumerate(key):
        context = _shape(key[:i])
        if isinstance(token, int) and context in changes:
            change = changes[context]
            token = f"another {token}" if change is None else change(token)
        tokens.append(token)
    return tuple(tokens)


def ordinal_keys(names: Sequence[str]) -> list[Key]:
    """The words of each name, numbers by their rank among those that stand in one place: one side may number layers
    without parameters too, the other not.

    >>> ordinal_keys(["0.conv", "3.conv", "6.conv"])
    [(0, 'conv'), (1, 'conv'), (2, 'conv')]
    """
    keys = [tokens(name) for name in names]
    ranks = {context: {n: i for i, n in enumerate(sorted(each))} for context, each in _contexts(keys).items()}
    return [
        tuple(ranks[_shape(key[:i])][token] if isinstance(token, int) else token for i, token in enumerate(key))
        for key in keys
    ]
