"""Where a run's metrics go besides metrics.jsonl: TensorBoard and Weights & Biases, both optional packages.

A resumed run goes on in the same files and under the same name. What it had logged past its checkpoint TensorBoard
hides; Weights & Biases keeps it and takes no step twice.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from gpt2c.errors import UserError, reason
from gpt2c.files import reading, write_atomically, writing
from gpt2c.settings import TrainConfig

RUN_ID = "run-id.txt"


class Sink(Protocol):
    """Gets every row of metrics.jsonl, and the samples."""

    def add(self, row: Mapping[str, float | str]) -> None: ...

    def text(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in <run>/tensorboard: each number of a row under its name, and the samples as text."""

    def __init__(self, run: Path, resumed_at: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("--tensorboard", "tensorboard") from error
        # What was logged past the checkpoint is hidden by TensorBoard (`purge_step`), not removed.
        purge = None if resumed_at is None else resumed_at + 1
        with writing(run / "tensorboard"):
            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge)

    def add(self, row: Mapping[str, float | str]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))
        if "event" in row:
            self._writer.add_text("event", f"{row['event']}: {row['reason']}", int(row["step"]))

    def text(self, step: int, text: str) -> None:
        self._writer.add_text("sample", "\n".join("    " + line for line in text.splitlines()), step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project, online or offline as WANDB_MODE says; its files are in <run>/wandb."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("--wandb", "wandb") from error
        with writing(run):
            (run / "wandb").mkdir(exist_ok=True)
        try:
            self._run = wandb.init(
                project=config.wandb,
                id=_run_id(run / "wandb" / RUN_ID),
                resume="allow",
                dir=str(run),
                name=run.name,
                config=config.to_dict(),
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases refuses the run: {reason(error)}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error

    def add(self, row: Mapping[str, float | str]) -> None:
        words = {name: row[name] for name in ("event", "reason") if name in row}
        self._run.log({**_numbers(row), **words}, step=int(row["step"]))

    def text(self, step: int, text: str) -> None:
        self._run.log({"sample": text}, step=step)

    def close(self) -> None:
        self._run.finish()


class Lossy:
    """A sink whose failures end it and not the training: metrics.jsonl has everything."""

    def __init__(self, sink: Sink) -> None:
        self._sink: Sink | None = sink
        self._name = type(sink).__name__

    def add(self, row: Mapping[str, float | str]) -> None:
        self._try(lambda sink: sink.add(row))

    def text(self, step: int, text: str) -> None:
        self._try(lambda sink: sink.text(step, text))

    def close(self) -> None:
        self._try(lambda sink: sink.close())

    def _try(self, work: Callable[[Sink], None]) -> None:
        try:
            if self._sink is not None:
                work(self._sink)
        except Exception as error:  # of whatever library
            self._sink = None
            warnings.warn(f"{self._name} has failed and gets no more: {reason(error)}", stacklevel=3)


def require_packages(config: TrainConfig) -> None:
    """UserError if a package that the settings ask for is not installed."""
    for flag, wanted in (("--tensorboard", config.tensorboard), ("--wandb", bool(config.wandb))):
        name = flag.removeprefix("--")
        if wanted and importlib.util.find_spec(name) is None:
            raise _missing(flag, name)


@contextmanager
def open_sinks(config: TrainConfig, run: Path, resumed_at: int | None = None) -> Iterator[list[Sink]]:
    """The sinks that the settings ask for, closed at the end, however that comes. UserError if one cannot be had at a
    run's start; a run that is resumed goes on without it."""
    wanted: list[Callable[[], Sink]] = []
    if config.tensorboard:
        wanted.append(lambda: TensorBoard(run, resumed_at))
    if config.wandb:
        wanted.append(lambda: WeightsAndBiases(run, config))
    sinks: list[Sink] = []
    try:
        for make in wanted:
            try:
                sinks.append(Lossy(make()))
            except (UserError, OSError, ValueError) as error:
                if resumed_at is None:
                    raise
                warnings.warn(f"{reason(error)}; the run goes on without this log", stacklevel=3)
        yield sinks
    finally:
        for sink in sinks:
            sink.close()


def _run_id(path: Path) -> str:
    """The run's name at Weights & Biases, drawn once."""
    if path.exists():
        with reading("run's id", path):
            return path.read_text(encoding="ascii").strip()
    name = os.urandom(6).hex()
    with writing(path):
        write_atomically(path, (name + "\n").encode())
    return name


def _numbers(row: Mapping[str, float | str]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and not isinstance(value, str)}


def _missing(flag: str, package: str) -> UserError:
    return UserError(f'{flag} needs the package {package}: pip install "gpt2c[{package}]"')
