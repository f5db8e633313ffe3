"""A plan as the command shows it."""

from __future__ import annotations

import math

from gpt2c.plan.memory import MOST, SHARE, Memory
from gpt2c.plan.speed import Speed
from gpt2c.settings import TrainConfig
from gpt2c.step import tokens_per_step
from gpt2c.words import counted


def memory_table(config: TrainConfig, as_is: Memory, other: Memory, room: float, most: int) -> str:
    """Memory by part, beside that of the other choice of --recompute, and whether it fits into `room` bytes, which are
    infinite where the system does not tell."""
    names = ("with recompute", "without") if config.recompute else ("as it is", "with recompute")
    lines = [f"memory         {names[0]:>14}  {names[1]:>14}"]
    for name, size in as_is.rows().items():
        lines.append(f"  {name:12} {gb(size):>14}  {gb(other.rows()[name]):>14}")
    held = gb(room) if math.isfinite(room) else "unknown"
    lines.append(f"  {'peak':12} {gb(as_is.total):>14}  {gb(other.total):>14}   of {held}")
    state = "fits" if as_is.total <= SHARE * room else "does not fit"
    at_most = f"at most {most:,} windows would" if most else "not one window would"
    if most == MOST:
        at_most = f"so would {most:,}"
    fits = f"{state}; {at_most}" if math.isfinite(room) else "the system does not tell how much memory it has"
    lines.append(
        f"  {counted(config.batch_size, 'window')} of {counted(config.context, 'token')} in a micro-step: {fits}"
    )
    return "\n".join(lines)


def work_lines(config: TrainConfig, per_token: float, learned: int | None) -> str:
    """Operations and tokens. learned: tokens of the training split, None where the data are not there yet."""
    of_step = tokens_per_step(config)
    tokens = of_step * config.steps
    seen = f"{config.data} is not there yet" if learned is None else f"{short(tokens / learned)} times the data"
    return (
        f"operations     {short(per_token / 1e6)} MFLOP a token, {per_token * of_step:.3g} FLOP a step, "
        f"{per_token * tokens:.3g} FLOP in all\n"
        f"tokens         {of_step:,} a step, {tokens:,} in {counted(config.steps, 'step')}; {seen}"
    )


def time_lines(speed: Speed, hours: float) -> str:
    """Tokens a second and the time of the run, its evaluations included."""
    seconds = 3600 * hours
    time = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{short(seconds)} seconds"
    time = f"{hours:,.1f} hours" if hours >= 1 else time
    days = f", {hours / 24:,.1f} days" if hours > 48 else ""
    rate = f"speed          {short(speed.rate)} tokens a second: {speed.source}"
    return f"{rate}\ntime           {time}{days}, with evaluations"


def disk_line(config: TrainConfig, total: float, each: float) -> str:
    """Room for checkpoints."""
    return (
        f"disk           {gb(total)}, {gb(each)} for each checkpoint: {config.keep} latest, the best, one being written"
    )


def short(value: float) -> str:
    """Three digits, which is what an estimate has, and never an exponent."""
    return (
        f"{float(f'{value:.3g}'):,.0f}"
        if value >= 100
        else f"{value:.3g}"
        if value >= 0.001 or not value
        else "under 0.001"
    )


def gb(size: float) -> str:
    return f"{size / 1e6:.2f} MB" if 0 < size < 5e6 else f"{size / 1e9:.2f} GB"
