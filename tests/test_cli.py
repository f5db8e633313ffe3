"""The command line: help for every field, one sentence for every mistake, and what train, sample and info print."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c import checkpoint, cli, commands
from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
from gpt2c.settings import TrainConfig, flag, load_recipe
from gpt2c.show import show
from gpt2c.tokenizer import get_tokenizer
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads have nothing to share in so small a model, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    return train(tiny.config(tmp_path_factory.mktemp("finished"))).run.folder


def output(capsys: pytest.CaptureFixture, *args: str) -> str:
    """The standard output of a command that succeeds."""
    assert main(args) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture, *args: str) -> str:
    """The sentence of a command that fails by a mistake of the user's."""
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.out and not set("│╭─╯") & set(captured.err)
    return captured.err.removeprefix("error: ").strip()


def help_text(capsys: pytest.CaptureFixture, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*args, "--help"])
    assert not stop.value.code
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


# Help


def test_help_names_the_commands(capsys: pytest.CaptureFixture) -> None:
    text = help_text(capsys)
    assert all(f"• {command} " in text for command in commands.COMMANDS)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("train", TrainConfig), ("train", commands.Train), ("sample", commands.Sample), ("sample", Sampling),
        ("chat", commands.Chat), ("chat", Sampling), ("info", commands.Info),
    ],
)  # fmt: skip
def test_help_explains_every_field(capsys: pytest.CaptureFixture, command: str, kind: type) -> None:
    source = Path(sys.modules[kind.__module__].__file__).read_text()
    text = help_text(capsys, command).partition("show this help message")[2]
    for field in dataclasses.fields(kind):
        if field.name not in ("settings", "model", "sampling", "weights"):
            after = text.partition(f" {flag(field.name)} ")[2]
            explanation = source.partition(f"    {field.name}: ")[2].partition('"""')[2].partition('"""')[0]
            assert len(explanation) > 20 and explanation[:20] in after[: len(explanation) + 60], field.name
            assert "(default: " in after, field.name


def test_help_shows_the_recipes_values(capsys: pytest.CaptureFixture) -> None:
    for name in ("gpt2-124m-fineweb", "shakespeare-bytes"):
        text = help_text(capsys, "train", "--recipe", name)
        recipe = load_recipe(name)
        assert f"(default: {recipe.n_embd})" in text and f"(default: {recipe.out})" in text
        assert f"(default: {name})" in text


# Mistakes


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "expected one of {" + ", ".join(commands.COMMANDS) + "}"),
        (["trian"], "there is no command 'trian'; perhaps you meant train; see --help"),
        (["bench", "kernel"], "unrecognized options: kernel; perhaps you meant kernels; see --help"),
        (["train", "--stps", "3"], "--stps, 3; perhaps you meant --steps; see"),
        (["train", "--step", "3"], "--step, 3; perhaps you meant --steps; see"),
        (["train", "--learning_rate=3"], "--learning_rate=3; perhaps you meant --lr; see"),
        (["sample", "m", "--max-tokens", "3"], "--max-tokens, 3; perhaps you meant --max-new-tokens; see"),
        (
            ["train", "--dtype", "fp16"],
            "unrecognized options: --dtype, fp16; perhaps you meant --precision or",
        ),
        (["info", "--steps", "1"], "unrecognized options: --steps, 1; see --help"),
        (["train", "--zzz", "3"], "unrecognized options: --zzz, 3; see --help"),
        (["train", "--steps", "many"], "--steps: invalid literal for int"),
        (["train", "--steps"], "missing value for argument '--steps'"),
        (["train", "--steps", "0"], "--steps is 0, expected at least 1"),
        (["train", "--lr", "0.1", "--min-lr", "0.2"], "--min-lr is 0.2, expected at most --lr, 0.1"),
        (["train", "--tokenizer", "words"], "unknown tokenizer 'words': expected one of bytes, gpt2, or the folder of"),
        (["train", "--precision", "fp8"], "invalid choice 'fp8' for argument '--precision', expected one of"),
        (["train", "--recipe", "huge"], "shakespeare-bytes, or the path of a TOML file"),
        (["train", "--recipe=no.toml"], "cannot read the recipe no.toml: No such file or directory"),
        (["train", "--data", "no.txt"], "cannot read the data no.txt: No such file or directory"),
        (["train", "--n-head", "5"], "n_embd is 192, expected a multiple of n_head (5)"),
        (["train", "--resume", "--out", "nowhere"], "nowhere holds no run to resume: start it without --resume"),
        (["train", "extra"], "extra"),
        (["sample"], "missing from gpt2c sample: MODEL"),
        (["sample", "./nowhere"], "nowhere does not exist"),
        (["sample", "a", "--top-k", "x"], "--top-k"),
        (["info", "./nowhere"], "nowhere does not exist"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistakes(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    args: list[str],
    words: str,
    encoding: str,
) -> None:
    # tyro frames its messages where the terminal can show a frame.
    monkeypatch.setattr(type(sys.stdout), "encoding", encoding, raising=False)
    monkeypatch.chdir(tmp_path)
    assert words in error(capsys, *args)
    assert not list(tmp_path.iterdir()), "a mistake must leave nothing behind"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--temperature", "-1"], "temperature is -1.0, expected a finite number of at least 0"),
        (["--top-k", "0"], "top_k is 0, expected at least 1"),
        (["--top-p", "1.5"], "top_p is 1.5, expected 0 < top_p <= 1"),
        (["--max-new-tokens", "-1"], "max_new_tokens is -1, expected at least 0"),
        (["--seed", "-1"], "seed is -1, expected at least 0"),
        (["--num-samples", "0"], "--num-samples is 0, expected at least 1"),
        (["--prompt", "a\udcff"], "the text is not valid UTF-8: character 1"),
    ],
)
def test_mistakes_in_sampling(capsys: pytest.CaptureFixture, finished: Path, args: list[str], words: str) -> None:
    assert words in error(capsys, "sample", str(finished), *args)


