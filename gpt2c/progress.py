"""How a run shows itself: a progress bar on a terminal, else a line now and then."""

from __future__ import annotations

import math
import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm

# Without a terminal: a line when this much of the run and of time has passed, so that a log has at most 100 of them.
SHARE_PER_LINE = 0.01
SECONDS_PER_LINE = 10.0
BAR = "{n_fmt}/{total_fmt} {bar:8} {elapsed}<{remaining}{postfix}"  # all of it in 80 columns


class Progress:
    """Shows a run that begins at step `start` and ends at `steps`; nothing if it is not `shown`, as in all processes of
    a run but the first."""

    def __init__(self, start: int, steps: int, shown: bool = True) -> None:
        self._start, self._steps, self._shown = start, steps, shown
        self._begun = self._shown_at = time.monotonic()
        self._shown_step = start
        self._smoothed: float | None = None
        self._validation = ""
        self._bar: tqdm | None = None
        if shown and sys.stderr.isatty():
            # tqdm itself shows nothing on a terminal that has no size, as some containers' have none.
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                initial=start, total=steps, ncols=size.columns, nrows=size.lines, bar_format=BAR, unit="step"
            )

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
            self.note(f"step {step}/{self._steps}  loss {loss:.3f}  {tok_per_s:,.0f} tok/s  {left:.0f} s left")
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
