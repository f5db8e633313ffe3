"""A run folder as the report needs it. Of a run that is still going the last line may be half written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2c.errors import UserError
from gpt2c.files import reading
from gpt2c.run import METRICS, SAMPLES, SETTINGS

SAMPLE_HEAD = re.compile(r"^--- step (\d+) ---\n", re.MULTILINE)
SERIES = ("loss", "val_loss", "lr", "grad_norm", "tok_per_s", "hellaswag_acc", "hellaswag_acc_norm", "hellaswag_items")
SIZES = ("batch_size", "accumulation", "context", "steps")
NUMBERS = ("parameters", "flops_per_token", "peak_flops")


@dataclass(frozen=True)
class Event:
    """What happened to a run at a step: name is "resume", "skip", "rollback" or "stop", reason a text."""

    step: int
    name: str
    reason: str


@dataclass(frozen=True)
class RunData:
    """series: of each of SERIES the pairs (step, value), in the order of the file, in which steps that a rollback took
    back come twice. record: run.json. seconds: since the run's start."""

    name: str
    record: dict[str, Any]
    series: dict[str, list[tuple[int, float]]]
    events: list[Event]
    samples: list[tuple[int, str]]
    seconds: float

    @property
    def settings(self) -> dict[str, Any]:
        return self.record["settings"]

    @property
    def tokens_per_step(self) -> int:
        return self.settings["batch_size"] * self.settings["accumulation"] * self.settings["context"]

    @property
    def peak(self) -> float | None:
        """The device's, FLOP/s. None where it is not known, or was none: measured while other programs kept the
        processor busy, it is below what training reached later."""
        peak, flops = self.record.get("peak_flops"), self.record.get("flops_per_token") or 0.0
        reached = max((rate * flops for _, rate in self.series["tok_per_s"]), default=0.0)
        return peak if peak and reached <= peak else None

    @property
    def utilisation(self) -> list[tuple[int, float]]:
        """MFU, flops_per_token * tok_per_s / peak, by step; nothing where it is not known."""
        flops, peak = self.record.get("flops_per_token"), self.peak
        return [(step, rate * flops / peak) for step, rate in self.series["tok_per_s"]] if flops and peak else []

    @property
    def last_step(self) -> int:
        return max((step for pairs in self.series.values() for step, _ in pairs), default=0)


def read_run(folder: Path, name: str) -> RunData:
    """The run in a folder; UserError if it is none or is damaged, with the file and the line."""
    record = _record(folder / SETTINGS)
    rows = _rows(folder / METRICS)
    series = {key: [(row["step"], float(row[key])) for row in rows if key in row] for key in SERIES}
    events = [Event(row["step"], str(row["event"]), str(row.get("reason", ""))) for row in rows if "event" in row]
    seconds = max((row["seconds"] for row in rows if "seconds" in row), default=0.0)
    return RunData(name, record, series, events, _samples(folder / SAMPLES), seconds)


def _record(path: Path) -> dict[str, Any]:
    with reading("run's settings", path):
        text = path.read_bytes()
    try:
        record = json.loads(text)
        settings = record["settings"]
        for size in SIZES:
            if _number(settings[size]) < 1:
                raise ValueError(size)
        for key in NUMBERS:
            if record.get(key) is not None:
                _number(record[key])
        for key in ("data", "machine"):  # a run of an earlier version has no "machine"
            if not isinstance(record.setdefault(key, {}), dict):
                raise TypeError(key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: expected the settings of a gpt2c run") from error
    return record


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with reading("metrics", path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            _check_row(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # it is being written: it does not end with a line break
            raise UserError(
                f"{path}, line {number} is damaged: expected a JSON object with numbers of a step"
            ) from error
        rows.append(row)
    return rows


def _check_row(row: Mapping[str, Any]) -> None:
    if not isinstance(row["step"], int):
        raise TypeError("step")
    for key in (*SERIES, "seconds"):
        if key in row:
            _number(row[key])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return value


def _samples(path: Path) -> list[tuple[int, str]]:
    if not path.exists():
        return []
    with reading("samples", path):
        parts = SAMPLE_HEAD.split(path.read_text(encoding="utf-8", errors="replace"))
    return [(int(step), text.strip("\n")) for step, text in zip(parts[1::2], parts[2::2], strict=True)]
