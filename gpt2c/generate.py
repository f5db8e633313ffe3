"""Text generation with a key/value cache."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt2c.decode import MOST_ROWS, Decoder, can_decode, check_weights
from gpt2c.errors import shown
from gpt2c.watch import Watch
from gpt2c.words import counted

if TYPE_CHECKING:
    from gpt2c.model import GPT2

# Below this a temperature is greedy decoding to fp32: gaps of 1e-28 between logits already give probabilities of 0.
SMALLEST_TEMPERATURE = 1e-30


class LayerCache:
    """Keys and values of one layer in kept buffers (B,H,Tmax,D), of which `length` positions are filled."""

    def __init__(self, like: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self.k, self.v = like.new_empty(shape, dtype=dtype), like.new_empty(shape, dtype=dtype)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (B,H,T,D) behind those kept; returns views of all of them (B,H,length,D).

        Raises ValueError if there is no room for them, or if they have another dtype, device or B, H, D.
        """
        end, (B, H, capacity, D) = self.length + k.shape[2], self.k.shape
        if (k.dtype, k.device) != (self.k.dtype, self.k.device) or k.shape != (B, H, k.shape[2], D):
            raise ValueError(
                f"cache: has {(B, H, capacity, D)} of {self.k.dtype} on {self.k.device}, expected room for"
                f" {tuple(k.shape)} of {k.dtype} on {k.device}; torch.autocast must be on when it is made, or not, as"
                " when it is used"
            )
        if not 0 <= self.length <= end <= capacity:
            raise ValueError(f"cache: holds {self.length} tokens of {capacity}, expected room for {k.shape[2]} more")
        self.k[:, :, self.length : end].copy_(k)
        self.v[:, :, self.length : end].copy_(v)
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class KVCache:
    """One LayerCache per layer of `model`, for `batch` rows of at most `capacity` tokens."""

    def __init__(self, model: GPT2, batch: int, capacity: int) -> None:
        config = model.config
        shape = (batch, config.n_head, capacity, config.head_dim)
        like, dtype = model.wte.weight, model.activation_dtype()
        self.rows, self.capacity = batch, capacity
        self.layers = [LayerCache(like, shape, dtype) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forgets all tokens; the buffers stay."""
        for layer in self.layers:
            layer.length = 0


def window_start(length: int, n_positions: int) -> int:
    """Position of the oldest token that the model sees when it chooses the token after `length` tokens.

    0 while the text fits the context. Past that the window moves on in steps of half a context, as few as make the text
    fit, so that it is encoded anew once per half context and not per token. A function of the length alone: text
    generated in one call and text continued in several see the same windows.
    """
    hop = n_positions - n_positions // 2
    return max(0, math.ceil((length - n_positions) / hop)) * hop


def generate(
    model: GPT2,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    weights: str = "fp32",
) -> Tensor:
    """idx (B,T0) followed by max_new_tokens more ids per row, (B, T0 + max_new_tokens) int64; arguments as `stream`."""
    steps = stream(model, idx, max_new_tokens, temperature, top_k, top_p, seed, weights)
    if not len(idx):  # steps that give nothing would take their time all the same
        return idx.new_empty(0, idx.shape[1] + max_new_tokens)
    return torch.cat([idx, *(ids[:, None] for ids in steps)], dim=1)


def stream(
    model: GPT2,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    weights: str = "fp32",
) -> Iterator[Tensor]:
    """Yields, step by step, the next id of each row: (B,) int64. Never uses dropout and leaves the model's mode alone.

    idx: (B,T0) int64 prompt ids, T0 >= 1; several samples of one prompt are several equal rows.
    temperature: divides the logits; 0 takes the most likely token (the first of equals).
    top_k: only the k most likely tokens (and equals of the k-th) can come; None or k >= V for all.
    top_p: only the smallest set of most likely tokens whose probabilities sum to top_p or more can come (nucleus
        sampling, Holtzman et al. 2020), 0 < top_p <= 1; applied after top_k.
    seed: of an own torch.Generator, so that the same arguments give the same ids; None draws from torch's generator.
    weights: "fp32" for the parameters as they are. "bf16" and "int8" read a smaller copy of the matrices for each new
        token, which is what a token's time goes into (gpt2c.decode); only for a model in fp32 on the CPU. The prompt is
        read with the parameters themselves. The copy is made at the first call and again after parameters change.

    Whether torch.autocast is on counts at the call, not at each step; with "bf16" and "int8" it is off. The model must
    stay as it is until the last step: a step raises ValueError if a parameter has changed.

    Past n_positions tokens the window slides as `window_start` says, with one warning.
    Raises TypeError, ValueError or IndexError, one sentence, at the call and not at the first step.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
    check_weights(model, weights)
    if model.wte.weight.is_meta:
        raise ValueError("generate: the model is on meta, expected one whose parameters have memory")
    context = model.config.n_positions
    prompt = idx.shape[1] if isinstance(idx, Tensor) and idx.ndim == 2 else 0
    model.check_tokens(idx, longest=max(prompt, context))
    _check_ids(idx, model.config.vocab_size)
    if max_new_tokens and prompt + max_new_tokens - 1 > context:
        warnings.warn(
            f"generate: {counted(prompt, 'token')} and {max_new_tokens:,} new ones exceed the context of {context}, "
            "so the oldest are forgotten, half a context at a time",
            stacklevel=3,
        )
    generator = None if seed is None else torch.Generator(idx.device).manual_seed(int(seed))
    dtype = model.activation_dtype() if weights == "fp32" else model.wte.weight.dtype
    autocast = None if dtype == model.wte.weight.dtype else dtype
    return _steps(model, idx, max_new_tokens, temperature, top_k, top_p, generator, weights, autocast)


@contextlib.contextmanager
def _computing(device: str, autocast: torch.dtype | None) -> Iterator[None]:
    """This autocast, no gradients, and tensors that later steps may change, whatever the caller's own context."""
    with torch.inference_mode(False), torch.no_grad():
        if not torch.amp.is_autocast_available(device):
            yield
            return
        with torch.autocast(device, autocast, enabled=autocast is not None):
            yield


def _steps(
    model: GPT2,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
    weights: str,
    autocast: torch.dtype | None,
) -> Iterator[Tensor]:
    context, total = model.config.n_positions, idx.shape[1] + max_new_tokens
    if not max_new_tokens:
        return
    device = idx.device.type
    with _computing(device, autocast):
        text = torch.empty(idx.shape[0], total, dtype=torch.int64, device=idx.device)
        text[:, : idx.shape[1]] = idx
        cache = KVCache(model, idx.shape[0], min(context, total))
        watch = Watch(model)
        fits = can_decode(model) and autocast is None and (idx.shape[0] <= MOST_ROWS or weights != "fp32")
        decoder = Decoder(model, [cache], weights) if fits else None
    start = -1  # no window yet
    for length in range(idx.shape[1], total):
        with _computing(device, autocast):
            if window_start(length, context) != start:
                start = window_start(length, context)
                cache.clear()
            new = text[:, start + cache.length : length].contiguous()
            if decoder is not None and new.shape[1] == 1:
                logits = decoder.step(new)
            else:
                watch.check("generate")
                y = model.hidden(new, cache=cache)
                logits = model.logits(y.view(*new.shape, y.shape[1])[:, -1]).float()
            ids = sample(logits, temperature, top_k, top_p, generator)
            text[:, length] = ids
        yield ids


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One id per row of logits (B,V) fp32: (B,) int64. Arguments as in `stream`; ValueError for non-finite logits."""
    check_finite(logits)
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k is not None and top_k < logits.shape[1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    # Subtracting the maximum first keeps small temperatures from overflowing.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, SMALLEST_TEMPERATURE)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    return _draw(probabilities, generator)


def check_finite(logits: Tensor) -> None:
    """Raises ValueError for logits that only damaged weights give."""
    if logits.numel() and not all(math.isfinite(end) for end in logits.aminmax()):  # nan passes through both
        raise ValueError("generate: the model's logits are not all finite, so its weights must be damaged")


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index per row, as likely as it says: where the running sum passes a random share of the whole.

    With torch.multinomial sampling from a row of GPT-2's vocabulary takes 1456 us, this way 150 (two cores).
    """
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
    whole = sums[:, -1:]
    share = torch.rand(whole.shape, dtype=torch.float64, device=whole.device, generator=generator) * whole
    share = share.minimum(whole.nextafter(torch.zeros_like(whole)))  # rounding may have made it all of the whole
    return torch.searchsorted(sums, share, right=True)[:, 0]


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeroes all but the smallest set of most likely tokens that sums to top_p or more, always the first.

    Of equals the first come first. Sorting no more than the set needs, sampling takes 0.5 ms instead of 5.5.
    """
    size, V = 256, probabilities.shape[1]
    while True:
        size = min(size, V)
        ordered = probabilities.topk(size, dim=-1).values
        # A top_p that fp32 rounds to 0 would keep none.
        kept = (ordered.cumsum(dim=-1) - ordered < top_p).sum(dim=-1, keepdim=True).clamp_min(1)
        if size == V or bool((kept < size).all()):
            break
        size *= 8
    least = ordered.gather(-1, kept - 1)
    equals = probabilities == least
    room = kept - (ordered > least).sum(dim=-1, keepdim=True)
    return torch.where((probabilities > least) | (equals & (equals.cumsum(dim=-1) <= room)), probabilities, 0.0)


def _check_ids(idx: Tensor, vocab_size: int) -> None:
    """The embedding would refuse such an id too, but only at the first step."""
    if not idx.numel():
        return
    low, high = (int(end) for end in idx.aminmax())
    if low < 0 or high >= vocab_size:
        found = low if low < 0 else high
        raise IndexError(f"generate: idx holds the token {found}, expected 0 <= token < {vocab_size}")


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int | None
) -> None:
    """Raises TypeError or ValueError, one sentence, unless `stream` can take these."""
    for name, value, smallest in (("max_new_tokens", max_new_tokens, 0), ("top_k", top_k, 1), ("seed", seed, 0)):
        if value is None and name != "max_new_tokens":
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"generate: {name} is {shown(value)}, expected an integer")
        if value < smallest:
            raise ValueError(f"generate: {name} is {value}, expected at least {smallest}")
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value is None and name == "top_p":
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"generate: {name} is {shown(value)}, expected a number")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"generate: temperature is {temperature}, expected a finite number of at least 0")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p is {top_p}, expected 0 < top_p <= 1")
    if seed is not None and seed >= 2**64:
        raise ValueError(f"generate: seed is {seed}, expected less than 2**64")
