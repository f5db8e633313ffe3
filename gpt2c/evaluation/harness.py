"""A gpt2c model for EleutherAI's lm-eval, registered there as `gpt2c`; imported only where lm-eval is installed.

    import gpt2c.evaluation.harness
    lm_eval.simple_evaluate("gpt2c", "pretrained=runs/mine", tasks=["lambada_openai"])

Requests are cut and counted as lm-eval's own class for Hugging Face models does, so that the same weights give the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from gpt2c.load import load_model, require_rows
from gpt2c.tokenizer import decode, prompt_ids

MAX_GEN_TOKS = 256  # of a task that does not say
PAIR = tuple[tuple[str, str], list[int], list[int]]


@register_model("gpt2c")
class Gpt2c(TemplateLM):
    """pretrained: what gpt2c.load.load_model takes; batch_size: requests at a time; device: `cpu` or `cuda`."""

    def __init__(self, pretrained: str, batch_size: int | str = 8, device: str | None = None, **_: object) -> None:
        super().__init__()
        self.model, self.text, _ = load_model(pretrained)
        self.model.to(device or "cpu")
        self.batch = int(batch_size) if str(batch_size).isdigit() else 8

    @property
    def eot_token_id(self) -> int:
        return self.text.end_of_text

    @property
    def prefix_token_id(self) -> int:
        return self.text.start

    @property
    def max_length(self) -> int:
        return self.model.config.n_positions

    @property
    def tokenizer_name(self) -> str:
        return self.text.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        ids = prompt_ids(self.text, string).tolist() if string else []
        require_rows(self.model, self.text, ids)
        return ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the context, the first after an end-of-text token."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
        return totals

    def _loglikelihood_tokens(
        self, requests: list[PAIR], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Of each continuation's tokens after its context's: their summed log-probability, and whether each of them is
        the likeliest."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        for indices in tqdm(list(_chunks(order, self.batch)), desc="loglikelihood", disable=disable_tqdm):
            for i, result in zip(indices, self._score([requests[i][1:] for i in indices]), strict=True):
                results[i] = result
                self.cache_hook.add_partial("loglikelihood", requests[i][0], result)
        return results

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[tuple[float, bool]]:
        rows = [
            torch.tensor((context + continuation)[-(self.max_length + 1) :], device="cpu")
            for context, continuation in pairs
        ]
        inputs = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
        y = self.model.hidden(inputs.to(self.model.wte.weight.device)).view(*inputs.shape, -1)
        for own, row, (_, continuation) in zip(y, rows, pairs, strict=True):
            length = min(len(continuation), len(row) - 1)
            log_p = self._log_softmax(own[len(row) - 1 - length : len(row) - 1])
            targets = row[len(row) - length :].to(log_p.device)
            greedy = bool((log_p.argmax(-1) == targets).all())
            yield float(log_p.gather(1, targets[:, None]).sum()), greedy

    def _log_softmax(self, y: Tensor) -> Tensor:
        return F.log_softmax(self.model.logits(y).float(), dim=-1)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each prompt up to the first of the strings that end it."""
        texts = []
        for prompt, settings in tqdm([r.args for r in requests], desc="generate", disable=disable_tqdm):
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            tokens = int(settings.get("max_gen_toks", MAX_GEN_TOKS))
            temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
            texts.append(self._generate(prompt, until, tokens, temperature))
            self.cache_hook.add_partial("generate_until", (prompt, settings), texts[-1])
        return texts

    def _generate(self, prompt: str, until: Sequence[str], tokens: int, temperature: float) -> str:
        ids = self.tok_encode(prompt)[-max(1, self.max_length - tokens) :] or [self.prefix_token_id]
        idx, written = torch.tensor([ids], device=self.model.wte.weight.device), []
        text = ""
        for token in self.model.stream(idx, min(tokens, self.max_length), temperature):
            if int(token) in self.text.ends:
                break
            written.append(int(token))
            text = decode(self.text, written)
            if any(stop in text for stop in until):
                break
        return text[: min([text.find(stop) for stop in until if stop in text], default=len(text))]


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
