"""Small changes to the kernels and to the Python package, each of which the tests must notice (python/mutations.py).

kernels.toml and package.toml hold them: for each file and test, what a change is in words, the text that stands once in
the file, what it becomes, and for the few that no test can notice, why.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change: in `file`, `old`, which stands there once, becomes `new`; tests/test_{test}.py must notice.

    what: the change in words. unnoticed: why no test can notice it; empty if one must.
    """

    file: str
    test: str
    what: str
    old: str
    new: str
    unnoticed: str = ""

    def changed(self) -> str:
        """The file's text with the change. ValueError if `old` does not stand there once."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.file} has {self.old!r} {found} times, expected once: bring the change {self.what!r} in "
                "tests/mutants up to date"
            )
        return text.replace(self.old, self.new)


def all_mutants() -> list[Mutant]:
    """Those of the kernels, then those of the package."""
    found = []
    for name in ("kernels", "package"):
        files = tomllib.loads((ROOT / "tests" / "mutants" / f"{name}.toml").read_text(encoding="utf-8"))
        for file, tests in files.items():
            found += [Mutant(file, test, what, *texts) for test, of in tests.items() for what, texts in of.items()]
    return found
