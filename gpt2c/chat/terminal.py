"""The conversation in a terminal, or through pipes: a line is a message or a command."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from gpt2c.chat.session import Session
from gpt2c.errors import UserError
from gpt2c.show import show

HELP = """\
/reset         begin anew, with the same system's message
/system TEXT   set the system's message; without TEXT there is none
/save FILE     add the conversation to FILE, a line that gpt2c sft reads
/help          this
Ctrl-C stops a reply, Ctrl-D ends. Any other line is said to the model."""


def converse(session: Session) -> None:
    """Until the end of input. Replies go to the standard output, notes to the standard error, prompts to terminals."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401, gives `input` editing and a history
        note("/help for the commands, Ctrl-D to end")
    while True:
        try:
            line = input("> " if is_terminal else "")
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise UserError(f"the input is not UTF-8: byte {error.start} of it is no part of a character") from error
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            note("\nCtrl-D ends")
            continue
        try:
            handle(session, line)
        except UserError as error:
            note(str(error))
    if is_terminal:
        print()


def handle(session: Session, line: str) -> None:
    """A command, or a message and its reply. UserError, one sentence, if it is not possible."""
    command, _, rest = line.strip().partition(" ")
    if not command:
        return
    if not command.startswith("/"):
        answer(session, line)
    elif command == "/help":
        note(HELP)
    elif command == "/reset":
        session.reset()
    elif command == "/system":
        session.system = rest.strip()
    elif command == "/save":
        if not rest.strip():
            raise UserError("/save needs the name of a file")
        path = Path(rest.strip()).expanduser()
        session.save(path)
        note(f"added to {path}")
    else:
        raise UserError(f"{command} is no command: expected /reset, /system TEXT, /save FILE or /help")


def answer(session: Session, text: str) -> None:
    """Say it to the model and show the reply as it comes; Ctrl-C ends the reply where it is."""
    reply, forgotten = session.ask(text)
    if forgotten:
        what = "exchange is" if forgotten == 1 else f"{forgotten} exchanges are"
        note(f"(the context of {session.model.config.n_positions} tokens is full: the oldest {what} forgotten)")
    stopped = False
    try:
        for piece in reply:
            show(piece)
    except KeyboardInterrupt:
        stopped = True
    show("\n")
    session.keep(text, reply.text)
    if not stopped and not reply.is_whole:
        note("(cut off: --max-new-tokens or the context is reached)")


def note(text: str) -> None:
    """Tell something that nobody in the conversation has said."""
    print(text, file=sys.stderr, flush=True)
