"""The conversation: what the model sees of it, and the terminal, through pipes and in a pseudo-terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import talks
import tiny
import torch
from talks import talk

from gpt2c.chat.conversations import read_conversations
from gpt2c.chat.session import Session
from gpt2c.chat.template import Template, chat_tokenizer, template_of
from gpt2c.chat.terminal import HELP
from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
from gpt2c.tokenizer import get_tokenizer, save_tokenizer

CONTEXT = 48
END = 260


@pytest.fixture(scope="module")
def template() -> Template:
    return template_of(chat_tokenizer(get_tokenizer("bytes")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, template: Template) -> Path:
    """A model that has the tokens, and has learned nothing."""
    path = tmp_path_factory.mktemp("chat") / "model"
    torch.manual_seed(0)
    GPT2(GPT2Config(261, CONTEXT, 16, 1, 1)).save_pretrained(path)
    save_tokenizer(template.tokenizer, path)
    return path


class Voice:
    """In place of a model's stream: says what it is given, and notes what it has seen."""

    def __init__(self, template: Template, *replies: str, ends: bool = True) -> None:
        self.template, self.replies, self.ends = template, iter(replies), ends
        self.seen: list[str] = []
        self.settings: list[tuple[object, ...]] = []

    def __call__(self, model: GPT2, prompt: torch.Tensor, tokens: int, *settings: object) -> Iterator[torch.Tensor]:
        self.seen.append(self.template.tokenizer.decode_bytes(prompt[0].tolist()).decode())
        self.settings.append((tokens, *settings))
        ids = [*next(self.replies).encode(), *[END] * self.ends][:tokens]
        return (torch.tensor([i]) for i in ids)


def spelled(*contents: str, system: str = "") -> str:
    messages = talk(*contents, system=system)
    return "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages) + "<|assistant|>"


# The session


@pytest.fixture
def session(template: Template) -> Session:
    torch.manual_seed(0)
    return Session(GPT2(GPT2Config(261, CONTEXT, 16, 1, 1)).eval(), template, "Sys", 8, Sampling(seed=5))


def exchange(session: Session, text: str) -> int:
    reply, forgotten = session.ask(text)
    session.keep(text, "".join(reply))
    return forgotten


