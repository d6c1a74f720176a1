"""A decoder of GPT-2's size, 124 M parameters, in PyTorch and in Flax: what its comparison costs, over running both.

``python benchmarks/large.py native`` and ``... compare`` each print the seconds of one forward and backward pass of
both models, or of ``mp.compare``, with all that is compiled on the way, and the process' peak memory in bytes.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen

import multiparam as mp

WIDTH, DEPTH, HEADS, VOCABULARY, POSITIONS = 768, 12, 12, 50257, 1024
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (4, 128))
LABELS = np.random.default_rng(1).integers(0, VOCABULARY, TOKENS.size)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.attn = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any, mask: Any) -> Any:
        y = self.n1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.down(torch.nn.functional.gelu(self.up(self.n2(x))))


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.place = torch.nn.Embedding(POSITIONS, WIDTH)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(DEPTH)])
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, tokens: Any) -> Any:
        n = tokens.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        x = self.embed(tokens) + self.place(torch.arange(n))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x) @ self.embed.weight.T


class FlaxBlock(linen.Module):
    def setup(self) -> None:
        self.n1, self.n2 = linen.LayerNorm(epsilon=1e-5), linen.LayerNorm(epsilon=1e-5)
        self.attn = linen.MultiHeadDotProductAttention(HEADS)
        self.up, self.down = linen.Dense(4 * WIDTH), linen.Dense(WIDTH)

    def __call__(self, x: Any, mask: Any) -> Any:
        y = self.n1(x)
        x = x + self.attn(y, y, mask=mask)
        return x + self.down(linen.gelu(self.up(self.n2(x)), approximate=False))


class FlaxDecoder(linen.Module):
    def setup(self) -> None:
        self.embed, self.place = linen.Embed(VOCABULARY, WIDTH), linen.Embed(POSITIONS, WIDTH)
        self.blocks = [FlaxBlock() for _ in range(DEPTH)]
        self.norm = linen.LayerNorm(epsilon=1e-5)

    def __call__(self, tokens: Any) -> Any:
        mask = linen.make_causal_mask(tokens)
        x = self.embed(tokens) + self.place(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(self.norm(x))


def models() -> tuple[Any, mp.Model]:
    """Both, with the same weights."""
    torch.manual_seed(0)
    ours = Decoder()
    for p in ours.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.02)
    theirs = mp.wrap(FlaxDecoder(), TOKENS)
    mp.transfer(mp.wrap(ours), theirs)
    return ours, theirs


def native(ours: Any, theirs: mp.Model) -> Callable[[], Any]:
    """A forward and a backward pass of each, as their users write it."""
    module, variables = theirs.native, theirs.variables

    @jax.jit
    def gradient(variables: Any, tokens: Any, labels: Any) -> Any:
        def loss(variables: Any) -> Any:
            logits = module.apply(variables, tokens).reshape(-1, VOCABULARY)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.value_and_grad(loss)(variables)

    def run() -> None:
        logits = ours(torch.from_numpy(TOKENS)).reshape(-1, VOCABULARY)
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
        jax.block_until_ready(gradient(variables, TOKENS, LABELS))

    return run


def comparison(ours: Any, theirs: mp.Model) -> Callable[[], Any]:
    def objective(net: mp.Model, tokens: Any, labels: Any) -> Any:
        return net.adapter.cross_entropy(net(tokens).reshape(-1, VOCABULARY), labels)

    def run() -> None:
        found = mp.compare({"torch": ours, "flax": theirs}, TOKENS, targets=LABELS, objective=objective)
        assert found.agrees, str(found)

    return run


def main() -> None:
    run = {"native": native, "compare": comparison}[sys.argv[1]](*models())
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
