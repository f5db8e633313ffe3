#!/usr/bin/env python3
"""A translator trained here in about a minute: numbers in words to digits, and dates of several forms to one.

    python python/translate.py                                          train, test, save and draw, into runs/translate
    python python/translate.py "forty two" "the third of may 1984"      translate with the model that is there

The model is gpt2c/seq2seq.py; docs/guide/4-cross-attention.md tells about it. What it learns: translate_pairs.py.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from translate_pairs import WORDS, Pair, pairs
from translate_picture import alignment_picture

from gpt2c import ops
from gpt2c.cli import read_arguments, told
from gpt2c.errors import UserError
from gpt2c.files import write_atomically, writing
from gpt2c.optim import AdamW
from gpt2c.seq2seq import Seq2Seq
from gpt2c.settings import TrainConfig
from gpt2c.step import clip_coefficient, learning_rate, parameter_groups
from gpt2c.translator import BEGIN, END, Translator

BATCH, HELD_OUT_PAIRS = 64, 2000
IGNORED = -100
SHOWN = (
    "three hundred forty two thousand seven",
    "the twenty third of march 1984",
    "december 5, 2026",
)
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Args:
    """Train a translator of numbers and dates, or translate with it."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")] = ()
    """What to translate with the model in --out; without any text, one is trained and saved there."""
    out: Path = Path("runs/translate")
    """The model's folder; gets config.json, model.safetensors and alignment.png."""
    steps: int = 1500
    """Optimizer steps of 64 pairs each."""
    lr: float = 2e-3
    """Peak learning rate."""
    seed: int = 1337
    """Of the initial weights and of the pairs."""

    def run(self) -> int:
        """Train and save, or print the translations."""
        if self.texts:
            for translation in Translator.load(self.out).translate(self.texts):
                print(translation)
            return 0
        if (self.out / "config.json").exists():
            raise UserError(f"{self.out} holds a model already: choose another folder with --out, or give it texts")
        settings = self.settings()
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)  # before a minute of training, not after it
        translator = train(settings)
        wrong, total = mistakes(translator, HELD_OUT_PAIRS)
        print(f"held out: {1 - len(wrong) / total:.2%} of {total} targets right, of which none was trained on")
        for pair, said in wrong[:3]:
            print(f"  {' '.join(pair.source)}: {said}, expected {pair.target}")
        right, digits = aligned(translator, HELD_OUT_PAIRS // 10)
        print(f"cross-attention: the most attended token is where the character comes from for {right / digits:.1%}")
        translator.save(self.out)
        with writing(self.out):
            png = alignment_picture([translator.attention(text) for text in SHOWN])
            write_atomically(self.out / "alignment.png", png)
        print(f"{self.out}: the model, and alignment.png")
        return 0

    def settings(self) -> TrainConfig:
        """The loop's settings, checked as those of `gpt2c train`."""
        return TrainConfig(
            steps=self.steps, lr=self.lr, min_lr=0.0, warmup_steps=min(100, self.steps // 10), seed=self.seed,
            beta2=0.98, weight_decay=0.01,
        )  # fmt: skip


def train(settings: TrainConfig) -> Translator:
    """A translator after settings.steps steps; says how it goes, a line every few seconds."""
    torch.manual_seed(settings.seed)
    translator = Translator.new(WORDS)
    model, batches = translator.model, make_batches(translator, settings.seed)
    optimizer = AdamW(
        parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(settings.beta1, settings.beta2)
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {settings.steps} steps of {BATCH} pairs")
    begun = last = time.perf_counter()
    for step, batch in enumerate(itertools.islice(batches, settings.steps), 1):
        loss = train_step(model, optimizer, batch, learning_rate(step, settings), settings.grad_clip)
        now = time.perf_counter()
        if now - last > 5 or step == settings.steps:
            last = now
            print(f"step {step}/{settings.steps}  loss {float(loss):.4f}  {now - begun:.0f} s", flush=True)
    return translator


def train_step(model: Seq2Seq, optimizer: AdamW, batch: Batch, lr: float, grad_clip: float) -> Tensor:
    """One update; returns the loss before it."""
    optimizer.zero_grad()
    loss = model(*batch)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = float(ops.grad_norm([p.grad for p in model.parameters()]))
    optimizer.step(grad_scale=clip_coefficient(norm, grad_clip))
    return loss.detach()


def make_batches(translator: Translator, seed: int) -> Iterator[Batch]:
    """Sources (B,S), targets (B,T) that begin with BEGIN, and labels (B,T), the same one token on, that end with END.

    Pairs are sorted by the length of their source as they come, and a batch is what has filled up: sources need no
    padding, which attention could not hide. Targets are padded at their end, where IGNORED keeps it from the loss.
    """
    waiting: dict[int, list[Pair]] = {}
    for pair in pairs(seed, held_out=False):
        group = waiting.setdefault(len(pair.source), [])
        group.append(pair)
        if len(group) == BATCH:
            yield make_batch(translator, waiting.pop(len(pair.source)))


def make_batch(translator: Translator, group: Sequence[Pair]) -> Batch:
    """The tensors of pairs whose sources are of one length."""
    ids, longest = translator.ids, max(len(pair.target) for pair in group) + 1
    sources = [[ids[token] for token in pair.source] for pair in group]
    targets = [[ids[char] for char in pair.target] for pair in group]
    padding = [[IGNORED] * (longest - 1 - len(target)) for target in targets]
    labels = torch.tensor([target + [ids[END]] + more for target, more in zip(targets, padding, strict=True)])
    begin = torch.full((len(group), 1), ids[BEGIN])
    # Behind a target's end stands END again: any token will do, since nothing that counts looks there.
    inputs = torch.cat([begin, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, ids[END])], dim=1)
    return torch.tensor(sources), inputs, labels


def mistakes(translator: Translator, count: int) -> tuple[list[tuple[Pair, str]], int]:
    """Of so many held-out pairs those whose whole translation is not right, with what was said; and their number."""
    held_out = list(itertools.islice(pairs(0, held_out=True), count))
    said = translator.translate([" ".join(pair.source) for pair in held_out])
    return [(pair, text) for pair, text in zip(held_out, said, strict=True) if text != pair.target], count


def aligned(translator: Translator, count: int) -> tuple[int, int]:
    """Of the held-out targets' characters that come from a source token, how many look at it most; of how many."""
    right = total = 0
    for pair in itertools.islice(pairs(0, held_out=True), count):
        most = translator.attention(" ".join(pair.source)).alignment().argmax(-1).tolist()
        where = [(at, most[t]) for t, at in enumerate(pair.alignment) if at is not None and t < len(most)]
        right, total = right + sum(at == looked for at, looked in where), total + len(where)
    return right, total


def main(args: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code as gpt2c's."""
    given = sys.argv[1:] if args is None else list(args)
    return told(lambda: read_arguments(Args, given, "translate.py").run())


if __name__ == "__main__":
    sys.exit(main())
