"""How long work shows itself: a progress bar on a terminal, else a line now and then."""

from __future__ import annotations

import math
import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm

from gpt2c.words import counted, duration

# Without a terminal: a line when this much of the run and of time has passed, so that a log has at most 100 of them.
SHARE_PER_LINE = 0.01
SECONDS_PER_LINE = 10.0
BAR = "{n_fmt}/{total_fmt} {bar:8} {elapsed}<{remaining}{postfix}"  # all of it in 80 columns


class Count:
    """Shows how many `things` are done, on stderr: what is measured goes to the standard output."""

    def __init__(self, thing: str) -> None:
        self._thing = thing
        self._begun = self._shown_at = time.monotonic()
        self._bar = _bar(None, 0, "{n_fmt}/{total_fmt} {unit} {bar:8} {elapsed}<{remaining}", f"{thing}s")

    def __enter__(self) -> Count:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int) -> None:
        """So many of them are done by now."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown_at >= SECONDS_PER_LINE:
            self._shown_at = now
            left = (now - self._begun) / done * (total - done)
            print(f"{done:,} of {counted(total, self._thing)}, {duration(left)} left", file=sys.stderr, flush=True)


class Progress:
    """Shows a run that begins at step `start` and ends at `steps`; nothing if it is not `shown`, as in all processes of
    a run but the first."""

    def __init__(self, start: int, steps: int, shown: bool = True) -> None:
        self._start, self._steps, self._shown = start, steps, shown
        self._begun = self._shown_at = time.monotonic()
        self._shown_step = start
        self._smoothed: float | None = None
        self._validation = ""
        self._bar = _bar(steps, start, BAR, "step") if shown else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: float, lr: float, norm: float, tok_per_s: float) -> None:
        """One step more is done. A bar shows the loss smoothed: a mean whose weights halve every 14 steps."""
        if self._bar is not None:
            if math.isfinite(loss):
                self._smoothed = loss if self._smoothed is None else 0.95 * self._smoothed + 0.05 * loss
            shown = loss if self._smoothed is None else self._smoothed
            text = f"loss {shown:.3f} lr {lr:.1e} norm {norm:.2f}{self._validation} {tok_per_s:,.0f} tok/s"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)  # back, too
            return
        now = time.monotonic()
        due = now - self._shown_at >= SECONDS_PER_LINE and step - self._shown_step >= SHARE_PER_LINE * self._steps
        if due or step in (self._start + 1, self._steps):
            left = (now - self._begun) / max(1, step - self._start) * (self._steps - step)
            self.note(f"step {step}/{self._steps}  loss {loss:.3f}  {tok_per_s:,.0f} tok/s  {duration(left)} left")
            self._shown_at, self._shown_step = now, step

    def evaluated(self, val_loss: float) -> None:
        """The latest validation loss, for the bar."""
        self._validation = f" val {val_loss:.3f}"

    def note(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._shown:
            print(text, flush=True)


def _bar(total: int | None, done: int, form: str, unit: str) -> tqdm | None:
    """A bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        return None
    size = shutil.get_terminal_size()  # tqdm itself shows nothing on a terminal that has no size, as some containers'
    return tqdm(initial=done, total=total, ncols=size.columns, nrows=size.lines, bar_format=form, unit=unit)
