"""The canonical form of each kind of layer, and which class of a framework's layers is of which kind.

Source of names and layouts: the ``Variables`` sections of the torch.nn documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Generic, TypeVar, Union

from ..errors import InvalidArgument
from .layouts import Layout, permutation

# kind -> leaf -> layout; the order is PyTorch's, parameters first, then buffers
KINDS: dict[str, Mapping[str, str]] = {
    "linear": {"weight": "OI", "bias": "O"},
    "conv": {"weight": "OI*", "bias": "O"},
    "embedding": {"weight": "VD"},
    "conv_transpose": {"weight": "IO*", "bias": "O"},
    "prelu": {"weight": "C"},
    "layernorm": {"weight": "*", "bias": "*"},
    "rmsnorm": {"weight": "*"},
    "groupnorm": {"weight": "C", "bias": "C"},
    "groupnorm_by_group": {"weight": "G", "bias": "G"},  # MXNet's, which scales each group as a whole
    "instancenorm": {
        "weight": "C",
        "bias": "C",
        "running_mean": "C",
        "running_var": "C",
        "num_batches_tracked": "",
    },
    "batchnorm": {
        "weight": "C",
        "bias": "C",
        "running_mean": "C",
        "running_var": "C",
        "num_batches_tracked": "",
    },
}

# Recurrent layers: the gates' rows of each weight stand one below the other, in the order that is PyTorch's too:
# LSTM i f g o, GRU r z n. A layer's leaves carry its number and direction, as in "weight_ih_l0_reverse". A framework
# with one bias has no bias_hh; "bias_hn" is the one recurrent bias that Flax's GRU keeps, that of its n.
RECURRENT = {"weight_ih": "OI", "weight_hh": "OI", "bias_ih": "O", "bias_hh": "O", "weight_hr": "OI", "bias_hn": "O"}
KINDS.update(dict.fromkeys(("rnn_cell", "lstm_cell", "gru_cell", "rnn", "lstm", "gru"), RECURRENT))
STACKED = re.compile(r"(\w+)_l(\d+)(_reverse)?")
# A GRU whose reset gate acts before the recurrent product: another function, which PyTorch has not.
KINDS.update({"gru_before_cell": RECURRENT, "gru_before": RECURRENT})
GATED: dict[str, Any] = {"activation": lambda cell: "tanh", "recurrent_activation": lambda cell: "sigmoid"}
# Queries, keys and values are packed where their shapes are one, as PyTorch does; its out_proj is a linear layer.
KINDS["attention"] = {
    "in_proj_weight": "OI",
    "q_proj_weight": "OI",
    "k_proj_weight": "OI",
    "v_proj_weight": "OI",
    "in_proj_bias": "O",
    "q_proj_bias": "O",
    "k_proj_bias": "O",
    "v_proj_bias": "O",
}

# Leaves only some frameworks keep: a count that no output depends on.
BOOKKEEPING = frozenset({"num_batches_tracked"})


# What an adapter writes down, per kind: native leaf -> (canonical leaf, native layout). The layout is a text in the
# letters above or, where axes alone do not tell, a function of the native shape.
LeafNames = Mapping[str, tuple[str, Union[str, Callable[[tuple[int, ...]], Union[Layout, None]]]]]
Leaves = Mapping[str, LeafNames]


@cache
def rank(kind: str, leaf: str) -> int:
    """The place of a leaf in its kind's order, a stacked layer's after the other's; unknown leaves come last.

    >>> [rank("lstm", leaf) for leaf in ("weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_ih_l1")]
    [0, 1, 100, 200]
    """
    form = KINDS.get(kind)
    stacked = STACKED.fullmatch(leaf) if form is RECURRENT else None
    bare = stacked[1] if stacked else leaf
    if form is None or bare not in form:
        return 10**6
    before = 2 * int(stacked[2]) + bool(stacked[3]) if stacked else 0
    return 100 * before + list(form).index(bare)


T = TypeVar("T")


class ByClass(Generic[T]):
    """What a table has for a class, or for its nearest base. A class is given itself, or as ``"root.Name"`` where its
    package need not be imported.

    >>> ByClass({dict: "a mapping", "builtins.int": "a number"}).of(bool)
    'a number'
    """

    def __init__(self, table: Mapping[Any, T]) -> None:
        self._table = dict(table)
        self._known: dict[type, T | None] = {}

    def of(self, cls: type) -> T | None:
        """The entry of the class or of its nearest base; None where there is none."""
        if cls not in self._known:
            self._known[cls] = next((entry for entry in map(self.exact, cls.__mro__) if entry is not None), None)
        return self._known[cls]

    def exact(self, cls: type) -> T | None:
        """The entry of this very class."""
        entry = self._table.get(cls)
        return self._table.get(f"{cls.__module__.partition('.')[0]}.{cls.__name__}") if entry is None else entry


class Layers:
    """The layers an adapter knows: class -> kind, and how each kind's leaves are called and laid out natively.

    A subclass is of its nearest known base's kind. What users add with :func:`register_layer` comes first.
    """

    def __init__(
        self,
        kinds: Mapping[Any, str],
        leaves: Leaves,
        options: Mapping[str, Mapping[str, str | Callable[[Any], Any]]] | None = None,
    ) -> None:
        self._options = options or {}
        self._kinds = ByClass(kinds)
        self._leaves = leaves
        self._known: dict[type, tuple[str, LeafNames]] = {}
        _tables.append(self)

    def of(self, cls: type) -> str:
        """The kind of a class of layers; its own name where nobody knows it."""
        return self._look_up(cls)[0]

    def leaves(self, cls: type) -> LeafNames:
        """What is known of the leaves of a class; empty where they are canonical already."""
        return self._look_up(cls)[1]

    def options(self, layer: Any) -> dict[str, Any]:
        """What a layer's weights do not carry, in PyTorch's words: attributes of it, or what functions of it say."""
        told = {}
        for name, of in self._options.get(self.of(type(layer)), {}).items():
            with suppress(AttributeError):  # a user's own layer of this kind need not have it
                told[name] = getattr(layer, of) if isinstance(of, str) else of(layer)
        return told

    def _look_up(self, cls: type) -> tuple[str, LeafNames]:
        known = self._known.get(cls)
        if known is None:
            known = self._known[cls] = self._search(cls)
        return known

    def _search(self, cls: type) -> tuple[str, LeafNames]:
        for base in cls.__mro__:
            if base in _registered:
                return _registered[base]
            kind = self._kinds.exact(base)
            if kind is not None:
                return kind, self._leaves.get(kind, {})
        return cls.__name__, {}

    def canonical(
        self, cls: type, leaf: str, shape: tuple[int, ...], leaves: LeafNames | None = None
    ) -> tuple[str, Layout | None]:
        """Canonical leaf name and layout of a native leaf; unknown ones keep their own name and layout.

        ``leaves`` stand in for the kind's where one layer's options change its layout.
        """
        kind, names = self._look_up(cls)
        known = (leaves or names).get(leaf)
        if known is None:
            return leaf, None
        name, layout = known
        if not isinstance(layout, str):
            return name, layout(shape)
        return name, permutation(layout, KINDS[kind][name], len(shape))


def per_axis(value: Any, n: int) -> tuple[int, ...]:
    """One number for all ``n`` axes, or one each; nothing at all is 1.

    >>> per_axis(3, 2), per_axis(None, 1), per_axis([1, 2], 2)
    ((3, 3), (1,), (1, 2))
    """
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * n
    return tuple(int(v) for v in value)


def padding(given: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    """A convolution's padding as PyTorch says it, one number an axis, where it is symmetric.

    ``SAME`` pads for outputs of size input / stride: where the stride is 1 and the kernel odd, that is symmetric, and
    elsewhere it is no padding that PyTorch has. Source: the TensorFlow guide's notes on padding.

    >>> padding("SAME", (3,), (1,), (1,)), padding("valid", (3, 3), (2, 2), (1, 1)), padding("SAME", (3,), (2,), (1,))
    ((1,), (0, 0), 'same')
    >>> padding([(0, 1), (2, 2)], (3, 3), (1, 1), (1, 1))
    ((0, 1), (2, 2))
    """
    if isinstance(given, str):
        text = given.lower()
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if text == "valid":
            return (0,) * len(kernel)
        if text == "same" and set(stride) == {1} and not any(t % 2 for t in total):
            return tuple(t // 2 for t in total)
        return text
    if isinstance(given, int):
        return (given,) * len(kernel)
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in given]
    if all(low == high for low, high in pairs):
        return tuple(int(low) for low, _ in pairs)
    return tuple(pairs)


def momentum_from_decay(momentum: float) -> float:
    """PyTorch's momentum of running statistics, the weight of the new batch, from the weight of the old.

    >>> momentum_from_decay(0.99)
    0.01
    """
    return round(1 - float(momentum), 12)


_tables: list[Layers] = []
_registered: dict[type, tuple[str, LeafNames]] = {}


def register_layer(
    cls: type, kind: str, leaves: LeafNames | None = None, form: Mapping[str, str] | None = None
) -> None:
    """Teach multiparam a class of layers, of any framework; its subclasses too.

    ``leaves`` says, per native leaf, the canonical name and the native layout; leaves left out keep theirs. A new
    ``kind`` needs its canonical ``form``, leaf -> layout, in PyTorch's order. Models wrapped before keep what they had.
    Raises InvalidArgument for a kind, leaf or layout that does not fit.

        >>> import torch
        >>> class MyDense(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = torch.nn.Parameter(torch.zeros(4, 8))
        >>> mp.register_layer(MyDense, "linear", {"kernel": ("weight", "IO")})
        >>> mp.wrap(MyDense())["weight"].shape
        (8, 4)
    """
    if form is None and kind not in KINDS:
        raise InvalidArgument(f"{kind!r} is a new kind of layer: give its canonical form, such as {{'weight': 'OI'}}.")
    forms = KINDS[kind] if form is None else form
    for leaf, (name, layout) in (leaves or {}).items():
        if name not in forms:
            raise InvalidArgument(f"{leaf!r}: a {kind!r} has no leaf {name!r}; it has {', '.join(forms)}.")
        if isinstance(layout, str) and sorted(layout) != sorted(forms[name]):
            raise InvalidArgument(f"{leaf!r}: the layout {layout!r} has not the axes of {name!r}, {forms[name]!r}.")
    KINDS[kind] = forms
    _registered[cls] = kind, leaves or {}
    for table in _tables:
        table._known.clear()
    rank.cache_clear()
