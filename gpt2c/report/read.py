"""A run folder as the report needs it. Of a run that is still going the last line may be half written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2c.errors import UserError
from gpt2c.files import reading
from gpt2c.run import METRICS, SAMPLES, SETTINGS

SAMPLE_HEAD = re.compile(r"^--- step (\d+) ---\n", re.MULTILINE)
SERIES = ("loss", "val_loss", "lr", "grad_norm", "tok_per_s", "hellaswag_acc", "hellaswag_acc_norm")


@dataclass(frozen=True)
class RunData:
    """series: of each of SERIES the pairs (step, value), in the order of the file. record: run.json."""

    name: str
    folder: Path
    record: dict[str, Any]
    series: dict[str, list[tuple[int, float]]]
    events: list[dict[str, Any]]
    samples: list[tuple[int, str]]
    seconds: float

    @property
    def settings(self) -> dict[str, Any]:
        return self.record["settings"]

    @property
    def tokens_per_step(self) -> int:
        return self.settings["batch_size"] * self.settings["accumulation"] * self.settings["context"]

    @property
    def last_step(self) -> int:
        return max((step for pairs in self.series.values() for step, _ in pairs), default=0)


def read_run(folder: Path, name: str) -> RunData:
    """The run in a folder; UserError if it is none or is damaged, with the file and the line."""
    path = folder / SETTINGS
    with reading("run's settings", path):
        text = path.read_bytes()
    try:
        record = json.loads(text)
        settings = record["settings"]
        settings["batch_size"] * settings["accumulation"] * settings["context"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: expected the settings of a gpt2c run") from error
    rows = _rows(folder / METRICS)
    series = {key: [(row["step"], float(row[key])) for row in rows if key in row] for key in SERIES}
    events = [row for row in rows if "event" in row]
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    return RunData(name, folder, record, series, events, _samples(folder / SAMPLES), seconds)


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
            row["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # it is being written
            raise UserError(f"{path}, line {number} is damaged: expected a JSON object with a step") from error
        rows.append(row)
    return rows


def _samples(path: Path) -> list[tuple[int, str]]:
    if not path.exists():
        return []
    with reading("samples", path):
        parts = SAMPLE_HEAD.split(path.read_text(encoding="utf-8", errors="replace"))
    return [(int(step), text.strip("\n")) for step, text in zip(parts[1::2], parts[2::2], strict=True)]
