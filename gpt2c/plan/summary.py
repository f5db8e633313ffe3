"""A plan as the command shows it."""

from __future__ import annotations

from gpt2c.plan.memory import SHARE, Memory
from gpt2c.plan.speed import Speed
from gpt2c.settings import TrainConfig
from gpt2c.step import tokens_per_step


def memory_table(config: TrainConfig, as_is: Memory, other: Memory, room: float, most: int) -> str:
    """Memory by part, beside that of the other choice of --recompute, and whether it fits into `room` bytes."""
    names = ("with recompute", "without") if config.recompute else ("as it is", "with recompute")
    lines = [f"memory         {names[0]:>14}  {names[1]:>14}"]
    for name, size in as_is.rows().items():
        lines.append(f"  {name:12} {gb(size):>14}  {gb(other.rows()[name]):>14}")
    lines.append(f"  {'peak':12} {gb(as_is.total):>14}  {gb(other.total):>14}   of {gb(room)}")
    state = "fits" if as_is.total <= SHARE * room else "does not fit"
    at_most = f"at most {most} windows would" if most else "not one window would"
    lines.append(f"  {config.batch_size} windows of {config.context} tokens in a micro-step: {state}; {at_most}")
    return "\n".join(lines)


def work_lines(config: TrainConfig, per_token: float, learned: int | None) -> str:
    """Operations and tokens. learned: tokens of the training split, None where the data are not there yet."""
    of_step = tokens_per_step(config)
    tokens = of_step * config.steps
    seen = f"{config.data} is not there yet" if learned is None else f"{tokens / learned:.3g} times the data"
    return (
        f"operations     {per_token / 1e9:.3g} GFLOP a token, {per_token * of_step:.3g} FLOP a step, "
        f"{per_token * tokens:.3g} FLOP in all\n"
        f"tokens         {of_step:,} a step, {tokens:,} in {config.steps:,} steps; {seen}"
    )


def time_lines(speed: Speed, hours: float) -> str:
    """Tokens a second and the time of the run, its evaluations included."""
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    days = f", {hours / 24:,.1f} days" if hours > 48 else ""
    rate = f"speed          {speed.rate:,.0f} tokens a second: {speed.source}"
    return f"{rate}\ntime           {time}{days}, with evaluations"


def disk_line(config: TrainConfig, total: float, each: float) -> str:
    """Room for checkpoints."""
    return (
        f"disk           {gb(total)}, {gb(each)} for each checkpoint: {config.keep} latest, the best, one being written"
    )


def gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
