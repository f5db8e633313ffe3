"""GPT-2 (Radford et al. 2019) over the ops of gpt2c.ops, reading top to bottom.

Shapes: B batch, T tokens, C width, H heads, D head dimension, V vocabulary, Vp padded vocabulary.

The residual stream h and the layernorm after it are one pass: every layer hands back its last branch x and the stream h
that it belongs to, and the next one adds them up while it normalises (gpt2c/ops/block.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2c import ops, pretrained
from gpt2c.config import GPT2Config
from gpt2c.generate import KVCache, generate, stream
from gpt2c.part import Holder, Part

# Standard deviation of the initial weights: 0.02, as in GPT (Radford et al. 2018) and OpenAI's released code of GPT-2
# (src/model.py). That code draws wpe with 0.01; 0.02 is used here, as in Hugging Face's GPT-2 (initializer_range).
INIT_STD = 0.02


class LayerNorm(Part):
    """Holds weight (C,) and bias (C,); the arithmetic is in the fused ops of the model's forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))


class Linear(Part):
    """Holds weight W (in, out), the layout of GPT-2's released weights, and bias (out), of y = x W + b.

    std: of the initial W; b starts at 0.
    """

    def __init__(self, n_in: int, n_out: int, std: float = INIT_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(n_out))


class Embedding(Part):
    """Holds weight (rows, C), of which the first `used` rows are drawn and the rest, padding, are zero."""

    def __init__(self, rows: int, width: int, used: int) -> None:
        super().__init__()
        weight = torch.zeros(rows, width)
        weight[:used].normal_(std=INIT_STD)
        self.weight = nn.Parameter(weight)


class Attention(Part):
    """Holds the two projections around causal self-attention."""

    def __init__(self, config: GPT2Config, residual_std: float) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd, residual_std)


class MLP(Part):
    """Holds the two projections around the gelu, with the hidden width 4C."""

    def __init__(self, config: GPT2Config, residual_std: float) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, residual_std)


