"""What a model does inside, computed once more in plain PyTorch: where each head looks, and what each layer would say.

    attention   p = softmax(q k^T / sqrt(D)), q and k of one layer and head (Vaswani et al. 2017, section 3.2.1)
    logit lens  softmax(ln_f(h) wte^T) of the residual stream h after each layer (nostalgebraist, "interpreting GPT: the
                logit lens", 2020)

The kernels keep neither. A text is read once and kept, so that another layer or head costs one small product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2c.generate import check_finite
from gpt2c.model import GPT2, Block
from gpt2c.serve.tokens import Token, Wanted, token

MOST_SHOWN = 128  # rows and columns of a map: the last tokens of a longer text
LENS_SHOWN = 32  # positions of the logit lens
LENS_TOP = 3


@dataclass(frozen=True)
class MapKind:
    """An attention of the model that can be looked at. queries, keys: whose tokens its rows and columns are."""

    name: str
    layers: int
    heads: int
    queries: Literal["text", "source"] = "text"
    keys: Literal["text", "source"] = "text"


@dataclass(frozen=True)
class AttentionMap:
    """weights (rows, columns): how much of the attention of each row's token goes to each column's.

    rows, columns: their tokens' ids; earlier (rows): what goes to tokens before the first column.
    """

    rows: Sequence[int]
    columns: Sequence[int]
    weights: Tensor
    earlier: Tensor


SELF_ATTENTION = "causal self-attention"


def map_kinds(model: GPT2) -> list[MapKind]:
    return [MapKind(SELF_ATTENTION, model.config.n_layer, model.config.n_head)]


class Reading:
    """A text of ids, as the model reads it: q and k of each layer, and the residual stream before and after each.

    Raises ValueError for damaged weights.
    """

    @torch.no_grad()
    def __init__(self, model: GPT2, ids: Sequence[int]) -> None:
        self.model, self.ids = model, list(ids)
        self.q: list[Tensor] = []  # of each layer (H,T,D)
        self.k: list[Tensor] = []
        x = model.wte.weight[self.ids].float() + model.wpe.weight[: len(self.ids)].float()
        self.streams = [x]  # (T,C) each
        for block in model.h:
            self.streams.append(self._block(block, self.streams[-1]))
        check_finite(self.logits(len(model.h), slice(-1, None)))

    def _block(self, block: Block, x: Tensor) -> Tensor:
        T, C = x.shape
        w = [p.float() for p in block.weights()]
        eps = self.model.config.layer_norm_epsilon
        y = F.layer_norm(x, (C,), w[0], w[1], eps) @ w[2] + w[3]
        q, k, v = y.view(T, 3, self.model.config.n_head, -1).permute(1, 2, 0, 3)
        self.q.append(q)
        self.k.append(k)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + o.transpose(0, 1).reshape(T, C) @ w[4] + w[5]
        y = F.gelu(F.layer_norm(x, (C,), w[6], w[7], eps) @ w[8] + w[9], approximate="tanh")
        return x + y @ w[10] + w[11]

    @torch.no_grad()
    def attention(self, layer: int, head: int) -> AttentionMap:
        """Of the last MOST_SHOWN tokens."""
        T = len(self.ids)
        first = max(0, T - MOST_SHOWN)
        q, k = self.q[layer][head, first:], self.k[layer][head]
        scores = q @ k.t() / math.sqrt(q.shape[1])
        hidden = torch.ones(T - first, T, dtype=torch.bool, device="cpu").triu(first + 1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        shown = self.ids[first:]
        return AttentionMap(shown, shown, weights[:, first:], weights[:, :first].sum(-1))

    def logits(self, layer: int, positions: slice | Tensor) -> Tensor:
        """(n,V) after `layer` layers; 0 are the embeddings, all of them is what the model says."""
        model, x = self.model, self.streams[layer][positions]
        y = F.layer_norm(x, (x.shape[1],), model.ln_f.weight.float(), model.ln_f.bias.float(),
                         model.config.layer_norm_epsilon)  # fmt: skip
        return y @ model.wte.weight[: model.config.vocab_size].float().t()

    @torch.no_grad()
    def lens(self) -> list[list[list[tuple[int, float]]]]:
        """Of the embeddings and each layer, for the last LENS_SHOWN positions, the likeliest next ids with their
        probabilities."""
        positions = slice(max(0, len(self.ids) - LENS_SHOWN), len(self.ids))
        table = []
        for layer in range(len(self.streams)):
            values, ids = self.logits(layer, positions).softmax(-1).topk(min(LENS_TOP, self.model.config.vocab_size))
            rows = zip(ids.tolist(), values.tolist(), strict=True)
            table.append([list(zip(*row, strict=True)) for row in rows])
        return table

    @torch.no_grad()
    def tokens(self, positions: Sequence[int], wanted: Wanted) -> list[Token]:
        """How likely the token at each of the positions was, each at least 1."""
        logits = self.logits(len(self.streams) - 1, torch.tensor(positions, dtype=torch.int64, device="cpu") - 1)
        return [token(self.ids[at], row, wanted) for at, row in zip(positions, logits, strict=True)]


class Reader:
    """Keeps the last text that was read."""

    def __init__(self, model: GPT2) -> None:
        self.model = model
        self._last: Reading | None = None

    def read(self, ids: Sequence[int]) -> Reading:
        if self._last is None or self._last.ids != list(ids):
            self._last = Reading(self.model, ids)
        return self._last