def test_a_parser_that_prints_something_else_still_gives_a_sentence() -> None:
    assert cli.one_sentence("") == "the arguments cannot be read"
    assert cli.one_sentence("Something new\nin two lines.") == "something new in two lines"


# Training


def test_train_ends_with_text_and_paths(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    out = output(capsys, "train", *tiny.flags(tiny.config(tmp_path)))
    run = tmp_path / "run"
    end = out[out.index("What the model writes after 8 steps:") :]
    for path in (run / "checkpoints" / "step_000008", run / "metrics.jsonl", run / "loss.png"):
        assert str(path) in end and path.exists()
    assert (run / "samples.txt").read_text().split("--- step 8 ---\n")[1].strip() in end
    assert "step 4: validation loss " in out and "step 4: a sample\n" in out


def test_flags_and_own_preset_files(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in config.to_dict().items()))
    output(capsys, "train", "--recipe", str(recipe), "--steps", "3")
    assert checkpoint.read_record(checkpoint.latest(tmp_path / "run")).step == 3


def test_resume_takes_the_settings_of_the_run(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    config = tiny.config(tmp_path, lr=3e-3)
    output(capsys, "train", *tiny.flags(config))
    out = str(config.out)
    assert "nothing to do" in output(capsys, "train", "--out", out, "--resume")
    assert "after 10 steps" in output(capsys, "train", f"--out={out}", "--resume", "--steps", "10")
    message = error(capsys, "train", "--out", out, "--resume", "--lr", "0.01")
    assert "was started with --lr 0.003, found 0.01" in message
    message = error(capsys, "train", "--out", out, "--resume", "--recipe", "shakespeare-bytes")
    assert "was started with" in message
    again = error(capsys, "train", "--data", config.data, "--out", out)
    assert "is not empty: add --resume to continue it" in again


def test_control_c_stops_with_a_checkpoint_and_says_how_to_resume(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, steps=100_000, eval_every=100_000, sample_every=0, checkpoint_every=100_000)
    process = tiny.start("train", *tiny.flags(config))
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    last = checkpoint.latest(tmp_path / "run")
    assert f"with the checkpoint {last}" in out and f"gpt2c train --out {tmp_path / 'run'} --resume" in out
    assert "stopping after this step" in err and "Traceback" not in err
    rows = tiny.metrics(tmp_path / "run")
    assert rows[-1]["step"] == checkpoint.read_record(last).step == len(rows)
    assert (tmp_path / "run" / "loss.png").exists()


def test_control_c_elsewhere_is_one_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(_: commands.Info) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Info, "run", interrupted)
    assert main(["info"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "\ninterrupted\n"


# Sampling


def test_sample_writes_prompt_and_continuation(capsys: pytest.CaptureFixture, finished: Path) -> None:
    args = ["sample", str(finished), "--prompt", "The naïve ", "--max-new-tokens", "20"]
    texts = [output(capsys, *args, "--seed", seed) for seed in ("1", "1", "2")]
    assert all(text.startswith("The naïve ") and len(text) > 20 for text in texts)
    assert texts[0] == texts[1] != texts[2]


def test_sample_equals_generate(capsys: pytest.CaptureFixture, finished: Path) -> None:
    """The streamed text is what model.generate gives, for a run, its checkpoint, and every flag at once."""
    best = checkpoint.best(finished)
    model, tokenizer = GPT2.from_pretrained(best), get_tokenizer("bytes")
    prompt = torch.from_numpy(tokenizer.encode("A").astype("int64"))[None]
    ids = model.generate(prompt, 12, temperature=0.7, top_k=50, top_p=0.9, seed=5)[0].tolist()
    assert tokenizer.end_of_text not in ids
    expected = tokenizer.decode_bytes(ids).decode(errors="replace") + "\n"
    args = ["--prompt=A", "--max-new-tokens=12", "--temperature=0.7", "--top-k=50", "--top-p=0.9", "--seed=5"]
    assert output(capsys, "sample", str(finished), *args) == output(capsys, "sample", str(best), *args) == expected


def test_several_samples_differ_and_each_has_its_seed(capsys: pytest.CaptureFixture, finished: Path) -> None:
    args = ["sample", str(finished), "--max-new-tokens", "15", "--prompt", "x"]
    both = output(capsys, *args, "--num-samples", "2", "--seed", "3")
    single = [output(capsys, *args, "--seed", seed) for seed in ("3", "4")]
    assert both == f"--- sample 1 ---\n{single[0]}--- sample 2 ---\n{single[1]}"


def test_the_text_is_streamed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is on the terminal before the next one is computed."""
    terminal, seen = Terminal(), []
    honest = GPT2.stream

    def stream(self: GPT2, *args: object) -> object:
        for token in honest(self, *args):
            seen.append(len(terminal.flushed))
            yield token

    monkeypatch.setattr(GPT2, "stream", stream)
    monkeypatch.setattr(sys, "stdout", terminal)
    main(["sample", str(finished), "--prompt", "abc", "--max-new-tokens", "12", "--temperature", "0"])
    assert seen[0] == 3 and len(seen) == 12 and seen == sorted(seen) and seen[-1] > 3


class Terminal(io.StringIO):
    """A terminal; `flushed` is what its user sees."""

    flushed = ""

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.flushed = self.getvalue()


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show("a\x1b[2J\tb\n\x07é\x9b")
    assert terminal.flushed == "a\ufffd[2J\tb\n\ufffdé\ufffd"


def test_an_end_of_text_ends_a_sample(
    capsys: pytest.CaptureFixture, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT2, "stream", lambda *_: iter(torch.tensor([[104], [105], [256], [33]])))
    assert output(capsys, "sample", str(finished), "--prompt", "") == "hi\n"


def test_past_the_context_it_says_so(capsys: pytest.CaptureFixture, finished: Path) -> None:
    assert main(["sample", str(finished), "--max-new-tokens", "40", "--temperature", "0"]) == 0
    assert capsys.readouterr().err.startswith("note: generate: ")


def test_a_note_is_told_once(capsys: pytest.CaptureFixture) -> None:
    def run() -> int:
        for told in ("seen", "seen", "new"):
            with warnings.catch_warnings():  # which makes Python forget what it has told
                warnings.warn(told, stacklevel=1)
        return 0

    assert cli.told(run) == 0 and capsys.readouterr().err == "note: seen\nnote: new\n"


def test_a_model_that_is_no_checkpoint(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """A folder in Hugging Face's format without our record: the tokenizer follows from the vocabulary's size."""
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    for vocab, works in ((50257, True), (257, True), (300, False)):
        folder = tmp_path / str(vocab)
        GPT2(GPT2Config(vocab_size=vocab, **sizes)).save_pretrained(folder)
        args = ["sample", str(folder), "--prompt", "Hi", "--max-new-tokens", "3"]
        if works:
            assert output(capsys, *args).startswith("Hi")
        else:
            assert "has a vocabulary of 300, expected that of a known tokenizer" in error(capsys, *args)


def test_a_damaged_checkpoint(capsys: pytest.CaptureFixture, finished: Path, tmp_path: Path) -> None:
    model = GPT2.from_pretrained(checkpoint.best(finished))
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for command in ("sample", "info"):
        assert str(weights) in error(capsys, command, str(tmp_path))
    weights.unlink()
    assert str(tmp_path) in error(capsys, "sample", str(tmp_path))


def test_weights_that_are_not_finite(capsys: pytest.CaptureFixture, finished: Path, tmp_path: Path) -> None:
    model = GPT2.from_pretrained(checkpoint.best(finished))
    model.ln_f.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    assert main(["sample", str(tmp_path)]) == 2
    assert "ln_f.weight holds nan at [0], expected finite numbers" in capsys.readouterr().err


# Information and scripts


def test_info(capsys: pytest.CaptureFixture) -> None:
    rows = dict(line.split(maxsplit=1) for line in output(capsys, "info").splitlines())
    assert rows["torch"] == torch.__version__
    assert rows["threads"] == str(torch.get_num_threads())
    assert "available: scalar" in rows["cpu"]


def test_info_about_a_checkpoint(capsys: pytest.CaptureFixture, finished: Path) -> None:
    text = " ".join(output(capsys, "info", str(finished)).split())
    parameters = GPT2.from_pretrained(checkpoint.best(finished)).num_parameters()
    record = checkpoint.read_record(checkpoint.best(finished))
    for part in (f"parameters {parameters:,}", "n_embd 32", "n_positions 16", "tokenizer bytes"):
        assert part in text
    assert f"steps {record.step}" in text and f"validation loss {record.val_loss:.4f}" in text


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_the_scripts_are_the_commands(script: str) -> None:
    """Run as a file, from another folder than the repository's."""
    process = subprocess.run(
        [sys.executable, str(tiny.REPOSITORY / "python" / script), "--no-such-flag"],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        timeout=60,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and "see --help" in process.stderr


def test_a_reader_that_goes_away(finished: Path) -> None:
    """`gpt2c sample ... | head -c 1` ends without a traceback."""
    with tiny.start("sample", str(finished), "--max-new-tokens", "100000") as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert "Traceback" not in process.stderr.read()
