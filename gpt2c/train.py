"""The training loop, reading top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2c import _native, checkpoint, ops
from gpt2c.data import Batch, Dataset, load_dataset
from gpt2c.errors import UserError
from gpt2c.evaluate import sample_text, validation_loss
from gpt2c.finite import non_finite_of_step, non_finite_weight
from gpt2c.interrupt import stop_signal
from gpt2c.model import GPT2
from gpt2c.optim import AdamW
from gpt2c.progress import Progress
from gpt2c.run import Run
from gpt2c.settings import TrainConfig
from gpt2c.tokenizer import Tokenizer, get_tokenizer


@dataclass
class Training:
    """Everything a run consists of, `step` steps after its start."""

    config: TrainConfig
    tokenizer: Tokenizer
    dataset: Dataset
    run: Run
    model: GPT2
    optimizer: AdamW
    step: int
    started: float  # time.monotonic() of the start; later by the time between being stopped and resumed
    best_loss: float  # lowest validation loss of any checkpoint
    checkpoint: Path | None  # the latest one
    sample: str | None = None  # the latest one


@dataclass(frozen=True)
class Result:
    """Where a run stands when `train` returns. `stopped_by`: the signal that ended it before its last step, or None."""

    run: Run
    checkpoint: Path
    step: int
    sample: str | None
    stopped_by: int | None


def train(config: TrainConfig, resume: bool = False) -> Result:
    """Train a GPT-2 as `config` says, in a new folder, or with `resume` go on from the folder's latest checkpoint.

    A resumed run ends with the very bytes of one that was never stopped (same machine and number of threads). SIGINT
    and SIGTERM stop it after the current step, with a checkpoint.

    Raises:
        UserError: data, settings or folder cannot be used, or a loss, gradient or weight is not finite.
    """
    _native.keep_heap()
    t = open_training(config, resume)
    stopped_by = None
    with stop_signal() as stop, Progress(t.step, config.steps) as progress:
        progress.note(describe(t))
        while t.step < config.steps:
            t.step += 1
            step_started = time.monotonic()
            lr = learning_rate(t.step, config)
            loss, norm = accumulate_gradients(t.model, t.optimizer, micro_batches(t.dataset, t.step, config))
            for group in t.optimizer.param_groups:
                group["lr"] = lr
            t.optimizer.step(grad_scale=clip_coefficient(loss, norm, config.grad_clip))

            loss, norm = float(loss), float(norm)  # only now, with the update queued, a GPU is waited for
            require_finite(t, non_finite_of_step(t.model, loss, norm))
            tok_per_s = tokens_per_step(config) / (time.monotonic() - step_started)
            progress.update(t.step, loss, tok_per_s)
            if is_due(t.step, config.log_every, config):
                row = {"step": t.step, "loss": loss, "lr": lr, "grad_norm": norm, "tok_per_s": round(tok_per_s, 1)}
                t.run.add_metrics({**row, "seconds": seconds(t)})

            stopped_by = stop.received
            val_loss = None
            if is_due(t.step, config.eval_every, config):
                val_loss = evaluate(t, progress)
            if is_due(t.step, config.sample_every, config):
                add_sample(t, progress)
            is_best = val_loss is not None and val_loss < t.best_loss
            if is_due(t.step, config.checkpoint_every, config) or is_best or stopped_by is not None:
                save(t, val_loss)
            if stopped_by is not None:
                t.run.draw_curve()
                break
    assert t.checkpoint is not None, "every run ends with a checkpoint"
    return Result(t.run, t.checkpoint, t.step, t.sample, stopped_by if t.step < config.steps else None)


def open_training(config: TrainConfig, resume: bool) -> Training:
    """Check everything that can be wrong before the run folder is made, then make it, or read it to resume."""
    tokenizer = get_tokenizer(config.tokenizer)
    model_config = config.model_config(tokenizer.vocab_size)
    dataset = load_dataset(config.data, tokenizer, config.val_fraction, config.context)

    last = checkpoint.latest(config.out) if resume else None
    record = checkpoint.read_record(last) if last else checkpoint.Record(0, tokenizer.name, None, 0.0, {})
    fingerprint = dataset.tokens.fingerprint()
    run = Run.reopen(config, fingerprint) if resume else Run.create(config, fingerprint)

    torch.manual_seed(config.seed)
    model = GPT2.from_pretrained(last).train() if last else GPT2(model_config)
    if model.config != model_config:
        raise UserError(f"{last} holds a model of {model.config}, expected {model_config} as {run.folder} records")
    model.recompute = config.recompute
    optimizer = make_optimizer(model, config)
    if last:
        checkpoint.restore(last, model, optimizer)
    if resume:
        run.rewind(config, fingerprint, record.files)
        checkpoint.prune(run.folder, config.keep)
    best = checkpoint.best(run.folder)
    best_loss = checkpoint.read_record(best).val_loss if best else None
    return Training(
        config,
        tokenizer,
        dataset,
        run,
        model,
        optimizer,
        step=record.step,
        started=time.monotonic() - record.seconds,
        best_loss=math.inf if best_loss is None else best_loss,
        checkpoint=last,
    )


def is_due(step: int, every: int, config: TrainConfig) -> bool:
    """Whether something done every so many steps (0: never) is done now; at the last step everything is."""
    return step == config.steps or (every > 0 and step % every == 0)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step, counted from 1: lr * step / warmup_steps up to warmup_steps, then half a cosine
    from lr to min_lr, which is reached at the last step."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.lr - config.min_lr)


def make_optimizer(model: GPT2, config: TrainConfig) -> AdamW:
    """AdamW with weight decay on matrices and embeddings (two dimensions) and none on biases and layernorms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, weight_decay=config.weight_decay)


