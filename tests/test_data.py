"""Data: what may be read, how it is split and cut, and one sentence for everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2c.data import Tokens, load_dataset
from gpt2c.errors import UserError
from gpt2c.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
CONTEXT = 8


def load(data: object, tokenizer: str = "bytes", val_fraction: float = 0.1, context: int = CONTEXT):
    return load_dataset(str(data), get_tokenizer(tokenizer), val_fraction, context)


def all_ids(tokens: Tokens) -> list[int]:
    return tokens.window(0, len(tokens)).tolist()


def write_shard(path: Path, ids: object, magic: int = 20240520, version: int = 1, count: int | None = None) -> Path:
    ids = np.asarray(ids, dtype="<u2")
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.tobytes())
    return path


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


def test_shards_as_llm_c_writes_them(tmp_path: Path) -> None:
    first, second = np.arange(100), np.arange(50256, 50200, -1)
    write_shard(tmp_path / "x_000001.bin", first)
    write_shard(tmp_path / "x_000002.bin", second)
    write_shard(tmp_path / "x_000003.bin", [])
    assert all_ids(load(tmp_path, "gpt2").tokens) == first.tolist() + second.tolist()
    assert all_ids(load(tmp_path / "x_000001.bin", "gpt2").tokens) == first.tolist()


def test_windows_across_pieces_equal_slices_of_the_whole() -> None:
    whole = np.arange(1000)
    tokens = Tokens([whole[:0], whole[:1], whole[1:10], whole[10:10], whole[10:700], whole[700:]])
    assert len(tokens) == 1000
    for start in (0, 1, 5, 9, 10, 690, 699, 700, 990):
        for length in (1, 2, 9, 10):
            assert tokens.window(start, length).tolist() == whole[start : start + length].tolist()


def test_the_fingerprint_sees_one_changed_token_and_not_the_pieces() -> None:
    ids = np.arange(100, dtype=np.uint16)
    changed = ids.copy()
    changed[50] += 1
    assert Tokens([ids]).fingerprint() == Tokens([ids[:30], ids[30:]]).fingerprint()
    assert Tokens([ids]).fingerprint() != Tokens([changed]).fingerprint()
    assert Tokens([ids]).fingerprint()["tokens"] == 100


# Splitting and sampling


@pytest.fixture
def counting(tmp_path: Path):
    """1000 tokens, each its own position, so that a batch tells where it comes from."""
    return load(write_shard(tmp_path / "count.bin", np.arange(1000)), "gpt2", val_fraction=0.2)


def test_train_batches(counting) -> None:
    starts = set()
    for step in range(300):
        x, y = counting.train_batch(seed=1, step=step, micro_step=0, micro_steps=1, batch=4, context=CONTEXT)
        assert x.shape == y.shape == (4, CONTEXT) and x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1) and torch.equal(x - x[:, :1], torch.arange(CONTEXT).expand(4, -1))
        assert y.max() < 800
        starts.update(x[:, 0].tolist())
    assert {0, 800 - CONTEXT - 1} <= starts, "the first and the last window of the training split must both come"


def test_batches_are_a_function_of_seed_and_step(counting) -> None:
    def draw(seed: int, step: int) -> list[int]:
        return counting.train_batch(seed, step, 0, 1, 8, CONTEXT)[0][:, 0].tolist()

    assert draw(1, 7) == draw(1, 7)
    assert len({tuple(draw(seed, step)) for seed in (0, 1, 2) for step in range(20)}) == 60
    assert draw(42, 3) == [453, 428, 147, 162, 312, 282, 594, 202], (
        "the order of the data changed: runs begun with an older version would not resume bit for bit"
    )


def test_micro_steps_see_the_windows_of_the_large_batch(counting) -> None:
    large = counting.train_batch(5, 9, 0, 1, 12, CONTEXT)[0]
    small = [counting.train_batch(5, 9, i, 3, 4, CONTEXT)[0] for i in range(3)]
    assert torch.equal(torch.cat(small), large)


def test_validation_covers_the_tail_once_in_order(counting) -> None:
    batches = list(counting.val_batches(batch=4, context=CONTEXT, max_batches=100))
    x = torch.cat([x for x, _ in batches])
    assert x.flatten().tolist() == list(range(800, 800 + 24 * CONTEXT))  # 199 inputs with a target: 24 whole windows
    assert all(torch.equal(y, x + 1) for x, y in batches)
    assert [len(x) for x, _ in batches] == [4] * 6


def test_a_limited_validation_is_spread_over_the_tail(counting) -> None:
    batches = list(counting.val_batches(batch=2, context=CONTEXT, max_batches=3))
    starts = torch.cat([x[:, 0] for x, _ in batches])
    assert starts.tolist() == [800 + CONTEXT * k for k in (0, 4, 8, 12, 16, 20)]


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
    dataset.train_batch(0, 0, 0, 1, 4, CONTEXT)


def test_the_shortest_training_split(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("x" * 18)
    load(tmp_path / "s.txt", val_fraction=0.5).train_batch(0, 0, 0, 1, 4, CONTEXT)
    assert "8 for the training split" in refusal(tmp_path / "s.txt", val_fraction=0.56)


def test_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes("é".encode() + b"abc\xff")
    assert f"{tmp_path / 'b.txt'} is not UTF-8 text: byte 5 is 0xff" in refusal(tmp_path)


def test_a_mixed_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [1])
    (tmp_path / "b.txt").write_text("text")
    assert "mixes token shards (a.bin) and text (b.txt)" in refusal(tmp_path)


def test_foreign_shards(tmp_path: Path) -> None:
    shard = tmp_path / "s.bin"
    write_shard(shard, range(100), magic=20240801)
    assert "expected the magic number 20240520 at its start, found 20240801" in refusal(shard, "gpt2")
    write_shard(shard, range(100), version=7)
    assert "version 7: expected version 1" in refusal(shard, "gpt2")
    for contents in (b"", b"ab", b"x" * 11):
        shard.write_bytes(contents)
        assert "is not a token shard" in refusal(shard, "gpt2")


@pytest.mark.parametrize("count", [99, 101, -1])
def test_truncated_shards(tmp_path: Path, count: int) -> None:
    shard = write_shard(tmp_path / "s.bin", range(100), count=count)
    message = refusal(shard, "gpt2")
    assert f"announces {count} tokens, {1024 + 2 * count} bytes in all, found 1224 bytes" in message


def test_a_shard_cut_inside_its_header(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.bin", range(100))
    shard.write_bytes(shard.read_bytes()[:500])
    assert "truncated" in refusal(shard, "gpt2")


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.bin", [*range(100), 300])
    message = refusal(shard, "bytes")
    assert "token 100 is 300, outside the model's vocabulary of 257" in message and "--tokenizer gpt2" in message
