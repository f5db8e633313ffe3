"""Every command of README and docs is typed.

In a folder with the files that the pages speak of, page by page and in order. Training is cut to two steps. A command
that needs the network, a GPU or a person is read by the command line's parser, and no more: so are torchrun's, which
tests/test_distributed.py runs. Commands of make and pip are looked up in the files that they are about.
"""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import remote
import torch

from gpt2c.cli import RUNS, flag_value, main, parse
from gpt2c.settings import load_recipe

PAGES = [remote.ROOT / "README.md", *sorted((remote.ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:|sh|console)\n(.*?)^```$|(?<=\n\n)((?:    .*\n)+)", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:gpt2c|make|python python/)[^`]*)`")
PROGRAMS = ("gpt2c", "make", "pip", "python", "torchrun")
PLACEHOLDER = re.compile(r"\.\.\.|[\[{|]|(?:^|[ /.])[A-Z][A-Z_]*\b(?!=)")  # FILE, in prose

SHORT = ["--steps", "2", "--warmup-steps", "0", "--eval-tokens", "256", "--sample-tokens", "4"]
NETWORK = re.compile(r"^(?:openai-community/)?gpt2$|^hf:|^download$|^finetune-shakespeare$|^--tasks$")
WAITS = ("bench", "serve")  # many minutes, or until it is stopped
TALKS = 6  # conversations that are kept of each file of make_talks.py


def commands(page: Path) -> Iterator[str]:
    """What a page tells to type, in order: the command lines of its blocks."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        text = (block[1] or block[2]).replace("\\\n", " ")
        console = text.lstrip().startswith("$ ")
        for line in text.splitlines():
            line = line.strip()
            if console and not line.startswith("$ "):
                continue  # what the command prints
            yield from re.split(r"\s&&\s", line.removeprefix("$ "))


def inline_commands(page: Path) -> Iterator[str]:
    """Whole commands in a page's sentences: with a flag or a path, and nothing to be filled in."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for found in INLINE.finditer(prose):
        text = " ".join(found[1].split())
        if re.search(r" --\S+ \S|/", text.removeprefix("python python/")) and not PLACEHOLDER.search(
            text.partition(" ")[2]
        ):
            yield text


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        text = "".join(f"{i}: the quick brown fox jumps over the lazy dog.\n\n" for i in range(400))
        for name in ("my.txt", "tinyshakespeare.txt", "my-texts/one.txt", "my-texts/two.txt"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
        for name in ("conversations.jsonl", "held-out.jsonl"):
            (folder / name).write_text(f"{json.dumps(talk)}\n" * TALKS)
        (folder / "mine.toml").write_text('data = "my.txt"\ncontext = 128\ntokenizer = "bytes"\nout = "runs/toml"\n')
        small = ["--data", "my.txt", "--n-layer", "1", "--n-head", "1", "--n-embd", "32", *SHORT]
        assert main(["train", "--out", "runs/demo", *small]) == 0
        assert main(["train", "--out", "runs/mine", "--tokenizer", "gpt2", *small]) == 0
        assert main(["sft", "--init", "runs/demo", "--data", "conversations.jsonl", "--out", "runs/chat", *SHORT]) == 0
        for name in ("a", "b", "gpt2-124m-fineweb"):
            shutil.copytree("runs/mine", f"runs/{name}")
        assert main(["prepare", "my-texts", "--out", "data/fineweb10B"]) == 0
        Path("log124M").mkdir()
        assert main(["export", "runs/mine", "log124M/model_00018865.bin", "--format", "llmc"]) == 0
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(remote.ROOT).as_posix())
def test_commands_work_as_typed(
    page: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.set_num_threads(1)
    folder = shutil.copytree(files, tmp_path / "files")
    (folder / "python").symlink_to(remote.ROOT / "python")
    monkeypatch.chdir(folder)
    variables: dict[str, str] = {}
    for command in commands(page):
        assign(command, variables)
        if not re.match(rf"(?:[A-Z_0-9]+=\S+ )?(?:{'|'.join(PROGRAMS)}) ", command):
            continue
        words = shlex.split(re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), command), comments=True)
        words = [word for word in words if word != "..." and not re.fullmatch(r"[A-Z_0-9]+=\S+", word)]
        if not any(PLACEHOLDER.search(word) for word in words):  # else it is a form, not a command
            assert type_(words, monkeypatch) == 0, f"{page.name}: {command}\n{capsys.readouterr().err}"
    for command in inline_commands(page):
        assert look_up(shlex.split(command)) == 0, f"{page.name}: {command}\n{capsys.readouterr().err}"


def assign(command: str, variables: dict[str, str]) -> None:
    """A shell's variable: NAME=value."""
    if found := re.fullmatch(r"(?:export )?(\w+)=(\"[^\"]*\"|\S+)", command):
        variables[found[1]] = found[2].strip('"')


def type_(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command's exit code."""
    if words[0] == "gpt2c" and runs_here(words[1:]):
        return run_here(words[1:], monkeypatch)
    if words[:2] == ["python", "python/make_talks.py"]:
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        for path in Path(words[2]).glob("*.jsonl"):
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:TALKS]))
        return 0
    return look_up(words)


def runs_here(args: list[str]) -> bool:
    """Whether the command is run, and not only read."""
    if args[0] in WAITS or any(map(NETWORK.search, args)) or "--help" in args:
        return False
    if args[0] == "plan":
        return "--gpu" in args  # else it measures this machine
    if args[0] == "train" and not {"--data", "--out"} & set(args):
        return "demo" in args  # without data: the demo's own
    return True


def run_here(args: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    name = flag_value(args, "--out")
    out = Path(name) if name else None
    if args[0] in ("train", "sft"):
        args = args + SHORT
        if "--resume" in args:
            args = args + ["--steps", "3"]
        if not out and "--init" not in args:  # the recipe's own, which pages make more than once
            _, kind, default = RUNS[args[0]]
            out = load_recipe(flag_value(args, "--recipe") or default, kind).out
    if out and "--resume" not in args and out.exists():
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    if args[0] == "sample":
        args = args + ["--max-new-tokens", "4"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return main(args)


def look_up(words: list[str]) -> int:
    """What a command names is there; of gpt2c and torchrun's gpt2c the parser takes every word."""
    if words[0] == "torchrun":
        assert words[words.index("-m") + 1] == "gpt2c"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            return read(words[words.index("-m") + 2 :])
    if words[0] == "gpt2c":
        return read(words[1:])
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (remote.ROOT / "Makefile").read_text(), re.MULTILINE)
        return int(not {word for word in words[1:] if "=" not in word} <= set(targets))
    if words[0] == "python":
        script = (remote.ROOT / words[1]).read_text()
        flags = [word.lstrip("-") for word in words[2:] if word.startswith("--")]
        return int(not all(flag in script or flag.replace("-", "_") in script for flag in flags))
    return look_up_pip(words)


def look_up_pip(words: list[str]) -> int:
    """Extras and CMake's options exist."""
    listed = (remote.ROOT / "pyproject.toml").read_text()
    cmake = (remote.ROOT / "csrc" / "cuda" / "cuda.cmake").read_text() + listed
    extras = {extra for word in words for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")}
    options = re.findall(r"cmake\.define\.(\w+)", " ".join(words))
    return int(not all(f"\n{extra} = [" in listed for extra in extras) or not all(name in cmake for name in options))


def read(args: list[str]) -> int:
    try:
        parse(args)
    except SystemExit as stop:
        return int(stop.code or 0)  # --help
    return 0


@pytest.mark.parametrize("script", ["cuda_errors", "cuda_mutations", "cuda_tested", "fuzz_ops"])
def test_a_script_says_which_package_of_the_test_environment_is_missing(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(remote.ROOT / "python"), *sys.path])
    for name in ("cuda_launches", "emulation", "emulation.cases", "emulation.mutate", "checks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pytest", None)  # as where it is not installed
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(remote.ROOT / "python" / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sys.executable} has no pytest: after `make test`, ")
