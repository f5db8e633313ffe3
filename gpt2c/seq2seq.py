"""An encoder-decoder over the ops of gpt2c.ops, with all three attentions in one model (Vaswani et al., "Attention Is
All You Need", 2017, section 3).

    memory = encoder(source)                  self-attention: every source token sees every source token
    y = decoder(target so far, memory)        causal self-attention, then cross-attention: queries from the target,
                                              keys and values from the memory

Layernorm stands before each branch, as in GPT-2 (Radford et al. 2019, section 2.3), not after it as in the paper.
Source, target and head share one embedding (Vaswani et al., section 3.4); positions are learned, as in GPT-2.

Shapes: B batch, S source tokens, T target tokens, C width, H heads, D = C / H, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpt2c import ops
from gpt2c.config import GPT2Config
from gpt2c.model import LayerNorm, Linear
from gpt2c.part import Holder


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes of an encoder-decoder.

    vocab_size: V, number of tokens of source and target together.
    n_positions: the most tokens of a source, and of a target.
    n_embd: C, width. n_head: H, heads of every attention. n_encoder, n_decoder: layers of either side.

    Raises TypeError or ValueError, one sentence, for anything that is not a model.
    """

    vocab_size: int
    n_positions: int = 32
    n_embd: int = 64
    n_head: int = 2
    n_encoder: int = 1
    n_decoder: int = 2

    def __post_init__(self) -> None:
        for n_layer in (self.n_encoder, self.n_decoder):  # either side is checked as a GPT-2 of its sizes
            GPT2Config(self.vocab_size, self.n_positions, self.n_embd, n_layer, self.n_head)

    def init_std(self, branches: int = 1) -> float:
        """Of the initial weights: 1 / sqrt(C), divided by the root of the number of residual branches where one ends.

        GPT-2's 0.02 is about half of that at C = 768; at C = 64 it would make all scores of attention start at nearly
        0, and learning where to look take many more steps.
        """
        return 1 / math.sqrt(self.n_embd * branches)


class Attention(Holder):
    """softmax(q k^T / sqrt(D)) v of the `heads` that its kind makes of its inputs, projected back to (B,T,C)."""

    c_proj: Linear

    def __init__(self, n_head: int, causal: bool) -> None:
        super().__init__()
        self.n_head, self.causal = n_head, causal

    def heads(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B,H,T,D), k and v (B,H,S,D)."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Tensor:
        q, k, v = self.heads(*inputs)
        return linear(merge_heads(ops.attention(q, k, v, causal=self.causal)), self.c_proj)

    def probabilities(self, *inputs: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)), (B,H,T,S), which the op never stores: for looking at."""
        q, k, _ = self.heads(*inputs)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        return scores.softmax(-1)


class SelfAttention(Attention):
    """q, k and v are three projections of one x (B,T,C)."""

    def __init__(self, config: Seq2SeqConfig, residual_std: float, causal: bool) -> None:
        super().__init__(config.n_head, causal)
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, config.init_std())
        self.c_proj = Linear(config.n_embd, config.n_embd, residual_std)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, self.n_head) for part in linear(x, self.c_attn).chunk(3, dim=2))
        return q, k, v


class CrossAttention(Attention):
    """q is projected from x (B,T,C), k and v are from the memory (B,S,C)."""

    def __init__(self, config: Seq2SeqConfig, residual_std: float) -> None:
        super().__init__(config.n_head, causal=False)
        self.c_query = Linear(config.n_embd, config.n_embd, config.init_std())
        self.c_memory = Linear(config.n_embd, 2 * config.n_embd, config.init_std())
        self.c_proj = Linear(config.n_embd, config.n_embd, residual_std)

    def heads(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = (linear(x, self.c_query), *linear(memory, self.c_memory).chunk(2, dim=2))
        q, k, v = (split_heads(part, self.n_head) for part in parts)
        return q, k, v


class MLP(Holder):
    """gelu(x W + b) W' + b' with the hidden width 4C."""

    def __init__(self, config: Seq2SeqConfig, residual_std: float) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, config.init_std())
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, residual_std)

    def forward(self, x: Tensor) -> Tensor:
        hidden = ops.matmul(x.flatten(0, 1), self.c_fc.weight).view(*x.shape[:2], -1)
        return linear(ops.bias_gelu(hidden, self.c_fc.bias), self.c_proj)


class EncoderLayer(Holder):
    """x + attention(norm(x)), then x + mlp(norm(x)). Takes and gives the stream h and the branch x to be added."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        std = config.init_std(2 * config.n_encoder)  # GPT-2, section 2.3: by the number of residual branches
        self.ln_1, self.ln_2 = LayerNorm(config.n_embd), LayerNorm(config.n_embd)
        self.attn, self.mlp = SelfAttention(config, std, causal=False), MLP(config, std)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h, y = add_and_norm(x, h, self.ln_1)
        h, y = add_and_norm(self.attn(y), h, self.ln_2)
        return self.mlp(y), h


