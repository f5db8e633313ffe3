"""llm.c's checkpoints: bit for bit both ways, and as its own reader would read them."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.formats import llmc
from gpt2c.model import GPT2
from gpt2c.tokenizer import get_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:llm.c's format has no place for the tokenizer bytes")
SIZES = GPT2Config(vocab_size=257, n_positions=16, n_embd=24, n_layer=2, n_head=3)
IDX = torch.arange(20).view(2, 10)


@pytest.fixture
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(SIZES).eval()


@pytest.fixture
def file(model: GPT2, tmp_path: Path) -> Path:
    llmc.export(model, get_tokenizer("bytes"), tmp_path / "model.bin")
    return tmp_path / "model.bin"


def test_fp32_comes_back_bit_for_bit(model: GPT2, file: Path, tmp_path: Path) -> None:
    again = llmc.load(file)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    llmc.export(again, get_tokenizer("bytes"), tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == file.read_bytes()


def test_bf16_is_rounded_once(model: GPT2, tmp_path: Path) -> None:
    llmc.export(model, get_tokenizer("bytes"), tmp_path / "model.bin", "bf16")
    again = llmc.load(tmp_path / "model.bin")
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b.bfloat16())


def test_transformers_computes_the_same_with_what_llmc_would_read(model: GPT2, file: Path) -> None:
    """The file read by its documented layout alone, into transformers' model."""
    transformers = pytest.importorskip("transformers")
    header = np.fromfile(file, dtype="<i4", count=256)
    magic, version, positions, V, L, H, C, Vp = header[:8].tolist()
    assert (magic, version, Vp) == (20240326, 3, 384) and not header[8:].any()
    rest, at = np.fromfile(file, dtype="<f4", offset=1024), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return torch.from_numpy(rest[at - size : at].reshape(shape).copy())

    embedding = take(Vp, C)
    assert not embedding[V:].any()
    state = {"wte.weight": embedding[:V], "wpe.weight": take(positions, C)}
    shapes = {
        "ln_1.weight": (C,), "ln_1.bias": (C,), "attn.c_attn.weight": (3 * C, C), "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,), "ln_2.weight": (C,), "ln_2.bias": (C,),
        "mlp.c_fc.weight": (4 * C, C), "mlp.c_fc.bias": (4 * C,), "mlp.c_proj.weight": (C, 4 * C),
        "mlp.c_proj.bias": (C,),
    }  # fmt: skip
    for name, shape in shapes.items():
        for i, tensor in enumerate(take(L, *shape)):
            state[f"h.{i}.{name}"] = tensor.t() if tensor.ndim == 2 else tensor
    state |= {"ln_f.weight": take(C), "ln_f.bias": take(C)}
    assert at == len(rest)
    config = transformers.GPT2Config(vocab_size=V, n_positions=positions, n_embd=C, n_layer=L, n_head=H)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.transformer.load_state_dict(state)
    theirs.tie_weights()
    with torch.no_grad():
        torch.testing.assert_close(model(IDX)[0], theirs(IDX).logits, rtol=1e-4, atol=1e-5)


def test_gpt2s_vocabulary_is_padded_as_llmc_has_it(tmp_path: Path) -> None:
    llmc.export(GPT2(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=1)), get_tokenizer("gpt2"), tmp_path / "m")
    assert np.fromfile(tmp_path / "m", dtype="<i4", count=8)[7] == 50304


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, 1, "is not a checkpoint of llm.c: expected the magic number 20240326 at byte 0, found 1"),
        (1, 4, "is of version 4 at byte 4, expected 3"),
        (5, 7, "has a damaged header, bytes 8 to 31: n_embd is 24, expected a multiple of n_head"),
        (4, 3, "is truncated or damaged: its header announces"),
        (4, 2**31 - 1, r"its header announces \d{14,} bytes"),
        (7, 257, "has 257 padded rows at byte 28, expected 384"),
    ],
)
def test_damaged_headers(file: Path, at: int, value: int, words: str) -> None:
    contents = bytearray(file.read_bytes())
    contents[4 * at : 4 * at + 4] = value.to_bytes(4, "little")
    file.write_bytes(contents)
    with pytest.raises(UserError, match=words):
        llmc.load(file)


def test_truncated_empty_and_missing_files(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for contents, words in ((whole[:-1], "is truncated"), (whole[:500], "ends before byte 1024"), (b"", "ends before")):
        file.write_bytes(contents)
        with pytest.raises(UserError, match=words):
            llmc.load(file)
    with pytest.raises(UserError, match="cannot read the llm.c checkpoint"):
        llmc.load(tmp_path / "no.bin")


@pytest.mark.parametrize("epsilon", [1e-6, 1e-12, 1.1e-5])
def test_another_epsilon_is_refused(tmp_path: Path, epsilon: float) -> None:
    """llm.c's kernels and its format know 1e-5 alone."""
    model = GPT2(dataclasses.replace(SIZES, layer_norm_epsilon=epsilon))
    with pytest.raises(UserError, match=f"epsilon is {epsilon}, expected 1e-05: llm.c's format has no place"):
        llmc.export(model, get_tokenizer("bytes"), tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"ends": (198, 50256)}, "the ends of a text 198, 50256"),
        ({"chat_template": "{{ messages }}"}, "the chat template"),
        ({"ends": (50256,)}, ""),
    ],
)
def test_what_a_tokenizer_says_is_told(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    """GPT-2's vocabulary is what is taken for the file's; no more than that is in it."""
    tokenizer = get_tokenizer("gpt2").with_facts(**facts)
    model = GPT2(dataclasses.replace(SIZES, vocab_size=50257, n_embd=6, n_head=1, n_layer=1))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        llmc.export(model, tokenizer, tmp_path / "model.bin")
    assert [str(note.message) for note in notes] == [
        f"llm.c's format has no place for {words}, which {tmp_path / 'model.bin'} lacks" for _ in range(bool(words))
    ]


def test_what_has_no_place_is_told(tmp_path: Path) -> None:
    model = GPT2(dataclasses.replace(SIZES, dropout=0.1, layer_norm_epsilon=float(np.float32(1e-5))))
    with pytest.warns(UserWarning, match="for the dropout 0.1 and the tokenizer bytes, which .*model.bin lacks"):
        llmc.export(model, get_tokenizer("bytes"), tmp_path / "model.bin")
