"""The command `gpt2c`: reads the arguments, and turns every mistake of the user into one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from gpt2c import _native, output
from gpt2c.chat.settings import SftConfig
from gpt2c.commands import COMMANDS, Sft, Train
from gpt2c.errors import ToldElsewhere, UserError, memory_asked
from gpt2c.run import recorded_settings
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.suggest import hint
from gpt2c.unused import tell_unused, typed

# The commands that take a recipe: their settings, and the recipe if none is given.
RUNS = {"train": (Train, TrainConfig, "demo"), "sft": (Sft, SftConfig, "sft")}
USER_ERROR = 2


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; `args` are the command line's without the program's name. Returns the exit code.

    0: done. 2: a mistake of the user's, told on stderr as `error: <sentence>`. 128 + n: stopped by signal n.
    """
    return told(lambda: parse(sys.argv[1:] if args is None else list(args)).run())


def told(run: Callable[[], int]) -> int:
    """The exit code of `run`, as `main` has it; its warnings and mistakes become lines on stderr."""
    with output.guarded():
        try:
            return told_warnings(run)
        except UserError as error:
            if not isinstance(error, ToldElsewhere):
                print(f"error: {error}", file=sys.stderr)
            return USER_ERROR
        except (MemoryError, RuntimeError) as error:
            asked = memory_asked(error)
            if asked is None:
                raise
            print(f"error: {asked}: close other programs, or choose a smaller model, batch or context", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except BrokenPipeError:  # the reader of our output, `head` say, has gone
            return 128 + signal.SIGPIPE


def told_warnings(run: Callable[[], int]) -> int:
    """What `run` returns, its warnings as lines on stderr, and what it has printed written."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = functools.partial(_tell_once, set())
        if _native.FORCED_ISA_PROBLEM:
            raise UserError(_native.FORCED_ISA_PROBLEM)
        try:
            code = run()
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
    sys.stdout.flush()
    return code


def _tell_once(told: set[str], message: Warning | str, *_: Any) -> None:
    """A warning as a note, unless `told` has it: a command may look at the same file twice."""
    if str(message) not in told:
        told.add(str(message))
        print(f"note: {message}", file=sys.stderr)


def parse(args: list[str]) -> Any:
    """The command that the arguments describe. Raises UserError, or SystemExit(0) after --help."""
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        raise UserError(f"there is no command {args[0]!r}{hint(args[:1], COMMANDS)}; see --help")
    defaults = {}
    for name, (command, kind, recipe) in RUNS.items():
        recipe = flag_value(args, "--recipe") or recipe
        defaults[name] = command(run_defaults(args, kind, recipe) if args[:1] == [name] else kind(), recipe)
    commands = Union[  # noqa: UP007, of a list that is not known to the type checker
        tuple(
            Annotated[kind, tyro.conf.subcommand(name, **({"default": defaults[name]} if name in defaults else {}))]
            for name, kind in COMMANDS.items()
        )
    ]
    found = read_arguments(commands, args, "gpt2c", "Train GPT-2 and let it write, on this machine's own kernels.")
    tell_unused(typed(args), found)
    return found


def read_arguments(kind: Any, args: Sequence[str], prog: str, description: str | None = None) -> Any:
    """What the arguments say, of the type `kind`. Raises UserError, or SystemExit(0) after --help."""
    printed, config = io.StringIO(), (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, prog=prog, description=description, args=args, config=config)
    except SystemExit as stop:
        if not stop.code:
            raise
    sentence = one_sentence(printed.getvalue())
    unknown = re.match(r"unrecognized options: (.*)", sentence)
    end = hint(unknown[1].split(", "), words_of(kind, args, config)) if unknown else ""
    raise UserError(f"{sentence}{end}; see --help")


def words_of(kind: Any, args: Sequence[str], config: tuple) -> list[str]:
    """The flags, and the names of commands, that the help of the command in `args` has."""
    leading = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args))
    for count in range(len(leading), -1, -1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                tyro.cli(kind, args=[*leading[:count], "--help"], config=config)
            except SystemExit as stop:
                if not stop.code:
                    text = printed.getvalue()
                    names = [name for group in re.findall(r"\{([\w,-]+)\}", text) for name in group.split(",")]
                    return list(dict.fromkeys([*re.findall(r"(?<![\w-])--[a-z0-9-]+", text), *names]))
    return []


def run_defaults(args: list[str], kind: type[TrainConfig], recipe: str) -> TrainConfig:
    """What the flags of a run change: the recipe's settings or, on a resume, those that the run was started with."""
    if "--resume" not in args or flag_value(args, "--recipe"):
        return load_recipe(recipe, kind)
    folder = Path(flag_value(args, "--out") or load_recipe(recipe, kind).out)
    return recorded_settings(folder, kind)


def flag_value(args: list[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, needed before the rest can be parsed: it sets the defaults."""
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(name + "="):
            return arg.removeprefix(name + "=")
    return None


def one_sentence(message: str) -> str:
    """tyro's error message as a sentence without its end: what is wrong, without its help and its hints.

    tyro prints a title, what is wrong, and hints, between rules; in a frame that holds the title, where the standard
    output is UTF-8.
    """
    lines = [re.sub("^│|│$", "", line).strip() for line in message.splitlines()]
    framed = any(line.startswith("╭") for line in lines)
    text = "\n".join(line for line in lines if line and line[0] not in "╭╰")
    parts = [" ".join(part.split()) for part in re.split(r"^[─-]{4,}$", text, flags=re.MULTILINE)]
    if not framed and len(parts) > 1:
        del parts[0]
    # A missing positional argument comes with its whole help.
    sentence = re.sub(r"^(Missing from [^:]+: \S+).*", r"\1", parts[0]).rstrip(".").replace(". Expected", ", expected")
    # An option of another command comes with the command that it was given to, each word of it.
    elsewhere = re.match(r"Unrecognized or misplaced options: (.*?)(?: Arguments are applied to .*)?$", sentence)
    if elsewhere:
        words = re.split(r" \(applied to [^)]*\) ?", elsewhere[1])
        sentence = f"Unrecognized options: {', '.join(filter(None, words))}"
    if not sentence:
        return "the arguments cannot be read"
    return f"{sentence[0].lower()}{sentence[1:]}"
