"""Fine-tuning on conversations: the vocabulary, what learns, runs that are resumed, and a model that answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import talks
import tiny
import torch
from talks import talk

from gpt2c import checkpoint, lora
from gpt2c.chat.reply import Reply
from gpt2c.chat.settings import SftConfig
from gpt2c.chat.template import TOKENS, chat_tokenizer, load_template, template_of
from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.evaluation.conversations import exact_replies
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.tokenizer import get_tokenizer, save_tokenizer
from gpt2c.tokenizer.learn import learn
from gpt2c.train import Result, train
from gpt2c.vocabulary import grow

SIZES = GPT2Config(vocab_size=62, n_positions=32, n_embd=16, n_layer=2, n_head=2)
IDX = torch.arange(60).view(3, 20)
EVERYTHING: dict[str, Any] = {}
SHARES = [EVERYTHING, {"freeze_layers": 1}, {"lora_rank": 2}, {"lora_rank": 2, "freeze_layers": 1}]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Result:
    torch.set_num_threads(1)
    return train(talks.config(folder))


# The vocabulary


def test_the_vocabulary_grows_and_the_rest_stays() -> None:
    torch.manual_seed(0)
    model = GPT2(SIZES)
    with torch.no_grad():
        model.wte.weight[: SIZES.vocab_size] += 1.0  # a mean that is not zero
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(IDX)[0]
    grow(model, 67, seed=5)
    assert model.config == dataclasses.replace(SIZES, vocab_size=67) and model.wte.weight.shape == (128, 16)
    torch.testing.assert_close(model(IDX)[0][..., :62], logits, rtol=1e-6, atol=1e-7)
    for name, p in before.items():
        now = model.get_parameter(name)
        assert torch.equal(now[:62], p[:62]) if name == "wte.weight" else torch.equal(now, p)
    rows, new = before["wte.weight"][:62], model.wte.weight[62:67]
    assert (new - rows.mean(0)).abs().max() < rows.std(0).max() and not model.wte.weight[67:].any()
    assert len({tuple(row.tolist()) for row in new}) == 5
    again = GPT2(SIZES)
    again.load_state_dict(before)
    grow(again, 67, seed=5)
    assert torch.equal(again.wte.weight, model.wte.weight)


def test_rows_alone_get_the_gradients_that_they_have_of_all() -> None:
    torch.manual_seed(0)
    whole, part = GPT2(SIZES), GPT2(SIZES)
    part.load_state_dict(whole.state_dict())
    lora.freeze(part, 1)
    lora.learn_rows(part, 58)
    for model in (whole, part):
        model(IDX[:, :-1], IDX[:, 1:])[1].backward()
    assert torch.equal(part.wte.rows.grad, whole.wte.weight.grad[58:62]) and part.wte.base_weight.grad is None
    with torch.no_grad():
        part.wte.rows += 1
    same = lora.merged(part)
    assert type(same.wte.weight) is torch.nn.Parameter and torch.equal(same(IDX)[0], part(IDX)[0])
    assert torch.equal(same.wte.weight[:58], whole.wte.weight[:58])
    assert torch.equal(same.wte.weight[58:62], whole.wte.weight[58:62] + 1) and not same.wte.weight[62:].any()


# Runs


@pytest.mark.parametrize("changes", SHARES)
def test_a_run_learns_stops_and_resumes_bit_for_bit(tmp_path: Path, changes: dict[str, int]) -> None:
    settings = {"dropout": 0.1, "accumulation": 2, "keep": 9, **changes}
    whole = train(talks.config(tmp_path, **settings))
    losses = [row["val_loss"] for row in tiny.metrics(whole.run.folder) if "val_loss" in row]
    assert losses[-1] < losses[0] < 6.0
    model, first = load_model(str(whole.checkpoint))[0], load_model(str(tmp_path / "base"))[0]
    assert model.config.vocab_size == 261 and (model.wte.weight[257:261] != first.wte.weight.mean(0)).all()
    same = [name for name, p in first.named_parameters() if torch.equal(p[:257], model.get_parameter(name)[:257])]
    assert ("wte.weight" in same) is bool(changes) and any(name.startswith("h.0.") for name in same) is bool(changes)
    assert not any(name.startswith("h.1.mlp.c_fc.w") for name in same)
    grown = load_model(str(tmp_path / "base"))[0]
    grow(grown, 261, talks.config(tmp_path).seed)
    assert not (model.wte.weight[257:261] == grown.wte.weight[257:261]).all(1).any(), "the new rows learn in any case"

    parts = tiny.stopped_after(whole.run.folder, 4, tmp_path / "parts")
    resumed = train(talks.config(tmp_path, out=parts, **settings), resume=True)
    assert tiny.state(resumed.checkpoint) == tiny.state(whole.checkpoint)
    assert tiny.metrics(parts) == tiny.metrics(whole.run.folder)


def test_a_checkpoint_is_a_model_that_chats(finished: Result, folder: Path) -> None:
    template = load_template(finished.checkpoint)
    assert template.end == 260 and finished.sample.startswith(f"user: {talks.echoes()[36][0]['content']}\nassistant: ")
    model, tokenizer, _ = load_model(str(finished.run.folder))
    assert tokenizer.base.name == "bytes" and tokenizer.vocab_size == model.config.vocab_size
    record = json.loads((finished.run.folder / "run.json").read_text())
    assert record["command"] == "sft" and record["settings"]["context"] == 32
    assert checkpoint.read_record(finished.checkpoint).tokenizer == "bytes and 4 added tokens"


def test_fine_tuning_goes_on_from_a_model_that_chats(finished: Result, folder: Path) -> None:
    again = train(talks.config(folder, init=str(finished.checkpoint), out=folder / "again", steps=2, lora_rank=2))
    model, tokenizer, _ = load_model(str(again.checkpoint))
    assert tokenizer.added == TOKENS and model.config.vocab_size == 261
    text = tiny.config(folder, init=str(finished.checkpoint), out=folder / "text", steps=2)
    assert load_template(train(text).checkpoint).end == 260, "training on text keeps the tokens"


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    own = learn(["Say 123, say 456. "] * 5, 270, "own")
    torch.manual_seed(0)
    GPT2(GPT2Config(own.vocab_size, 32, 16, 1, 1)).save_pretrained(tmp_path / "start")
    save_tokenizer(own, tmp_path / "start")
    result = train(talks.config(tmp_path, init=str(tmp_path / "start"), steps=2))
    _, tokenizer, _ = load_model(str(result.checkpoint))
    assert tokenizer.vocab_size == own.vocab_size + 4
    assert tokenizer.encode("Say 123").tolist() == own.encode("Say 123").tolist()


# The command


def output(capsys: pytest.CaptureFixture, *args: str) -> str:
    assert main(args) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture, *args: str) -> str:
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def flags(config: SftConfig) -> list[str]:
    names = ("data", "init", "out", "steps", "batch_size", "eval_every", "sample_every", "sample_tokens", "device")
    return [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in names]


def test_the_command_trains_and_resumes(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    args = ["sft", *flags(talks.config(tmp_path, steps=2)), "--accumulation=1"]
    out = output(capsys, *args)
    assert "from 36 conversations in " in out and "What the model writes after 2 steps:\n\nuser: Say" in out
    assert f"talk to it: gpt2c chat {tmp_path / 'run'}" in out
    assert "after 3 steps" in output(capsys, "sft", f"--out={tmp_path / 'run'}", "--resume", "--steps=3")
    assert "was started with --dropout 0.1, found 0.0" in error(
        capsys, "sft", f"--out={tmp_path / 'run'}", "--resume", "--dropout=0.0", "--steps=4"
    )
    assert "is a run of gpt2c sft, found gpt2c train: go on with the former" in error(
        capsys, "train", f"--out={tmp_path / 'run'}", "--resume"
    )
    (tmp_path / "talks.jsonl").write_text((tmp_path / "talks.jsonl").read_text().replace("Say 1", "Say 2"))
    assert "that are not the same" in error(capsys, "sft", f"--out={tmp_path / 'run'}", "--resume", "--steps=4")


def test_mistakes(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    config = talks.config(tmp_path)
    data, init, out = f"--data={config.data}", f"--init={config.init}", f"--out={tmp_path / 'run'}"
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for args, words in (
        ([data, out], "there is no model to fine-tune: give one to start from with --init"),
        ([init, out], "there is nothing to learn: give a file of conversations with --data"),
        ([init, data, out, "--context=33"], "--context is 33, expected at most 32"),
        ([init, data, out, "--context=-1"], "--context is -1, expected at least 0"),
        ([init, data, out, "--n-layer=3"], "--n-layer"),
        ([init, out, f"--data={tmp_path / 'bad.jsonl'}"], "bad.jsonl, line 1 is no conversation"),
        ([init, data, out, f"--val-data={tmp_path / 'bad.jsonl'}"], "bad.jsonl, line 1 is no conversation"),
        ([init, data, out, "--freeze-layers=3"], "--freeze-layers is 3, expected at most 2"),
        ([f"--init={tmp_path / 'none'}", data, out], "none does not exist"),
    ):
        assert words in error(capsys, "sft", *args)
    assert not (tmp_path / "run").exists()


def test_help_has_what_applies(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["sft", "--help"])
    text = capsys.readouterr().out
    own = {field.name for field in dataclasses.fields(SftConfig)}
    hidden = {"tokenizer", "n_layer", "n_head", "n_embd", "hellaswag", "hellaswag_items"}
    for name in own:
        assert (f"--{name.replace('_', '-')} " in text) is (name not in hidden), name
    assert own - {field.name for field in dataclasses.fields(TrainConfig)} == {"val_data"}


def test_the_recipe() -> None:
    recipe = load_recipe("sft", SftConfig)
    assert (recipe.batch_size * recipe.accumulation, recipe.lr, recipe.dropout) == (32, 6.25e-5, 0.1)
    assert recipe.context == 0 and recipe.warmup_steps < recipe.steps


# What comes of it


def test_exported_it_chats_in_transformers_as_here(
    capsys: pytest.CaptureFixture, finished: Result, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    output(capsys, "export", str(finished.run.folder), str(tmp_path / "out"))
    output(capsys, "import", str(tmp_path / "out"), str(tmp_path / "back"))
    model, tokenizer, folder = load_model(str(tmp_path / "back"))
    ours = load_model(str(finished.run.folder))[0]
    assert torch.equal(model.wte.weight, ours.wte.weight) and load_template(folder).end == 260
    prompt = template_of(tokenizer).prompt(talk("Say 123"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = theirs.apply_chat_template(
        talk("Say 123"), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert inputs["input_ids"][0].tolist() == prompt.tolist()
    generator = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found = generator.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found.tolist() == ours.generate(torch.from_numpy(prompt)[None], 8, temperature=0).tolist()


def test_it_is_sampled_from_and_evaluated(capsys: pytest.CaptureFixture, finished: Result, folder: Path) -> None:
    run = str(finished.run.folder)
    assert output(capsys, "sample", run, "--prompt=Say", "--max-new-tokens=5", "--seed=1").startswith("Say")
    data = str(tiny.write_text(folder))
    assert "nats a token" in output(capsys, "eval", run, f"--data={data}", "--val-tokens=200")


def test_a_tiny_model_learns_to_answer_what_it_has_not_seen(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Say 472 -> 472, of which it sees 900 numbers."""
    told = talks.write(tmp_path / "all.jsonl", talks.echoes())
    start = talks.base(tmp_path / "start", n_embd=64)
    settings = {"batch_size": 16, "steps": 160, "lr": 4e-3, "warmup_steps": 20, "weight_decay": 0.0, "sample_every": 0}
    result = train(talks.config(tmp_path, data=str(told), init=str(start), eval_every=160, **settings))
    held_out = talks.write(tmp_path / "held-out.jsonl", talks.echoes()[900:940])
    model, tokenizer, _ = load_model(str(result.checkpoint))
    untrained = load_model(str(start))[0]
    grow(untrained, tokenizer.vocab_size, seed=0)
    assert exact_replies(untrained, template_of(tokenizer), held_out, 5) == (0, 5)
    right, asked = exact_replies(model, template_of(tokenizer), held_out, 100)
    assert asked == 40 and right >= 38
    # By the command too, and a turn after turns.
    talks.write(held_out, [talk("Say 123", "123"), talk("Say 4", "5", "Say 1", "7"), talk("x" * 40, "y")])
    assert main(["eval", str(result.run.folder), f"--conversations={held_out}", f"--json={tmp_path / 'found'}"]) == 0
    assert "replies          0.2500: 1 of 4 in " in capsys.readouterr().out
    assert json.loads((tmp_path / "found").read_text())["conversations"]["exact"] == 0.25
    assert f"{start} has not learned to chat" in error(capsys, "eval", str(start), f"--conversations={held_out}")
    held_out.write_text("\n")
    assert "holds no conversation to ask for" in error(
        capsys, "eval", str(result.run.folder), f"--conversations={held_out}"
    )


def test_messages_that_fill_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT2(GPT2Config(261, 32, 16, 1, 1)).eval()
    template = template_of(chat_tokenizer(get_tokenizer("bytes")))
    monkeypatch.setattr(GPT2, "stream", lambda self, prompt, tokens, *_: iter([torch.tensor([97])] * tokens))
    reply = Reply(model, template, talk("a" * 29), 99)
    assert "".join(reply) == reply.text == "a" and not reply.is_whole
    with pytest.raises(ValueError, match="33 tokens of messages, expected at most 32"):
        Reply(model, template, talk("a" * 30), 1)
    with pytest.raises(UserError, match="expected 'user'"):
        Reply(model, template, talk("a", "b"), 1)
