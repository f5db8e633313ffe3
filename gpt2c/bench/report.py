"""What a benchmark found: for the terminal, as JSON, and as Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt2c.bench.floors import Floors
from gpt2c.bench.timing import Timing
from gpt2c.files import write_atomically, writing


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and the cells; the first `text` columns are words, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1

    def plain(self) -> str:
        """In columns, for the terminal."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join([self.title, *("  ".join(self._padded(line, widths)).rstrip() for line in lines)])

    def markdown(self) -> str:
        """Without the title."""
        rule = ["---"] * self.text + ["---:"] * (len(self.header) - self.text)
        return "\n".join("| " + " | ".join(line) + " |" for line in (self.header, rule, *self.rows))

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            yield cell.ljust(width) if i < self.text else cell.rjust(width)


@dataclass
class Report:
    """machine: facts; results: one dict for each measurement, as JSON can hold it; notes: what could not be measured,
    each a line; settings: the benchmark's flags."""

    machine: dict[str, str]
    floors: Floors
    results: list[dict] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Adds a line, once."""
        if text not in self.notes:
            self.notes.append(text)

    def plain(self) -> str:
        """Everything but the single results, for the terminal."""
        facts = facts_of(self)
        width = max(map(len, facts))
        lines = [f"{name:{width}}  {value}" for name, value in facts.items()]
        return "\n\n".join(["\n".join(lines), *(t.plain() for t in self.tables), *_lines(self.notes, "note: ")])

    def markdown(self) -> str:
        parts = [f"{'; '.join(f'{name}: {value}' for name, value in facts_of(self).items())}."]
        for table in self.tables:
            parts += [f"**{table.title}**", table.markdown()]
        return "\n\n".join([*parts, *_lines(self.notes, "- ")])

    def to_dict(self) -> dict:
        return {
            "settings": self.settings,
            "machine": self.machine,
            "floors": dataclasses.asdict(self.floors),
            "results": self.results,
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, data: dict) -> Report:
        """What to_dict has given, by way of JSON."""
        floors = data["floors"] | {"cached": {int(size): rate for size, rate in data["floors"]["cached"].items()}}
        tables = [Table(**table) for table in data["tables"]]
        return cls(data["machine"], Floors(**floors), data["results"], tables, data["notes"], data["settings"])

    def write_json(self, path: Path) -> None:
        """UserError where the file cannot be written."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


def facts_of(report: Report) -> dict[str, str]:
    return report.machine | report.floors.rows()


def _lines(notes: list[str], bullet: str) -> list[str]:
    return ["\n".join(bullet + note for note in notes)] if notes else []


def duration(seconds: float) -> str:
    """Three digits with their unit."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def spread(timing: Timing) -> str:
    """From the fastest to the slowest tenth, relative to the median."""
    return f"{timing.low / timing.median - 1:+.0%} {timing.high / timing.median - 1:+.0%}"


def digits(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def megabytes(bytes: float) -> str:
    return f"{bytes / 1e6:,.0f}"
