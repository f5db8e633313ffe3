"""A run's settings: one dataclass whose fields are the flags, the keys of recipe files, and the run's record."""

from __future__ import annotations

import dataclasses
import math
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from gpt2c.config import GPT2Config
from gpt2c.data import Source, load_dataset
from gpt2c.data.inputs import require_outside
from gpt2c.errors import UserError
from gpt2c.files import reading
from gpt2c.tokenizer import Tokenizer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Rule = tuple[Callable[[Any], bool], str]
AT_LEAST_0: Rule = (lambda x: x >= 0, "at least 0")
_AT_LEAST_1: Rule = (lambda x: x >= 1, "at least 1")
_POSITIVE: Rule = (lambda x: 0 < x < math.inf, "a finite number above 0")
_NOT_NEGATIVE: Rule = (lambda x: 0 <= x < math.inf, "a finite number of at least 0")
_BETA: Rule = (lambda x: 0 <= x < 1, "at least 0 and below 1")

_RULES: dict[str, Rule] = {
    "val_fraction": (lambda x: 0 < x < 1, "above 0 and below 1"),
    "context": _AT_LEAST_1,
    "steps": _AT_LEAST_1,
    "batch_size": _AT_LEAST_1,
    "accumulation": _AT_LEAST_1,
    "lr": _POSITIVE,
    "min_lr": _NOT_NEGATIVE,
    "warmup_steps": AT_LEAST_0,
    "weight_decay": _NOT_NEGATIVE,
    "beta1": _BETA,
    "beta2": _BETA,
    "grad_clip": _POSITIVE,
    "seed": (lambda x: 0 <= x < 2**63, "at least 0 and below 2**63"),
    "eval_every": AT_LEAST_0,
    "eval_tokens": _AT_LEAST_1,
    "hellaswag_items": _AT_LEAST_1,
    "freeze_layers": AT_LEAST_0,
    "lora_rank": AT_LEAST_0,
    "lora_alpha": _POSITIVE,
    "spike_z": _NOT_NEGATIVE,
    "skip_limit": AT_LEAST_0,
    "sample_every": AT_LEAST_0,
    "sample_tokens": _AT_LEAST_1,
    "log_every": AT_LEAST_0,
    "checkpoint_every": AT_LEAST_0,
    "keep": _AT_LEAST_1,
}


