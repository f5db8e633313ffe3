"""Token shards: both formats, the split that their names give, and everything foreign or damaged refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from gpt2c.data import Dataset, load_dataset, manifest, ranges
from gpt2c.data.prepare import Settings, prepare
from gpt2c.data.shards import open_shard
from gpt2c.errors import UserError
from gpt2c.tokenizer import get_tokenizer

CONTEXT = 8


def load(data: Path, tokenizer: str = "gpt2", val_fraction: float = 0.2) -> Dataset:
    return load_dataset(str(data), get_tokenizer(tokenizer), val_fraction, CONTEXT)


def all_ids(dataset: Dataset) -> list[int]:
    return dataset.tokens.window(0, len(dataset.tokens)).tolist()


def write_bin(path: Path, ids: object, magic: int = 20240520, version: int = 1, count: int | None = None) -> Path:
    ids = np.asarray(ids, dtype="<u2")
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.tobytes())
    return path


def write_npy(path: Path, ids: object) -> Path:
    np.save(path, np.asarray(ids, dtype=np.uint16))
    return path


def refusal(data: Path, **changes: str) -> str:
    with pytest.raises(UserError) as error:
        load(data, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


WRITERS = {"bin": write_bin, "npy": write_npy}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_folder_of_shards(tmp_path: Path, suffix: str) -> None:
    first, second = np.arange(100), np.arange(50256, 50200, -1)
    write = WRITERS[suffix]
    for name, ids in (("x_000001", first), ("x_000002", second), ("x_000003", [])):
        write(tmp_path / f"{name}.{suffix}", ids)
    assert all_ids(load(tmp_path)) == first.tolist() + second.tolist()
    assert load(tmp_path).sizes == (125, 31)
    assert all_ids(load(tmp_path / f"x_000001.{suffix}")) == first.tolist()


def test_numpys_second_header_version(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.arange(100, dtype=np.uint16), version=(2, 0))
    assert all_ids(load(tmp_path / "a.npy")) == list(range(100))


@pytest.mark.parametrize("suffix", WRITERS)
def test_validation_shards_are_the_validation_split(tmp_path: Path, suffix: str) -> None:
    """As llm.c and build-nanogpt name them."""
    write = WRITERS[suffix]
    write(tmp_path / f"edufineweb_val_000000.{suffix}", np.arange(1000, 1040))
    write(tmp_path / f"edufineweb_train_000001.{suffix}", np.arange(100))
    write(tmp_path / f"edufineweb_train_000002.{suffix}", np.arange(100, 150))
    dataset = load(tmp_path)
    assert dataset.sizes == (150, 40)
    assert next(dataset.val_batches(1, CONTEXT, 1))[0].tolist() == [list(range(1000, 1000 + CONTEXT))]
    seen = {int(i) for step in range(1, 40) for i in dataset.train_batch(0, step, 0, 1, 4, CONTEXT)[1].flatten()}
    assert seen <= set(range(150)) and len(seen) > 140


def test_validation_shards_alone_are_split_like_others(tmp_path: Path) -> None:
    write_bin(tmp_path / "x_val_000000.bin", range(100))
    assert load(tmp_path).sizes == load(tmp_path / "x_val_000000.bin").sizes == (80, 20)


def test_the_ids_stay_on_the_disk(tmp_path: Path) -> None:
    """A sparse file of 40 GB opens at once."""
    path = write_bin(tmp_path / "large.bin", [], count=2**31 - 1)
    with path.open("r+b") as file:
        file.truncate(1024 + 2 * (2**31 - 1))
    dataset = load(path)
    assert sum(dataset.sizes) == 2**31 - 1
    assert dataset.train_batch(0, 1, 0, 1, 4, CONTEXT)[0].sum() == 0
    assert dataset.fingerprint()["tokens"] == 2**31 - 1


# What is refused


def test_foreign_bins(tmp_path: Path) -> None:
    shard = tmp_path / "s.bin"
    write_bin(shard, range(100), magic=20240801)
    assert "expected the magic number 20240520 at byte 0, found 20240801" in refusal(shard)
    write_bin(shard, range(100), version=7)
    assert "version 7, at byte 4: expected version 1" in refusal(shard)
    for contents in (b"", b"ab", b"x" * 11):
        shard.write_bytes(contents)
        assert f"{shard} is not a token shard" in refusal(shard)


@pytest.mark.parametrize("count", [99, 101, -1])
def test_a_bin_of_another_length(tmp_path: Path, count: int) -> None:
    message = refusal(write_bin(tmp_path / "s.bin", range(100), count=count))
    assert f"announces {count} tokens, {1024 + 2 * count} bytes in all, found 1224 bytes" in message


def test_a_bin_cut_inside_its_header(tmp_path: Path) -> None:
    shard = write_bin(tmp_path / "s.bin", range(100))
    shard.write_bytes(shard.read_bytes()[:500])
    assert "truncated" in refusal(shard) and "1224 bytes in all, found 500" in refusal(shard)


@pytest.mark.parametrize("change", [-1, -150, 1])
def test_a_npy_of_another_length(tmp_path: Path, change: int) -> None:
    shard = write_npy(tmp_path / "s.npy", range(100))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:change] if change < 0 else whole + b"x")
    assert f"announces 100 tokens, {len(whole)} bytes in all, found {len(whole) + change}" in refusal(shard)


@pytest.mark.parametrize(
    "contents", [b"", b"\x93NUMPY", b"some text that is no array", b"\x93NUMPY\x09\x00" + b"x" * 99]
)
def test_a_foreign_npy(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "s.npy").write_bytes(contents)
    assert "expected the header of a .npy file of version 1 or 2 at byte 0" in refusal(tmp_path / "s.npy")


@pytest.mark.parametrize("array", [np.zeros(50, np.int32), np.zeros((5, 10), np.uint16), np.zeros(50, ">u2")])
def test_a_npy_of_something_else(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "s.npy", array)
    assert "expected uint16 ids in one dimension" in refusal(tmp_path / "s.npy")


def test_a_pickled_npy_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "expected uint16 ids" in refusal(tmp_path / "s.npy")


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_id_outside_the_vocabulary_never_reaches_the_model(tmp_path: Path, suffix: str) -> None:
    ids = np.arange(1000)
    ids[700] = 50257
    shard = WRITERS[suffix](tmp_path / f"s.{suffix}", ids)
    byte = shard.read_bytes().index((50257).to_bytes(2, "little"))
    expected = f"{shard}: token 700, at byte {byte}, is 50257, outside the vocabulary of 50257"
    dataset = load(shard)
    with pytest.raises(UserError, match=expected):
        for step in range(1, 200):
            assert dataset.train_batch(0, step, 0, 1, 4, CONTEXT)[0].max() < 50257
    with pytest.raises(UserError, match=expected):  # of so little data, this is known when a run begins
        dataset.fingerprint()
    opened = open_shard(shard, 50257)
    assert opened[0:700].tolist() == list(range(700)) and opened[701:].tolist() == list(range(701, 1000))


# A prepared folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("A short text. " * 100, encoding="utf-8")
    settings = Settings([str(tmp_path / "text.txt")], "gpt2", 100, 50, "text")
    prepare(settings, tmp_path / "out", 1)
    return tmp_path / "out"


def test_a_prepared_folder(prepared: Path) -> None:
    dataset = load(prepared)
    assert dataset.sizes[1] == 50 and dataset.sizes[0] > 300
    fingerprint = dataset.fingerprint()
    assert len(fingerprint["manifest"]) == 64
    assert load(prepared).fingerprint() == fingerprint
    (prepared / manifest.NAME).unlink()  # then they are shards like any others
    assert load(prepared).sizes == dataset.sizes and "manifest" not in load(prepared).fingerprint()


def test_a_prepared_folder_of_another_tokenizer(prepared: Path) -> None:
    assert "was prepared with the tokenizer gpt2, found --tokenizer bytes" in refusal(prepared, tokenizer="bytes")


def test_a_prepared_folder_that_has_changed(prepared: Path) -> None:
    last = sorted(prepared.glob("*_train_*"))[-1]
    write_bin(prepared / "x_train_000009.bin", range(10))
    assert "x_train_000009.bin is not among those" in refusal(prepared)
    (prepared / "x_train_000009.bin").unlink()
    write_bin(last, range(3))
    assert f"{last} is truncated or damaged" in refusal(prepared) and "found 1030" in refusal(prepared)
    last.unlink()
    assert f"{last} is missing" in refusal(prepared)


def test_a_manifest_that_is_none(prepared: Path) -> None:
    path = prepared / manifest.NAME
    unfinished = {**json.loads(path.read_text()), "resume": {"source": 0, "position": None, "skip": 0}}
    for contents in ("{", "[]", "{}", '{"name": 1}'):
        path.write_text(contents)
        assert f"{path} is not a manifest that `gpt2c prepare` has written" in refusal(prepared)
    path.write_text(json.dumps(unfinished))
    assert "is not complete" in refusal(prepared)


# Files that change while they are read


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_shard_that_is_shortened_while_it_is_read(tmp_path: Path, suffix: str) -> None:
    shard = WRITERS[suffix](tmp_path / f"s.{suffix}", np.arange(50_000))
    dataset = load(shard)
    dataset.train_batch(0, 1, 0, 1, 4, CONTEXT)
    whole = shard.read_bytes()
    os.truncate(shard, len(whole) - 90_000)
    with pytest.raises(UserError, match=f"{shard} has been shortened since it was opened: it ends at byte") as error:
        dataset.fingerprint()
    assert "\n" not in str(error.value)
    shard.write_bytes(whole)  # in place
    assert dataset.fingerprint() == load(shard).fingerprint()


def test_a_shard_that_is_replaced_or_deleted_while_it_is_read(tmp_path: Path) -> None:
    """As `gpt2c prepare` and most programs replace files: the one that was opened is read to its end."""
    shard = write_bin(tmp_path / "s.bin", range(100))
    dataset = load(shard)
    before = all_ids(dataset)
    os.replace(write_bin(tmp_path / "other.bin", range(50)), shard)
    assert all_ids(dataset) == before and all_ids(load(shard)) == list(range(50))
    shard.unlink()
    assert all_ids(dataset) == before


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MOST_OPEN", 3)
    for i in range(10):
        write_bin(tmp_path / f"x_{i:06d}.bin", range(10 * i, 10 * i + 10))
    dataset = load(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert all_ids(dataset) == all_ids(dataset) == list(range(100))
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    write_bin(tmp_path / "x_000000.bin", range(11))
    with pytest.raises(
        UserError, match="x_000000.bin has been replaced since it was opened: it has 1046 bytes, .*1044"
    ):
        all_ids(dataset)
    (tmp_path / "x_000000.bin").unlink()
    with pytest.raises(UserError, match="cannot read the token shard .*x_000000.bin: No such file"):
        all_ids(dataset)


# nanoGPT's, without a header


def write_headerless(path: Path, ids: object) -> Path:
    np.asarray(ids, dtype=np.uint16).tofile(path)
    return path


def test_nanogpts_shards(tmp_path: Path) -> None:
    write_headerless(tmp_path / "train.bin", range(50000, 50200))
    write_headerless(tmp_path / "val.bin", range(50))
    for name in ("prepare.py", "readme.md"):
        (tmp_path / name).write_text("text")
    with pytest.warns(UserWarning) as told:
        dataset = load(tmp_path)
    assert dataset.sizes == (200, 50) and all_ids(dataset) == [*range(50000, 50200), *range(50)]
    assert [str(note.message).split(": ")[0] for note in told] == [
        f"{tmp_path} holds nanoGPT's train.bin and val.bin",
        f"{tmp_path / 'train.bin'} has no header",
        f"{tmp_path / 'val.bin'} has no header",
    ]
    with pytest.warns(UserWarning, match="has no header"):
        assert load(tmp_path / "train.bin").sizes == (160, 40)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="outside the vocabulary of 257"):
        load(tmp_path, tokenizer="bytes").fingerprint()


def test_headerless_files_that_are_not_read(tmp_path: Path) -> None:
    other = write_headerless(tmp_path / "other.bin", range(100))
    assert "nanoGPT's, without a header, are read by their names, train.bin and val.bin" in refusal(other)
    (tmp_path / "train.bin").write_bytes(b"x" * 101)
    assert "has 101 bytes and no header" in refusal(tmp_path / "train.bin")
    write_headerless(tmp_path / "train.bin", range(60))
    (tmp_path / "meta.pkl").touch()
    assert "a vocabulary of nanoGPT's own, meta.pkl" in refusal(tmp_path / "train.bin")
