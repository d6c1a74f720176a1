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
from .slots import Slot

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
    """The place of a leaf in its kind's order.

    Args:
        kind: A kind of layer.
        leaf: A canonical leaf name.

    Returns:
        A number to sort by: those of a stacked layer come after those of the one below, unknown leaves last.

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


def stacked_axes(slot: Slot) -> int:
    """How many axes of a parameter in canonical form number layers, as scanned and vmapped ones have.

    Args:
        slot: Where it is.

    Returns:
        What the adapter says, or the axes beyond those that the kind's leaf has.
    """
    if slot.piece is not None and slot.piece.stacked:
        return slot.piece.stacked
    forms = KINDS.get(slot.kind, {})
    numbered = STACKED.fullmatch(slot.path[-1]) if forms is RECURRENT else None
    form = forms.get(numbered[1] if numbered else slot.path[-1])
    if form is None or "*" in form:
        return 0
    return max(0, len(slot.shape or ()) - len(form))


T = TypeVar("T")


class ByClass(Generic[T]):
    """What a table has for a class, or for its nearest base.

    Args:
        table: Class -> entry. A class is itself, or ``"root.Name"`` where its package need not be imported.

    >>> ByClass({dict: "a mapping", "builtins.int": "a number"}).of(bool)
    'a number'
    """

    def __init__(self, table: Mapping[Any, T]) -> None:
        self._table = dict(table)
        self._known: dict[type, T | None] = {}

    def of(self, cls: type) -> T | None:
        """The entry of the class or of its nearest base.

        Args:
            cls: Any class.

        Returns:
            The entry; None where there is none.
        """
        if cls not in self._known:
            self._known[cls] = next((entry for entry in map(self.exact, cls.__mro__) if entry is not None), None)
        return self._known[cls]

    def exact(self, cls: type) -> T | None:
        """The entry of this very class.

        Args:
            cls: Any class.

        Returns:
            The entry; None where there is none, whatever its bases have.
        """
        entry = self._table.get(cls)
        return self._table.get(f"{cls.__module__.partition('.')[0]}.{cls.__name__}") if entry is None else entry


class Layers:
    """The layers an adapter knows: class -> kind, and how each kind's leaves are called and laid out natively.

    A subclass is of its nearest known base's kind. What users add with :func:`multiparam.register_layer` comes first.

    Args:
        kinds: Class, or ``"root.Name"`` -> kind.
        leaves: Kind -> native leaf -> (canonical leaf, native layout), where a name or a layout is not canonical. A
            layout is a text in the letters of :data:`KINDS`, or a function of the native shape.
        options: Kind -> option in PyTorch's words -> an attribute's name, or a function of the layer.

    >>> class Dense: units = 8
    >>> layers = Layers({Dense: "linear"}, {"linear": {"kernel": ("weight", "IO")}}, {"linear": {"size": "units"}})
    >>> layers.canonical(Dense, "kernel", (4, 8)), layers.options(Dense())
    (('weight', Layout(('transpose', (1, 0)))), {'size': 8})
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
        """The kind of a class of layers.

        Args:
            cls: The class.

        Returns:
            The kind; the class's own name where nobody knows it.
        """
        return self._look_up(cls)[0]

    def leaves(self, cls: type) -> LeafNames:
        """What is known of the leaves of a class.

        Args:
            cls: The class.

        Returns:
            Native leaf -> (canonical leaf, native layout); empty where they are canonical already.
        """
        return self._look_up(cls)[1]

    def options(self, layer: Any) -> dict[str, Any]:
        """What a layer's weights do not carry: attributes of it, or what functions of it give.

        Args:
            layer: The native layer.

        Returns:
            Option in PyTorch's words -> value; those that the layer does not have are left out.
        """
        options = {}
        for name, of in self._options.get(self.of(type(layer)), {}).items():
            with suppress(AttributeError):  # a user's own layer of this kind need not have it
                options[name] = getattr(layer, of) if isinstance(of, str) else of(layer)
        return options

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
        """Canonical leaf name and layout of a native leaf.

        Args:
            cls: The layer's class.
            leaf: The native name.
            shape: The native shape.
            leaves: Stand in for the kind's where one layer's options change its layout.

        Returns:
            Name and layout; an unknown leaf keeps its own, and None is the layout of what is canonical already.
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
    """One number for all axes, or one each, as one each.

    Args:
        value: A number, some numbers, or None for 1.
        n: How many axes there are.

    Returns:
        Plain integers, as JSON can write them.

    >>> per_axis(3, 2), per_axis(None, 1), per_axis([1, 2], 2)
    ((3, 3), (1,), (1, 2))
    """
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * n
    return tuple(int(v) for v in value)


def padding(native: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    """A convolution's padding as PyTorch says it, one number an axis, where it is symmetric.

    Args:
        native: ``"SAME"`` or ``"VALID"`` in any case, a number, or for each axis a number or a (low, high) pair.
        kernel: The window's size, one number an axis.
        stride: The step between windows, likewise.
        dilation: The step between a window's elements, likewise.

    Returns:
        One number an axis; (low, high) pairs, or the text in lower case, where PyTorch has no such padding. ``SAME``
        pads for outputs of size input / stride: that is symmetric where the stride is 1 and the window, dilated, odd.
        (Source: the notes on padding of ``tf.nn`` in TensorFlow's API documentation.)

    >>> padding("SAME", (3,), (1,), (1,)), padding("valid", (3, 3), (2, 2), (1, 1)), padding("SAME", (3,), (2,), (1,))
    ((1,), (0, 0), 'same')
    >>> padding([(0, 1), (2, 2)], (3, 3), (1, 1), (1, 1))
    ((0, 1), (2, 2))
    """
    if isinstance(native, str):
        text = native.lower()
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if text == "valid":
            return (0,) * len(kernel)
        if text == "same" and set(stride) == {1} and not any(t % 2 for t in total):
            return tuple(t // 2 for t in total)
        return text
    if isinstance(native, int):
        return (native,) * len(kernel)
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in native]
    if all(low == high for low, high in pairs):
        return tuple(int(low) for low, _ in pairs)
    return tuple(pairs)


def momentum_from_decay(momentum: float) -> float:
    """PyTorch's momentum of running statistics from a decay.

    Args:
        momentum: The weight of the old statistics, as Keras, Flax and MXNet have it.

    Returns:
        The weight of the new batch, 1 minus it, rounded to the digits that somebody wrote.

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

    Models wrapped before keep what they had.

    Args:
        cls: The class.
        kind: What it is: a kind that is known, such as ``"linear"``, or a new one.
        leaves: Native leaf -> (canonical leaf, native layout). A layout is a text with one letter an axis, in those of
            the canonical form, or a function of the native shape; leaves left out keep their name and layout.
        form: Canonical leaf -> layout, in PyTorch's order; needed for a new kind.

    Raises:
        InvalidArgument: A new kind without a form, or a leaf or layout that does not fit the form.

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
    # Kinds of subclasses are remembered, and may be others now.
    for table in _tables:
        table._known.clear()
    rank.cache_clear()
