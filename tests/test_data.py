"""Data: what may be read, how it is split and cut, and one sentence for everything that is wrong with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2c.data import Tokens, load_dataset, tokens
from gpt2c.data.shards import header
from gpt2c.errors import UserError
from gpt2c.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
CONTEXT = 8


def load(data: object, tokenizer: str = "bytes", val_fraction: float = 0.1, context: int = CONTEXT):
    return load_dataset(str(data), get_tokenizer(tokenizer), val_fraction, context)


def all_ids(tokens: Tokens) -> list[int]:
    return tokens.window(0, len(tokens)).tolist()


# Reading


def test_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("line\r\nzwölf\n".encode() * 40)
    assert all_ids(load(tmp_path / "a.txt").tokens) == list("line\r\nzwölf\n".encode() * 40)


def test_a_folder_in_sorted_order_with_end_of_text_between(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b" * 100)
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "sub" / "c.md").write_text("c" * 100)
    (tmp_path / ".hidden").write_bytes(b"\xff")
    ids = all_ids(load(tmp_path).tokens)
    assert ids == [97] * 100 + [256] + [98] * 100 + [256] + [99] * 100


def test_the_embedded_text_is_english() -> None:
    dataset = load("embedded")
    text = BYTES.decode_bytes(dataset.tokens.window(0, len(dataset.tokens))).decode()
    assert len(text) > 300_000
    assert text.count(" the ") > 1000
    assert text.count("<|endoftext|>") > 50


def test_windows_across_pieces_equal_slices_of_the_whole() -> None:
    whole = np.arange(1000)
    tokens = Tokens([whole[:0], whole[:1], whole[1:10], whole[10:10], whole[10:700], whole[700:]])
    assert len(tokens) == 1000
    for start in (0, 1, 5, 9, 10, 690, 699, 700, 990):
        for length in (1, 2, 9, 10):
            assert tokens.window(start, length).tolist() == whole[start : start + length].tolist()
    assert tokens.window(0, 999).tolist() == whole[:999].tolist()


def test_the_fingerprint_sees_one_changed_token_and_not_the_pieces() -> None:
    ids = np.arange(100, dtype=np.uint16)
    changed = ids.copy()
    changed[50] += 1
    assert Tokens([ids]).fingerprint() == Tokens([ids[:30], ids[30:]]).fingerprint()
    assert Tokens([ids]).fingerprint() != Tokens([changed]).fingerprint()
    assert Tokens([ids]).fingerprint()["tokens"] == 100


def test_the_fingerprint_names_what_was_prepared(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 200)
    plain = load(tmp_path / "a.txt")
    prepared = dataclasses.replace(plain, manifest="0123abcd")
    assert "manifest" not in plain.fingerprint()
    assert prepared.fingerprint() == {**plain.fingerprint(), "manifest": "0123abcd"}


def test_the_fingerprint_of_much_data_samples_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "WHOLE", 1000)
    monkeypatch.setattr(tokens, "BLOCK", 10)
    monkeypatch.setattr(tokens, "BLOCKS", 20)
    ids = np.zeros(10_000, dtype=np.uint16)
    prints = [Tokens([ids]).fingerprint()]
    for begin in range(0, 10_000, 1000):  # every thousand holds a sampled block
        changed = ids.copy()
        changed[begin : begin + 1000] = begin + 1
        prints.append(Tokens([changed]).fingerprint())
    for place in (0, -1):
        changed = ids.copy()
        changed[place] = 1
        prints.append(Tokens([changed]).fingerprint())
    assert len({value["crc32"] for value in prints}) == 13
    assert Tokens([ids, ids[:1]]).fingerprint() != prints[0]


# Splitting


@pytest.fixture
def counting(tmp_path: Path):
    """1000 tokens, each its own position, so that a batch tells where it comes from."""
    (tmp_path / "count.bin").write_bytes(header(1000) + np.arange(1000, dtype="<u2").tobytes())
    return load(tmp_path / "count.bin", "gpt2", val_fraction=0.2)


def test_train_batches(counting) -> None:
    for step in range(1, 40):
        x, y = counting.train_batch(seed=1, step=step, micro_step=0, micro_steps=1, batch=4, context=CONTEXT)
        assert x.shape == y.shape == (4, CONTEXT) and x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1) and torch.equal(x - x[:, :1], torch.arange(CONTEXT).expand(4, -1))
        assert y.max() < 800


def test_validation_is_the_tail_in_consecutive_windows(counting) -> None:
    batches = list(counting.val_batches(batch=5, context=CONTEXT, max_tokens=1000))
    x = torch.cat([x for x, _ in batches])
    assert x.flatten().tolist() == list(range(800, 800 + 24 * CONTEXT))  # 199 inputs with a target: 24 whole windows
    assert all(torch.equal(y, x + 1) for x, y in batches)
    assert [len(x) for x, _ in batches] == [5, 5, 5, 5, 4]


@pytest.mark.parametrize(("max_tokens", "windows"), [(1, 1), (CONTEXT, 1), (3 * CONTEXT + 7, 3), (10**9, 24)])
def test_a_limited_validation_takes_the_first_tokens(counting, max_tokens: int, windows: int) -> None:
    x = torch.cat([x for x, _ in counting.val_batches(2, CONTEXT, max_tokens)])
    assert x.flatten().tolist() == list(range(800, 800 + windows * CONTEXT))


def test_processes_share_the_validation(counting) -> None:
    alone = [x.tolist() for x, _ in counting.val_batches(5, CONTEXT, 10**6)]
    shares = [[x.tolist() for x, _ in counting.val_batches(5, CONTEXT, 10**6, rank, 2)] for rank in (0, 1)]
    assert shares == [alone[0::2], alone[1::2]]


# What can be wrong


def refusal(*args: object, **kwargs: object) -> str:
    with pytest.raises(UserError) as error:
        load(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.txt") == f"cannot read the data {tmp_path / 'no.txt'}: No such file or directory"


@pytest.mark.parametrize("name", ["empty.txt", "folder"])
def test_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path / name} is" in refusal(tmp_path / name)
    assert "empty" in refusal(tmp_path / name)


def test_too_short_says_found_and_needed(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("x" * 88)
    message = refusal(tmp_path / "s.txt")
    assert "88 tokens" in message and "8 for the validation split" in message and "at least 9" in message
    (tmp_path / "s.txt").write_text("x" * 90)
    dataset = load(tmp_path / "s.txt")
    assert len(list(dataset.val_batches(4, CONTEXT, 5))) == 1
    dataset.train_batch(0, 1, 0, 1, 4, CONTEXT)


def test_the_shortest_training_split(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("x" * 18)
    load(tmp_path / "s.txt", val_fraction=0.5).train_batch(0, 1, 0, 1, 4, CONTEXT)
    assert "8 for the training split" in refusal(tmp_path / "s.txt", val_fraction=0.56)


def test_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes("é".encode() + b"abc\xff")
    assert f"{tmp_path / 'b.txt'} is not UTF-8 text: byte 5 is 0xff" in refusal(tmp_path)


def test_a_mixed_folder(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(header(0))
    (tmp_path / "b.txt").write_text("text")
    assert "mixes token shards (a.bin) and text (b.txt)" in refusal(tmp_path)
