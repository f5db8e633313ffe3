"""The guide tells the truth: each chapter's snippets run in order and print what stands below them, its report of a
missing barrier and its tables are what the emulator and the script make, its links lead somewhere, and the site builds
without a warning."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import emulation
import pytest
import remote
import torch
from checks import randn
from emulation.cases import running

from gpt2c import ops
from gpt2c.bench.case import BOTH, FORWARD, Effort
from gpt2c.bench.ops import Sizes
from gpt2c.bench.report import duration

sys.path.insert(0, str(remote.ROOT / "python"))
import guide_kernels  # noqa: E402

DOCS = remote.ROOT / "docs"
CHAPTERS = sorted((DOCS / "guide").glob("*.md"))
# A snippet, and what it prints, if anything: the block that follows it with nothing but blank lines between.
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_snippets_print_what_the_chapter_says(chapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(remote.ROOT)
    monkeypatch.syspath_prepend(str(remote.ROOT / "python"))
    names: dict[str, object] = {}
    text = chapter.read_text(encoding="utf-8")
    snippets = list(SNIPPET.finditer(text))
    assert snippets and text.count("```python") == len(snippets)
    for snippet in snippets:
        printed = io.StringIO()
        line = text.count("\n", 0, snippet.start()) + 2
        code = compile("\n" * (line - 1) + snippet[1], str(chapter), "exec")  # errors name the chapter's line
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        shown = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
        expected = (snippet[2] or "").rstrip()
        told = f"the snippet at line {line} of {chapter.name} prints\n{shown}\nexpected\n{expected}"
        assert NUMBER.sub("#", shown) == NUMBER.sub("#", expected), told
        assert all(map(alike, NUMBER.findall(shown), NUMBER.findall(expected))), told


def alike(a: str, b: str) -> bool:
    """Whole numbers are the same, others up to the last digit, which a processor's rounding decides in training."""
    unit = 10.0 ** -max(len(number.partition(".")[2]) for number in (a, b))
    return a == b or ("." in a and "." in b and abs(float(a) - float(b)) < 1.01 * unit)


def test_alike() -> None:
    assert alike("7", "7") and alike("1.6", "1.61") and alike("0.94", "0.93") and alike("-0.0", "0.0")
    assert not alike("7", "8") and not alike("1.6", "1.62") and not alike("0.94", "0.92") and not alike("1.0", "1")


def test_every_chapter_has_a_formula_a_picture_and_its_sources() -> None:
    assert [chapter.name[0] for chapter in CHAPTERS] == list("123456")
    for chapter in CHAPTERS:
        text = chapter.read_text(encoding="utf-8")
        assert text.count("\n$$\n") >= 2 and re.search(r"!\[[^]]+\]\(\.\./images/guide-", text), chapter
        assert "## Sources\n" in text and re.search(r"section \d", text), chapter


@pytest.mark.skipif(not emulation.cuda_headers(), reason="CUDA's headers are missing")
def test_a_left_out_barrier_is_reported_as_chapter_5_says() -> None:
    chapter = (DOCS / "guide" / "5-kernels.md").read_text(encoding="utf-8")
    (code,), (report,) = (
        re.findall(rf"^```{kind}\n(.*?)^```", chapter, re.DOTALL | re.M) for kind in ("cpp", "console")
    )
    source = (remote.ROOT / "csrc" / "cuda" / "attention_mma_forward.cu").read_text(encoding="utf-8")
    before, _, _ = source.partition(textwrap.indent(code, "    "))
    assert before != source, "the chapter's lines are not those of the kernel"
    line = before.count("\n") + 1 + code[: code.index("__syncthreads")].count("\n")

    def run() -> None:
        ops.attention(*(randn(1, 1, 128, 64, dtype=torch.bfloat16) for _ in range(3)), causal=True)

    with running() as server:
        run()
        (barrier,) = (at for at in server.reached_sites() if at.startswith(f"attention_mma_forward.cu:{line}@"))
    with running(f"shuffled:1,skip={barrier}"), pytest.raises(AssertionError) as caught:
        run()
    assert re.sub(r"(\.cuh?):\d+", r"\1", str(caught.value).splitlines()[0]) == " ".join(report.split())


def test_chapter_5_has_the_tables_that_its_script_makes() -> None:
    chapter = (DOCS / "guide" / "5-kernels.md").read_text(encoding="utf-8")
    torch.set_num_threads(1)
    made = guide_kernels.tables(Sizes(B=1, T=16, H=2, D=8, V=11, L=1), Effort(0.0, least=2), quick=True)
    for name, table in made.items():
        shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", chapter, re.DOTALL)
        assert shown and form(shown[1]) == form(table)
    for op, way in (("attention", FORWARD), ("attention", BOTH), ("layernorm", FORWARD), ("gelu", BOTH)):
        floor = duration(guide_kernels.gpu_seconds(op, way, 1 / 8))
        assert re.search(rf"^\| {guide_kernels.GPU_FLOOR} \|.* {floor} \|", chapter, re.M), f"{op} {way}: {floor}"


def form(table: str) -> list[str]:
    """The rows, with # for each number and its unit, and without the line about the machine."""
    rows = [row for row in table.splitlines() if row.startswith("|")]
    return [re.sub(r"[\d.,]+(e[+-]\d+)?( (s|ms|us)\b)?", "#", row) for row in rows]


def test_the_site_builds_and_needs_no_other_machine(tmp_path: Path) -> None:
    """Strictly: a link that leads nowhere, or a page that nobody lists, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=remote.ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    for chapter in CHAPTERS:
        page = (tmp_path / "guide" / chapter.with_suffix(".html").name).read_text(encoding="utf-8")
        article = page[page.index("<article") : page.index("</article>")]
        assert (
            "<math" in article
            and "arithmatex" not in article
            and "\\frac" not in re.sub("<code.*?</code>", "", article)
        )
        assert not re.search(r'<(?:link|script|img)[^>]*(?:href|src)="(?:https?:)?//', page), chapter
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', article):
            assert (tmp_path / "guide" / link).exists(), f"{chapter.name}: {link}"
