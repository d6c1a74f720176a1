"""Traps of judging, as data: a name, two models, and the right verdict. Here what models give, and in which precision.

Each model is a forward function over the same layers, drawn from the same seed, so that what differs is what the row
says. The rows of :mod:`support.traps_of_layers` are of what layers compute.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

AGREES, DISAGREES, UNDECIDED, RAISES = "agrees", "disagrees", "undecided", "raises"
X = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
TOKENS = np.array([[0, 3, 1, 4], [5, 3, 0, 2]])
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Trap:
    """One row.

    ``layers`` makes those of a model, by name; ``other`` those of the candidate where they differ. ``says`` is in the
    report. ``options`` are those of ``mp.compare``.
    """

    name: str
    right: str
    reference: Forward
    candidate: Forward
    layers: Callable[[], Mapping[str, Any]] = field(default=lambda: usual())
    other: Callable[[], Mapping[str, Any]] | None = None
    inputs: Any = field(default_factory=lambda: X)
    says: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    made: Callable[[nn.Module], nn.Module] = lambda module: module
    also: Callable[[nn.Module], nn.Module] | None = None  # what is done to the candidate; else the same

    def models(self) -> dict[str, nn.Module]:
        """The reference and the candidate."""
        reference = self.made(Written(self.reference, self.layers()))
        candidate = (self.also or self.made)(Written(self.candidate, (self.other or self.layers)()))
        return {"reference": reference, "candidate": candidate}


class Written(nn.Module):
    """A model whose forward pass is a function of it and the inputs; its numbers are drawn anew, from one seed."""

    def __init__(self, forward: Forward, layers: Mapping[str, Any]) -> None:
        super().__init__()
        self.written = forward
        generator = torch.Generator().manual_seed(0)
        for name, layer in layers.items():
            setattr(self, name, layer)
            for leaf, parameter in layer.named_parameters() if isinstance(layer, nn.Module) else ():
                torch.manual_seed(0)
                drawn = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
                is_scale = parameter.ndim == 1 and leaf.endswith("weight")
                parameter.data.copy_(1 + drawn.abs() if is_scale else drawn)
        self.eval()

    def forward(self, *arrays: Any, **named: Any) -> Any:
        return self.written(self, *arrays, **named)


def usual() -> dict[str, Any]:
    return {"a": nn.Linear(8, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 4)}


def body(m: Any, x: Any) -> Any:
    return m.b(m.n(F.gelu(m.a(x))))


@dataclass
class Named:
    u: Any
    v: Any = None


@dataclass
class AsMapping(OrderedDict):
    """As the outputs of transformers are: a dataclass and a mapping in one."""

    u: Any = None
    v: Any = None

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            if getattr(self, each.name) is not None:
                self[each.name] = getattr(self, each.name)


Tuple = namedtuple("Tuple", "u v")


def both(make: Callable[[Any, Any], Any]) -> Forward:
    """A forward pass whose outputs are made of the body's and of twice that."""
    return lambda m, x: (lambda y: make(y, 2 * y))(body(m, x))


def of(make: Callable[[Any], Any]) -> Forward:
    """A forward pass whose output is made of the body's."""
    return lambda m, x: make(body(m, x))


def put(where: Any, value: float) -> Forward:
    """The body's output with one number in some places."""

    def forward(m: Any, x: Any) -> Any:
        y = body(m, x).clone()
        y[where] = value
        return y

    return forward


def plus(where: Any, value: Any) -> Callable[[Any], Any]:
    def added(y: Any) -> Any:
        y = y.clone()
        y[where] = y[where] + value
        return y

    return added


in_dict = both(lambda u, v: {"u": u, "v": v})
in_tuple = both(lambda u, v: (u, v))
argmax = of(lambda y: y.argmax(-1))
positive = of(lambda y: y > 0)
spectrum = of(lambda y: torch.fft.fft(y))
nan, inf = float("nan"), float("inf")