def test_the_oldest_exchanges_are_forgotten_and_the_system_stays(
    session: Session, template: Template, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    voice = Voice(template, *"ABCDE")
    monkeypatch.setattr(GPT2, "stream", lambda *args: voice(*args))
    # With the system's 5 tokens, 8 kept free, and 1 that opens the reply, 35 of 49 are left for turns.
    assert [exchange(session, text) for text in ("a" * 10, "b" * 10, "c" * 10, "d", "e" * 32)] == [0, 0, 1, 0, 3]
    assert voice.seen == [
        spelled("a" * 10, system="Sys"),
        spelled("a" * 10, "A", "b" * 10, system="Sys"),
        spelled("b" * 10, "B", "c" * 10, system="Sys"),
        spelled("b" * 10, "B", "c" * 10, "C", "d", system="Sys"),
        spelled("e" * 32, system="Sys"),
    ]
    assert [settings[0] for settings in voice.settings[:4]] == [8] * 4
    assert [settings[4] for settings in voice.settings] == [5, 6, 7, 8, 9], "each reply has a seed of its own"
    session.save(tmp_path / "saved.jsonl")
    session.reset()
    voice.replies = iter("F")
    exchange(session, "f")
    assert voice.seen[-1] == spelled("f", system="Sys")
    session.system = ""
    (tmp_path / "saved.jsonl").write_bytes((tmp_path / "saved.jsonl").read_bytes()[:-1])  # as an editor leaves it
    session.save(tmp_path / "saved.jsonl")
    found = read_conversations(tmp_path / "saved.jsonl", template, 1000)
    texts = [template.tokenizer.decode_bytes(ids.tolist()).decode() for ids, _ in found.encoded]
    whole = ["a" * 10, "A", "b" * 10, "B", "c" * 10, "C", "d", "D", "e" * 32, "E"]
    assert texts == [spelled(*whole, system="Sys")[:-13], spelled("f", "F")[:-13]], "what was forgotten is saved, too"


def test_a_reply_that_says_nothing_is_not_saved(
    session: Session, template: Template, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    voice = Voice(template, "")
    monkeypatch.setattr(GPT2, "stream", lambda *args: voice(*args))
    exchange(session, "a")
    with pytest.raises(UserError, match="the assistant's, is '', expected a text that says something"):
        session.save(tmp_path / "saved.jsonl")
    assert not (tmp_path / "saved.jsonl").exists()


def test_a_message_that_does_not_fit_changes_nothing(
    session: Session, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = Voice(template, "A", "B", "C")
    monkeypatch.setattr(GPT2, "stream", lambda *args: voice(*args))
    exchange(session, "a")
    with pytest.raises(UserError, match="the message has too many tokens: .* they are 49, expected at most 48"):
        session.ask("b" * 41)
    assert exchange(session, "c") == 0 and voice.seen[-1] == spelled("a", "A", "c", system="Sys")
    assert exchange(session, "b" * 40) == 2 and voice.settings[-1][0] == 1
    with pytest.raises(UserError, match="not valid UTF-8"):
        session.ask("\udcff")


def test_nothing_to_save(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to save yet"):
        session.save(tmp_path / "x")
    session.keep("a", "b")
    with pytest.raises(UserError, match="cannot write .*: No such file"):
        session.save(tmp_path / "no" / "x")


# Through pipes


@pytest.fixture
def chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, folder: Path
) -> Callable[..., tuple[str, str]]:
    """What `gpt2c chat` prints on both outputs for these lines of input."""

    def run(*lines: str, args: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", str(folder), *args]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_a_conversation_through_pipes(
    chat: Callable[..., tuple[str, str]], template: Template, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    voice = Voice(template, "Héllo\nyou", "<|end|>", "new", "S")
    monkeypatch.setattr(GPT2, "stream", lambda *args: voice(*args))
    saved = tmp_path / "my talks.jsonl"
    out, err = chat(
        "hi", "", "  two ", "/reset", "/help", "x", f"/save {saved}", "/system Be kind. ", "/nope", "/save", "y",
        args=("--temperature=0.5", "--top-k=3", "--max-new-tokens=12"),
    )  # fmt: skip
    assert out == "Héllo\nyou\n<|end|>\nnew\nS\n"
    assert voice.seen == [
        spelled("hi"), spelled("hi", "Héllo\nyou", "  two "), spelled("x"), spelled("x", "new", "y", system="Be kind."),
    ]  # fmt: skip
    assert voice.settings[0] == (12, 0.5, 3, None, None, "fp32")
    assert err.splitlines() == [
        *HELP.splitlines(),
        f"added to {saved}",
        "/nope is no command: expected /reset, /system TEXT, /save FILE or /help",
        "/save needs the name of a file",
    ]
    assert saved.read_text(encoding="utf-8") == (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "new"}]}\n'
    )


def test_what_is_forgotten_or_cut_off_is_said(
    chat: Callable[..., tuple[str, str]], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = Voice(template, "A" * 12, "B", "C", ends=False)
    monkeypatch.setattr(GPT2, "stream", lambda *args: voice(*args))
    out, err = chat("a" * 10, "b" * 25, "c" * 60, args=("--max-new-tokens=5", "--system=s"))
    assert out == "AAAAA\nB\n"
    assert err.splitlines() == [
        "(cut off: --max-new-tokens or the context is reached)",
        "(the context of 48 tokens is full: the oldest exchange is forgotten)",
        "(cut off: --max-new-tokens or the context is reached)",
        "the message has too many tokens: with the system's and the template's they are 66, expected at most 48, the "
        "model's context",
    ]


def test_control_c_keeps_what_has_come_of_a_reply(
    chat: Callable[..., tuple[str, str]], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = Voice(template, "abc", "d")

    def interrupted(*args: object) -> Iterator[torch.Tensor]:
        for i, token in enumerate(voice(*args)):
            if i == 2 and len(voice.seen) == 1:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(GPT2, "stream", interrupted)
    out, err = chat("x", "y")
    assert out == "ab\nd\n" and err == ""
    assert voice.seen[1] == spelled("x", "ab", "y")


def test_the_models_own_replies_are_the_seeds(chat: Callable[..., tuple[str, str]]) -> None:
    texts = [chat("hi", "you", args=(f"--seed={seed}",))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and texts[0].count("\n") >= 2


def error(capsys: pytest.CaptureFixture, *args: str) -> str:
    assert main(["chat", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_mistakes(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    plain = talks.base(tmp_path / "plain")
    assert f"{plain} has not learned to chat: fine-tune it on conversations, gpt2c sft --init {plain}" in error(
        capsys, str(plain)
    )
    assert "--max-new-tokens is 0, expected at least 1" in error(capsys, str(folder), "--max-new-tokens=0")
    for flag, words in (("--temperature=-1", "temperature is -1.0"), ("--top-p=2", "top_p is 2.0")):
        assert words in error(capsys, str(folder), flag)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    assert "the input is not UTF-8: byte 1 of it is no part of a character" in error(capsys, str(folder))


# In a terminal

# A model that takes its time: "slow" goes on for a minute.
PROGRAM = """
import sys, time, torch
from gpt2c.cli import main
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
def stream(self, prompt, tokens, *_):
    for byte in (b"slow" + b"." * 600 if len(prompt[0]) > 6 else b"\\x1b[2Jhi"):
        yield torch.tensor([byte])
        time.sleep(0.1 if len(prompt[0]) > 6 else 0)
    yield torch.tensor([260])
GPT2.stream = stream
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_terminal_control_c_ends_the_reply_and_control_d_the_program(folder: Path) -> None:
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(tempfile.gettempdir())  # not the repository, as in tiny.start
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, "chat", str(folder), "--max-new-tokens=700"],
                  {**tiny.environment(), "TERM": "dumb"})  # fmt: skip
    shown = ""

    def until(words: str, again: bytes = b"") -> None:
        nonlocal shown
        deadline = time.monotonic() + 120
        while words not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
            elif again:
                os.write(terminal, again)
        shown = shown.partition(words)[2]

    try:
        until("/help for the commands, Ctrl-D to end")
        until("> ")
        os.write(terminal, b"a\n")
        until("\ufffd[2Jhi")  # a terminal gets no control characters from a model
        until("> ")
        os.write(terminal, b"tell me more\n")
        until("slow")
        os.write(terminal, b"\x03")
        until("> ")
        os.write(terminal, b"half a line\x03")
        # Between its prompt and its wait for a key, `input` notices a signal at the next key only.
        until("Ctrl-D ends", again=b"\x03")
        until("> ")
        os.write(terminal, b"\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