# What a resumed run may change: none of these enters the arithmetic of a step, except `steps`, which is there to train
# longer. `data` is a name; its tokens are compared by their fingerprint instead.
MAY_CHANGE = frozenset(
    ("data", "out", "init", "steps", "eval_every", "eval_tokens", "sample_every", "sample_tokens")
    + ("log_every", "checkpoint_every", "keep", "recompute", "compile", "device", "shard_optimizer", "tensorboard")
    + ("wandb", "hellaswag", "hellaswag_items", "skip_limit")
)


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training run."""

    command: ClassVar[str] = "train"
    rules: ClassVar[dict[str, Rule]] = _RULES
    may_change: ClassVar[frozenset[str]] = MAY_CHANGE
    needs_init: ClassVar[bool] = False

    data: str = "embedded"
    """What to learn: a text, token shards (.bin, .npy), a folder of either, or `embedded`: Python's help, 0.5 MB."""
    out: Path = Path("runs/train")
    """Run folder, new or empty unless --resume is given; gets checkpoints/, metrics.jsonl, samples.txt, loss.png."""
    tokenizer: str = "bytes"
    """How text becomes tokens: `bytes` (257 ids), `gpt2` (50257 ids), or the folder of a tokenizer of your own."""
    val_fraction: float = 0.1
    """Share of the tokens, from the end of the data, kept for validation, above 0 and below 1; shards may bring one."""

    init: str = ""
    """Model to start from, which decides the sizes: a run, a checkpoint, a folder, a hub name; none if empty."""
    freeze_layers: int = 0
    """Number of first blocks that stay as they are, with the embeddings before them; 0 for none."""
    lora_rank: int = 0
    """Rank of the low-rank updates that are learned instead of the matrices (LoRA); 0 for all weights."""
    lora_alpha: float = 16.0
    """Scale of the low-rank updates: they count lora_alpha / lora_rank times."""

    n_layer: int = 4
    """Number of transformer blocks, L."""
    n_head: int = 4
    """Attention heads per block, H; divides n_embd."""
    n_embd: int = 128
    """Width of the residual stream, C."""
    context: int = 64
    """Context length in tokens, T: the model's number of positions and the length of each training window."""
    dropout: float = 0.0
    """Dropout probability on embeddings, attention and residual branches, 0 up to but not 1."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU if there is one that the kernels were built for."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic around fp32 weights; `auto`: fp32 on a CPU, on a GPU bf16 if it has it, or fp16 with a scaled loss."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start."""
    shard_optimizer: bool = False
    """With torchrun, keep only a part of AdamW's moments in each process (ZeRO stage 1)."""

    steps: int = 2000
    """Optimizer steps in all; the learning rate's cosine ends there."""
    batch_size: int = 12
    """Windows in one micro-step, B."""
    accumulation: int = 1
    """Micro-steps per optimizer step, of all processes together: batch_size * accumulation windows in a step."""
    recompute: bool = False
    """Keep less for the backward and compute it again: a tenth of what the layers keep, up to a fifth more time."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    min_lr: float = 1e-4
    """Learning rate at the last step, at the end of the cosine."""
    warmup_steps: int = 100
    """Steps in which the learning rate climbs linearly to lr."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay, on matrices and embeddings only, not on biases and layernorms."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment, per step."""
    beta2: float = 0.99
    """AdamW's decay rate of the second moment, per step."""
    grad_clip: float = 1.0
    """Largest L2 norm of all gradients together; a larger gradient is scaled down to it."""
    spike_z: float = 0.0
    """Standard deviations above the latest steps' mean beyond which a loss or gradient norm is skipped; 0 for never."""
    skip_limit: int = 5
    """Skipped updates in a row after which training goes back to the last checkpoint, past those data; 0 to stop."""
    seed: int = 1337
    """Seed of the initial weights, of the order of the data and of dropout."""

    eval_every: int = 250
    """Steps between evaluations on the validation split; 0 for one at the last step only."""
    eval_tokens: int = 150_000
    """Largest number of tokens in an evaluation, the first ones of the validation split."""
    hellaswag: str = ""
    """HellaSwag's validation set, evaluated at every evaluation: its JSON lines file, or `download`; none if empty."""
    hellaswag_items: int = 10_042
    """Number of HellaSwag's items, the first ones; 10042 are all."""
    sample_every: int = 500
    """Steps between samples of generated text; 0 for one at the last step only."""
    sample_tokens: int = 300
    """Length of a sample in tokens."""
    log_every: int = 1
    """Steps between rows of metrics.jsonl; 0 for one at the last step only."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, into the run's folder (needs the package tensorboard)."""
    wandb: str = ""
    """Project of Weights & Biases that gets the metrics, too (needs the package wandb); none if empty."""
    checkpoint_every: int = 250
    """Steps between checkpoints; 0 for those at the last step and at each new best validation loss only."""
    keep: int = 2
    """Number of latest checkpoints kept; the one with the best validation loss is kept besides."""

    # tyro shows each field's docstring as the flag's help, and keeps its line breaks: one line each.

    def __post_init__(self) -> None:
        """Raises UserError for a value that makes no sense."""
        for name, (is_right, expected) in self.rules.items():
            value = getattr(self, name)
            if not is_right(value):
                raise UserError(f"{flag(name)} is {value}, expected {expected}")
        if self.min_lr > self.lr:
            raise UserError(f"--min-lr is {self.min_lr}, expected at most --lr, {self.lr}")

    def open_data(self, tokenizer: Tokenizer) -> Source:
        """What the run learns from. UserError if it cannot be used."""
        require_outside(self.out, [self.data])
        return load_dataset(self.data, tokenizer, self.val_fraction, self.context)

    def tokenizer_from(self, found: Tokenizer) -> Tokenizer:
        """That of a run whose model to start from has the tokenizer `found`."""
        return found

    def first_new(self, tokenizer: Tokenizer) -> int | None:
        """The lowest id of the run's new tokens, which are the last; None without such."""
        return None

    def model_config(self, vocab_size: int) -> GPT2Config:
        """The model these settings ask for; UserError if there is none of such sizes."""
        try:
            return GPT2Config(
                vocab_size=vocab_size,
                n_positions=self.context,
                n_embd=self.n_embd,
                n_layer=self.n_layer,
                n_head=self.n_head,
                dropout=self.dropout,
            )
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {**dataclasses.asdict(self), "out": str(self.out)}

    @classmethod
    def types(cls) -> dict[str, Any]:
        """The type of each field."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> TrainConfig:
        """Settings from TOML or JSON; absent fields keep their defaults.

        Raises UserError for an unknown field or a value of another type; `source` is named in it.
        """
        types = cls.types()
        for name, value in values.items():
            if name not in types:
                raise UserError(f"{source} has the unknown setting {name!r}: expected some of {', '.join(types)}")
            if not _fits(value, types[name]):
                kind = _KINDS.get(types[name], "one of " + ", ".join(typing.get_args(types[name])))
                raise UserError(f"{source} sets {name} to {value!r}, expected {kind}")
        return cls(**{name: types[name](v) if types[name] in (float, Path) else v for name, v in values.items()})


Config = TypeVar("Config", bound=TrainConfig)


def flag(name: str) -> str:
    """The command line's name for a field."""
    return "--" + name.replace("_", "-")


def recipe_names() -> list[str]:
    """The recipes that the package carries."""
    folder = resources.files("gpt2c") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_recipe(name: str, kind: type[Config] = TrainConfig) -> Config:
    """The settings of a recipe of the package, or of a user's own TOML file. UserError says what is wrong with it."""
    if name in recipe_names():
        text = (resources.files("gpt2c") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml") or Path(name).is_file():
        with reading("recipe", Path(name)):
            raw = Path(name).read_bytes()
        try:
            text = raw.decode("utf-8-sig")  # with or without the mark that some editors put first
        except UnicodeDecodeError as error:
            raise UserError(f"the recipe {name} is not UTF-8 text: byte {error.start} is wrong") from error
    else:
        known = ", ".join(recipe_names())
        raise UserError(f"unknown recipe {name!r}: expected one of {known}, or the path of a TOML file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the recipe {name} is not valid TOML: {error}") from error
    return kind.from_dict(values, source=f"the recipe {name}")


_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a string"}


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float))
    if kind in (int, str):
        return isinstance(value, kind)
    return isinstance(value, str) and (kind is Path or value in typing.get_args(kind))
