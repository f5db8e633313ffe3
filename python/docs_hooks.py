"""What mkdocs does beyond Markdown when it builds docs/ (mkdocs.yml): formulas become MathML, which browsers draw
without a script, and links to the repository's files lead to pages of the site that show them."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")  # that leaves its folder
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every file or folder of the repository that some page of docs/ links to."""
    for page in files.documentation_pages():
        text = Path(page.abs_src_path).read_text(encoding="utf-8")
        for link, _ in LINK.findall(text):
            path = _outside(page.src_uri, link, config)
            if path and not files.get_file_from_path(_shown(path)):
                files.append(File.generated(config, _shown(path), content=_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links that leave docs/ to those pages."""

    def lead(link: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, link[1], config)
        if not path:
            return link[0]
        return f"]({os.path.relpath(_shown(path), os.path.dirname(page.file.src_uri) or '.')})"

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas, as pymdownx.arithmatex marks them, as MathML."""
    return FORMULA.sub(_mathml, html)


def _mathml(formula: re.Match[str]) -> str:
    return convert(html.unescape(formula[3]), display="inline" if formula[2] == "(" else "block")


def _outside(src_uri: str, link: str, config: MkDocsConfig) -> Path | None:
    """The repository's file or folder that a page's link means, unless it is one of docs/."""
    path = Path(os.path.normpath(Path(config.docs_dir, src_uri).parent / link))
    if path.is_relative_to(config.docs_dir) or not path.is_relative_to(ROOT) or not path.exists():
        return None  # mkdocs checks it
    return path


def _shown(path: Path) -> str:
    return f"source/{path.relative_to(ROOT).as_posix()}.html"


def _page(path: Path) -> str:
    """The file with its colours and line numbers, or the folder's names."""
    name = path.relative_to(ROOT).as_posix()
    text = "\n".join(sorted(f.name for f in path.iterdir())) if path.is_dir() else path.read_text(encoding="utf-8")
    try:
        lexer = TextLexer() if path.is_dir() else get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(text, lexer, HtmlFormatter(full=True, title=name, linenos="inline", lineanchors="line"))
