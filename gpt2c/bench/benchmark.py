"""What all benchmarks share: their flags, and what happens with what they find."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2c.bench import machine
from gpt2c.bench.floors import measure_floors
from gpt2c.bench.machine import ProcessorTime
from gpt2c.bench.plots import Pictures
from gpt2c.bench.report import Report
from gpt2c.errors import UserError
from gpt2c.files import write_atomically, writing

BUSY = 0.05  # share of the processors that other processes may take


@dataclass(frozen=True)
class Benchmark:
    """The flags of every benchmark."""

    threads: int | None = None
    """Threads of each side; as many as torch takes if not given."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    plots: Path | None = None
    """Draw pictures (PNG) into this folder."""
    quick: bool = False
    """Sizes so small that it takes seconds and the numbers mean nothing: to see whether it runs."""

    def run(self) -> int:
        """Measure, print, write what was asked for. Returns 0: a benchmark neither passes nor fails."""
        threads = torch.get_num_threads() if self.threads is None else self.threads
        if threads < 1:
            raise UserError(f"--threads is {threads}, expected at least 1")
        self._check_places()
        before = ProcessorTime.now()
        with using_threads(threads):
            report = Report(machine.describe(threads), measure_floors(cold=self.is_cold, quick=self.quick))
            report.settings = {field.name: str(getattr(self, field.name)) for field in dataclasses.fields(self)}
            try:
                self.measure(report, threads)
            except BaseException:  # of Ctrl-C, or for want of memory: what was measured until then is kept
                report.note("the benchmark ended before all was measured")
                if report.results and self.json is not None:
                    report.write_json(self.json)
                raise
        _note_others(report, before)
        print(f"\n{report.plain()}", flush=True)
        if self.json is not None:
            report.write_json(self.json)
        if self.plots is not None:
            self._draw(report, self.plots)
        return 0

    def _check_places(self) -> None:
        """UserError where what will be measured could not be written."""
        for path, folder in ((self.json, self.json and self.json.parent), (self.plots, self.plots)):
            if path is not None and folder is not None:
                with writing(path):
                    folder.mkdir(parents=True, exist_ok=True)
                    if path is self.json and path.is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                    tempfile.TemporaryFile(dir=folder).close()

    def _draw(self, report: Report, folder: Path) -> None:
        """Each picture by itself: one that fails takes neither the others nor what was measured with it."""
        pictures = self.draw(report)
        if not pictures:
            warnings.warn("--plots: there is no picture of what was measured", stacklevel=2)
        for name, draw in pictures.items():
            try:
                png = draw()
            except Exception as error:  # of the drawing library, or of a result that is not as expected
                warnings.warn(f"{folder / name} is not drawn ({type(error).__name__}: {error})", stacklevel=2)
                continue
            with writing(folder / name):
                write_atomically(folder / name, png)
            print(f"written: {folder / name}", flush=True)

    @property
    def is_cold(self) -> bool:
        """Whether caches are emptied before each call."""
        return False

    def measure(self, report: Report, threads: int) -> None:
        """Fill the report's results, tables and notes."""
        raise NotImplementedError

    def draw(self, report: Report) -> Pictures:
        """The pictures for which there are results."""
        raise NotImplementedError


def _note_others(report: Report, before: ProcessorTime | None) -> None:
    """Two threads of which one must wait for a busy core take a hundred times as long at each parallel region."""
    now = ProcessorTime.now()
    if before is None or now is None:
        return
    share = now.others_since(before)
    report.machine["other processes"] = f"{share:.0%} of the processors' time"
    if share > BUSY:
        report.note(f"the machine was busy: other processes took {share:.0%} of its processors; measure again")


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """torch's number of threads, which is the kernels' too."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
