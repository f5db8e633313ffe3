"""The report of python/gpu_check.py: what was found, as Markdown and JSON, ending in a verdict for each op."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gpu_tools import MODULES_OF_NO_OP, OPS, Counts, one_line

from gpt2c import _native
from gpt2c.bench.case import OURS, Measured

RIGHT, WRONG, UNTESTED = "right", "wrong", "not tested"
EXIT_RIGHT, EXIT_WRONG, EXIT_NO_GPU = 0, 1, 3


@dataclass
class Report:
    """All findings of one run."""

    machine: dict[str, str]
    no_gpu: str = ""  # why there is none, or nothing
    problems: list[str] = field(default_factory=list)  # what could not be done
    tests: dict[str, Counts] = field(default_factory=dict)  # by module
    sanitizer: dict[str, dict[str, int | str]] = field(default_factory=dict)  # errors, or why not, by module and tool
    measured: list[Measured] = field(default_factory=list)
    training: list[Measured] = field(default_factory=list)
    tokens: int = 0  # of a training step

    @property
    def exit_code(self) -> int:
        """3 without a GPU; 1 if an op or another test is wrong or was not tested, or something failed; else 0."""
        if self.no_gpu:
            return EXIT_NO_GPU
        right = all(verdict(self, op).result == RIGHT for op in OPS)
        others = [self.tests.get(module, Counts()) for module in MODULES_OF_NO_OP]
        right = right and all(tests.passed and not tests.failed and not tests.problem for tests in others)
        return EXIT_RIGHT if right and not self.problems else EXIT_WRONG


@dataclass(frozen=True)
class Verdict:
    """`speedup`: geometric mean over the op's measurements of the fastest peer's time over ours; `slowest`: the least
    of them; `of_floor`: geometric mean of the floor over our time."""

    op: str
    result: str
    why: str
    speedup: float | None
    slowest: float | None
    of_floor: float | None


def verdict(report: Report, op: str) -> Verdict:
    """Right only if tests ran and passed, and no tool that ran found an error."""
    tests, tools = report.tests.get(OPS[op]), report.sanitizer.get(OPS[op], {})
    errors = {tool: n for tool, n in tools.items() if isinstance(n, int) and n}
    if tests and tests.failed:
        result, why = WRONG, f"{tests.failed} of {tests.failed + tests.passed} tests fail"
    elif errors:
        result, why = WRONG, ", ".join(f"{tool} finds {n} errors" for tool, n in errors.items())
    elif tests is None or tests.problem or not tests.passed:
        result, why = UNTESTED, (tests.problem if tests else "") or report.no_gpu or "no test ran"
    else:
        checked = ", ".join(tool for tool, n in tools.items() if n == 0)
        result, why = RIGHT, f"{tests.passed} tests pass" + (f"; {checked} clean" if checked else "")
    own = [m for m in report.measured if m.op == op]
    speedups = [m.speedup for m in own if m.speedup is not None]
    return Verdict(
        op, result, why, _mean(speedups), min(speedups, default=None), _mean([m.of_floor for m in own])
    )  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def machine() -> dict[str, str]:
    facts = {
        "commit": one_line("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cuda kernels": _native.cuda_status(),
        "driver": one_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        facts["gpu"] = (
            f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} SMs, {gpu.total_memory >> 20} MB)"
        )
    return facts


def to_markdown(report: Report) -> str:
    """The whole report; no section for what was not done."""
    lines = ["# gpt2c on a GPU", ""]
    lines += _table(["", ""], [[name, value] for name, value in report.machine.items()])
    if report.no_gpu:
        lines += [f"**No GPU: {report.no_gpu}.** Nothing was run or measured on one.", ""]
    lines += [f"- {problem}" for problem in report.problems] + [""] * bool(report.problems)
    if report.tests:
        lines += ["## Tests", "", *_tests(report)]
    if report.measured:
        lines += [
            "## Kernels",
            "",
            "Device time, median, caches flushed; floor: the least time for the bytes and operations, at the speed of",
            "torch's copy and matrix product on this machine.",
            "",
            *_table(["op", "what", "gpt2c us", "floor us", "of floor", "peers us", "peer / gpt2c"],
                    [_measured(m) for m in report.measured]),
        ]  # fmt: skip
    if report.training:
        rows = [_training(m, report.tokens) for m in report.training]
        lines += ["## GPT-2 124M, one training step", ""]
        lines += _table(["dtype", "gpt2c ms", "gpt2c tok/s", "peers ms", "peer / gpt2c"], rows)
    lines += ["## Verdict", ""]
    heads = ["op", "verdict", "why", "peer / gpt2c", "least", "of floor"]
    verdicts = [verdict(report, op) for op in OPS]
    rows = [
        [v.op, v.result, v.why, _number(v.speedup), _number(v.slowest), _percent(v.of_floor)] for v in verdicts
    ]  # fmt: skip
    return "\n".join([*lines, *_table(heads, rows)])


def _tests(report: Report) -> list[str]:
    tools = list(dict.fromkeys(tool for by_tool in report.sanitizer.values() for tool in by_tool))
    rows = []
    for module, tests in report.tests.items():
        found = [str(report.sanitizer.get(module, {}).get(tool, "")) for tool in tools]
        rows.append([module, str(tests.passed), str(tests.failed), str(tests.skipped), *found, tests.problem])
    heads = ["tests/test_*.py", "passed", "failed", "skipped", *(f"{tool} errors" for tool in tools), ""]
    names = [f"- {name}" for tests in report.tests.values() for name in tests.failures]
    return [*_table(heads, rows), *names, *[""] * bool(names)]


def _measured(m: Measured) -> list[str]:
    us = {name: f"{taken.median * 1e6:.1f}" for name, taken in m.seconds.items()}
    peers = [f"{name} {us[name]}" for name in us if name != OURS]
    peers += [f"{name} not available ({why})" for name, why in m.unavailable.items()]
    floor = f"{m.floor * 1e6:.1f}"
    return [m.op, m.name, us[OURS], floor, _percent(m.of_floor), ", ".join(peers), _number(m.speedup)]


def _training(m: Measured, tokens: int) -> list[str]:
    peers = [f"{name} {taken.median * 1e3:.1f}" for name, taken in m.seconds.items() if name != OURS]
    peers += [f"{name} not available ({why})" for name, why in m.unavailable.items()]
    return [m.label, f"{m.ours * 1e3:.1f}", f"{tokens / m.ours:,.0f}", ", ".join(peers), _number(m.speedup)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(heads), "|" + " --- |" * len(heads), *map(line, rows), ""]


def to_json(report: Report) -> str:
    data = dataclasses.asdict(report)
    for name in ("measured", "training"):
        for row, m in zip(data[name], getattr(report, name), strict=True):
            row |= {"speedup": m.speedup, "of_floor": m.of_floor}
    data["verdicts"] = [dataclasses.asdict(verdict(report, op)) for op in OPS]
    data["exit_code"] = report.exit_code
    return json.dumps(data, indent=1)


def write(report: Report, folder: Path) -> None:
    """report.md and report.json in the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(to_markdown(report))
    (folder / "report.json").write_text(to_json(report) + "\n")
