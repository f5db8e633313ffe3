"""`gpt2c prepare`: the tokens are tiktoken's, from every format, and neither stops nor processes change a byte."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import tiktoken
import tiny
import zstandard

from gpt2c.cli import main
from gpt2c.commands import prepare as command
from gpt2c.data import encode, hub, load_dataset, packed, prepare, sources
from gpt2c.data.prepare import Settings
from gpt2c.lock import locked
from gpt2c.tokenizer import GPT2_PATTERN, get_tokenizer

END = 50256
GPT2 = get_tokenizer("gpt2")
DOCUMENTS = [
    "First, a text.\n",
    "",
    "Zwölf Boxkämpfer, 中文。\n\n  indented <|endoftext|> is text\n",
    "x " * 400,
    "the end",
]


@pytest.fixture(scope="module")
def tiktokens() -> tiktoken.Encoding:
    """The peer: tiktoken's own encoder, with no special token."""
    ranks = {GPT2.decode_bytes([i]): i for i in range(END)}
    return tiktoken.Encoding("peer", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


def expected(encoding: tiktoken.Encoding, documents: list[str]) -> list[int]:
    return [i for document in documents for i in [END, *encoding.encode_ordinary(document)]]


def ids_in(folder: Path, kind: str = "*") -> list[int]:
    """What llm.c's reader finds: int32 magic, version and count in 1024 bytes, then count uint16."""
    found: list[int] = []
    for path in sorted(folder.glob(f"*_{kind}_*.bin"), key=lambda path: path.name[-10:]):
        raw = path.read_bytes()
        magic, version, count = np.frombuffer(raw, "<i4", 3)
        assert (magic, version, len(raw)) == (20240520, 1, 1024 + 2 * count)
        found += np.frombuffer(raw, "<u2", offset=1024).tolist()
    return found


def output(capsys: pytest.CaptureFixture, *args: object) -> str:
    """The standard output of a preparation that succeeds."""
    assert main(["prepare", *map(str, args)]) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture, *args: object) -> str:
    """The sentence of one that is refused."""
    assert main(["prepare", "--workers", "1", *map(str, args)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text.removeprefix("error: ").strip()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and batches so small that a short text has many of them."""
    monkeypatch.setattr(sources, "PIECE", 64)
    monkeypatch.setattr(encode, "BATCH_BYTES", 200)


# Formats


def json_lines(documents: list[str]) -> bytes:
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(documents)]
    return "\n\n".join(lines).encode()  # with blank lines, and none at the end


def parquet_file(documents: list[str]) -> bytes:
    file = io.BytesIO()
    table = arrow.table({"id": range(len(documents)), "text": documents})
    parquet.write_table(table, file, row_group_size=2)
    return file.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: zstandard.compress(raw[: len(raw) // 2]) + zstandard.compress(raw[len(raw) // 2 :]),
}
ROWS = {".jsonl": json_lines, ".NDJSON": json_lines, ".parquet": parquet_file}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", ROWS)
def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture, tiktokens, kind: str, packing: str) -> None:
    path = tmp_path / f"rows{kind}{packing}"
    path.write_bytes(PACK[packing](ROWS[kind](DOCUMENTS)))
    output(capsys, path, "--out", tmp_path / "out", "--workers", 1)
    assert ids_in(tmp_path / "out") == expected(tiktokens, DOCUMENTS)


@pytest.mark.parametrize("packing", PACK)
def test_a_text_is_one_document(tmp_path: Path, capsys, tiktokens, small: None, packing: str) -> None:
    text = "".join(DOCUMENTS)
    (tmp_path / f"a.txt{packing}").write_bytes(PACK[packing](text.encode()))
    shown = output(capsys, tmp_path / f"a.txt{packing}", "--out", tmp_path / "out", "--workers", 1)
    assert ids_in(tmp_path / "out") == expected(tiktokens, [text])
    assert shown.startswith(f"1 document, {len(text.encode()):,} bytes, ") and "in 1 shard\n" in shown


def test_standard_input(tmp_path: Path, capsys, tiktokens, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, "".join(DOCUMENTS))
    output(capsys, "-", "--out", tmp_path / "out", "--workers", 1)
    assert ids_in(tmp_path / "out") == expected(tiktokens, ["".join(DOCUMENTS)])


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text.encode()))))


def test_a_folder_and_several_inputs_in_order(tmp_path: Path, capsys, tiktokens) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.jsonl").write_bytes(json_lines(["b1", "b2"]))
    (folder / "a.md").write_text("a")
    (folder / "sub" / "c.txt").write_text("c")
    (folder / ".hidden").write_bytes(b"\xff")
    (tmp_path / "last.txt").write_text("first")
    output(capsys, tmp_path / "last.txt", folder, "--out", tmp_path / "out", "--workers", 1)
    assert ids_in(tmp_path / "out") == expected(tiktokens, ["first", "a", "b1", "b2", "c"])


def test_another_field_and_tokenizer(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1, "body": "ab"}\n')
    out = tmp_path / "out"
    output(capsys, tmp_path / "a.jsonl", "--out", out, "--field", "body", "--tokenizer", "bytes", "--workers", 1)
    assert ids_in(out) == [256, 97, 98]


@pytest.fixture
def _hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_data_set_of_the_hub(tmp_path: Path, capsys, tiktokens, small: None, _hub: None) -> None:
    """Streamed by the library datasets itself, from a folder in the place of the network; stopped and continued."""
    (tmp_path / "set").mkdir()
    many = DOCUMENTS * 6
    (tmp_path / "set" / "train-0.jsonl").write_bytes(json_lines(many[:20]))
    (tmp_path / "set" / "train-1.jsonl").write_bytes(json_lines(many[20:]))
    settings = Settings([f"hf:{tmp_path / 'set'}"], "gpt2", 500, 100, "text")
    for stop in (1, 2, 3):
        interrupted(settings, tmp_path / "out", stop)
    prepare.prepare(settings, tmp_path / "out", 1)
    assert ids_in(tmp_path / "out") == expected(tiktokens, many)
    assert "row 1, has no field 'body'" in error(capsys, *settings.inputs, "--field", "body", "--out", tmp_path / "o")


class FakeSet(list):
    """What datasets.load_dataset gives, as far as it is used."""

    def state_dict(self) -> dict:
        return {}


def test_name_configuration_and_revision_of_a_data_set(tmp_path: Path, capsys, monkeypatch) -> None:
    asked = []

    class Library:
        @staticmethod
        def load_dataset(*args: object, **kwargs: object) -> FakeSet:
            asked.append((args, kwargs))
            return FakeSet([{"text": "a"}])

    class Api:
        def dataset_info(self, name: str) -> object:
            return type("Info", (), {"sha": f"revision of {name}"})

    monkeypatch.setattr(hub, "datasets", lambda: Library)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    name = "hf:HuggingFaceFW/fineweb-edu:sample-10BT"
    output(capsys, name, "--out", tmp_path / "out", "--workers", 1)
    revision = "revision of HuggingFaceFW/fineweb-edu"
    kwargs = {"split": "train", "streaming": True, "revision": revision}
    assert asked == [(("HuggingFaceFW/fineweb-edu", "sample-10BT"), kwargs)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"] == [{"name": name, "revision": revision}]


@pytest.mark.parametrize(
    ("package", "name"), [("zstandard", "a.txt.zst"), ("pyarrow", "a.parquet"), ("datasets", "hf:a/b")]
)
def test_a_missing_package(tmp_path: Path, capsys, monkeypatch, package: str, name: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.chdir(tmp_path)
    Path(name).touch() if ":" not in name else None
    message = error(capsys, name, "--out", "out")
    assert f"needs the package {package}" in message and 'pip install "gpt2c[data]"' in message


# Cutting


def test_pieces_give_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every text whose pieces have a place to be cut; a piece without one is as long as it may be."""
    monkeypatch.setattr(sources, "PIECE", 16)
    draw = random.Random(0)
    letters = [*"ab'sd1!\t\r\x1c\x85\xa0\u3000é中。", *"  \n" * 3, "<|endoftext|>"]
    exact = 0
    for _ in range(2000):
        text = "".join(draw.choices(letters, k=draw.randint(1, 80)))
        parts = [part.text for part in sources.pieces(io.BytesIO(text.encode()), "text", 0, True)]
        assert "".join(parts) == text
        safe = [not a[-1].isspace() and b[0] in " \r\n" for a, b in pairwise(parts)]
        assert all(len(part) <= 16 and (ok or len(part) == 16) for part, ok in zip(parts, [*safe, True], strict=True))
        if all(safe):
            exact += len(parts) > 1
            assert np.concatenate([GPT2.encode(part) for part in parts]).tolist() == GPT2.encode(text).tolist()
    assert exact > 300


def test_english_is_cut_without_a_difference(tmp_path: Path, tiktokens, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tiny.write_text(tmp_path).read_text()
    monkeypatch.setattr(sources, "PIECE", 200)
    parts = list(sources.pieces(io.BytesIO(text.encode()), "text", 0, True))
    assert len(parts) > 100
    assert encode.encode(GPT2, parts).tolist() == expected(tiktokens, [text])


def test_a_piece_depends_on_its_beginning_alone(small: None) -> None:
    """So that a continued command cuts where the first would have."""
    raw = ("word " * 30 + "x" * 300 + " \n é中" * 20).encode()
    whole = list(sources.pieces(io.BytesIO(raw), "text", 0, True))
    at = 0
    for i, part in enumerate(whole):
        at += part.size
        rest = list(sources.pieces(io.BytesIO(raw[at:]), "text", at, not at))
        assert rest == whole[i + 1 :]


# Shards and manifest


def english(folder: Path, kind: str) -> Path:
    """An input of 20 kB, in 20 documents where it has rows."""
    text = tiny.write_text(folder).read_text()
    documents = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    path = folder / f"input{kind}"
    raw = {**ROWS, ".txt": lambda _: text.encode(), ".txt.gz": lambda _: gzip.compress(text.encode(), mtime=0)}
    path.write_bytes(raw[kind](documents))
    return path


def test_shards_and_manifest(tmp_path: Path, capsys, tiktokens) -> None:
    path, out = english(tmp_path, ".jsonl"), tmp_path / "web"
    shown = output(capsys, path, "--out", out, "--shard-tokens", 2000, "--val-tokens", 500, "--workers", 1)
    text = [json.loads(line)["text"] for line in path.read_text().splitlines() if line]
    ids = expected(tiktokens, text)
    assert ids_in(out, "val") == ids[:500] and ids_in(out, "train") == ids[500:]
    names = [p.name for p in sorted(out.iterdir()) if p.suffix == ".bin"]
    assert names[:2] == ["web_train_000001.bin", "web_train_000002.bin"] and names[-1] == "web_val_000000.bin"
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["documents"], manifest["bytes"], manifest["tokens"]) == (
        len(text), sum(len(t.encode()) for t in text), len(ids),
    )  # fmt: skip
    assert f"{len(text)} documents" in shown and f"{len(ids):,} tokens in {len(names)} shards" in shown
    assert [shard["tokens"] for shard in manifest["shards"]][:2] == [500, 2000]
    for entry in manifest["shards"]:
        assert sha256((out / entry["file"]).read_bytes()) == entry["sha256"]
    source = {"name": str(path), "bytes": path.stat().st_size, "sha256": sha256(path.read_bytes())}
    assert manifest["sources"] == [source] and manifest["resume"] is None
    assert load_dataset(str(out), GPT2, 0.1, 8).sizes == (len(ids) - 500, 500)
    before = tiny.files(out)
    assert "nothing to do" in output(
        capsys, path, "--out", out, "--shard-tokens", 2000, "--val-tokens", 500, "--workers", 1
    )
    assert tiny.files(out) == before


def sha256(raw: bytes) -> str:
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def test_processes_do_not_change_a_byte(tmp_path: Path) -> None:
    """With batches of the real size, of which each process gets several."""
    text = tiny.write_text(tmp_path).read_text()
    (tmp_path / "big.txt").write_text(text * 150)
    (tmp_path / "rows.jsonl").write_bytes(json_lines([text[:5000]] * 300))
    settings = Settings([str(tmp_path / "big.txt"), str(tmp_path / "rows.jsonl")], "gpt2", 400_000, 1000, "text")
    folders = []
    for workers in (1, 3):
        folders.append(tmp_path / f"with{workers}" / "out")
        prepare.prepare(settings, folders[-1], workers)
    assert tiny.files(folders[0]) == tiny.files(folders[1])
    assert len(list(folders[0].iterdir())) > 4


# Stopping and going on


def interrupted(settings: Settings, out: Path, batches: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Prepare, stopped after so many batches."""
    left = iter(range(batches - 1))

    def progress(_: object) -> None:
        if next(left, None) is None:
            raise error

    with pytest.raises(error):
        prepare.prepare(settings, out, 1, progress)
    assert not list(out.glob(".*")), "an unfinished shard was left behind"


@pytest.mark.parametrize("kind", [".txt", ".txt.gz", ".jsonl", ".parquet", "-"])
@pytest.mark.parametrize("shard_tokens", [90, 500])
def test_stopped_and_continued_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None, kind: str, shard_tokens: int
) -> None:
    text = tiny.write_text(tmp_path).read_text()[:6000]
    other = tmp_path / "other.txt"
    other.write_text("another document")
    name = "-" if kind == "-" else str(english(tmp_path, kind))
    settings = Settings([str(other), name, str(other)], "gpt2", shard_tokens, 20, "text")
    feed(monkeypatch, text)
    prepare.prepare(settings, tmp_path / "a" / "out", 1)
    for stop in (1, 5, 1, 9):
        feed(monkeypatch, text)
        interrupted(settings, tmp_path / "b" / "out", stop)
    feed(monkeypatch, text)
    prepare.prepare(settings, tmp_path / "b" / "out", 1)
    assert tiny.files(tmp_path / "a") == tiny.files(tmp_path / "b")


def killed(settings: Settings, out: Path) -> None:
    """In a process of its own: killed with processes at work, after the second batch, which ends a shard."""
    left = iter(range(2))
    prepare.prepare(settings, out, 2, lambda _: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL))


def test_killed_and_continued_gives_the_same_bytes(tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path).read_text()
    (tmp_path / "big.txt").write_text(text * 300)
    settings = Settings([str(tmp_path / "big.txt")], "gpt2", 200_000, 1000, "text")
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=killed, args=(settings, tmp_path / "b" / "out"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "b" / "out").iterdir()}
    assert {"manifest.json", "out_train_000001.bin"} < left and any(name.endswith(".tmp") for name in left)
    for folder in ("b", "a"):
        prepare.prepare(settings, tmp_path / folder / "out", 1)
    assert tiny.files(tmp_path / "a") == tiny.files(tmp_path / "b")


def test_a_shard_that_the_manifest_does_not_know_yet(tmp_path: Path, small: None) -> None:
    """Killed between the two."""
    settings = Settings([str(english(tmp_path, ".txt"))], "gpt2", 500, 0, "text")
    interrupted(settings, tmp_path / "b" / "out", 30)
    (tmp_path / "b" / "out" / f"out_train_{len(list((tmp_path / 'b' / 'out').glob('*.bin'))) + 1:06d}.bin").touch()
    for folder in ("a", "b"):
        prepare.prepare(settings, tmp_path / folder / "out", 1)
    assert tiny.files(tmp_path / "a") == tiny.files(tmp_path / "b")


def test_ctrl_c(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: object, size: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Display, "update", stop)
    path = english(tmp_path, ".txt")
    assert main(["prepare", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err


def dies(texts: object) -> None:
    os._exit(9)


def test_a_worker_that_dies(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_encode", dies)
    (tmp_path / "a.txt").write_text("text")
    assert "a process that tokenises has died" in error(
        capsys, tmp_path / "a.txt", "--out", tmp_path / "out", "--workers", 2
    )


# What is refused


def test_no_input(tmp_path: Path, capsys) -> None:
    assert "nothing to prepare: give at least one" in error(capsys, "--out", tmp_path / "out")
    assert f"cannot read the data {tmp_path / 'no'}" in error(capsys, tmp_path / "no", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "is an empty folder" in error(capsys, tmp_path / "empty", "--out", tmp_path / "out")
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "gives 0 documents and no text" in error(capsys, tmp_path / "a.jsonl", "--out", tmp_path / "out")
    (tmp_path / "s.bin").touch()
    assert "is a token shard already" in error(capsys, tmp_path / "s.bin", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.txt", "", "1 document and"),
        ("a.jsonl", 2 * '{"text": ""}\n', "2 documents and"),
        ("a.jsonl", '{"text": null}\n', "0 documents and"),
    ],
)
def test_inputs_without_text(tmp_path: Path, capsys, name: str, text: str, found: str) -> None:
    """As a pipe whose first command has failed gives them."""
    (tmp_path / name).write_text(text)
    common = (str(tmp_path / name), "--leave-out-bad-rows", "--out", str(tmp_path / "out"))
    assert f"{name} gives {found} no text in all" in error(capsys, *common)
    assert main(["train", "--data", str(tmp_path / "out")]) == 2
    assert main(["tokenizer", "train", *common[:-1], str(tmp_path / "tokenizer")]) == 2
    assert f"{name} gives no text to learn from" in capsys.readouterr().err
    assert not (tmp_path / "tokenizer").exists()


def test_too_little_for_the_validation_shard(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text("text")
    for val in (2, 3):
        message = error(capsys, tmp_path / "a.txt", "--out", tmp_path / f"out{val}", "--val-tokens", val)
        assert f"gives 2 tokens, of which --val-tokens {val} leaves none" in message


@pytest.mark.parametrize("flags", [("--shard-tokens", 0), ("--val-tokens", -1), ("--workers", -1)])
@pytest.mark.parametrize("huge", [False, True])
def test_lengths_that_make_no_sense(tmp_path: Path, capsys, flags: tuple[str, int], huge: bool) -> None:
    name, value = flags[0], 2**31 if huge and flags[0] != "--workers" else flags[1]
    assert f"{name} is {value}, expected" in error(capsys, tmp_path, "--out", tmp_path / "out", f"{name}={value}")


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize("tail", [b"\xff", b"\xff and more\n", b"\xe4\xb8"])
def test_not_utf8_names_file_and_byte(tmp_path: Path, capsys, small: None, kind: str, tail: bytes) -> None:
    line = ('{"text": "zwölf"}\n' if kind == ".jsonl" else "zwölf\n").encode() * 100
    (tmp_path / f"a{kind}").write_bytes(line + tail)
    message = error(capsys, tmp_path / f"a{kind}", "--out", tmp_path / "out")
    assert f"a{kind} is not UTF-8 text: byte {len(line)} is 0x{tail[0]:02x}" in message


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"body": "a"}', "has no field 'text': found the fields body"),
        ('["text"]', "has no field 'text': found list"),
        ("null", "has no field 'text': found NoneType"),
        ('{"text": null}', "has a 'text' that is no text: found NoneType"),
        ('{"text": "a"', "is not JSON: Expecting ',' delimiter"),
        ('{"text": "\\ud800"}', "has half of a character, '\\ud800'"),
    ],
)
def test_a_wrong_json_line(tmp_path: Path, capsys, line: str, found: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
    message = error(capsys, tmp_path / "a.jsonl", "--out", tmp_path / "out")
    assert f"{tmp_path / 'a.jsonl'}, line 3, {found}" in message


def test_a_wrong_parquet_file(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_file(["a", None]))
    assert f"{path}, row 2, has a 'text' that is no text" in error(capsys, path, "--out", tmp_path / "out")
    message = error(capsys, path, "--out", tmp_path / "out", "--field", "body")
    assert "has no column 'body': name the texts' with gpt2c prepare --field, one of id, text" in message
    path.write_bytes(path.read_bytes()[:-5])
    assert f"{path} is not a whole Parquet file" in error(capsys, path, "--out", tmp_path / "out")


def test_a_parquet_column_that_is_not_utf8(tmp_path: Path, capsys) -> None:
    """Writers that do not look put such bytes there."""
    column = arrow.array([b"fine", b"caf\xe9"], arrow.binary()).view(arrow.string())
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": column}), path)
    found = error(capsys, path, "--out", tmp_path / "out")
    assert str(path) in found and "is not UTF-8 text: byte 3 is 0xe9" in found


def test_a_file_that_is_gone_when_going_on(tmp_path: Path, capsys, small: None) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("some text of it " * 200)
    interrupted(Settings([str(folder)], "gpt2", 90, 0, "text"), out, 25)
    (folder / "b.txt").unlink()
    assert f"began with {folder / 'b.txt'}" in error(capsys, folder, "--out", out, "--shard-tokens", 90)


@pytest.mark.parametrize("packing", [packing for packing in PACK if packing])
def test_a_damaged_packed_file(tmp_path: Path, capsys, packing: str) -> None:
    path = tmp_path / f"a.txt{packing}"
    whole = PACK[packing]("".join(map(str, range(10_000))).encode())
    path.write_bytes(whole[:-9])
    message = error(capsys, path, "--out", tmp_path / "out")
    assert f"{path} is truncated or damaged" in message
    path.write_bytes(b"no such thing at all")
    assert str(path) in error(capsys, path, "--out", tmp_path / "out")


def test_an_out_folder_that_is_not_ours(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text("text")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert "holds thesis.txt, which this command has not written" in error(capsys, tmp_path / "a.txt", "--out", out)
    assert tiny.files(out) == {"thesis.txt": b"precious"}
    assert "cannot write" in error(capsys, tmp_path / "a.txt", "--out", out / "thesis.txt")
    assert f"--out {tmp_path / 'new'} lies in {tmp_path}" in error(capsys, tmp_path, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


BAD_ROWS = {
    ".jsonl": ['{"text": null}', "{}", '{"text": "\\ud83d"}', '{"text": "a"', "\udcff", "3"],
    ".csv": ["1", '1,"a"b', "1,\udcff"],
}


def rows_file(path: Path, documents: list[str | None]) -> Path:
    """A file of the documents as rows, in the format of its name; one that is None is null."""
    if path.suffix == ".parquet":
        parquet.write_table(arrow.table({"text": documents}), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "text"), *(("1", text) for text in documents if text is not None)])
    else:
        lines = [json.dumps({"text": text}) for text in documents]
        path.write_text("[\n" + ",\n".join(lines) + "\n]" if path.suffix == ".json" else "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_left_out_and_counted(tmp_path: Path, capsys, tiktokens, kind: str) -> None:
    path = rows_file(tmp_path / f"a{kind}", ["one", "two"])
    raw, bad = path.read_bytes(), "\n".join(BAD_ROWS[kind]).encode("utf-8", "surrogateescape")
    path.write_bytes(raw + bad + b"\n" + raw.splitlines(keepends=True)[-1])
    out = tmp_path / "out"
    message = error(capsys, path, "--out", out)
    assert "--leave-out-bad-rows" in message and not out.exists()
    assert main(["prepare", str(path), "--out", str(out), "--workers", "1", "--leave-out-bad-rows"]) == 0
    shown = capsys.readouterr()
    assert ids_in(out) == expected(tiktokens, ["one", "two", "two"])
    assert f"3 documents, 9 bytes, {len(BAD_ROWS[kind])} rows left out, " in shown.out
    first = {".jsonl": "line 3, has a 'text' that is no text", ".csv": "row 4, has 1 values, expected 2"}
    assert f"note: {len(BAD_ROWS[kind])} rows left out; the first: {path}, {first[kind]}" in shown.err
    assert json.loads((out / "manifest.json").read_text())["left_out"] == len(BAD_ROWS[kind])


@pytest.mark.parametrize("kind", [".parquet", ".json"])
def test_null_rows_are_left_out(tmp_path: Path, capsys, tiktokens, kind: str) -> None:
    path = rows_file(tmp_path / f"a{kind}", ["one", None, "two"])
    shown = output(capsys, path, "--out", tmp_path / "out", "--workers", 1, "--leave-out-bad-rows")
    assert ids_in(tmp_path / "out") == expected(tiktokens, ["one", "two"]) and "1 row left out" in shown


def test_nothing_but_bad_rows(tmp_path: Path, capsys) -> None:
    """A wrong --field is no reason to write nothing."""
    path, out = rows_file(tmp_path / "a.jsonl", ["one", "two"]), tmp_path / "out"
    message = error(capsys, path, "--out", out, "--field", "body", "--leave-out-bad-rows")
    assert (
        "gives 0 documents and no text in all (2 rows left out; the first: " in message
        and "has no field 'body'" in message
    )
    assert not out.exists()


def damaged(path: Path, documents: list[str]) -> None:
    """The documents in the format of the file's name, with a bad row, or byte, in the place of number 40."""
    with_null = [*documents[:40], None, *documents[41:]]
    if path.suffix == ".txt":
        path.write_bytes("".join(text or "\udcff" for text in with_null).encode("utf-8", "surrogateescape"))
    elif path.suffix == ".csv":
        rows_file(path, documents[:40])
        path.write_bytes(path.read_bytes() + b"1,\xff\n")
    elif path.suffix == ".gz":
        plain = rows_file(path.with_suffix(""), with_null)
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        rows_file(path, with_null)


def mended(path: Path, documents: list[str]) -> None:
    if path.suffix == ".txt":
        path.write_text("".join(documents))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(rows_file(path.with_suffix(""), documents).read_bytes()))
    else:
        rows_file(path, documents)


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".csv", ".txt", ".parquet"])
def test_a_mended_input_goes_on_where_what_came_before_is_unchanged(
    tmp_path: Path, capsys, tiktokens, small: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(sources, "BUFFER", 256)
    path, out, text = tmp_path / f"a{kind}", tmp_path / "out", tiny.write_text(tmp_path).read_text()
    documents = [text[i : i + 100] for i in range(0, 6000, 100)]
    flags = [path, "--out", out, "--shard-tokens", 200]
    damaged(path, documents)
    error(capsys, *flags)
    assert len(list(out.glob("*.bin"))) > 2
    mended(path, ["another", *documents[1:]])
    assert f"{path} has changed since the preparation began" in error(capsys, *flags)
    mended(path, documents)
    assert main(["prepare", *map(str, flags), "--workers", "1"]) == 0
    assert f"note: {path} has changed, but not in what was read of it" in capsys.readouterr().err
    assert ids_in(out) == expected(tiktokens, ["".join(documents)] if kind == ".txt" else documents)


def test_the_flag_may_be_added_when_going_on(tmp_path: Path, capsys, tiktokens, small: None) -> None:
    text = tiny.write_text(tmp_path).read_text()
    documents: list[str | None] = [text[i : i + 100] for i in range(0, 6000, 100)]
    path, out = rows_file(tmp_path / "a.jsonl", [*documents[:40], None, *documents[40:], None]), tmp_path / "out"
    flags = [path, "--out", out, "--shard-tokens", 200]
    error(capsys, *flags)
    assert "60 documents" in output(capsys, *flags, "--workers", 1, "--leave-out-bad-rows")
    assert ids_in(out) == expected(tiktokens, documents)
    assert json.loads((out / "manifest.json").read_text())["left_out"] == 2


def test_small_files_that_have_changed_when_going_on(tmp_path: Path, capsys) -> None:
    """A batch of several files, of which some tokens are written: each of them is compared."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.txt").write_text(f"some text of {name} " * 20)
    rows_file(folder / "z.jsonl", ["fine"])
    (folder / "z.jsonl").write_text("{}")
    flags = [folder, "--out", out, "--shard-tokens", 300]
    error(capsys, *flags)
    (folder / "z.jsonl").write_text('{"text": "fine"}')
    prepared = Settings([str(folder)], "gpt2", 300, 0, "text")
    interrupted(prepared, out, 1)
    assert len(list(out.glob("*.bin"))) > 0
    (folder / "b.txt").write_text("another text")
    assert "has changed in what was read before" in error(capsys, *flags)


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_what_has_changed_when_going_on(tmp_path: Path, capsys, small: None, kind: str) -> None:
    path, out = english(tmp_path, kind), tmp_path / "out"
    interrupted(Settings([str(path)], "gpt2", 500, 0, "text"), out, 10)
    flags = [path, "--out", out, "--shard-tokens", 500]
    for changed, found in (
        ([path, *flags], "begun with inputs"),
        ([*flags[:-1], 600], "begun with shard_tokens 500, found 600"),
        ([*flags, "--val-tokens", 5], "begun with val_tokens 0, found 5"),
        ([*flags, "--tokenizer", "bytes"], "begun with tokenizer gpt2, found bytes"),
        ([*flags, "--field", "body"], "begun with field text, found body"),
    ):
        assert found in error(capsys, *changed)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b" the ", b" tha ", 1))
    assert f"{path} has changed since the preparation began" in error(capsys, *flags)
    path.write_bytes(raw)
    shard = next(out.glob("*.bin"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert f"{shard} is damaged" in error(capsys, *flags)
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{shard} is damaged" in error(capsys, *flags)
    shard.write_bytes(whole)
    output(capsys, *flags, "--workers", 1)


def test_another_standard_input_when_going_on(tmp_path: Path, capsys, small: None, monkeypatch) -> None:
    settings = Settings(["-"], "gpt2", 100, 0, "text")
    feed(monkeypatch, "a text " * 500)
    interrupted(settings, tmp_path / "out", 8)
    for other in ("b text " * 500, "a text"):
        feed(monkeypatch, other)
        message = error(capsys, "-", "--out", tmp_path / "out", "--shard-tokens", 100)
        assert "are not those that the interrupted command has read" in message


def test_two_in_one_folder(tmp_path: Path, capsys) -> None:
    path, out = english(tmp_path, ".txt"), tmp_path / "out"
    with locked(out, "preparing"):
        message = error(capsys, path, "--out", out)
        assert message.startswith(f"another process, pid {os.getpid()}, on host ") and f"is preparing {out}" in message
    output(capsys, path, "--out", out, "--workers", 1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_is_told_how_far_it_is(tmp_path: Path, capsys, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the inputs is known, of a pipe it is not."""
    monkeypatch.setattr(command, "SECONDS_PER_LINE", 0.0)
    monkeypatch.setattr(packed, "BUFFER", 512)
    path, pattern = english(tmp_path, ".jsonl"), r"\d+% of 0.0 MB  [\d,]+ tokens?, [\d.]+ MB/s(  \d+ s left)?"
    assert main(["prepare", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert 5 < len(shown) <= 100 and all(re.fullmatch(pattern, line) for line in shown)
    assert shown[-1].startswith("100% ") and shown[-1].endswith("  0 s left")
    feed(monkeypatch, "a text " * 1000)
    assert main(["prepare", "-", "--out", str(tmp_path / "pipe"), "--workers", "1"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown and all(re.fullmatch(r"0.0 MB  [\d,]+ tokens, [\d.]+ MB/s", line) for line in shown)


def test_a_terminal_shows_a_bar_with_a_total(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    path = english(tmp_path, ".jsonl")
    monkeypatch.setattr("sys.stderr", Terminal())
    output(capsys, path, "--out", tmp_path / "out", "--workers", 1)
    size = path.stat().st_size
    assert "100%|" in sys.stderr.getvalue() and f"{size / 1000:.1f}k/{size / 1000:.1f}k" in sys.stderr.getvalue()
