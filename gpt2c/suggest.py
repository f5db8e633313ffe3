"""What the user may have meant by a word that a command does not know."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

# Names that other programs have for our flags, and the words that people type for them.
ELSEWHERE = {
    "--learning-rate": "--lr", "--min-learning-rate": "--min-lr", "--warmup-iters": "--warmup-steps",
    "--block-size": "--context", "--seq-len": "--context", "--sequence-length": "--context", "--n-ctx": "--context",
    "--max-iters": "--steps", "--max-steps": "--steps", "--num-iterations": "--steps", "--iterations": "--steps",
    "--epochs": "--steps", "--num-train-epochs": "--steps", "--eval-interval": "--eval-every",
    "--log-interval": "--log-every", "--save-every": "--checkpoint-every", "--save-steps": "--checkpoint-every",
    "--gradient-accumulation-steps": "--accumulation", "--grad-accum": "--accumulation",
    "--gradient-checkpointing": "--recompute", "--activation-checkpointing": "--recompute",
    "--dtype": "--precision", "--fp16": "--precision", "--bf16": "--precision", "--max-grad-norm": "--grad-clip",
    "--clip": "--grad-clip",
    "--num-layers": "--n-layer", "--num-heads": "--n-head", "--hidden-size": "--n-embd", "--d-model": "--n-embd",
    "--dataset": "--data", "--input": "--data", "--train-data": "--data", "--output": "--out", "--output-dir": "--out",
    "--out-dir": "--out", "--model": "--init", "--init-from": "--init", "--pretrained": "--init",
    "--start": "--prompt", "--max-length": "--max-new-tokens", "--max-tokens": "--max-new-tokens",
    "--length": "--max-new-tokens", "--temp": "--temperature", "--nsamples": "--num-samples",
    "--quantize": "--weights", "--int8": "--weights",
}  # fmt: skip
MOST = 2


def meant(words: Iterable[str], known: Collection[str]) -> list[str]:
    """Of the known words those that come closest to the given ones, in order; of flags only flags."""
    found: list[str] = []
    for word in words:
        name = word.partition("=")[0].replace("_", "-") if word.startswith("--") else word
        alike = [other for other in known if other.startswith("--") == name.startswith("--")]
        if ELSEWHERE.get(name) in alike:
            found.append(ELSEWHERE[name])
        else:
            bare = {other.removeprefix("--"): other for other in alike}  # the dashes are alike in all
            found += [bare[other] for other in difflib.get_close_matches(name.removeprefix("--"), bare, n=MOST)]
    return list(dict.fromkeys(found))


def hint(words: Iterable[str], known: Collection[str]) -> str:
    """The end of a sentence, empty if nothing comes close."""
    found = meant(words, known)
    return f"; perhaps you meant {' or '.join(found)}" if found else ""
