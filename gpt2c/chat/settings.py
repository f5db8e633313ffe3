"""The settings of `gpt2c sft`: those of `gpt2c train` that apply, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Fixed, Suppress

from gpt2c.chat.dataset import ChatDataset, load_chat_dataset
from gpt2c.chat.template import chat_tokenizer, require_template
from gpt2c.settings import AT_LEAST_0, Rule, TrainConfig
from gpt2c.tokenizer import Tokenizer


@dataclass(frozen=True)
class SftConfig(TrainConfig):
    """Every setting of a fine-tuning run; the model to start from decides tokenizer and sizes."""

    command: ClassVar[str] = "sft"
    rules: ClassVar[dict[str, Rule]] = {**TrainConfig.rules, "context": AT_LEAST_0}
    may_change: ClassVar[frozenset[str]] = TrainConfig.may_change | {"val_data"}
    needs_init: ClassVar[bool] = True

    data: str = ""
    """Conversations, a JSON object with the list `messages` on each line; also compressed (.gz, .bz2, .xz, .zst)."""
    val_data: str = ""
    """Conversations to validate on, of the same form; if empty, val_fraction of --data is kept for that."""
    out: Path = Path("runs/sft")
    """Run folder, new or empty unless --resume is given; gets checkpoints/, metrics.jsonl, samples.txt, loss.png."""
    val_fraction: float = 0.1
    """Share of the conversations, the last ones, kept for validation, above 0 and below 1."""
    init: str = ""
    """Model to start from: a run, a checkpoint, a folder, a hub name; one that chats goes on with its own tokens."""
    context: int = 0
    """Columns of a row, T, that conversations are packed into; longer ones are cut; 0 for the model's positions."""

    tokenizer: Suppress[Fixed[str]] = ""
    n_layer: Suppress[Fixed[int]] = 1
    n_head: Suppress[Fixed[int]] = 1
    n_embd: Suppress[Fixed[int]] = 1
    hellaswag: Suppress[Fixed[str]] = ""
    hellaswag_items: Suppress[Fixed[int]] = 1

    def open_data(self, tokenizer: Tokenizer) -> ChatDataset:
        """The conversations, packed into rows. UserError, with file and line, if they cannot be used."""
        template = require_template(tokenizer, self.init)
        return load_chat_dataset(self.data, self.val_data, self.val_fraction, self.context, template)

    def tokenizer_from(self, found: Tokenizer) -> Tokenizer:
        """It, with the template's tokens."""
        return chat_tokenizer(found)

    def first_new(self, tokenizer: Tokenizer) -> int | None:
        """The lowest id of the template's tokens."""
        return require_template(tokenizer, self.init).first
