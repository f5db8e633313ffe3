"""Hugging Face folders: transformers loads ours and writes the same text, and we load theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.formats import hf
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer, get_tokenizer
from gpt2c.tokenizer.learn import learn
from gpt2c.train import train

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

TEXTS = ["The sun was warm, and it's 2019.", "naïve café 日本語 😀\r\n\t x", "  two  spaces\n\n\nlines "]
PROMPT = "The sun was"


def make_tokenizer(name: str) -> Tokenizer:
    return learn(TEXTS * 3, 320, "own") if name == "own" else get_tokenizer(name)


def make_model(tokenizer: Tokenizer) -> GPT2:
    torch.manual_seed(2)
    model = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    model.wte.weight.data[: tokenizer.vocab_size].mul_(20)
    return model


def greedy(model: GPT2, tokenizer: Tokenizer, tokens: int = 20) -> list[int]:
    prompt = torch.from_numpy(tokenizer.encode(PROMPT).astype(np.int64))[None]
    return model.generate(prompt, tokens, temperature=0)[0].tolist()


def their_greedy(model: object, tokenizer: object, tokens: int = 20) -> list[int]:
    inputs = tokenizer(PROMPT, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)[
        0
    ].tolist()


@pytest.mark.parametrize("name", ["gpt2", "bytes", "own"])
def test_transformers_loads_the_folder_and_writes_the_same(tmp_path: Path, name: str) -> None:
    tokenizer = make_tokenizer(name)
    model = make_model(tokenizer)
    hf.export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert their_tokenizer.decode(their_tokenizer(text)["input_ids"]) == text
    assert their_tokenizer.eos_token_id == theirs.config.eos_token_id == tokenizer.end_of_text
    assert their_greedy(theirs, their_tokenizer) == greedy(model, tokenizer)
    ours, found, _ = load_model(str(tmp_path / "out"))
    assert [found.encode(text).tolist() for text in TEXTS] == [tokenizer.encode(text).tolist() for text in TEXTS]
    assert found.name == (name if name != "own" else str(tmp_path / "out"))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_transformers_writes_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """In several files, too, and back again."""
    torch.manual_seed(4)
    config = transformers.GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).to(dtype).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    with pytest.warns(UserWarning, match="the tokenizer bytes is assumed"):
        ours, tokenizer = hf.load(str(tmp_path / "theirs"))
    idx = torch.arange(40).view(2, 20)
    with torch.no_grad():
        expected = theirs.float()(idx).logits
        torch.testing.assert_close(ours.float()(idx)[0], expected, rtol=1e-4, atol=1e-4)
    hf.export(ours, tokenizer, tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(again.float()(idx).logits, expected, rtol=0, atol=0)


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_tokenizer", full)
    tokenizer = make_tokenizer("bytes")
    with pytest.raises(UserError, match="No space left on device"):
        hf.export(make_model(tokenizer), tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    """Its checkpoints hold the tokenizer: they are sampled from, resumed and started from wherever they are."""
    text = tiny.write_text(tmp_path).read_text()
    from gpt2c.tokenizer import save_tokenizer

    save_tokenizer(learn([text], 300, "own"), tmp_path / "own")
    config = tiny.config(tmp_path, tokenizer=str(tmp_path / "own"))
    last = train(config).checkpoint
    (tmp_path / "own").rename(tmp_path / "moved")
    _, found, _ = load_model(str(tmp_path / "run"))
    assert found.vocab_size == 300 and len(found.encode(text)) < len(text)
    assert train(tiny.config(tmp_path, tokenizer=str(tmp_path / "own"), steps=10), resume=True).step == 10
    tuned = train(tiny.config(tmp_path, init=str(last), out=tmp_path / "tuned"))
    assert load_model(str(tuned.checkpoint))[1].vocab_size == 300