class DecoderLayer(Holder):
    """As an encoder layer, but causal, and with cross-attention to the memory in between."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        std = config.init_std(3 * config.n_decoder)
        self.ln_1, self.ln_2, self.ln_3 = (LayerNorm(config.n_embd) for _ in range(3))
        self.attn, self.cross = SelfAttention(config, std, causal=True), CrossAttention(config, std)
        self.mlp = MLP(config, std)

    def forward(self, x: Tensor, h: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
        h, y = add_and_norm(x, h, self.ln_1)
        h, y = add_and_norm(self.attn(y), h, self.ln_2)
        h, y = add_and_norm(self.cross(y, memory), h, self.ln_3)
        return self.mlp(y), h


class AttentionMaps(NamedTuple):
    """softmax(q k^T / sqrt(D)) of every layer and head: (layers, B, H, queries, keys), rows sum to 1."""

    source: Tensor  # of the encoder's self-attention, (n_encoder,B,H,S,S)
    target: Tensor  # of the decoder's causal one, (n_decoder,B,H,T,T)
    cross: Tensor  # (n_decoder,B,H,T,S)


class Seq2Seq(Holder):
    """The encoder-decoder of the module's head.

    No attention here has a padding mask: all sources of a batch have the same length, so that no query can see padding.
    Targets may be padded at their end: a causal query sees nothing after itself, and the target -100 has no loss.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe_source, self.wpe_target = (nn.Embedding(config.n_positions, config.n_embd) for _ in range(2))
        for embedding in (self.wte, self.wpe_source, self.wpe_target):
            nn.init.normal_(embedding.weight, std=config.init_std())
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder))
        self.ln_encoder, self.ln_decoder = LayerNorm(config.n_embd), LayerNorm(config.n_embd)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, 0-dim fp32, of labels (B,T): after each token of target (B,T), given source (B,S).

        All int64; the label -100 is ignored. Raises ValueError, TypeError or IndexError, one sentence, for a wrong
        dtype, shape or token id.
        """
        y = self.decode(target, self.encode(source))
        return ops.linear_cross_entropy(y.flatten(0, 1), self.wte.weight, labels.reshape(-1))

    def encode(self, source: Tensor) -> Tensor:
        """The memory (B,S,C) of source (B,S) int64."""
        x, h = ops.embedding(source, self.wte.weight, self.wpe_source.weight), None
        for layer in self.encoder:
            x, h = layer(x, h)
        return add_and_norm(x, h, self.ln_encoder)[1]

    def decode(self, target: Tensor, memory: Tensor) -> Tensor:
        """The last layernorm's output (B,T,C) for target (B,T) int64 beside the memory (B,S,C)."""
        x, h = ops.embedding(target, self.wte.weight, self.wpe_target.weight), None
        for layer in self.decoder:
            x, h = layer(x, h, memory)
        return add_and_norm(x, h, self.ln_decoder)[1]

    def logits(self, y: Tensor) -> Tensor:
        """y (N,C) times the embedding: (N,V)."""
        return ops.matmul(y, self.wte.weight.t())

    @torch.no_grad()
    def greedy(self, source: Tensor, begin: int, end: int) -> Tensor:
        """For each source the likeliest next token, again and again, until all rows have come to `end`.

        source (B,S) int64. begin, end: the ids before and after a target. Returns targets (B,T) int64 without `begin`,
        T at most n_positions - 1; what stands after `end` in a row means nothing.

        The source is encoded once. The few tokens of a target are decoded anew at each step, without a cache.
        """
        memory = self.encode(source)
        target = torch.full((len(source), 1), begin, dtype=torch.int64, device=source.device)
        done = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        while target.shape[1] < self.config.n_positions and not done.all():
            ids = self.logits(self.decode(target, memory)[:, -1]).argmax(-1)
            done |= ids == end
            target = torch.cat([target, ids[:, None]], dim=1)
        return target[:, 1:]

    @torch.no_grad()
    def attention_maps(self, source: Tensor, target: Tensor) -> AttentionMaps:
        """Who looks at whom while target (B,T) is read beside source (B,S)."""
        kinds = (
            [layer.attn for layer in self.encoder],
            [layer.attn for layer in self.decoder],
            [layer.cross for layer in self.decoder],
        )
        seen: dict[Attention, Tensor] = {}

        def look(attention: Attention, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[attention] = attention.probabilities(*inputs)

        hooks = [attention.register_forward_hook(look) for kind in kinds for attention in kind]
        try:
            self.decode(target, self.encode(source))
        finally:
            for hook in hooks:
                hook.remove()
        return AttentionMaps(*(torch.stack([seen[attention] for attention in kind]) for kind in kinds))


def linear(x: Tensor, layer: Linear) -> Tensor:
    """x W + b of x (B,T,C)."""
    return ops.matmul(x.flatten(0, 1), layer.weight, layer.bias).view(*x.shape[:2], -1)


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """(B,T,C) as (B,H,T,D), where it lies."""
    return x.unflatten(2, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B,H,T,D) as (B,T,C)."""
    return x.transpose(1, 2).flatten(2)


def add_and_norm(x: Tensor, h: Tensor | None, norm: LayerNorm) -> tuple[Tensor, Tensor]:
    """The stream h + x (x alone at the first layer) and its layernorm, in one pass."""
    if h is None:
        return x, ops.layernorm(x, norm.weight, norm.bias)
    return ops.residual_layernorm(x, h, norm.weight, norm.bias)