STRUCTURE = [
    Trap("a dict in another order", AGREES, in_dict, both(lambda u, v: {"v": v, "u": u})),
    Trap("names swapped", DISAGREES, in_dict, both(lambda u, v: {"v": u, "u": v})),
    Trap("a dict against a tuple", AGREES, in_dict, in_tuple),
    Trap("a tuple against a dict", AGREES, in_tuple, in_dict),
    Trap("a tuple against a list", AGREES, in_tuple, both(lambda u, v: [u, v])),
    Trap("a tuple in another order", DISAGREES, in_tuple, both(lambda u, v: (v, u))),
    Trap("a dict against a tuple in another order", DISAGREES, in_dict, both(lambda u, v: (v, u))),
    Trap("a tuple of one against it alone", AGREES, body, of(lambda y: (y,))),
    Trap("a dict of one against it alone", AGREES, of(lambda y: {"logits": y}), body),
    Trap("a dataclass against a dict", AGREES, in_dict, both(Named)),
    Trap("a dataclass with names swapped", DISAGREES, in_dict, both(lambda u, v: Named(v, u))),
    Trap("a dataclass against itself", AGREES, both(Named), both(Named)),
    Trap("a named tuple against a dataclass", AGREES, both(Tuple), both(Named)),
    Trap("a named tuple with names swapped", DISAGREES, both(Tuple), both(lambda u, v: Tuple(v, u))),
    Trap("a named tuple against a tuple", AGREES, both(Tuple), in_tuple),
    Trap("a mapping that is a dataclass", AGREES, in_dict, both(AsMapping)),
    Trap("a mapping that is a dataclass, swapped", DISAGREES, in_dict, both(lambda u, v: AsMapping(v, u))),
    Trap("a mapping that is a dataclass, in half", DISAGREES, in_dict, both(lambda u, v: AsMapping(u))),
    Trap("nothing beside it", AGREES, body, of(lambda y: (y, None))),
    Trap("nothing under a name beside it", AGREES, of(lambda y: {"u": y}), of(lambda y: {"u": y, "v": None})),
    Trap("an output more", DISAGREES, body, in_tuple),
    Trap("an output less", DISAGREES, in_tuple, body),
    Trap("a name more", DISAGREES, of(lambda y: {"u": y}), in_dict, says="v"),
    Trap("another name", DISAGREES, of(lambda y: {"u": y}), of(lambda y: {"w": y}), says="w"),
    Trap("nested alike", AGREES, both(lambda u, v: (u, {"v": [v, u]})), both(lambda u, v: (u, {"v": [v, u]}))),
    Trap("nested, swapped inside", DISAGREES, both(lambda u, v: (u, {"v": [v, u]})),
         both(lambda u, v: (u, {"v": [u, v]}))),
    Trap("nested otherwise", DISAGREES, both(lambda u, v: (u, (v, u))), both(lambda u, v: ((u, v), u))),
    Trap("an empty dict", UNDECIDED, of(lambda y: {}), of(lambda y: {})),
    Trap("None", UNDECIDED, of(lambda y: None), of(lambda y: None)),
    Trap("None on one side", DISAGREES, body, of(lambda y: None)),
    Trap("an array of no number", UNDECIDED, of(lambda y: y[:0]), of(lambda y: y[:0])),
    Trap("an array of no number on one side", DISAGREES, body, of(lambda y: y[:0])),
    Trap("an array of no number beside one", AGREES, of(lambda y: (y, y[:0])), of(lambda y: (y, y[:0]))),
    Trap("another axis", DISAGREES, of(lambda y: y.sum(-1)), of(lambda y: y.sum(-1, keepdim=True))),
    Trap("a number against as many of it", DISAGREES, of(lambda y: y.mean()), of(lambda y: y.mean().expand(6, 4))),
    Trap("transposed", DISAGREES, body, of(lambda y: y.T)),
    Trap("transposed, and square", DISAGREES, of(lambda y: y[:4]), of(lambda y: y[:4].T)),
    Trap("reshaped instead of transposed", DISAGREES, of(lambda y: y.T), of(lambda y: y.reshape(4, 6))),
    Trap("rows in another order", DISAGREES, body, of(lambda y: y.flip(0))),
    Trap("channels in another order", DISAGREES, body, of(lambda y: y[:, [1, 0, 2, 3]])),
    Trap("the second output wrong", DISAGREES, in_tuple, both(lambda u, v: (u, 2.000001 * u))),
    Trap("the second output of other roundings", AGREES, in_tuple, both(lambda u, v: (u, u / 3 * 6))),
    Trap("a small output wrong beside a large one", DISAGREES, both(lambda u, v: (1e9 * u, v)),
         both(lambda u, v: (1e9 * u, 1.001 * v)), says="[1]"),
    Trap("a small channel wrong beside large ones", DISAGREES, of(plus((slice(None), 0), 1e6)),
         of(lambda y: plus((slice(None), 0), 1e6)(y) * torch.tensor([1, 1, 1.001, 1]))),
    Trap("one number of many wrong", DISAGREES, body, of(plus((3, 2), 1e-4))),
    Trap("a number of Python's", AGREES, of(lambda y: float(y.detach().sum())), of(lambda y: float(y.detach().sum()))),
    Trap("another number of Python's", DISAGREES, of(lambda y: float(y.detach().sum())),
         of(lambda y: 1.01 * float(y.detach().sum()))),
    Trap("texts", AGREES, of(lambda y: (y, "cat")), of(lambda y: (y, "cat"))),
    Trap("other texts", DISAGREES, of(lambda y: (y, "cat")), of(lambda y: (y, "dog")), says="dog"),
    Trap("texts alone", AGREES, of(lambda y: ["cat", "dog"]), of(lambda y: ["cat", "dog"])),
    Trap("another text alone", DISAGREES, of(lambda y: "cat"), of(lambda y: "dog")),
    Trap("the input itself", AGREES, lambda m, x: x, lambda m, x: x),
    Trap("the input itself, moved", DISAGREES, lambda m, x: x, lambda m, x: x + 1e-4),
]  # fmt: skip

