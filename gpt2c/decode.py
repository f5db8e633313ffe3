"""Decoding on the CPU: one more token of each row through the whole model in one kernel call.

    logits (B, V) of ids (B,) at the positions `length` of their caches, to which keys and values are appended

Rows may be of different lengths, so that texts can join and leave a batch between two steps. Each step reads every
weight once, whatever B, and that is what its time goes into. So weights can also be read in a packed copy of fewer
bytes, while everything else stays fp32 (weight-only quantisation):

    fp32   the parameters themselves, where they lie: no copy
    bf16   rounded to nearest
    int8   w ~ q scale, with one scale = max|w| / 127 for each output (a column of W, a row of the embedding)

A packed copy is kept with the model for as long as the parameters have the bytes that it was made of. These are read
whenever a text is begun, since torch does not count all changes (`parameter.data.copy_(...)`): of GPT-2 124M's 500 MB
that takes as long as four tokens in int8.

Kernels: csrc/cpu/decode.cpp, csrc/cpu/checksum.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gpt2c import _native
from gpt2c.watch import Memory, Watch

if TYPE_CHECKING:
    from gpt2c.config import GPT2Config
    from gpt2c.generate import KVCache
    from gpt2c.model import GPT2

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
MOST_ROWS = 16  # beyond, a matrix product that is made for many rows is faster


class Weights:
    """A model's matrices as the kernel reads them, in the order of csrc/kernels.h: each layer's four, then the head."""

    def __init__(self, matrices: Sequence[Tensor], weights: str) -> None:
        """matrices: the parameters', fp32 and contiguous."""
        self.dtype = WEIGHTS[weights]
        if weights == "fp32":
            packed, scales = list(matrices), []
        else:
            *layers, head = matrices
            pairs = [pack(matrix.t(), self.dtype) for matrix in layers] + [pack(head, self.dtype)]
            packed, scales = [pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None]
        self.matrices, self.scales = _native.Addresses(packed), _native.Addresses(scales)

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


@torch.no_grad()
def weights_of(model: GPT2, weights: str) -> Weights:
    """The model's matrices as `weights`. A packed copy is kept with the model while the parameters' bytes are those
    that it was made of."""
    matrices = list(_matrices(model))
    if weights == "fp32":
        return Weights(matrices, weights)
    kept, sums = _packed.setdefault(model, {}), [checksum(matrix) for matrix in matrices]
    if weights not in kept or kept[weights][0] != sums:
        kept[weights] = sums, Weights(matrices, weights)
    return kept[weights][1]


_packed: WeakKeyDictionary[GPT2, dict[str, tuple[list[int], Weights]]] = WeakKeyDictionary()


def checksum(tensor: Tensor) -> int:
    """64 bits of the bytes of a contiguous tensor on the CPU. Another number for sure where eight bytes differ that
    begin at a multiple of eight, and where more differ by all but one chance in 2^64."""
    return _native.call("checksum", tensor, tensor.numel() * tensor.element_size())


def can_decode(model: GPT2) -> bool:
    """Whether the kernel takes the model's parameters as they are: torch's own tensors on the CPU, fp32, contiguous."""
    return all(map(_is_plain, model.parameters()))


def _is_plain(tensor: Tensor) -> bool:
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return ordinary and tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()


def check_weights(model: GPT2, weights: object) -> None:
    """Raises ValueError, one sentence, unless `weights` is one of WEIGHTS and possible for the model."""
    if weights not in WEIGHTS:
        raise ValueError(f"generate: weights is {weights!r}, expected one of {', '.join(WEIGHTS)}")
    if weights != "fp32" and not can_decode(model):
        raise ValueError(
            f"generate: weights is {weights!r} for {_describe(model)}, expected one in float32 on cpu: "
            "call model.float().cpu()"
        )


def _describe(model: GPT2) -> str:
    parameter = model.wte.weight
    return f"a model in {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"


