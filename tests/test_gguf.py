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


def make_model(tokenizer: Tokenizer, n_embd: int = 64, n_positions: int = 64) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.vocab_size, n_positions, n_embd=n_embd, n_layer=2, n_head=2)).eval()
    for name, p in model.named_parameters():  # so that each of them matters to the logits
        if p.ndim == 1:
            p.data.add_(torch.randn_like(p) * 0.1)
        elif name != "wte.weight":
            p.data.mul_(5)
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
                tensor = weights[f"h.{i}.{name}.{kind}"]
                expected[f"blk.{i}.{theirs}.{kind}"] = tensor.t() if tensor.ndim == 2 else tensor
    expected |= {"output_norm.weight": weights["ln_f.weight"], "output_norm.bias": weights["ln_f.bias"]}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        exact = tensor.numpy()
        assert tuple(found[name].shape[::-1]) == exact.shape, name  # the file names the fastest axis first
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
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
    assert len(set(value["tokenizer.ggml.tokens"])) == len(value["tokenizer.ggml.token_type"]) == tokenizer.vocab_size
    assert value["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert value["tokenizer.ggml.tokens"][-1] == "<|endoftext|>"
    if name == "bytes":  # llama.cpp wants a merge, so there is one that no text can call for
        assert value["tokenizer.ggml.merges"] == ["<|endoftext|> <|endoftext|>"]
    else:
        assert len(value["tokenizer.ggml.merges"]) == tokenizer.vocab_size - 257
    if name == "gpt2":
        assert value["tokenizer.ggml.merges"][:3] == ["Ġ t", "Ġ a", "h e"], "as in the published vocab.bpe"


def test_transformers_reads_the_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    tokenizer = make_tokenizer("own")
    model = make_model(tokenizer, n_positions=1024)  # the only number of positions that it takes from such a file
    ours.export(model, tokenizer, tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    idx = torch.randint(0, tokenizer.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, model(idx)[0], rtol=1e-4, atol=1e-5)
    for text in TEXTS:
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text).tolist()


# Of the largest logit: llama.cpp takes gelu from a table of fp16; with fp16 and q8_0 it rounds activations, too.
LLAMA_CPP_IS_WITHIN = {"fp32": 1e-3, "fp16": 2e-3, "q8_0": 5e-2}


@pytest.mark.parametrize("dtype", ours.DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "bytes", "own"])
def test_llama_cpp_computes_the_same(tmp_path: Path, name: str, dtype: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = make_tokenizer(name)
    model = make_model(tokenizer)
    ours.export(model, tokenizer, tmp_path / "m.gguf", dtype)
    exact_cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    llama = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, n_batch=64, logits_all=True, verbose=False, **exact_cache
    )
    try:
        for text in TEXTS:
            assert llama.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).tolist()
        assert llama.token_eos() == tokenizer.end_of_text
        idx = torch.randint(0, tokenizer.end_of_text, (1, 40))
        llama.eval(idx[0].tolist())
        with torch.no_grad():
            exact = model(idx)[0][0]
        atol = LLAMA_CPP_IS_WITHIN[dtype] * float(exact.abs().max())
        torch.testing.assert_close(torch.from_numpy(llama.scores[:40]), exact, rtol=0, atol=atol)
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
