"""`gpt2c eval`; its fields are its flags."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2c.chat.template import require_template
from gpt2c.commands.flags import ModelName
from gpt2c.data import load_dataset
from gpt2c.errors import UserError, reason
from gpt2c.evaluate import loss_sums
from gpt2c.evaluation import known
from gpt2c.evaluation.conversations import exact_replies
from gpt2c.evaluation.hellaswag import ITEMS, evaluate_hellaswag
from gpt2c.files import write_atomically, writing
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.precision import autocast, find_device, find_precision
from gpt2c.progress import Count
from gpt2c.tokenizer import Tokenizer, get_tokenizer
from gpt2c.words import counted

VAL_TOKENS = 10 * 2**20  # of FineWeb's validation shard, as the field reports it


@dataclass(frozen=True)
class Eval:
    """Measure a model: validation loss, replies, HellaSwag, the tasks of EleutherAI's lm-eval, beside known values."""

    model: ModelName
    data: str = ""
    """Text or token shards whose validation split gives the loss, as in `gpt2c train`; none if empty."""
    val_tokens: int = VAL_TOKENS
    """Tokens of the validation split, its first ones; 10 * 2**20 are the field's custom for FineWeb."""
    val_fraction: float = 0.1
    """Share of the data that is its validation split, unless shards bring one."""
    context: int = 0
    """Length of the windows in tokens; 0 for the model's context."""
    batch_size: int = 8
    """Windows at a time."""
    conversations: str = ""
    """Conversations, as in `gpt2c sft`, of which the replies are counted that the model gives too; none if empty."""
    replies: int = 1000
    """Number of those replies, the first ones."""
    hellaswag: str = ""
    """HellaSwag's validation set: its JSON lines file, or `download`; none if empty."""
    items: int = ITEMS
    """Number of HellaSwag's items, the first ones; 10042 are all."""
    tasks: str = ""
    """Tasks of lm-eval, with commas between (needs the package lm_eval); none if empty."""
    limit: int | None = None
    """Documents of each task, for a quick look."""
    json: str = ""
    """File that gets the numbers, too; none if empty."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Write a table to the standard output."""
        if not (self.data or self.conversations or self.hellaswag or self.tasks):
            raise UserError("nothing to measure: give --data, --conversations, --hellaswag or --tasks")
        for name in ("val_tokens", "batch_size", "replies", "items"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1")
        model, tokenizer, folder = load_model(self.model)
        model.to(find_device(self.device))
        found: dict[str, Any] = {"model": str(folder), "parameters": model.num_parameters()}
        with autocast(model.wte.weight.device, find_precision("auto", model.wte.weight.device)):
            if self.data:
                found["validation"] = self._validation(model, tokenizer)
            if self.conversations:
                found["conversations"] = self._conversations(model, tokenizer)
            if self.hellaswag:
                found["hellaswag"] = self._hellaswag(model, tokenizer)
            if self.tasks:
                found["tasks"] = self._tasks(str(folder))
        if self.json:
            with writing(Path(self.json)):
                write_atomically(Path(self.json), (json.dumps(found, indent=2, default=str) + "\n").encode())
        return 0

    def _validation(self, model: GPT2, tokenizer: Tokenizer) -> dict[str, Any]:
        context = self.context or model.config.n_positions
        if context > model.config.n_positions:
            raise UserError(f"--context is {context}, expected at most {model.config.n_positions}, the model's")
        dataset = load_dataset(self.data, tokenizer, self.val_fraction, context)
        batches = list(dataset.val_batches(self.batch_size, context, self.val_tokens))
        total, tokens, done, windows = 0.0, 0, 0, sum(len(idx) for idx, _ in batches)
        with Count("window") as count:
            for batch in batches:
                loss, learned = loss_sums(model, [batch])
                total, tokens, done = total + loss, tokens + learned, done + len(batch[0])
                count.update(done, windows)
        size = sum(len(tokenizer.decode_bytes(row)) for _, targets in batches for row in targets.tolist())
        loss = total / tokens
        bits = total / math.log(2) / size
        print(f"validation loss  {loss:.4f} nats a token, perplexity {math.exp(loss):.2f}, {bits:.4f} bits a byte")
        print(f"                 on the first {counted(tokens, 'token')} of the validation split of {self.data}")
        print(f"                 in windows of {context}")
        if tokenizer.vocab_size == get_tokenizer("gpt2").vocab_size:
            print("known values, which compare on the same tokens only:")
            for value in known.LOSSES:
                at = f" at step {value.step:,}" if value.step else ""
                print(f"    {value.loss:.4f}  {value.model}{at}; {value.dataset}")
        return {"loss": loss, "tokens": tokens, "bits_per_byte": bits, "data": self.data, "context": context}

    def _conversations(self, model: GPT2, tokenizer: Tokenizer) -> dict[str, Any]:
        template = require_template(tokenizer, self.model)
        with Count("turn") as count:
            right, asked = exact_replies(model, template, Path(self.conversations), self.replies, count.update)
        print(f"replies          {right / asked:.4f}: {right:,} of {asked:,} in {self.conversations} word for word")
        return {"exact": right / asked, "replies": asked, "data": self.conversations}

    def _hellaswag(self, model: GPT2, tokenizer: Tokenizer) -> dict[str, Any]:
        with Count("item") as count:
            found = evaluate_hellaswag(model, tokenizer, self.hellaswag, self.items, show=count.update)
        print(f"HellaSwag        acc_norm {found.acc_norm:.4f}, acc {found.acc:.4f} on {counted(found.items, 'item')}")
        print(f"                 {known.COMPLETION}")
        print(f"known values, of all {ITEMS:,} items in that style (guessing gives 0.25):")
        for value in known.HELLASWAG:
            print(f"    {value.acc_norm:.4f} (acc {value.acc:.4f})  {value.model}")
        return {"acc_norm": found.acc_norm, "acc": found.acc, "items": found.items, "style": known.COMPLETION}

    def _tasks(self, folder: str) -> dict[str, Any]:
        try:
            import lm_eval

            from gpt2c.evaluation.harness import Gpt2c
        except ImportError as error:
            raise UserError('--tasks needs the package lm_eval: pip install "gpt2c[eval]"') from error
        model = Gpt2c(folder, self.batch_size, find_device(self.device).type)
        try:
            found = lm_eval.simple_evaluate(model, tasks=self.tasks.split(","), limit=self.limit, bootstrap_iters=0)
        except (KeyError, ValueError, OSError, ImportError) as error:  # an unknown task, or a set that cannot be had
            raise UserError(f"lm-eval cannot evaluate {self.tasks}: {reason(error)}") from error
        results = {task: _plain(values) for task, values in found["results"].items()}
        for task, values in results.items():
            print(f"{task:16} " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()) + " (lm-eval)")
        return results


def _plain(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval's `acc,none` as `acc`, numbers only, without their errors."""
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return {name.split(",")[0]: float(value) for name, value in numbers.items() if "stderr" not in name and "," in name}