NUMBERS = [
    Trap("whole numbers", AGREES, argmax, argmax),
    Trap("whole numbers off by one", DISAGREES, argmax, of(lambda y: y.argmax(-1) + 1)),
    Trap("one whole number off by one", DISAGREES, argmax, of(lambda y: plus(2, 1)(y.argmax(-1))),
         says="1 of 6 whole numbers"),
    Trap("whole numbers of another width", AGREES, argmax, of(lambda y: y.argmax(-1).int())),
    Trap("large whole numbers", AGREES, of(lambda y: y.argmax(-1) + 2**53 + 1), of(lambda y: 2**53 + 1 + y.argmax(-1))),
    Trap("large whole numbers off by one", DISAGREES, of(lambda y: 0 * y.argmax(-1) + 2**53 + 1),
         of(lambda y: 0 * y.argmax(-1) + 2**53)),
    Trap("whole numbers beside a float", DISAGREES, of(lambda y: (y, y.argmax(-1))),
         of(lambda y: (y, (y + 1e-4).argmin(-1)))),
    Trap("booleans", AGREES, positive, of(lambda y: ~(y <= 0))),
    Trap("a boolean turned", DISAGREES, positive, of(lambda y: put_in(y > 0, (0, 0), not bool(y[0, 0] > 0)))),
    Trap("all booleans turned", DISAGREES, positive, of(lambda y: y <= 0)),
    Trap("bytes", DISAGREES, of(lambda y: (50 * y.abs()).to(torch.uint8)),
         of(lambda y: (51 * y.abs()).to(torch.uint8))),
    Trap("NaN in the same places", AGREES, put((1, 2), nan), put((1, 2), nan)),
    Trap("NaN in another place", DISAGREES, put((1, 2), nan), put((2, 1), nan)),
    Trap("NaN on one side", DISAGREES, body, put((2, 1), nan)),
    Trap("NaN on the other side", DISAGREES, put((2, 1), nan), body),
    Trap("a number beside the NaN wrong", DISAGREES, put((1, 2), nan), of(lambda y: put_in(1.001 * y, (1, 2), nan))),
    Trap("all NaN", UNDECIDED, of(lambda y: y * nan), of(lambda y: y * nan)),
    Trap("all NaN on one side", DISAGREES, body, of(lambda y: y * nan)),
    Trap("all NaN beside numbers", AGREES, of(lambda y: (y, y * nan)), of(lambda y: (y, y * nan))),
    Trap("infinities in the same places", AGREES, put((0, 3), inf), put((0, 3), inf)),
    Trap("an infinity of the other sign", DISAGREES, put((0, 3), inf), put((0, 3), -inf)),
    Trap("an infinity on one side", DISAGREES, body, put((0, 3), inf)),
    Trap("an infinity against NaN", DISAGREES, put((0, 3), inf), put((0, 3), nan)),
    Trap("a number beside the infinity wrong", DISAGREES, put((0, 3), inf),
         of(lambda y: put_in(y + 1e-4, (0, 3), inf))),
    Trap("masked scores", AGREES, of(lambda y: y.masked_fill(y < 0, -inf)), of(lambda y: torch.where(y < 0, -inf, y))),
    Trap("scores masked elsewhere", DISAGREES, of(lambda y: y.masked_fill(y < 0, -inf)),
         of(lambda y: y.masked_fill(y < 0.3, -inf))),
    Trap("complex numbers", AGREES, spectrum, spectrum),
    Trap("complex numbers by another way", AGREES, spectrum, of(lambda y: torch.fft.ifft(y).conj() * 4)),
    Trap("conjugates", DISAGREES, spectrum, of(lambda y: torch.fft.fft(y).conj())),
    Trap("an imaginary part wrong", DISAGREES, spectrum,
         of(lambda y: torch.complex(torch.fft.fft(y).real, 1.001 * torch.fft.fft(y).imag))),
    Trap("complex numbers against their real part", DISAGREES, spectrum, of(lambda y: torch.fft.fft(y).real)),
    Trap("complex numbers turned", DISAGREES, spectrum, of(lambda y: torch.fft.fft(y) * 1j)),
    Trap("large numbers", AGREES, of(lambda y: 1e30 * y), of(lambda y: 5e29 * (y + y))),
    Trap("large numbers wrong", DISAGREES, of(lambda y: 1e30 * y), of(lambda y: 1.001e30 * y)),
    Trap("small numbers", AGREES, of(lambda y: 1e-30 * y), of(lambda y: y * 5e-31 * 2)),
    Trap("small numbers wrong", DISAGREES, of(lambda y: 1e-30 * y), of(lambda y: 1.001e-30 * y)),
    Trap("too large for float32 in both", AGREES, of(lambda y: 1e30 * y * 1e10), of(lambda y: 1e30 * y * 1e10)),
    Trap("too large for float32, and wrong", DISAGREES, of(lambda y: 1e30 * y * 1e10),
         of(lambda y: 1.01e30 * y * 1e10)),
    Trap("too small for float32 in both", AGREES, of(lambda y: 1e-30 * y * 1e-30), of(lambda y: 1e-30 * y * 1e-30)),
    Trap("too large for float32 on the way", DISAGREES, body, of(lambda y: y * 1e20 * 1e25 / 1e45),
         says="float32"),
    Trap("negative zero", AGREES, of(lambda y: y.clamp(min=0)), of(lambda y: -(-y).clamp(max=0))),
]  # fmt: skip


