"""The training loop, reading top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2c import _native
from gpt2c.busy import Neighbours
from gpt2c.chat.dataset import ChatDataset
from gpt2c.chat.reply import sample_reply
from gpt2c.data import Batch
from gpt2c.data.prefetch import Prefetch
from gpt2c.distributed import Processes, is_restarted, job, processes
from gpt2c.errors import ToldElsewhere, UserError
from gpt2c.evaluate import loss_sums, sample_text
from gpt2c.finite import non_finite_of_step, non_finite_weight
from gpt2c.interrupt import StopSignal, stop_signal
from gpt2c.lock import locked
from gpt2c.logs import open_sinks
from gpt2c.lora import merged
from gpt2c.precision import autocast
from gpt2c.progress import Progress
from gpt2c.run import Run, recorded_settings, started_by
from gpt2c.settings import TrainConfig
from gpt2c.step import (
    accumulate_gradients,
    clip_coefficient,
    dropout_seeds,
    learning_rate,
    micro_batches,
    micro_weights,
    tokens_per_step,
)
from gpt2c.training import Training, go_back, open_training, save


@dataclass(frozen=True)
class Result:
    """Where a run stands when `train` returns. `stopped_by`: the signal that ended it before its last step, or None.
    `is_first`: whether this process is the one that speaks."""

    run: Run
    checkpoint: Path
    step: int
    sample: str | None
    stopped_by: int | None
    is_first: bool


def train(config: TrainConfig, resume: bool = False) -> Result:
    """Train a GPT-2 as `config` says, in a new folder, or with `resume` go on from the folder's latest checkpoint.

    Under torchrun, which calls this in each process, they share each step's micro-steps. A resumed run ends with the
    very bytes of one that was never stopped (same machine, numbers of threads and processes). SIGINT, SIGTERM and
    schedulers' warnings stop it after the current step, with a checkpoint.

    Raises:
        UserError: data, settings or folder cannot be used, or a loss, gradient or weight is not finite for good.
    """
    if not config.recompute:  # which is asked for by who has little memory: kept, it grows by what is computed again
        _native.keep_heap()
    if is_restarted() and started_by(config.out) == job():  # not somebody else's run, which the first start refused
        config, resume = recorded_settings(config.out, type(config)), True
    with processes(config.device) as group, opened(config, resume, group) as t, stop_signal() as stop:
        with Progress(t.step, config.steps, group.is_first) as progress:
            progress.note(describe(t))
            stopped_by = run_steps(t, stop, progress)
    assert t.checkpoint is not None, "every run ends with a checkpoint"
    return Result(t.run, t.checkpoint, t.step, t.sample, stopped_by if t.step < config.steps else None, group.is_first)


@contextlib.contextmanager
def opened(config: TrainConfig, resume: bool, group: Processes) -> Iterator[Training]:
    """The run, whose folder is this call's alone and whose files are closed however it ends."""
    with contextlib.ExitStack() as stack:
        group.first_does(lambda: stack.enter_context(locked(config.out, "training in")))
        t = open_training(config, resume, group)
        sinks = open_sinks(t.config, t.run.folder, t.step if resume else None)
        t.sinks = group.first_does(lambda: stack.enter_context(sinks)) or []
        if resume and t.step < t.config.steps:  # of a run that has ended nothing goes on
            t.log(event="resume", reason=f"from {t.checkpoint.name if t.checkpoint else 'the start'}{where(t, ', ')}")
        yield t
    # What holds on to the group of processes must be gone before it is: gloo waits for peers that have left.
    t.wrapped, t.optimizer = t.model, None


def run_steps(t: Training, stop: StopSignal, progress: Progress) -> int | None:
    """All steps that are left; returns the signal that ended them early."""
    neighbours = Neighbours() if t.processes.world == 1 else None  # of several ranks each is another's neighbour
    while t.step < t.config.steps:
        with batches_from(t) as batches:
            while t.step < t.config.steps:
                if not take_step(t, batches, progress):
                    break  # back at a checkpoint: other data come next
                signal = agreed(t, stop)
                after_step(t, progress, signal)
                if neighbours and (note := neighbours.note()):
                    progress.note(note)
                if signal is not None:
                    t.processes.first_does(t.run.draw_curve)
                    return signal
    return None


