"""Decoding on the CPU: one more token of each row through the whole model in one kernel call.

    logits (B, V) of ids (B,) at the positions `length` of their caches, to which keys and values are appended

Rows may be of different lengths, so that texts can join and leave a batch between two steps. Each step reads every
weight once, whatever B, and that is what its time goes into. So weights can also be read in a packed copy of fewer
bytes, while everything else stays fp32 (weight-only quantisation):

    fp32   the parameters themselves, where they lie: no copy
    bf16   rounded to nearest
    int8   w ~ q scale, with one scale = max|w| / 127 for each output (a column of W, a row of the embedding)

Kernel: csrc/cpu/decode.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gpt2c import _native

if TYPE_CHECKING:
    from gpt2c.generate import KVCache
    from gpt2c.model import GPT2

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
MOST_ROWS = 16  # beyond, a matrix product that is made for many rows is faster


class Weights:
    """A model's matrices as the kernel reads them, in the order of csrc/kernels.h: each layer's four, then the head."""

    def __init__(self, model: GPT2, weights: str) -> None:
        self.dtype = WEIGHTS[weights]
        self.parameters = fingerprint(model)
        head = model.wte.weight.detach()[: model.config.vocab_size]
        matrices, scales = [], []
        for matrix in _linear_weights(model):
            packed, scale = (matrix, None) if weights == "fp32" else pack(matrix.t(), self.dtype)
            matrices.append(packed)
            scales.append(scale)
        packed, scale = (head, None) if weights == "fp32" else pack(head, self.dtype)
        self.matrices = _native.Addresses([*matrices, packed])
        self.scales = _native.Addresses([*scales, scale] if weights == "int8" else [])

    def dequantised(self) -> list[Tensor]:
        """What the kernel computes with, in float64, as (out, in), or for fp32 the layers' as (in, out)."""
        exact = [matrix.double() for matrix in self.matrices]
        return [w * s.double()[:, None] for w, s in zip(exact, self.scales, strict=True)] if self.scales else exact


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """matrix (out,in) as contiguous bf16, or as int8 with a scale for each row."""
    if dtype != torch.int8:
        return matrix.to(dtype).contiguous(), None
    scale = matrix.abs().amax(dim=1) / 127
    steps = matrix / torch.where(scale == 0, 1, scale)[:, None]
    return steps.round_().clamp_(-127, 127).to(torch.int8).contiguous(), scale


def weights_of(model: GPT2, weights: str) -> Weights:
    """The model's matrices as `weights`. A packed copy is kept with the model until a parameter changes."""
    if weights == "fp32":
        return Weights(model, weights)
    kept = _packed.setdefault(model, {})
    if weights not in kept or kept[weights].parameters != fingerprint(model):
        kept[weights] = Weights(model, weights)
    return kept[weights]


_packed: WeakKeyDictionary[GPT2, dict[str, Weights]] = WeakKeyDictionary()


def fingerprint(model: GPT2) -> list[tuple[int, int]]:
    """Address and version of each parameter: another list after a step, a load or a change in place."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


def can_decode(model: GPT2) -> bool:
    """Whether the kernel takes the model's parameters as they are: on the CPU, fp32 and contiguous."""
    return all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())


def check_weights(model: GPT2, weights: object) -> None:
    """Raises ValueError, one sentence, unless `weights` is one of WEIGHTS and possible for the model."""
    if weights not in WEIGHTS:
        raise ValueError(f"generate: weights is {weights!r}, expected one of {', '.join(WEIGHTS)}")
    if weights != "fp32" and not can_decode(model):
        raise ValueError(f"generate: weights is {weights!r} for {_describe(model)}, expected one in float32 on cpu")


def _describe(model: GPT2) -> str:
    parameter = model.wte.weight
    return f"a model in {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"


class Decoder:
    """Steps of one model over caches. While it lives, the model's parameters must not be freed or resized.

    caches: their rows in turn are the rows of a step; each cache may hold another number of tokens.
    """

    def __init__(self, model: GPT2, caches: Sequence[KVCache], weights: str = "fp32") -> None:
        if not can_decode(model):
            raise ValueError(f"decode: model is {_describe(model)}, expected one in float32 on cpu")
        config = model.config
        self.caches, self.weights = caches, weights_of(model, weights)
        self.vectors = _native.Addresses([parameter.detach() for parameter in _vectors(model)])
        self.buffers = _native.Addresses([buffer for cache in caches for buffer in _buffers(cache)])
        self.owners = [cache for cache in caches for _ in range(cache.rows)]
        self.capacities = torch.tensor([cache.capacity for cache in self.owners])
        self.sizes = (len(self.owners), config.n_layer, config.n_embd, config.n_head, config.vocab_size)
        self.eps = config.layer_norm_epsilon
        self.logits = torch.empty(len(self.owners), config.vocab_size)

    def step(self, ids: Tensor) -> Tensor:
        """Logits (B,V) fp32 of ids (B,) int64, in a buffer that the next step overwrites.

        Raises ValueError where a cache is full or ids are not one a row, IndexError for an id that is not in [0, V).
        """
        if ids.dtype != torch.int64 or ids.numel() != self.sizes[0]:
            raise ValueError(f"decode: ids has shape {tuple(ids.shape)}, expected {self.sizes[0]} of int64")
        for cache in self.caches:
            if cache.length >= cache.capacity:
                raise ValueError(
                    f"decode: the cache holds {cache.length} tokens, expected fewer than its {cache.capacity}"
                )
        positions = torch.tensor([cache.length for cache in self.owners])
        bad = _native.call(
            "decode", self.weights.dtype, ids.contiguous(), positions, self.capacities, self.weights.matrices,
            self.weights.scales, self.vectors, self.buffers, self.logits, *self.sizes, self.eps,
        )  # fmt: skip
        if bad >= 0:
            raise IndexError(
                f"decode: ids holds the token {int(ids.view(-1)[bad])}, expected 0 <= token < {self.sizes[-1]}"
            )
        for cache in self.caches:
            for layer in cache.layers:
                layer.length += 1
        return self.logits


def _buffers(cache: KVCache) -> Iterator[Tensor]:
    """Of each row, of each layer, keys and values (H, capacity, D)."""
    for row in range(cache.rows):
        for layer in cache.layers:
            yield from (layer.k[row], layer.v[row])


def _linear_weights(model: GPT2) -> Iterator[Tensor]:
    for block in model.h:
        for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            yield linear.weight.detach()


def _vectors(model: GPT2) -> Iterator[Tensor]:
    yield from (model.wte.weight, model.wpe.weight)
    for block in model.h:
        yield from (block.ln_1.weight, block.ln_1.bias, block.attn.c_attn.bias, block.attn.c_proj.bias)
        yield from (block.ln_2.weight, block.ln_2.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias)
    yield from (model.ln_f.weight, model.ln_f.bias)
