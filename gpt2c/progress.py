"""How a run shows itself: a progress bar on a terminal, else a line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm

# Without a terminal: a line when this much of the run and of time has passed, so that a log has at most 100 of them.
SHARE_PER_LINE = 0.01
SECONDS_PER_LINE = 10.0


class Progress:
    """Shows step, loss, tokens per second and the time left of a run that begins at `start` and ends at `steps`."""

    def __init__(self, start: int, steps: int) -> None:
        self._start, self._steps = start, steps
        self._begun = self._shown_at = time.monotonic()
        self._shown_step = start
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            # tqdm itself shows nothing on a terminal that has no size, as some containers' have none.
            size = shutil.get_terminal_size()
            self._bar = tqdm(initial=start, total=steps, unit="step", ncols=size.columns, nrows=size.lines)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: float, tok_per_s: float) -> None:
        """One step more is done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tok_per_s:,.0f} tok/s", refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        due = now - self._shown_at >= SECONDS_PER_LINE and step - self._shown_step >= SHARE_PER_LINE * self._steps
        if due or step in (self._start + 1, self._steps):
            left = (now - self._begun) / (step - self._start) * (self._steps - step)
            self.note(f"step {step}/{self._steps}  loss {loss:.3f}  {tok_per_s:,.0f} tok/s  {left:.0f} s left")
            self._shown_at, self._shown_step = now, step

    def note(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)
