"""HellaSwag (Zellers et al., "HellaSwag: Can a Machine Really Finish Your Sentence?", 2019): which of four endings?

Completion style, as build-nanogpt and llm.c report it: of each ending the log-probabilities of its tokens after the
context are summed (`acc` picks the largest sum) or averaged over its tokens (`acc_norm` picks the largest mean). Tokens
are those of `ctx`, and of a space with `ending`. EleutherAI's lm-eval is another style: it rewrites the text ("[title]"
marks, the activity before the context) and divides by bytes, so that its numbers are higher and do not compare.

The context is the same for all four endings. It goes through the model once; its keys and values are then used four
times. Items are taken together where their contexts are of one length. What is longer than the model's context is cut:
the context on its left and, for very small models, endings on their right.
"""

from __future__ import annotations

import json
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2c.errors import UserError, reason
from gpt2c.files import reading, write_atomically, writing
from gpt2c.generate import KVCache
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer

ITEMS = 10_042  # of the validation set
ENDINGS = 4
DOWNLOAD = "download"
ADDRESS = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
CACHE = Path("~/.cache/gpt2c/hellaswag_val.jsonl")
BATCH = 16  # items whose contexts are of one length
LOGIT_ROWS = 512  # whose log-probabilities are taken together: 100 MB of GPT-2's logits


@dataclass(frozen=True)
class Item:
    """An item of the file: a context, four endings, and which of them is right."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Encoded:
    context: np.ndarray
    endings: tuple[np.ndarray, ...]
    label: int


@dataclass(frozen=True)
class HellaSwag:
    """How many of `items` were answered right, by the sum and by the mean of the log-probabilities."""

    right: int
    right_norm: int
    items: int

    @property
    def acc(self) -> float:
        return self.right / self.items

    @property
    def acc_norm(self) -> float:
        return self.right_norm / self.items


def evaluate_hellaswag(
    model: GPT2,
    tokenizer: Tokenizer,
    source: str,
    items: int = ITEMS,
    rank: int = 0,
    world: int = 1,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> HellaSwag:
    """Answer the first `items` items; of several processes each takes every world-th.

    source: the set's JSON lines file, or `download`. show: told how many items are done, and of how many, now and then.
    Uses autocast where it is on, and never dropout. Raises UserError, one sentence, for a file that is missing or not
    HellaSwag's.
    """
    found = [encode(item, tokenizer, model.config.n_positions) for item in read_items(source, items)][rank::world]
    right = right_norm = done = 0
    for group in groups(found):
        sums, means = score(model, group)
        labels = torch.tensor([item.label for item in group], device="cpu")
        right += int((sums.argmax(1) == labels).sum())
        right_norm += int((means.argmax(1) == labels).sum())
        done += len(group)
        show(done, len(found))
    return HellaSwag(right, right_norm, len(found))


def read_items(source: str, count: int = ITEMS) -> list[Item]:
    """The first `count` items of a file, or of the file that is downloaded once."""
    path = downloaded() if source == DOWNLOAD else Path(source)
    items = []
    with reading("HellaSwag items", path), open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if len(items) == count:
                break
            if line.strip():
                items.append(_parse(line, f"{path}, line {number}"))
    if not items:
        raise UserError(f"{path} is empty: expected HellaSwag's JSON lines, hellaswag_val.jsonl")
    return items


def downloaded() -> Path:
    """HellaSwag's validation set in the user's cache, fetched if it is not there."""
    path = CACHE.expanduser()
    if path.exists():
        return path
    try:
        with urllib.request.urlopen(ADDRESS, timeout=60) as response:
            contents = response.read()
    except OSError as error:
        raise UserError(
            f"cannot download HellaSwag from {ADDRESS}: {reason(error)}; get the file on another machine and give its "
            "path with --hellaswag"
        ) from error
    lines = len(contents.splitlines())
    if lines != ITEMS:
        raise UserError(f"{ADDRESS} has {lines} lines, expected HellaSwag's {ITEMS:,} items")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, contents)
    return path


def _parse(line: str, where: str) -> Item:
    try:
        row = json.loads(line)
        item = Item(row["ctx"], tuple(row["endings"]), row["label"])
        texts = all(isinstance(text, str) and text for text in (item.context, *item.endings))
        right = len(item.endings) == ENDINGS and item.label in range(ENDINGS)
    except (ValueError, KeyError, TypeError):
        texts = right = False
    if not (texts and right):
        raise UserError(
            f"{where} is not an item of HellaSwag: expected a JSON object with ctx, four endings and a label of 0 to 3"
        )
    return item


def encode(item: Item, tokenizer: Tokenizer, n_positions: int) -> Encoded:
    """The item's tokens, cut to fit: the last token of an ending is never an input."""
    endings = tuple(tokenizer.encode(" " + ending)[:n_positions] for ending in item.endings)
    room = n_positions + 1 - max(map(len, endings))
    context = np.concatenate([np.array(tokenizer.begin, np.uint16), tokenizer.encode(item.context)])
    return Encoded(context[-room:], endings, item.label)


def groups(items: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Up to BATCH items at a time, whose contexts have one length."""
    by_length = defaultdict(list)
    for item in items:
        by_length[len(item.context)].append(item)
    for _, same in sorted(by_length.items()):
        for start in range(0, len(same), BATCH):
            yield same[start : start + BATCH]


@torch.no_grad()
def score(model: GPT2, group: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Sum and mean of the log-probabilities of each ending's tokens, (items, 4) each, on the CPU."""
    device = model.wte.weight.device
    endings = [torch.from_numpy(ending.astype(np.int64)) for item in group for ending in item.endings]
    lengths = torch.tensor([len(ending) for ending in endings], device="cpu")
    targets = torch.nn.utils.rnn.pad_sequence(endings, batch_first=True).to(device)
    contexts = torch.from_numpy(np.stack([item.context for item in group]).astype(np.int64)).to(device)

    cache = KVCache(model, len(endings), contexts.shape[1] + targets.shape[1] - 1)
    y = _fill(model, contexts, cache)  # (rows, C): what comes after the context
    if targets.shape[1] > 1:
        later = model.hidden(targets[:, :-1], cache).view(len(endings), targets.shape[1] - 1, -1)
        y = torch.cat([y[:, None], later], dim=1)
    else:
        y = y[:, None]
    log_p = _log_probabilities(model, y.flatten(0, 1), targets.flatten()).view(targets.shape).cpu()
    log_p[torch.arange(targets.shape[1], device="cpu") >= lengths[:, None]] = 0.0
    sums = log_p.sum(1)
    return sums.view(-1, ENDINGS), (sums / lengths).view(-1, ENDINGS)


def _fill(model: GPT2, contexts: Tensor, cache: KVCache) -> Tensor:
    """Put each context's keys and values into the rows of its four endings; returns its last activations for each."""
    own = KVCache(model, len(contexts), contexts.shape[1])
    y = model.hidden(contexts, own).view(*contexts.shape, -1)[:, -1]
    for four, one in zip(cache.layers, own.layers, strict=True):
        four.append(one.k.repeat_interleave(ENDINGS, 0), one.v.repeat_interleave(ENDINGS, 0))
    return y.repeat_interleave(ENDINGS, 0)


def _log_probabilities(model: GPT2, y: Tensor, targets: Tensor) -> Tensor:
    """Of each target after the activations y (N,C): (N,) fp32."""
    parts = zip(y.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
    return torch.cat([-F.cross_entropy(model.logits(rows).float(), ids, reduction="none") for rows, ids in parts])
