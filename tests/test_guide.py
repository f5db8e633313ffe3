"""The guide tells the truth: each chapter's snippets run in order and print what stands below them, its links lead
somewhere, and the site builds without a warning."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import remote
import torch

DOCS = remote.ROOT / "docs"
CHAPTERS = sorted((DOCS / "guide").glob("*.md"))
# A snippet, and what it prints, if anything: the block that follows it with nothing but blank lines between.
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


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
        assert shown == (snippet[2] or "").rstrip(), f"the snippet at line {line} of {chapter.name}"


def test_every_chapter_has_a_formula_a_picture_and_its_sources() -> None:
    assert [chapter.name[0] for chapter in CHAPTERS] == list("123456")
    for chapter in CHAPTERS:
        text = chapter.read_text(encoding="utf-8")
        assert text.count("\n$$\n") >= 2 and re.search(r"!\[[^]]+\]\(\.\./images/guide-", text), chapter
        assert "## Sources\n" in text and re.search(r"section \d", text), chapter


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
