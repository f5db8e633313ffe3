"""An encoder-decoder with the words it knows: text in, text out, and what its cross-attention looked at.

A folder holds `config.json` (sizes and vocabulary) and `model.safetensors`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt2c.errors import UserError, reason
from gpt2c.files import reading, replacing, save_tensors, write_atomically, writing
from gpt2c.finite import require_fit
from gpt2c.seq2seq import Seq2Seq, Seq2SeqConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BEGIN, END = "<begin>", "<end>"  # around a target; the first two of every vocabulary
BATCH = 256


class Attention(NamedTuple):
    """What a translation looked at. weights: (layers, heads, target tokens, source tokens), rows sum to 1."""

    source: list[str]
    target: list[str]
    weights: Tensor

    def alignment(self) -> Tensor:
        """The mean over layers and heads, (target tokens, source tokens)."""
        return self.weights.mean((0, 1))


def split(text: str) -> list[str]:
    """The tokens of a text: words in small letters, single digits, single signs; spaces only part them."""
    return re.findall(r"[^\W\d_]+|\S", text.lower())


class Translator:
    """model: a Seq2Seq of as many tokens as `vocabulary`, whose first two are BEGIN and END."""

    def __init__(self, model: Seq2Seq, vocabulary: Sequence[str]) -> None:
        self.model, self.vocabulary = model, tuple(vocabulary)
        self.ids = {token: i for i, token in enumerate(self.vocabulary)}

    @classmethod
    def new(cls, words: Iterable[str], **sizes: int) -> Translator:
        """An untrained one for texts of these tokens; sizes: fields of Seq2SeqConfig."""
        vocabulary = (BEGIN, END, *sorted(set(words)))
        return cls(Seq2Seq(Seq2SeqConfig(len(vocabulary), **sizes)), vocabulary)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises UserError if it is empty, too long, or has an unknown token."""
        tokens = split(text)
        unknown = [token for token in tokens if token not in self.ids]
        longest = self.model.config.n_positions
        if unknown:
            raise UserError(f"{text!r} has {unknown[0]!r}, which the model has never seen; it knows {self.known()}")
        if not 1 <= len(tokens) <= longest:
            raise UserError(f"{text!r} has {len(tokens)} tokens, expected 1 to {longest}")
        return [self.ids[token] for token in tokens]

    def known(self) -> str:
        """The vocabulary as a list to read."""
        return " ".join(self.vocabulary[2:])

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The likeliest translation of each text, by greedy decoding. Raises UserError as `encode`.

        Only texts of one length share a batch, as Seq2Seq wants it.
        """
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for i, text in enumerate(texts):
            ids = self.encode(text)
            by_length.setdefault(len(ids), []).append((i, ids))
        translations = [""] * len(texts)
        for group in by_length.values():
            for start in range(0, len(group), BATCH):
                places, sources = zip(*group[start : start + BATCH], strict=True)
                targets = self.model.greedy(
                    torch.tensor(sources, device=self.model.wte.weight.device), self.ids[BEGIN], self.ids[END]
                )
                for place, target in zip(places, targets.tolist(), strict=True):
                    translations[place] = "".join(self.words(target))
        return translations

    def attention(self, text: str) -> Attention:
        """The cross-attention while `text` is translated: row t is where the model looked to say token t, END too."""
        source = torch.tensor([self.encode(text)], device=self.model.wte.weight.device)
        target = self.model.greedy(source, self.ids[BEGIN], self.ids[END])
        shifted = torch.cat(
            [torch.tensor([[self.ids[BEGIN]]], device=self.model.wte.weight.device), target[:, :-1]], dim=1
        )
        weights = self.model.attention_maps(source, shifted).cross[:, 0]
        return Attention(split(text), [self.vocabulary[i] for i in target[0].tolist()], weights)

    def words(self, ids: Sequence[int]) -> list[str]:
        """The tokens before END."""
        end = ids.index(self.ids[END]) if self.ids[END] in ids else len(ids)
        return [self.vocabulary[i] for i in ids[:end]]

    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors, each whole or not at all. Raises UserError if that cannot be."""
        settings = {**dataclasses.asdict(self.model.config), "vocabulary": self.vocabulary}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / WEIGHTS) as path:
                save_tensors(self.model.state_dict(), path)
            write_atomically(folder / CONFIG, (json.dumps(settings, indent=1) + "\n").encode())

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder's config.json is a translator's; what is wrong with it, `load` says."""
        try:
            return "n_encoder" in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return False

    @classmethod
    def load(cls, folder: Path) -> Translator:
        """What `save` wrote into a folder. Raises UserError, one sentence, if it is not there or damaged."""
        with reading("translator's settings", folder / CONFIG):
            text = (folder / CONFIG).read_text(encoding="utf-8")
        try:
            settings = json.loads(text)
            vocabulary = settings.pop("vocabulary")
            config = Seq2SeqConfig(**settings)
            if len(vocabulary) != config.vocab_size or list(vocabulary[:2]) != [BEGIN, END]:
                raise ValueError(f"its vocabulary is not {BEGIN}, {END} and {config.vocab_size - 2} tokens")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / CONFIG} does not describe an encoder-decoder: {reason(error)}") from error
        with reading("translator's weights", folder / WEIGHTS):
            tensors = load_file(folder / WEIGHTS)
        for name, tensor in tensors.items():
            require_fit(f"{folder}: {name}", tensor)
        with torch.device("cpu"):
            model = Seq2Seq(config).to(torch.float32)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{folder / WEIGHTS} does not hold the model of its {CONFIG}") from error
        return cls(model, vocabulary)