def put_in(y: Any, where: Any, value: float) -> Any:
    y = y.clone()
    y[where] = value
    return y


def half(module: nn.Module) -> nn.Module:
    return module.half()


def brain(module: nn.Module) -> nn.Module:
    return module.bfloat16()


def double(module: nn.Module) -> nn.Module:
    return module.double()


def exactly_brain(module: nn.Module) -> nn.Module:
    return module.bfloat16().float()


def split(m: Any, x: Any) -> Any:
    """The body by other operations, which round elsewhere."""
    h = x[:, :4] @ m.a.weight[:, :4].T + (x[:, 4:] @ m.a.weight[:, 4:].T + m.a.bias)
    h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    h = h - h.mean(-1, keepdim=True)
    h = h / ((h * h).mean(-1, keepdim=True) + m.n.eps).sqrt() * m.n.weight + m.n.bias
    return h @ m.b.weight.T + m.b.bias


def scaled(factor: float) -> Forward:
    return lambda m, x: factor * split(m, x)


def island(factor: float = 1.0, eps: float = 1e-5, kind: str = "norm", by_hand: bool = False) -> Forward:
    """A norm, or a softmax, in float32 whatever comes in, as published models have it."""

    def forward(m: Any, x: Any) -> Any:
        h = m.a(x)
        g = h.float()
        if kind == "norm":
            square = g.pow(2).mean(-1, keepdim=True) if not by_hand else (g * g).sum(-1, keepdim=True) / 8
            g = g * torch.rsqrt(square + eps) if not by_hand else g / torch.sqrt(square + eps)
        elif not by_hand:
            g = g.softmax(-1)
        else:
            e = torch.exp(g - g.max(-1, keepdim=True).values)
            g = e / e.flip(-1).cumsum(-1)[..., -1:]
        return factor * m.b(g.to(h.dtype))

    return forward


