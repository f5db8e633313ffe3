"""A run folder: its settings, and the files that grow with it (metrics.jsonl, samples.txt, loss.png).

The sizes of the growing files are kept in each checkpoint; a resumed run cuts them back to those sizes, so that no row
is there twice and none is missing, wherever the run was killed. They and the picture are never worth the run: what
cannot be written is told, and training goes on.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import gpt2c
from gpt2c import curve, growing, lock
from gpt2c.errors import UserError, reason
from gpt2c.files import fsync, reading, write_atomically, writing
from gpt2c.settings import Config, TrainConfig, flag

SETTINGS, METRICS, SAMPLES, CURVE = "run.json", "metrics.jsonl", "samples.txt", "loss.png"


class Run:
    """An open run folder. Only what makes it or opens it again raises UserError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failing: set[Path] = set()  # of which it has been told
        self.metrics, self.samples, self.curve = (folder / name for name in (METRICS, SAMPLES, CURVE))

    @classmethod
    def create(cls, config: TrainConfig, data: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
        """Start a run in a new or empty folder; `data` is the fingerprint of its tokens, `facts` are what the record
        says besides, see `facts_of`."""
        run = cls(config.out)
        run.require_empty()
        with writing(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        run._write_settings(config, data, facts)
        return run

    def require_empty(self) -> None:
        """UserError if there is something in the folder."""
        with writing(self.folder):
            if self.folder.is_dir() and any(path.name != lock.NAME for path in self.folder.iterdir()):
                is_run = (self.folder / SETTINGS).exists()
                hint = "add --resume to continue it" if is_run else "it is not a run of gpt2c"
                raise UserError(f"{self.folder} is not empty: {hint}, or choose another folder with --out")

    def check(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """UserError if the run was started with other settings or data. Nothing is written."""
        recorded = settings_of(self.folder, config.command)
        absent = type(config)().to_dict()  # a setting that came after the run was started has done nothing in it
        for name, value in config.to_dict().items():
            found = recorded["settings"].get(name, absent[name])
            if name not in config.may_change and found != value:
                raise UserError(
                    f"{config.out} was started with {flag(name)} {found}, found {value}: a resumed run keeps its "
                    "settings, start another run with another --out"
                )
        if recorded["data"] != data:
            raise UserError(
                f"{config.out} was started on {recorded['data'].get('tokens')} tokens of "
                f"{recorded['settings'].get('data')}, found {data['tokens']} tokens in {config.data} that are not the "
                "same: give the same text with --data"
            )
        threads = recorded["threads"], torch.get_num_threads()
        if threads[0] != threads[1]:
            warnings.warn(
                f"{config.out} was trained with {threads[0]} threads and goes on with {threads[1]}: torch's matrix "
                "products may round differently, so it may end with other last digits than if it had never stopped",
                stacklevel=2,
            )

    def rewind(
        self,
        config: TrainConfig,
        data: Mapping[str, Any],
        facts: Mapping[str, Any],
        step: int,
        sizes: Mapping[str, int],
    ) -> None:
        """Cut the growing files back to what they were at the checkpoint of `step`, where they had these sizes."""
        for path, split in ((self.metrics, growing.metrics_rows), (self.samples, growing.samples)):
            if path.exists():
                self._try(path, lambda path=path, split=split: growing.cut(path, sizes.get(path.name), step, split))
        self._write_settings(config, data, facts)

    def add_metrics(self, row: Mapping[str, float | str]) -> None:
        """Append one row to metrics.jsonl."""
        self._try(self.metrics, lambda: growing.append(self.metrics, json.dumps(row, allow_nan=False) + "\n"))

    def add_sample(self, step: int, text: str) -> None:
        """Append a generated text to samples.txt."""
        self._try(self.samples, lambda: growing.append(self.samples, f"--- step {step} ---\n{text}\n\n"))

    def draw_curve(self) -> None:
        """Draw loss.png from metrics.jsonl."""
        if not self.metrics.is_file():
            return  # and it has been told why
        self._try(self.curve, lambda: write_atomically(self.curve, curve.loss_curve(growing.read_rows(self.metrics))))

    def flush(self) -> dict[str, int]:
        """Bring the growing files to the disk; returns their sizes in bytes for the checkpoint's record."""
        sizes = {}
        for path in (self.metrics, self.samples):
            if path.is_file():
                self._try(path, lambda path=path: fsync(path))
                sizes[path.name] = path.stat().st_size
        return sizes

    def _try(self, path: Path, work: Callable[[], None]) -> None:
        """Do it; a failure is told, once until it succeeds again."""
        try:
            work()
            self._failing.discard(path)
        except Exception as error:  # the drawing library's, too
            if path not in self._failing:
                self._failing.add(path)
                warnings.warn(f"cannot write {path}: {reason(error)}; training goes on without it", stacklevel=3)

    def _write_settings(self, config: TrainConfig, data: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        settings = {"settings": config.to_dict(), "data": dict(data), "threads": torch.get_num_threads()}
        record = {"gpt2c": getattr(gpt2c, "__version__", None), "command": config.command, **settings, **facts}
        with writing(self.folder):
            write_atomically(self.folder / SETTINGS, (json.dumps(record, indent=2) + "\n").encode())


def recorded_settings(folder: Path, kind: type[Config] = TrainConfig) -> Config:
    """What a run was started with, wherever its folder lies now; UserError if the folder holds no run of this kind."""
    settings = kind.from_dict(settings_of(folder, kind.command)["settings"], source=str(folder / SETTINGS))
    return dataclasses.replace(settings, out=folder)


def started_by(folder: Path) -> str:
    """The call of torchrun (`distributed.job`) that has started or resumed the run; empty without a call or a run."""
    return read_settings(folder)["job"] if (folder / SETTINGS).exists() else ""


def settings_of(folder: Path, command: str) -> dict[str, Any]:
    """run.json of a run that `gpt2c COMMAND` has started; UserError if the folder holds no such run."""
    found = read_settings(folder)
    if found["command"] != command:
        raise UserError(f"{folder} is a run of gpt2c {found['command']}, found gpt2c {command}: go on with the former")
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """run.json; UserError if the folder holds no run."""
    path = folder / SETTINGS
    if not path.exists():
        raise UserError(f"{folder} holds no run to resume: start it without --resume")
    with reading("run's settings", path):
        text = path.read_bytes()
    try:
        record = json.loads(text)
        record.setdefault("command", TrainConfig.command)  # runs of earlier versions are of `train`
        record.setdefault("job", "")
        kinds = {"settings": dict, "data": dict, "threads": int, "command": str, "job": str}
        return {name: kind(record[name]) for name, kind in kinds.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: expected the settings of a gpt2c run") from error
