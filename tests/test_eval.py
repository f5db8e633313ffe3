"""`gpt2c eval`: the loss and scores of a model, the known values beside them, and HellaSwag in a run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import test_hellaswag
import tiny
import torch

from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.data import load_dataset
from gpt2c.errors import UserError
from gpt2c.evaluate import validation_loss
from gpt2c.evaluation import known
from gpt2c.evaluation.hellaswag import evaluate_hellaswag
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that evaluated HellaSwag; its folder's parent holds the text and the items."""
    folder = tmp_path_factory.mktemp("finished")
    items = test_hellaswag.write_items(folder)
    return train(tiny.config(folder, hellaswag=str(items), hellaswag_items=20)).run.folder


def test_the_loss_and_the_scores(finished: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    text, items = str(finished.parent / "text.txt"), str(finished.parent / "hellaswag_val.jsonl")
    flags = ["--data", text, "--val-tokens", "640", "--hellaswag", items, "--json", str(tmp_path / "out.json")]
    assert main(["eval", str(finished), *flags]) == 0
    out, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    model, tokenizer, _ = load_model(str(finished))
    loss = validation_loss(model, load_dataset(text, tokenizer, 0.1, 16).val_batches(8, 16, 640))
    assert found["validation"]["loss"] == pytest.approx(loss, rel=1e-6) and found["validation"]["tokens"] == 640
    # One byte is one token here.
    assert found["validation"]["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-6)
    scores = evaluate_hellaswag(model, tokenizer, items)
    assert (found["hellaswag"]["acc"], found["hellaswag"]["acc_norm"]) == (scores.acc, scores.acc_norm)
    assert f"validation loss  {loss:.4f}" in out and f"acc_norm {scores.acc_norm:.4f}" in out
    assert "completion style" in out and "0.2955 (acc 0.2859)  OpenAI's GPT-2 124M" in out
    assert "3.4250" not in out, "losses of other tokens than GPT-2's do not compare"


def test_known_losses_stand_beside_those_of_gpt2s_vocabulary(
    finished: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    GPT2(GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=1)).save_pretrained(tmp_path / "model")
    text = str(finished.parent / "text.txt")
    assert main(["eval", str(tmp_path / "model"), "--data", text, "--val-tokens", "64"]) == 0
    out = capsys.readouterr().out
    for value in known.LOSSES:
        assert f"{value.loss:.4f}  {value.model}" in out and value.dataset in out


def test_a_run_evaluates_hellaswag(finished: Path) -> None:
    rows = [row for row in tiny.metrics(finished) if "hellaswag_acc" in row]
    assert [row["step"] for row in rows] == [4, 8]
    model, tokenizer, _ = load_model(str(finished / "checkpoints" / "step_000008"))
    scores = evaluate_hellaswag(model, tokenizer, str(finished.parent / "hellaswag_val.jsonl"), 20)
    assert rows[1] == {
        "step": 8, "hellaswag_acc": scores.acc, "hellaswag_acc_norm": scores.acc_norm, "hellaswag_items": 20,
    }  # fmt: skip


def test_a_run_without_its_items_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the HellaSwag items no.jsonl"):
        train(tiny.config(tmp_path, hellaswag="no.jsonl"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to measure: give --data, --conversations, --hellaswag or --tasks"),
        (["--hellaswag", "no.jsonl"], "cannot read the HellaSwag items no.jsonl"),
        (["--hellaswag", "x", "--items", "0"], "--items is 0, expected at least 1"),
        (["--data", "embedded", "--context", "99"], "--context is 99, expected at most 16, the model's"),
        (["--data", "no.txt"], "cannot read the data no.txt"),
    ],
)
def test_mistakes(finished: Path, capsys: pytest.CaptureFixture, flags: list[str], words: str) -> None:
    assert main(["eval", str(finished), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_lm_eval_that_is_missing(
    finished: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", str(finished), "--tasks", "lambada_openai"]) == 2
    assert capsys.readouterr().err == 'error: --tasks needs the package lm_eval: pip install "gpt2c[eval]"\n'