def mixed(factor: float = 1.0, other: bool = False) -> Forward:
    """Under a policy of mixed precision."""

    def forward(m: Any, x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = split(m, x) if other else body(m, x)
        return factor * y.to(x.dtype)

    return forward


def narrowed(dtype: str, factor: float = 1.0) -> Forward:
    """The way between two layers is narrow, whatever comes in."""
    return lambda m, x: m.b(factor * F.gelu(m.a(x)).to(getattr(torch, dtype)).to(x.dtype))


def far(x: Any) -> Any:
    return x + 100


PRECISION = [
    Trap("other operations", AGREES, body, split),
    Trap("other operations, one per million", DISAGREES, body, scaled(1 + 1e-6)),
    Trap("float16", AGREES, body, split, made=half),
    Trap("float16, one per cent", DISAGREES, body, scaled(1.01), made=half),
    Trap("float16, one per mille", DISAGREES, body, scaled(1.001), made=half),
    Trap("bfloat16", AGREES, body, split, made=brain),
    Trap("bfloat16, one per cent", DISAGREES, body, scaled(1.01), made=brain),
    Trap("bfloat16, three per mille", DISAGREES, body, scaled(1.003), made=brain),
    Trap("bfloat16, another eps", DISAGREES, body, split, made=brain,
         other=lambda: {**usual(), "n": nn.LayerNorm(8, 1e-4)}),
    Trap("float64", AGREES, body, split, made=double),
    Trap("float64, one per 10^9", DISAGREES, body, scaled(1 + 1e-9), made=double),
    Trap("float32 against float64", AGREES, body, split, also=double),
    Trap("float64 against float32", AGREES, body, split, made=lambda m: m.float().double(), also=lambda m: m),
    Trap("bfloat16 against float32 of its weights", AGREES, body, split, made=brain, also=exactly_brain),
    Trap("float32 of its weights against bfloat16", AGREES, body, split, made=exactly_brain, also=brain),
    Trap("bfloat16 against float32, one per cent", DISAGREES, body, scaled(1.01), made=brain, also=exactly_brain),
    Trap("float16 against float32, one per cent", DISAGREES, body, scaled(1.01), made=half,
         also=lambda m: m.half().float()),
    Trap("too large for float16 in both", AGREES, of(lambda y: 1e3 * y * 1e3), of(lambda y: 1e3 * y * 1e3), made=half),
    Trap("too large for float16 on the way", DISAGREES, body, of(lambda y: y * 1e3 * 1e3 / 1e6), made=half),
    Trap("a norm in float32", AGREES, island(), island(by_hand=True)),
    Trap("a norm in float32, another eps", DISAGREES, island(), island(eps=1e-6)),
    Trap("a norm in float32 by hand, another eps", DISAGREES, island(), island(eps=2e-5, by_hand=True)),
    Trap("a norm in float32, scaled", DISAGREES, island(), island(1.0001, by_hand=True)),
    Trap("a softmax in float32", AGREES, island(kind="softmax"), island(kind="softmax", by_hand=True)),
    Trap("a softmax in float32, scaled", DISAGREES, island(kind="softmax"), island(1.0001, kind="softmax")),
    Trap("a norm in float32, in bfloat16", AGREES, island(), island(by_hand=True), made=brain),
    Trap("a norm in float32, in bfloat16, another eps", DISAGREES, island(), island(eps=1e-3, by_hand=True),
         made=brain),
    Trap("a norm in float32 on one side", AGREES, island(),
         lambda m, x: (lambda h: m.b(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)))(m.a(x))),
    Trap("mixed precision", AGREES, mixed(), mixed(other=True)),
    Trap("mixed precision, one per cent", DISAGREES, mixed(), mixed(1.01)),
    Trap("mixed precision, one per cent by other operations", DISAGREES, mixed(), mixed(1.01, other=True)),
    Trap("mixed precision against itself", AGREES, mixed(), mixed()),
    Trap("narrow between layers", AGREES, narrowed("float16"), narrowed("float16")),
    Trap("narrow between layers, one per cent", DISAGREES, narrowed("float16"), narrowed("float16", 1.01)),
    Trap("very narrow between layers, three per cent", DISAGREES, narrowed("bfloat16"), narrowed("bfloat16", 1.03)),
    Trap("a variance by a difference of large numbers", AGREES,
         lambda m, x: m.b(m.n(far(m.a(x)))),
         lambda m, x: (lambda h: m.b((h - h.mean(-1, keepdim=True)) / ((h * h).mean(-1, keepdim=True)
             - h.mean(-1, keepdim=True) ** 2 + m.n.eps).sqrt() * m.n.weight + m.n.bias))(far(m.a(x)))),
    Trap("a difference of large numbers, one per million", DISAGREES,
         lambda m, x: m.b(m.n(far(m.a(x)))), lambda m, x: (1 + 1e-6) * m.b(m.n(far(m.a(x))))),
    Trap("two biases merged", AGREES, lambda m, x: m.b(F.gelu(m.a(x) + m.c.bias)),
         lambda m, x: m.b(F.gelu(F.linear(x, m.a.weight) + (m.a.bias + m.c.bias))),
         layers=lambda: {"a": nn.Linear(8, 8), "c": nn.Linear(1, 8), "b": nn.Linear(8, 4)}),
]  # fmt: skip