class Block(Part):
    """The parameters of one layer, whose arithmetic is ops.block."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        # GPT-2, section 2.3: the weights of residual layers are scaled by 1/sqrt(number of residual layers), here 2L.
        residual_std = INIT_STD / math.sqrt(2 * config.n_layer)
        self.ln_1 = LayerNorm(config.n_embd)
        self.attn = Attention(config, residual_std)
        self.ln_2 = LayerNorm(config.n_embd)
        self.mlp = MLP(config, residual_std)

    def weights(self) -> ops.BlockWeights:
        parts = (self.ln_1, self.attn.c_attn, self.attn.c_proj, self.ln_2, self.mlp.c_fc, self.mlp.c_proj)
        return ops.BlockWeights(*(p for part in parts for p in (part.weight, part.bias)))


class GPT2(Holder):
    """GPT-2 with tied embeddings; parameters are named and laid out as in Hugging Face's, without `transformer.`.

    wte.weight has config.padded_vocab_size rows; the padding is zero, gets no gradient and shows nowhere else.
    Activations have the parameters' dtype (fp32 or bf16, on CUDA also fp16), losses are fp32. Under torch.autocast they
    have its dtype: the parameters' copies of that dtype are made anew in each forward, gradients arrive in fp32.

    recompute: whether training keeps only each layer's input and computes the rest again in the backward: C floats a
    token and layer instead of 10 C, for a third more arithmetic in the forward's share, a fifth to a quarter in all.
    """

    recompute = False

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.padded_vocab_size, config.n_embd, used=config.vocab_size)
        self.wpe = Embedding(config.n_positions, config.n_embd, used=config.n_positions)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Next-token logits, or the mean cross-entropy without storing the logits.

        idx: (B,T) int64 token ids, 1 <= T <= n_positions. targets: (B,T) int64, -100 is ignored.
        starts: (B,T) int64, for each token the column of its row where its document begins, never falling along T and
        at most the token's own: documents packed in a row see nothing of each other, and each counts its positions from
        0, as if it were alone. None: each row is one document.
        Returns (logits (B,T,V), None) without targets and (None, loss: 0-dim fp32) with them.
        Raises TypeError, ValueError or IndexError, one sentence, for a wrong dtype, shape, token id or start.
        """
        self.check_tokens(idx)
        if targets is not None:
            _check_like_idx("targets", targets, idx)
        if starts is not None:
            _check_like_idx("starts", starts, idx)
        V = self.config.vocab_size
        wte, wpe = self._cast((self.wte.weight, self.wpe.weight))
        h, head = ops.tied_embedding(idx, wte, wpe, vocab_size=V, starts=starts)
        y = self.layers(h, dropout=self.config.dropout if self.training else 0.0, starts=starts)
        if targets is None:
            return ops.matmul(y, head[:V].t()).view(*idx.shape, V), None
        return None, ops.linear_cross_entropy(y, head, targets.reshape(-1), vocab_size=V)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final layernorm's output (B*T, C) for idx (B,T), whose first position is cache.length with a cache."""
        start = 0 if cache is None else cache.length
        wte, wpe = self._cast((self.wte.weight, self.wpe.weight))
        return self.layers(ops.embedding(idx, wte, wpe, start, self.config.vocab_size), cache)

    def layers(
        self, x: Tensor, cache: KVCache | None = None, dropout: float = 0.0, starts: Tensor | None = None
    ) -> Tensor:
        """All blocks and the final layernorm, (B*T, C), on the embeddings x (B,T,C).

        dropout: probability of all three kinds of dropout, 0 for none. starts: as for forward; none with a cache.
        """
        config = self.config
        seeds: list[Tensor | None] = [None] * len(self.h)
        x, h = F.dropout(x, dropout) if dropout else x, None
        if dropout:
            seeds = list(_attention_seeds(len(self.h), x.device))
        for i, layer in enumerate(self.h):
            weights = ops.BlockWeights(*self._cast(layer.weights()))
            settings = weights, config.n_head, config.layer_norm_epsilon
            if cache is not None:
                x, h = ops.cached_block(x, h, *settings, cache.layers[i])
            else:
                x, h = ops.block(x, h, *settings, dropout, seeds[i], self.recompute, starts)
        weight, bias = self._cast((self.ln_f.weight, self.ln_f.bias))
        return ops.residual_layernorm(x, h, weight, bias, config.layer_norm_epsilon)[1].view(-1, config.n_embd)

    def logits(self, y: Tensor) -> Tensor:
        """y (N,C) times the token embedding's V rows: (N,V), the padding left out."""
        (head,) = self._cast((self.wte.weight[: self.config.vocab_size],))
        return ops.matmul(y, head.t())

    def activation_dtype(self) -> torch.dtype:
        """Of what is computed now: the parameters', or autocast's where there is autocast."""
        device = self.wte.weight.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self.wte.weight.dtype
        return torch.get_autocast_dtype(device)

    def _cast(self, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """The parameters in the activations' dtype. By themselves the ops would cast each time that they are called,
        the tied embedding's 154 MB twice."""
        dtype = self.activation_dtype()
        return parameters if dtype == parameters[0].dtype else [p.to(dtype) for p in parameters]

    def check_tokens(self, idx: Tensor, longest: int | None = None) -> None:
        """Raises TypeError or ValueError, one sentence, unless idx is (B,T) int64; the embedding checks the ids.

        longest: the largest T, n_positions if not given.
        """
        longest = longest or self.config.n_positions
        if not isinstance(idx, Tensor) or idx.dtype != torch.int64:
            raise TypeError(f"GPT2: idx is {_describe(idx)}, expected an int64 tensor")
        if idx.ndim != 2 or not 1 <= idx.shape[1] <= longest:
            raise ValueError(f"GPT2: idx has shape {tuple(idx.shape)}, expected (B, T) with 1 <= T <= {longest}")
        if idx.device != self.wte.weight.device:
            raise ValueError(f"GPT2: idx is on {idx.device}, expected {self.wte.weight.device} as the parameters")

    def num_parameters(self) -> int:
        """Number of trained scalars, the vocabulary's padding not counted (gpt2: 124,439,808)."""
        return self.config.num_parameters()

    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        weights: str = "fp32",
    ) -> Tensor:
        """Continues each row of idx (B,T0): ids (B, T0 + max_new_tokens); see gpt2c.generate.stream."""
        return generate(self, idx, max_new_tokens, temperature, top_k, top_p, seed, weights)

    def stream(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        weights: str = "fp32",
    ) -> Iterator[Tensor]:
        """Yields the next ids (B,) as they come; see gpt2c.generate.stream."""
        return stream(self, idx, max_new_tokens, temperature, top_k, top_p, seed, weights)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> GPT2:
        """The GPT-2 in a folder or on the Hugging Face hub, in eval mode; see gpt2c.pretrained.load."""
        return pretrained.load(cls, name)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes what transformers' GPT2LMHeadModel.from_pretrained loads; see gpt2c.pretrained.save."""
        pretrained.save(self, folder)


def _attention_seeds(count: int, device: torch.device) -> tuple[Tensor, ...]:
    """One seed per layer for the attention's dropout, from torch's generator: its state decides every mask."""
    return torch.randint(0, 2**63 - 1, (count,), dtype=torch.int64, device=device).split(1)


def _check_like_idx(name: str, value: Tensor, idx: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        raise TypeError(f"GPT2: {name} is {_describe(value)}, expected an int64 tensor")
    if value.shape != idx.shape:
        raise ValueError(f"GPT2: {name} has shape {tuple(value.shape)}, expected {tuple(idx.shape)} as idx")
    if value.device != idx.device:
        raise ValueError(f"GPT2: {name} is on {value.device}, expected {idx.device} as idx")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor"
    return f"a {type(value).__name__}"
