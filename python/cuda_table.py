"""The tables of python/cuda_report.py, in Markdown: a row for each kernel and dtype, with its instances' range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from cuda_compile import ROOT, Compiled, Instance
from cuda_occupancy import occupancy, resident_blocks

DOCUMENT = ROOT / "docs" / "cuda.md"
COUNTED = ("HMMA", "LDSM", "LDGSTS", "LDG.128", "STG.128", "LDS.128", "STS.128")


@dataclass(frozen=True)
class Row:
    """An instance with how it is launched at GPT-2's widths; without a launch threads is 0."""

    instance: Instance
    threads: int
    shared: int  # dynamic

    @property
    def blocks(self) -> int:
        """Blocks resident on a multiprocessor."""
        return resident_blocks(*self._needs) if self.threads else 0

    @property
    def occupancy(self) -> float:
        return occupancy(*self._needs)

    @property
    def _needs(self) -> tuple[int, int, int, int]:
        i = self.instance
        return i.arch, self.threads, i.registers, i.static_shared + self.shared


def with_launches(instances: Iterable[Instance], launches: dict[tuple[str, str, str], tuple[int, int]]) -> list[Row]:
    """launches: (threads, shared) by file, kernel and arguments. A kernel of a header, compiled with several files, is
    one row."""
    unique = {(i.file, i.kernel, i.arguments): i for i in instances}
    return [Row(i, *launches.get(key, (0, 0))) for key, i in sorted(unique.items())]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose columns after the first ones hold numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def span(values: Iterable[float], unit: str = "") -> str:
    """ "3" or "3 - 8", from the smallest to the largest."""
    low, high = min(values := list(values)), max(values)
    return f"{low:g}{unit}" if low == high else f"{low:g}{unit} - {high:g}{unit}"


def kernel_table(rows: list[Row]) -> str:
    """Every kernel and dtype of one architecture."""
    header = ("kernel", "dtype", "instances", "threads", "registers", "spills", "stack", "static", "dynamic")
    lines = []
    for (file, kernel, dtype), group in groupby(sorted(rows, key=_kernel_and_dtype), key=_kernel_and_dtype):
        of = list(group)
        launched = [r for r in of if r.threads]
        lines.append(
            (
                f"`{file}: {kernel}`",
                dtype or "any",
                str(len(of)),
                span(r.threads for r in launched) if launched else "-",
                span(r.instance.registers for r in of),
                str(sum(r.instance.spills for r in of)),
                span(r.instance.stack for r in of),
                span(r.instance.static_shared for r in of),
                span(r.shared for r in launched) if launched else "-",
                span((round(100 * r.occupancy) for r in launched), " %") if launched else "-",
                *(span(r.instance.instructions[name] for r in of) for name in COUNTED),
            )
        )
    return markdown((*header, "occupancy", *COUNTED), lines, text_columns=2)


def _kernel_and_dtype(row: Row) -> tuple[str, str, str]:
    return row.instance.file, row.instance.kernel, row.instance.dtype


def summary_table(rows: dict[int, list[Row]]) -> str:
    """One line for each architecture."""
    lines = []
    for arch, of in rows.items():
        launched = [r for r in of if r.blocks]
        least = min(launched, key=lambda r: r.occupancy)
        lines.append(
            (
                f"sm_{arch}",
                str(len(of)),
                str(max(r.instance.registers for r in of)),
                str(sum(r.instance.spills for r in of)),
                str(max(r.instance.stack for r in of)),
                f"{max(r.instance.static_shared + r.shared for r in launched) / 1024:.1f} KiB",
                f"{100 * least.occupancy:.0f} %",
            )
        )
    header = ("", "kernels", "most registers", "spills", "most stack", "most shared memory", "least occupancy")
    return markdown(header, lines)


def seconds_table(compiled: dict[str, dict[int, Compiled]]) -> str:
    """nvcc's processor time for each file and architecture."""
    arches = list(next(iter(compiled.values())))
    lines = [(f"`{file}`", *(f"{of[a].seconds:.1f}" for a in arches)) for file, of in compiled.items()]
    total = [sum(of[a].seconds for of in compiled.values()) for a in arches]
    lines.append(("all", *(f"{t:.1f}" for t in total)))
    return markdown(("processor seconds", *(f"sm_{a}" for a in arches)), lines)


def replace_between(text: str, name: str, content: str) -> str:
    """`text` with `content` between its markers <!-- name --> and <!-- end of name -->."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the markers {start} and {end} are not there once each")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def write_between(name: str, content: str) -> None:
    """Replaces what docs/cuda.md has between the markers."""
    DOCUMENT.write_text(replace_between(DOCUMENT.read_text(), name, content))
