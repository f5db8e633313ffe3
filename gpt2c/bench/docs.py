"""`gpt2c bench docs`: every table and picture of docs/performance.md, measured anew."""

from __future__ import annotations

import json
import multiprocessing
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2c.bench.report import Report
from gpt2c.errors import UserError
from gpt2c.files import reading, write_atomically, writing

PAGE = "performance.md"
# By their names on the page: `<!-- bench NAME -->` begins what is replaced, `<!-- /bench -->` ends it.
RUNS = {
    "kernels": "kernels --sizes B4xT64 B4xT256 B1xT1024 small --seconds 0.3",
    "kernels-cold": "kernels --sizes B4xT256 --parts sizes --seconds 0.3 --cold --compile",
    "train": "train --sizes B4xT64 B4xT256 B1xT1024 --steps 7 --compile --recompute",
    "train-small": "train --recipe shakespeare --steps 200",
    "account": "account --sizes B4xT64 B4xT256 B1xT1024 --steps 5",
    "account-small": "account --recipe shakespeare --steps 50",
    "train-scaling": "train --scaling model length threads",
    "generate": "generate --rounds 3",
}
QUICK_RUNS = {name: f"{args} --quick" for name, args in RUNS.items()}


@dataclass(frozen=True)
class Docs:
    """Measure everything that docs/performance.md shows, and write it there: about 25 minutes on two cores."""

    out: Path = Path("docs")
    """Folder of performance.md; gets bench/*.json, images/*.png and the page's tables between its markers."""
    only: tuple[Literal[tuple(RUNS)], ...] = ()
    """These parts of the page; all if not given."""
    missing: bool = False
    """Measure only what has no JSON file yet; the page is written from what is there."""
    quick: bool = False
    """Sizes so small that it takes a minute and the numbers mean nothing: to see whether it runs."""

    def run(self) -> int:
        """Each part in a process of its own. Returns 0."""
        page = self.out / PAGE
        with reading("page", page):
            text = page.read_text(encoding="utf-8")
        for name in self.only or RUNS:
            if not re.search(_marked(name), text, re.DOTALL):
                raise UserError(f"{page} has no place for {name}, expected <!-- bench {name} --> and <!-- /bench -->")
        for name in self.only or RUNS:
            command = shlex.split((QUICK_RUNS if self.quick else RUNS)[name])
            json_file = self.out / "bench" / f"{name}.json"
            if not (self.missing and json_file.exists()):
                _run([*command, "--json", str(json_file), "--plots", str(self.out / "images" / f"bench-{name}")])
            with reading("measurements", json_file):
                report = Report.from_dict(json.loads(json_file.read_text(encoding="utf-8")))
            text = put(text, name, f"`gpt2c bench {shlex.join(command)}`\n\n{report.markdown()}")
            with writing(page):
                write_atomically(page, text.encode())
            print(f"written: {name} into {page}", flush=True)
        return 0


def put(text: str, name: str, contents: str) -> str:
    """The page with other contents at the place of this name."""
    return re.sub(_marked(name), lambda found: f"{found[1]}\n\n{contents}\n\n{found[2]}", text, flags=re.DOTALL)


def _marked(name: str) -> str:
    return rf"(<!-- bench {re.escape(name)} -->).*?(<!-- /bench -->)"


def _run(arguments: list[str]) -> None:
    print(f"gpt2c bench {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    # Not by a command line, whose Python might find the sources of the current folder in place of what is installed.
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(["bench", *arguments],))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"gpt2c bench {shlex.join(arguments)} ended with code {process.exitcode}")
    print(f"took {time.monotonic() - start:.0f} s\n", flush=True)


def _main(arguments: list[str]) -> None:
    from gpt2c.cli import main  # which imports this module

    sys.exit(main(arguments))