def fine(module: nn.Module) -> nn.Module:
    """In float64, with weights that float32 has not."""
    module.double()
    for parameter in module.parameters():
        parameter.data *= 1 + 1e-9
    return module


def worse(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data *= 1.02
    return module


ROUNDED = [
    Trap("float32 against its own rounding to bfloat16", AGREES, body, split, made=lambda m: m, also=brain,
         says="rounded"),
    Trap("float32 against its own rounding to float16", AGREES, body, split, made=lambda m: m, also=half),
    Trap("its own rounding to bfloat16 against float32", AGREES, body, split, made=brain, also=lambda m: m),
    Trap("float32 against its own rounding to bfloat16, one per cent", DISAGREES, body, scaled(1.01),
         made=lambda m: m, also=brain),
    Trap("its own rounding to float16 against float32, one per cent", DISAGREES, body, scaled(1.01), made=half,
         also=lambda m: m),
    Trap("float64 against its own rounding to float32", AGREES, body, split, made=fine, also=lambda m: fine(m).float()),
    Trap("float32 against a bfloat16 of other weights", DISAGREES, body, split, made=lambda m: m,
         also=lambda m: worse(m).bfloat16(), says="values"),
]  # fmt: skip

TRAPS = [*ROUNDED, *STRUCTURE, *NUMBERS, *PRECISION]