def batches_from(t: Training) -> Prefetch[list[Batch]]:
    """This process's batches of each step that is left, made while the step before runs."""
    rank, world, offset = t.processes.rank, t.processes.world, t.guard.offset
    return Prefetch(
        lambda step: micro_batches(t.dataset, step + offset, t.config, rank, world), t.step + 1, t.config.steps
    )


def take_step(t: Training, batches: Prefetch[list[Batch]], progress: Progress) -> bool:
    """One step; False if training went back to a checkpoint instead."""
    t.step += 1
    started, lr = time.monotonic(), learning_rate(t.step, t.config)
    rank, world = t.processes.rank, t.processes.world
    seeds = dropout_seeds(t.config, t.step, rank, world)
    weights = micro_weights(t.dataset, t.step + t.guard.offset, t.config, rank, world)
    with autocast(t.processes.device, t.precision):
        micro = batches.get(t.step)
        loss, norm = accumulate_gradients(t.wrapped, t.optimizer, micro, seeds, t.loss_scale.scale, weights)
    loss, norm = t.processes.mean([loss, norm])  # the norm is the same in all, the gradients being averaged
    if not update(t, loss, norm, lr, progress):
        return False
    tok_per_s = tokens_per_step(t.config) / (time.monotonic() - started)
    progress.update(t.step, loss, lr, norm, tok_per_s)
    if is_due(t.step, t.config.log_every, t.config):
        t.log(loss=loss, lr=lr, grad_norm=norm, tok_per_s=round(tok_per_s, 1))
    return True


def update(t: Training, loss: float, norm: float, lr: float, progress: Progress) -> bool:
    """The optimizer's update, or its skip; False if training went back to a checkpoint."""
    if not math.isfinite(norm) and math.isfinite(loss) and t.loss_scale.is_used and t.loss_scale.overflowed():
        t.log(event="skip", reason=f"gradients overflow in fp16, the loss's scale is now {t.loss_scale.scale:g}")
        return True
    if (problem := t.guard.judge(loss, norm)) is None:
        for group in t.optimizer.param_groups:
            group["lr"] = lr
        t.optimizer.step(grad_scale=clip_coefficient(norm, t.config.grad_clip) / t.loss_scale.scale)
        t.loss_scale.held()
        return True
    culprit = non_finite_of_step(t.model, loss, norm)
    weight = non_finite_weight(t.model)
    if t.config.skip_limit == 0:
        stop_for(t, f"{culprit} is not finite" if culprit else problem)
    if weight is None and t.guard.in_a_row < t.config.skip_limit:
        t.log(event="skip", reason=problem)
        progress.note(f"step {t.step}: {problem}; its update is skipped")
        return True
    if t.checkpoint is None or t.went_back_to == t.checkpoint:
        stop_for(t, f"{culprit} is not finite" if culprit else problem)
    problem = f"{weight} is not finite" if weight else f"{problem}, the last of {t.guard.in_a_row} in a row"
    t.log(event="rollback", reason=f"{problem}; back to {t.checkpoint.name}, past these data")
    progress.note(f"step {t.step}: {problem}; going back to {t.checkpoint}, past these data")
    go_back(t)
    return False


def after_step(t: Training, progress: Progress, signal: int | None) -> None:
    """Evaluation, sample and checkpoint, where they are due; a checkpoint if a signal ends the run, too."""
    val_loss = None
    if is_due(t.step, t.config.eval_every, t.config):
        val_loss = evaluate(t, progress)
    if is_due(t.step, t.config.sample_every, t.config):
        add_sample(t, progress)
    is_best = val_loss is not None and val_loss < t.best_loss
    if signal is not None and t.step < t.config.steps:
        t.log(event="stop", reason=f"signal {signal}")
    if is_due(t.step, t.config.checkpoint_every, t.config) or is_best or signal is not None:
        require_finite(t, non_finite_weight(t.model))
        save(t, val_loss)


def agreed(t: Training, stop: StopSignal) -> int | None:
    """The signal that any of the processes has got, in all of them after the same step."""
    return t.processes.largest(stop.received or 0) or None


def is_due(step: int, every: int, config: TrainConfig) -> bool:
    """Whether something done every so many steps (0: never) is done now; at the last step everything is."""
    return step == config.steps or (every > 0 and step % every == 0)


