"""Values that the field knows, to read a run's own beside them. Each says which set and which style it was measured on.

A validation loss compares only with losses on the same tokens; HellaSwag only in the same style.
"""

from __future__ import annotations

from dataclasses import dataclass

FINEWEB = "classic FineWeb, sample-10BT, first 10 * 2^20 tokens of the validation shard"
FINEWEB_EDU = "FineWeb-Edu, sample-10BT, first 10 * 2^20 tokens of the validation shard"
COMPLETION = "completion style: four endings, mean log-probability of a token (acc_norm) or their sum (acc)"
LLMC = "llm.c, discussion 481, 'Reproducing GPT-2 (124M) in llm.c in 90 minutes for $20'"
BUILD_NANOGPT = "build-nanogpt, train_gpt2.py and hellaswag.py"


@dataclass(frozen=True)
class KnownLoss:
    """A validation loss in nats per token; `step` and `tokens` trained, None for a model that was trained elsewhere."""

    model: str
    dataset: str
    loss: float
    step: int | None
    tokens: float | None
    source: str


@dataclass(frozen=True)
class KnownHellaSwag:
    """Shares of the 10,042 items of the validation set."""

    model: str
    acc: float
    acc_norm: float
    style: str
    source: str


def _llmc(step: int, loss: float) -> KnownLoss:
    return KnownLoss("llm.c's GPT-2 124M", FINEWEB, loss, step, step * 524_288.0, LLMC)


LOSSES = (
    KnownLoss("OpenAI's GPT-2 124M", FINEWEB, 3.4250, None, None, LLMC),
    KnownLoss("OpenAI's GPT-2 124M", FINEWEB_EDU, 3.2924, None, None, BUILD_NANOGPT),
    _llmc(6_000, 3.507),
    _llmc(12_000, 3.351),
    _llmc(18_000, 3.275),
    _llmc(19_560, 3.2722),
)

HELLASWAG = (
    KnownHellaSwag("OpenAI's GPT-2 124M", 0.2859, 0.2955, COMPLETION, BUILD_NANOGPT),
    KnownHellaSwag("OpenAI's GPT-2 1558M (XL)", 0.3842, 0.4893, COMPLETION, BUILD_NANOGPT),
)
