"""GGUF: read back by the format's own package, and run by llama.cpp where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.formats import gguf as ours
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer, get_tokenizer
from gpt2c.tokenizer.learn import learn

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

TEXTS = ["The sun was warm, and it's 2019.", "naïve café 日本語\n\n x", "  two  spaces"]


def make_tokenizer(name: str) -> Tokenizer:
    return learn(TEXTS * 3, 320, "own") if name == "own" else get_tokenizer(name)


def make_model(tokenizer: Tokenizer, n_embd: int = 64) -> GPT2:
    torch.manual_seed(0)
    sizes = GPT2Config(tokenizer.vocab_size, n_positions=64, n_embd=n_embd, n_layer=2, n_head=2)
    model = GPT2(sizes).eval()
    model.wte.weight.data[: tokenizer.vocab_size].mul_(8)  # so that the likeliest token is far ahead
    for p in model.parameters():
        if p.ndim == 1:
            p.data.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("dtype", ours.DTYPES)
def test_every_tensor_is_read_back(tmp_path: Path, dtype: str) -> None:
    tokenizer = make_tokenizer("bytes")
    model = make_model(tokenizer)
    ours.export(model, tokenizer, tmp_path / "m.gguf", dtype)
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    weights = {name: p.detach() for name, p in model.named_parameters()}
    expected = {"token_embd.weight": weights["wte.weight"][:257], "position_embd.weight": weights["wpe.weight"]}
    for i in range(2):
        for name, theirs in (
            ("ln_1", "attn_norm"), ("attn.c_attn", "attn_qkv"), ("attn.c_proj", "attn_output"), ("ln_2", "ffn_norm"),
            ("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down"),
        ):  # fmt: skip
            for kind in ("weight", "bias"):
                expected[f"blk.{i}.{theirs}.{kind}"] = weights[f"h.{i}.{name}.{kind}"].t()
    expected |= {"output_norm.weight": weights["ln_f.weight"], "output_norm.bias": weights["ln_f.bias"]}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor = tensor.t() if "_embd" in name else tensor  # undone: those are not transposed
        exact = (tensor.t() if "_embd" in name else tensor).numpy()
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(exact.shape)
        narrow = exact.ndim == 2 and name != "position_embd.weight"
        if dtype == "fp32" or not narrow:
            assert np.array_equal(values, exact), name
        elif dtype == "fp16":
            assert np.array_equal(values, exact.astype("float16").astype("float32")), name
        else:  # a step is 1/127 of the largest of 32, which is itself rounded to fp16
            largest = np.abs(exact.reshape(-1, 32)).max(1)
            assert (np.abs(values - exact).reshape(-1, 32).max(1) <= largest * (0.5 / 127 + 1e-3)).all(), name


@pytest.mark.parametrize("name", ["gpt2", "bytes", "own"])
def test_settings_and_vocabulary(tmp_path: Path, name: str) -> None:
    tokenizer = make_tokenizer(name)
    ours.export(make_model(tokenizer), tokenizer, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    value = {key: field.contents() for key, field in fields.items()}
    assert value["general.architecture"] == "gpt2" and value["tokenizer.ggml.model"] == "gpt2"
    assert [value[f"gpt2.{key}"] for key in ("context_length", "embedding_length", "block_count")] == [64, 64, 2]
    assert value["gpt2.attention.head_count"] == 2 and value["gpt2.feed_forward_length"] == 256
    assert value["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert len(value["tokenizer.ggml.tokens"]) == len(value["tokenizer.ggml.token_type"]) == tokenizer.vocab_size
    assert value["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert len(value.get("tokenizer.ggml.merges", [])) == tokenizer.vocab_size - 257
    if name == "gpt2":
        assert value["tokenizer.ggml.merges"][:3] == ["Ġ t", "Ġ a", "h e"], "as in the published vocab.bpe"


@pytest.mark.parametrize("dtype", ours.DTYPES)
def test_llama_cpp_writes_the_same_text(tmp_path: Path, dtype: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = get_tokenizer("gpt2")
    model = make_model(tokenizer)
    ours.export(model, tokenizer, tmp_path / "m.gguf", dtype)
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, verbose=False)
    try:
        for text in TEXTS:
            assert llama.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).tolist()
        ids = tokenizer.encode(TEXTS[0]).tolist()
        expected = model.generate(torch.tensor([ids]), 20, temperature=0)[0].tolist()[len(ids) :]
        written = []
        for token in llama.generate(ids, temp=0.0):
            written.append(token)
            if len(written) == 20:
                break
        assert written == expected
    finally:
        llama.close()


def test_a_width_that_q8_cannot_have(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytes")
    with pytest.raises(UserError, match="the model is 40 wide, expected a multiple of 32 for q8_0"):
        ours.export(make_model(tokenizer, 40), tokenizer, tmp_path / "m.gguf", "q8_0")
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    tokenizer = make_tokenizer("bytes")
    with pytest.raises(UserError, match=r'GGUF needs the package gguf: pip install "gpt2c\[export\]"'):
        ours.export(make_model(tokenizer), tokenizer, tmp_path / "m.gguf")