class Decoder:
    """Steps of one model over caches, for as long as the model stays as it is.

    caches: their rows in turn are the rows of a step; each cache may hold another number of tokens.
    after: a decoder whose texts go on in this one, perhaps among others: the model must be as it was then, and its
        weights are read from the same copy.

    Raises ValueError, one sentence, for a model that the kernel does not take, and for caches that are not its own.
    """

    def __init__(
        self, model: GPT2, caches: Sequence[KVCache], weights: str = "fp32", after: Decoder | None = None
    ) -> None:
        if not can_decode(model):
            raise ValueError(f"decode: model is {_describe(model)}, expected one in float32 on cpu")
        config = model.config
        self.watch = Watch(model) if after is None else after.watch
        self.watch.check("decode")
        self.weights = weights_of(model, weights) if after is None else after.weights
        vectors = [parameter.detach() for parameter in _vectors(model)]
        _check_sizes(config, list(_matrices(model)), vectors)
        _check_caches(config, caches)
        self.caches, self.vectors = list(caches), _native.Addresses(vectors)
        self.buffers = _native.Addresses([buffer for cache in caches for buffer in _buffers(cache)])
        self.layers = [(layer, layer.k, layer.v) for cache in caches for layer in cache.layers]
        self.memory = Memory([tensor for _, k, v in self.layers for tensor in (k, v)])
        self.owners = [cache for cache in caches for _ in range(cache.rows)]
        capacities = [cache.layers[0].k.shape[2] for cache in self.owners]
        self.capacities = torch.tensor(capacities, dtype=torch.int64, device="cpu")
        self.longest = [min(cache.layers[0].k.shape[2], config.n_positions) for cache in caches]
        self.sizes = (len(self.owners), config.n_layer, config.n_embd, config.n_head, config.vocab_size)
        self.eps = config.layer_norm_epsilon
        self.logits = torch.empty(len(self.owners), config.vocab_size, dtype=torch.float32, device="cpu")

    def step(self, ids: Tensor) -> Tensor:
        """Logits (B,V) fp32 of ids (B,) int64, in a buffer that the next step overwrites.

        Raises ValueError where a cache is full, ids are not one a row, or the model or a cache has changed since the
        decoder was made, IndexError for an id that is not in [0, V).
        """
        self._check_step(ids)
        positions = torch.tensor([cache.length for cache in self.owners], dtype=torch.int64, device="cpu")
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

    def _check_step(self, ids: Tensor) -> None:
        if ids.dtype != torch.int64 or ids.numel() != self.sizes[0]:
            raise ValueError(f"decode: ids has shape {tuple(ids.shape)}, expected {self.sizes[0]} of int64")
        if not ids.is_cpu:
            raise ValueError(f"decode: ids is on {ids.device}, expected cpu, where the model is")
        self.watch.check("decode")
        if self.memory.moved() is not None or any(layer.k is not k or layer.v is not v for layer, k, v in self.layers):
            raise ValueError("decode: a cache's keys or values have moved, expected them to stay where they were")
        for cache, longest in zip(self.caches, self.longest, strict=True):
            length = cache.length
            if any(layer.length != length for layer in cache.layers):
                found = sorted({layer.length for layer in cache.layers})
                raise ValueError(f"decode: the cache's layers hold {found} tokens, expected as many in each")
            if not 0 <= length < longest:
                raise ValueError(f"decode: the cache holds {length} tokens, expected fewer than its {longest}")


def _check_sizes(config: GPT2Config, matrices: Sequence[Tensor], vectors: Sequence[Tensor]) -> None:
    """What the model computes with, here and where its parameters may be sums (gpt2c/lora.py), is what the kernel
    takes."""
    C = config.n_embd
    layer = [(C,), (C,), (3 * C,), (C,), (C,), (C,), (4 * C,), (C,)]
    expected = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)] * config.n_layer + [(config.vocab_size, C)]
    expected += [(vectors[0].shape[0], C), (vectors[1].shape[0], C), *layer * config.n_layer, (C,), (C,)]
    found = [tuple(tensor.shape) for tensor in (*matrices, *vectors)]
    if found != expected or vectors[0].shape[0] < config.vocab_size or vectors[1].shape[0] < config.n_positions:
        raise ValueError("decode: the model's parameters have other shapes than its config says, expected them alike")
    if not all(map(_is_plain, (*matrices, *vectors))):
        raise ValueError("decode: a weight that the model computes with is not contiguous float32 on cpu")


def _check_caches(config: GPT2Config, caches: Sequence[KVCache]) -> None:
    if not caches or len(set(map(id, caches))) != len(caches):
        raise ValueError(f"decode: caches are {len(caches)}, some of them twice or none, expected each once")
    for cache in caches:
        capacity = cache.layers[0].k.shape[2] if cache.layers else 0
        shape = (cache.rows, config.n_head, capacity, config.head_dim)
        for layer in cache.layers:
            for tensor in (layer.k, layer.v):
                if tuple(tensor.shape) != shape or not _is_plain(tensor):
                    raise ValueError(
                        f"decode: the cache has {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}, expected"
                        f" contiguous {shape} of torch.float32 on cpu (a KVCache made without torch.autocast)"
                    )
        if len(cache.layers) != config.n_layer:
            raise ValueError(f"decode: the cache has {len(cache.layers)} layers, expected {config.n_layer}")


def _buffers(cache: KVCache) -> Iterator[Tensor]:
    """Of each row, of each layer, keys and values (H, capacity, D)."""
    for row in range(cache.rows):
        for layer in cache.layers:
            yield from (layer.k[row], layer.v[row])


def _matrices(model: GPT2) -> Iterator[Tensor]:
    """Each layer's four, then the head's rows."""
    for block in model.h:
        for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            yield linear.weight.detach()
    yield model.wte.weight.detach()[: model.config.vocab_size]


def _vectors(model: GPT2) -> Iterator[Tensor]:
    yield from (model.wte.weight, model.wpe.weight)
    for block in model.h:
        yield from (block.ln_1.weight, block.ln_1.bias, block.attn.c_attn.bias, block.attn.c_proj.bias)
        yield from (block.ln_2.weight, block.ln_2.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias)
    yield from (model.ln_f.weight, model.ln_f.bias)
