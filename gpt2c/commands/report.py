"""`gpt2c report`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpt2c.errors import UserError
from gpt2c.files import write_atomically, writing
from gpt2c.report.page import page
from gpt2c.report.read import read_run


@dataclass(frozen=True)
class Report:
    """Show runs in one self-contained HTML file: curves, settings, machine, samples, events, data."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of runs, finished or still going; their curves are drawn in the same figures."""
    out: Path = Path("report.html")
    """The file to write; one that is there is replaced."""

    def run(self) -> int:
        """Write the file, and say where it is."""
        if not self.runs:
            raise UserError("there is nothing to report: give at least one run folder")
        html = page([read_run(folder, name) for folder, name in zip(self.runs, names(self.runs), strict=True)])
        with writing(self.out):
            write_atomically(self.out, html.encode())
        print(f"{self.out}: {', '.join(map(str, self.runs))}, {len(html.encode()) / 1e6:.1f} MB; open it in a browser")
        return 0


def names(folders: tuple[Path, ...]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(set(parts)):
            break
    return found