def micro_batches(dataset: Dataset, step: int, config: TrainConfig) -> list[Batch]:
    """The batches of a step's micro-steps."""
    return [
        dataset.train_batch(config.seed, step, i, config.accumulation, config.batch_size, config.context)
        for i in range(config.accumulation)
    ]


def accumulate_gradients(model: GPT2, optimizer: AdamW, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Leave in .grad the gradient of the mean loss over all batches, which are of one size; returns that loss and the
    L2 norm of the gradient, 0-dim tensors."""
    optimizer.zero_grad()
    total = torch.zeros((), device=model.wte.weight.device)
    for idx, targets in batches:
        _, loss = model(idx, targets)
        (loss / len(batches)).backward()
        total += loss.detach() / len(batches)
    return total, ops.grad_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_coefficient(loss: Tensor, norm: Tensor, grad_clip: float) -> Tensor:
    """What gradients of this norm are multiplied by, so that it is at most grad_clip; nan, which the optimizer takes
    for no step at all, if loss or norm is not finite. 0-dim fp32, where loss and norm are."""
    coefficient = (grad_clip / (norm.double() + 1e-6)).clamp_max(1.0)
    return torch.where(loss.isfinite() & norm.isfinite(), coefficient, torch.nan).float()


def evaluate(t: Training, progress: Progress) -> float:
    """Measure the validation loss, write it down and draw the curve."""
    require_finite(t, non_finite_weight(t.model))
    batches = t.dataset.val_batches(t.config.batch_size, t.config.context, t.config.eval_batches)
    val_loss = validation_loss(t.model, batches)
    require_finite(t, None if math.isfinite(val_loss) else f"the validation loss ({val_loss})")
    t.run.add_metrics({"step": t.step, "val_loss": val_loss, "seconds": seconds(t)})
    t.run.draw_curve()
    progress.note(f"step {t.step}: validation loss {val_loss:.4f}")
    return val_loss


def add_sample(t: Training, progress: Progress) -> None:
    """Generate a text, write it down and show it, except the last one, which the caller gets."""
    require_finite(t, non_finite_weight(t.model))
    t.sample = sample_text(t.model, t.tokenizer, t.config.sample_tokens, seed=t.config.seed + t.step)
    t.run.add_sample(t.step, t.sample)
    if t.step < t.config.steps:
        progress.note(f"step {t.step}: a sample\n" + "\n".join("    " + line for line in t.sample.splitlines()))


def save(t: Training, val_loss: float | None) -> None:
    """Write a checkpoint, never one with a weight that is not finite."""
    require_finite(t, non_finite_weight(t.model))
    record = checkpoint.Record(t.step, t.tokenizer.name, val_loss, seconds(t), files=t.run.flush())
    t.checkpoint = checkpoint.save(t.run.folder, t.model, t.optimizer, record)
    checkpoint.prune(t.run.folder, t.config.keep)
    if val_loss is not None:
        t.best_loss = min(t.best_loss, val_loss)


def require_finite(t: Training, culprit: str | None) -> None:
    """Raise UserError if there is a culprit: a tensor that is not finite."""
    if culprit is not None:
        good = f"the last good checkpoint is {t.checkpoint}" if t.checkpoint else "there is no checkpoint yet"
        raise UserError(
            f"step {t.step}: {culprit} is not finite, so training has stopped and {good}; "
            "try a smaller --lr or --grad-clip"
        )


def tokens_per_step(config: TrainConfig) -> int:
    return config.accumulation * config.batch_size * config.context


def seconds(t: Training) -> float:
    """Seconds trained so far, those before a resume included."""
    return round(time.monotonic() - t.started, 3)


def describe(t: Training) -> str:
    """The run in a line."""
    boundary = t.dataset.boundary
    return (
        f"{t.run.folder}: a GPT-2 of {t.model.num_parameters():,} parameters, {tokens_per_step(t.config):,} tokens a "
        f"step, from {boundary:,} tokens to learn and {len(t.dataset.tokens) - boundary:,} to validate"
    )
