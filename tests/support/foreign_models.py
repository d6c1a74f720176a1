"""Small models in the style of published ones, written natively, into which mistakes of ports can be put."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WORDS, TIME, WIDTH, HEADS = 24, 6, 16, 2
CUT = 4  # of the image that is looked at


def heads_of(x: Any, wrong: bool = False) -> Any:
    """(batch, time, width) -> (batch, head, time, size); wrong: each head gets every other number."""
    batch, time, width = x.shape
    if wrong:
        return x.view(batch, time, width // HEADS, HEADS).permute(0, 3, 1, 2)
    return x.view(batch, time, HEADS, width // HEADS).transpose(1, 2)


def attended(q: Any, k: Any, v: Any, causal: bool = False, island: bool = False) -> Any:
    """Attention over heads; island: its softmax in float32, as published models take it."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype) if island else scores.softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class BertLayer(nn.Module):
    def __init__(self, mistakes: Collection[str]) -> None:
        super().__init__()
        eps = 1e-5 if "eps" in mistakes else 1e-12
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps), nn.LayerNorm(WIDTH, eps)
        self.intermediate, self.output = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.approximate = "tanh" if "gelu" in mistakes else "none"

    def forward(self, x: Any) -> Any:
        heads = (heads_of(layer(x)) for layer in (self.query, self.key, self.value))
        x = self.norm1(x + self.dense(attended(*heads, island=True)))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x), approximate=self.approximate)))


class Bert(nn.Module):
    """An encoder; mistakes: "eps", "gelu" and "row", of its second layer and of its words."""

    def __init__(self, mistakes: Collection[str] = ()) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(TIME, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, 1e-12)
        self.layer = nn.ModuleList(BertLayer(mistakes if i == 1 else ()) for i in range(2))

    def forward(self, tokens: Any) -> Any:
        x = self.norm(self.words(tokens) + self.positions(torch.arange(tokens.shape[1])))
        for layer in self.layer:
            x = layer(x)
        return x


class VitLayer(nn.Module):
    def __init__(self, mistakes: Collection[str]) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.mistakes = mistakes

    def forward(self, x: Any) -> Any:
        y = self.before(x)
        q, k, v = (heads_of(layer(y)) for layer in (self.q, self.k, self.v))
        if "q and k" in self.mistakes:
            q, k = k, q
        x = x + self.out(attended(q, k, v))
        return x + self.fc2(F.gelu(self.fc1(self.after(x))))


class Vit(nn.Module):
    """Patches, a class token and two layers; mistakes: "q and k" in the second, "no last norm"."""

    def __init__(self, mistakes: Collection[str] = ()) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, CUT, CUT)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.layers = nn.ModuleList(VitLayer(mistakes if i == 1 else ()) for i in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH, 1e-6), nn.Linear(WIDTH, 3)
        self.mistakes = mistakes

    def forward(self, images: Any) -> Any:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head((x if "no last norm" in self.mistakes else self.norm(x))[:, 0])


class Bart(nn.Module):
    """Scaled words, positions that start at 2, one layer; mistakes: "scale", "offset"."""

    def __init__(self, mistakes: Collection[str] = ()) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(TIME + 2, WIDTH)
        self.norm, self.fc = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = 1.0 if "scale" in mistakes else math.sqrt(WIDTH)
        self.offset = 0 if "offset" in mistakes else 2

    def forward(self, tokens: Any) -> Any:
        places = torch.arange(tokens.shape[1]) + self.offset
        return self.fc(self.norm(self.words(tokens) * self.scale + self.positions(places)))


class RMSNorm(nn.Module):
    """In float32, whatever comes in."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), eps

    def forward(self, x: Any) -> Any:
        y = x.to(torch.float32)
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class LlamaLayer(nn.Module):
    def __init__(self, mistakes: Collection[str]) -> None:
        super().__init__()
        self.input_norm = RMSNorm(1e-5 if "eps" in mistakes else 1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.post_norm = RMSNorm(1e-6)
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.mistakes = mistakes

    def forward(self, x: Any) -> Any:
        y = self.input_norm(x)
        q, k, v = (heads_of(layer(y)) for layer in (self.q, self.k, self.v))
        x = x + self.o(attended(q, k, v, causal=True, island=True))
        y = self.post_norm(x)
        gate = F.gelu(self.gate(y)) if "gate" in self.mistakes else F.silu(self.gate(y))
        return x + self.down(gate * self.up(y))


class Llama(nn.Module):
    """Norms and softmax are in float32; mistakes: "eps" of the second layer's first norm, "gate"."""

    def __init__(self, mistakes: Collection[str] = ()) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(LlamaLayer(mistakes if i == 1 else ()) for i in range(2))
        self.norm, self.head = RMSNorm(1e-6), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class GptBlock(nn.Module):
    def __init__(self, mistakes: Collection[str]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.c_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.mistakes = mistakes

    def forward(self, x: Any) -> Any:
        parts = self.c_attn(self.ln_1(x)).split(WIDTH, -1)
        q, k, v = (heads_of(part, "heads" in self.mistakes) for part in parts)
        x = x + self.c_proj(attended(q, k, v, causal="mask" not in self.mistakes))
        gelu = "none" if "gelu" in self.mistakes else "tanh"
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate=gelu))


class Gpt(nn.Module):
    """A decoder whose head is its embedding; mistakes: "heads", "mask" and "gelu" of its second block."""

    def __init__(self, mistakes: Collection[str] = ()) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(TIME, WIDTH)
        self.h = nn.ModuleList(GptBlock(mistakes if i == 1 else ()) for i in range(2))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Any) -> Any:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def settled(model: nn.Module) -> nn.Module:
    """The same numbers in each model of one kind, and in no two places."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else drawn / math.sqrt(parameter.shape[-1]))
    return model


def spoiled(model: nn.Module, mistakes: Collection[str]) -> nn.Module:
    """With one wrong row of the first embedding, where that is among the mistakes."""
    if "row" in mistakes:
        with torch.no_grad():
            model.words.weight[3] += 1e-3  # type: ignore[union-attr,operator]
    return model