def evaluate(t: Training, progress: Progress) -> float:
    """Measure the validation loss, and HellaSwag if that is wanted, write it down and draw the curve."""
    require_finite(t, non_finite_weight(t.model))
    rank, world = t.processes.rank, t.processes.world
    drawn = t.dataset.val_batches(t.config.batch_size, t.config.context, t.config.eval_tokens, rank, world)
    with autocast(t.processes.device, t.precision):
        total, tokens = t.processes.mean(loss_sums(t.model, drawn))
        scores = hellaswag(t) if t.config.hellaswag else {}
    val_loss = total / tokens
    require_finite(t, None if math.isfinite(val_loss) else f"the validation loss ({val_loss})")
    t.log(val_loss=val_loss)
    if scores:
        t.log(**scores)
    t.processes.first_does(t.run.draw_curve)
    progress.evaluated(val_loss)
    progress.note(f"step {t.step}: validation loss {val_loss:.4f}{describe_scores(scores)}")
    return val_loss


def hellaswag(t: Training) -> dict[str, float]:
    """The scores as a row of metrics.jsonl has them; none if the items cannot be read any more."""
    from gpt2c.evaluation.hellaswag import evaluate_hellaswag

    config, rank, world = t.config, t.processes.rank, t.processes.world
    try:
        found = t.processes.together(
            lambda: evaluate_hellaswag(
                t.model, t.tokenizer, config.hellaswag, config.hellaswag_items, rank=rank, world=world
            )
        )
    except UserError as error:  # its file was there at the start
        if t.processes.is_first:
            warnings.warn(f"{error}; training goes on without HellaSwag's score", stacklevel=2)
        return {}
    right, right_norm, items = t.processes.mean([found.right, found.right_norm, found.items])
    return {
        "hellaswag_acc": right / items,
        "hellaswag_acc_norm": right_norm / items,
        "hellaswag_items": round(items * world),
    }


def add_sample(t: Training, progress: Progress) -> None:
    """Generate a text, write it down and show it, except the last one, which the caller gets."""
    require_finite(t, non_finite_weight(t.model))
    if not t.processes.is_first:
        return
    t.sample = sample(t)
    t.run.add_sample(t.step, t.sample)
    for sink in t.sinks:
        sink.text(t.step, t.sample)
    if t.step < t.config.steps:
        progress.note(f"step {t.step}: a sample\n" + "\n".join("    " + line for line in t.sample.splitlines()))


def sample(t: Training) -> str:
    """A text, or of conversations the reply to one that is held out."""
    model, tokens, seed = merged(t.model), t.config.sample_tokens, t.config.seed + t.step
    if isinstance(t.dataset, ChatDataset):
        return sample_reply(model, t.dataset.template, t.dataset.opening, tokens, seed)
    return sample_text(model, t.tokenizer, tokens, seed)


def require_finite(t: Training, culprit: str | None) -> None:
    """Raise UserError if there is a culprit: a tensor that is not finite."""
    if culprit is not None:
        stop_for(t, f"{culprit} is not finite")


def stop_for(t: Training, problem: str) -> None:
    """End the run, by a UserError."""
    good = f"the last good checkpoint is {t.checkpoint}" if t.checkpoint else "there is no checkpoint yet"
    t.log(event="stop", reason=problem)
    raise (UserError if t.processes.is_first else ToldElsewhere)(
        f"step {t.step}: {problem}, so training has stopped and {good}; try a smaller --lr or --grad-clip"
    )


def describe(t: Training) -> str:
    """The run in a line."""
    learning = sum(p.numel() for p in t.model.parameters() if p.requires_grad)
    of = t.model.num_parameters()
    share = "" if learning >= of else f", of which {learning:,} learn"
    return (
        f"{t.run.folder}: a GPT-2 of {of:,} parameters{share}, {tokens_per_step(t.config):,} tokens a "
        f"step, from {t.dataset.summary}{where(t, '; ')}"
    )


def where(t: Training, before: str = "") -> str:
    """Device, precision and number of processes; nothing for the ordinary: one process on a CPU in fp32."""
    world = t.processes.world
    parts = [f"{world} processes"] * (world > 1)
    if t.processes.device.type == "cuda":
        parts.append(torch.cuda.get_device_name(t.processes.device))
    if t.precision != "fp32":
        parts.append(t.precision)
    return before + ", ".join(parts) if parts else ""


def describe_scores(scores: dict[str, float]) -> str:
    if not scores:
        return ""
    return f", HellaSwag acc_norm {scores['hellaswag_acc_norm']:.4f} (acc {scores['hellaswag_acc']:.4f})"
