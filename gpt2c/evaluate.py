"""The validation loss, and samples of text, of a model in training. Neither touches torch's random generator."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from gpt2c.data import IGNORED, Batch
from gpt2c.decode import Decoder, check_weights
from gpt2c.generate import KVCache
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer, decode, printable, prompt_ids

SAMPLE_PROMPT = "\n"
SAMPLE_TEMPERATURE = 0.7


def validation_loss(model: GPT2, batches: Iterable[Batch]) -> float:
    """Mean cross-entropy over all tokens of the batches, in nats per token, without dropout."""
    total, tokens = loss_sums(model, batches)
    return total / tokens


@torch.no_grad()
def loss_sums(model: GPT2, batches: Iterable[Batch]) -> tuple[float, int]:
    """The sum of the cross-entropy over all targets of the batches, in nats, and their number, without dropout."""
    total, tokens = 0.0, 0
    device = model.wte.weight.device
    model.eval()
    for batch in batches:
        _, loss = model(*(part.to(device) for part in batch))
        learned = int((batch[1] != IGNORED).sum())
        total += float(loss) * learned  # batches may differ in size
        tokens += learned
    model.train()
    return total, tokens


@torch.no_grad()
def decoding_loss(model: GPT2, batches: Iterable[Batch], weights: str = "fp32") -> float:
    """Mean cross-entropy over all tokens of the batches as `validation_loss`, but token by token, as generation does.

    weights: what generation reads, see gpt2c.generate.stream. The difference between two of them is what packing costs.
    Raises ValueError, one sentence, where the weights are not possible for the model.
    """
    check_weights(model, weights)
    total, tokens = 0.0, 0
    for idx, targets in batches:
        decoder = Decoder(model, [KVCache(model, *idx.shape)], weights)
        for ids, wanted in zip(idx.t(), targets.t(), strict=True):
            total += float(F.cross_entropy(decoder.step(ids), wanted, reduction="sum"))
        tokens += targets.numel()
    return total / tokens


def sample_text(model: GPT2, tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """`tokens` tokens of text after a line break, the same for the same weights and seed."""
    prompt = torch.from_numpy(prompt_ids(tokenizer, SAMPLE_PROMPT))[None].to(model.wte.weight.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the text is longer than the context is no news here
        ids = model.generate(prompt, tokens, temperature=SAMPLE_TEMPERATURE, seed=seed)
    return printable(decode(tokenizer, ids[0, prompt.shape[1] :].tolist())).strip()
