"""What a file's name and its first bytes say is followed or refused, by every command that reads texts."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import tiny
import torch
import zstandard

import gpt2c
from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.data import json_rows, load_dataset, sources
from gpt2c.data.inputs import open_inputs
from gpt2c.data.rows import Rows
from gpt2c.errors import UserError
from gpt2c.evaluate import sample_text
from gpt2c.evaluation.hellaswag import read_items
from gpt2c.hub import find
from gpt2c.model import GPT2
from gpt2c.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
MARK = b"\xef\xbb\xbf"
PULLS = "`git lfs pull` fetches"
TEXTS = ['Zwölf\r\nBoxkämpfer, "中文"\n', "the second one", "x" * 300]


def learned(path: Path) -> list[str]:
    """The documents that `gpt2c train --data PATH` learns from."""
    ids = load_dataset(str(path), BYTES, 0.1, 8).tokens
    whole = bytes(i if i < 256 else 0 for i in ids.window(0, len(ids)).tolist())
    return whole.decode().split("\0")


def read(path: Path) -> list[str]:
    """Those that `gpt2c prepare PATH` and `gpt2c tokenizer train PATH` read."""
    return [text.text for source in open_inputs([str(path)], Rows("text")) for text in source]


def refusals(path: Path) -> set[str]:
    """The sentences of all of them."""
    found = set()
    for run in (learned, read):
        with pytest.raises(UserError) as error:
            run(path)
        found.add(str(error.value))
    assert all("\n" not in sentence for sentence in found)
    return found


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def array(texts: list[str]) -> bytes:
    return json.dumps([{"id": 1, "text": text} for text in texts]).encode()


def pretty(texts: list[str]) -> bytes:
    return json.dumps([{"id": [1], "text": text} for text in texts], indent=2).encode()


def objects(texts: list[str]) -> bytes:
    return "\n".join(json.dumps({"text": text}, indent=1, ensure_ascii=False) for text in texts).encode()


def commas(texts: list[str], dialect: str = "excel") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, dialect).writerows([("id", "text"), *enumerate(texts)])
    return file.getvalue().encode()


def tabs(texts: list[str]) -> bytes:
    return commas(texts, "excel-tab")


def columns(texts: list[str]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(arrow.table({"text": texts}), file)
    return file.getvalue()


FORMATS: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "lines": ("a.jsonl", lines),
    "C4, Dolma": ("c4-train.00000-of-01024.json", lines),
    "TinyStories": ("data00.json", array),
    "pretty": ("A.JSON", pretty),
    "objects": ("a.json", objects),
    "jsonlines": ("a.jsonlines", lines),
    "jl": ("a.jl", lines),
    "csv": ("a.csv", commas),
    "tsv": ("a.tsv", tabs),
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_by_every_name(tmp_path: Path, name: str, mark: bytes, packing: str) -> None:
    file, write = FORMATS[name]
    path = tmp_path / (file + packing)
    path.write_bytes(PACK[packing](mark + write(TEXTS)))
    assert learned(path) == read(path) == TEXTS


def test_parquet_is_learned_from(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(columns(TEXTS))
    assert learned(tmp_path) == read(tmp_path) == TEXTS


@pytest.mark.parametrize("packing", PACK)
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACK[packing](MARK + "".join(TEXTS).encode()))
    assert learned(path) == read(path) == ["".join(TEXTS)]


def test_a_byte_order_mark_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BufferedReader(io.BytesIO(MARK + b"text"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pipe))
    assert read(Path("-")) == ["text"]


def test_values_larger_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And from any place on, cut in the middle of every kind of token."""
    monkeypatch.setattr(json_rows, "BUFFER", 7)
    monkeypatch.setattr(json_rows, "KEPT", 20)
    texts = ["é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") * n for n in range(20)]
    rows = [{"a": [True, None, -1.5e-3, float("inf")], "text": text} for text in texts]
    path = tmp_path / "a.json"
    for raw in (json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=1), " ".join(map(json.dumps, rows))):
        path.write_text(raw, encoding="utf-8")
        (source,) = open_inputs([str(path)], Rows("text"))
        places = [(text.text, source.position) for text in source]
        assert [text for text, _ in places] == texts
        for i, (_, place) in enumerate(places):
            source.position = place
            assert [text.text for text in source] == texts[i + 1 :]


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'[{"text": "a"}, {"text": "b"}', "is not JSON, at byte 29"),
        (b'[\n{"text": "a"},\n{"text": "b}\n]', "is not JSON, at byte"),
        (b'{"text":\n"a"} {"text"', "is not JSON, at byte"),
        (b'[{"text": "a"}] more', "is not JSON, at byte 14"),
        (b'{"name":\n"package"}', "row 1, has no field 'text': found the fields name"),
        (b'["a", "b"]', "row 1, has no field 'text': found str"),
        (b'[{"text": null}]', "row 1, has a 'text' that is no text"),
        (b'[{"text": "\xff"}]', "is not UTF-8 text: byte 11 is 0xff"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_json_that_is_damaged_or_no_rows(tmp_path: Path, raw: bytes, found: str) -> None:
    (tmp_path / "a.json").write_bytes(raw)
    assert all(f"{tmp_path / 'a.json'}" in sentence and found in sentence for sentence in refusals(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"id,body\n1,a\n", "has no column 'text': name the texts' with gpt2c prepare --field, one of id, body"),
        (b"id,text\n1\n", "row 2, has 1 values, expected 2: id, text"),
        (b'id,text\n1,"a\n', "row 2, is damaged"),
        (b"text\n\xff\n", "row 2, is not UTF-8 text"),
        (b"", "has no column 'text'"),
        (b"id,text\r1,a\r", "row 1, which has the columns' names, is damaged (a carriage return alone ends no line"),
        (b'id,"te"xt\n1,a\n', "row 1, which has the columns' names, is damaged: "),
    ],
)
def test_a_wrong_csv(tmp_path: Path, raw: bytes, found: str) -> None:
    (tmp_path / "a.csv").write_bytes(raw)
    assert all(found in sentence for sentence in refusals(tmp_path / "a.csv"))


OTHERS = {
    "UTF-16": "text".encode("utf-16"),
    "UTF-32": "text".encode("utf-32"),
    "byte 1 is 0": "text".encode("utf-16-le"),
    "byte 4 is 0": b"text\0",
    "gzip": gzip.compress(b"text"),
    "zstd": zstandard.compress(b"text"),
    "Parquet": columns(["a"]),
    "zip": b"PK\x03\x04",
    "PDF": b"%PDF-1.7",
    "byte 0 is 0x89": b"\x89PNG\r\n",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suffix", [".txt", "", ".txt.gz"])
def test_what_is_no_text_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(OTHERS[name]) if suffix.endswith(".gz") else OTHERS[name])
    (sentence,) = refusals(path)
    assert str(path) in sentence and name in sentence


def test_utf16_rows_and_conversations(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        (tmp_path / name).write_bytes(lines(TEXTS).decode().encode("utf-16"))
        (sentence,) = refusals(tmp_path / name)
        assert "UTF-16" in sentence


def test_rows_by_a_texts_name_are_told(tmp_path: Path) -> None:
    """A text of JSON may be what one wants to learn."""
    rows = json.loads(b"[" + lines(TEXTS).strip().replace(b"\n", b",") + b"]")
    for raw in (lines(TEXTS), json.dumps(rows).encode(), json.dumps(rows, indent=2).encode()):
        (tmp_path / "a.txt").write_bytes(raw)
        for run in (learned, read):
            with pytest.warns(UserWarning, match="a.txt looks like rows of JSON and is learned as a text"):
                assert run(tmp_path / "a.txt") == [raw.decode()]


def test_files_of_a_tokenizer_a_model_and_a_run_are_no_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text " * 100)
    train = ["tokenizer", "train", str(texts), "--vocab-size", "260", "--out"]
    assert main([*train, str(texts / "tok")]) == 2
    assert f"--out {texts / 'tok'} lies in {texts}" in capsys.readouterr().err
    assert main([*train, str(tmp_path / "tok")]) == 0
    os.rename(tmp_path / "tok", texts / "tok")
    for name, kind in (("tok/merges.txt", "tokenizer"), ("run/run.json", "run"), ("m/model.safetensors", "model")):
        (texts / name).parent.mkdir(exist_ok=True)
        (texts / name).touch()
        (sentence,) = refusals(texts)
        assert f"{texts / name} belongs to a {kind}, it is no data" in sentence
        for file in (texts / name).parent.iterdir():
            file.unlink()
    assert read(texts) == ["a text " * 100]


def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path) -> None:
    """What a clone without Git LFS has in the place of a large file."""
    for name in ("a.txt", "b.jsonl", "c.parquet", "train.bin"):
        file = tmp_path / name / name
        file.parent.mkdir()
        file.write_text(tiny.LFS_POINTER)
        (sentence,) = refusals(file.parent)
        assert sentence == f"cannot read the data {file}: it is only Git LFS's pointer to the file, which {PULLS}"
    with pytest.raises(UserError, match=f"^{file} is only Git LFS's pointer to a file, which {PULLS}$"):
        find(str(file))
    folder = tmp_path / "model"
    GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=257, n_positions=8)).save_pretrained(folder)
    (folder / "model.safetensors").write_text(tiny.LFS_POINTER)
    with pytest.raises(UserError, match=f"is not a whole safetensors file: it is only .* which {PULLS}$"):
        GPT2.from_pretrained(folder)


def test_a_folder_that_was_not_prepared_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As of a kill before the first shard: no command takes what the folder says of itself for a text."""
    folder = tmp_path / "some" / "prepared"
    folder.mkdir(parents=True)
    (tmp_path / "a.jsonl").write_text('{"text": null}')
    command = ["prepare", str(tmp_path / "a.jsonl"), "--out", str(folder), "--workers", "1"]
    assert main(command) == 2 and not any(folder.iterdir())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a text " * 1000}))
    assert main(command) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = next(folder.glob("*.bin"))
    assert f"{folder}" in next(iter(refusals(folder.parent)))  # complete, but not alone
    shard.unlink()
    manifest |= {"shards": [], "resume": {"source": 0, "position": None, "skip": 0}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for data in (folder, folder.parent, folder / "manifest.json"):
        (sentence,) = refusals(data)
        assert f"{folder} is not complete: `gpt2c prepare` was stopped" in sentence
    capsys.readouterr()
    for given in (
        ["train", "--data", str(folder), "--out", str(tmp_path / "run")],
        ["plan", "demo", "--data", str(folder)],
        ["tokenizer", "train", str(folder), "--out", str(tmp_path / "tok")],
        ["prepare", str(folder), "--out", str(tmp_path / "out")],
    ):
        assert main(given) == 2
        assert f"error: {folder} is not complete" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "some"]
    assert main(command) == 0  # its own command goes on
    assert np.fromfile(shard, "<u2", offset=1024)[0] == 50256


def test_a_run_in_its_own_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a text " * 100)
    monkeypatch.chdir(tmp_path)
    for data, out in ((".", "runs/x"), (str(tmp_path), "x"), ("..", "y")):
        assert main(["train", "--data", data, "--out", out]) == 2
        assert f"--out {out} lies in {data}, so that what is written there would be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert main(["train", "--data", "a.txt", "--out", ".hidden", "--steps", "0"]) == 2  # not for that reason
    assert "lies in" not in capsys.readouterr().err


def test_line_ends_of_windows_stay_in_the_tokens_and_go_from_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "one\r\ntwo\r\n" * 30
    (tmp_path / "a.txt").write_bytes(text.encode())
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "a.txt"), "--out", str(out), "--tokenizer", "bytes", "--workers", "1"]) == 0
    assert np.fromfile(next(out.glob("*.bin")), "<u2", offset=1024)[1:].tolist() == list(text.encode())
    assert learned(tmp_path / "a.txt") == [text]
    written = torch.tensor([[10, *text.encode()]])
    monkeypatch.setattr(gpt2c.GPT2, "generate", lambda *args, **kwargs: written)
    model = gpt2c.GPT2(gpt2c.GPT2Config(vocab_size=257, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    assert sample_text(model, BYTES, written.shape[1] - 1, 0) == ("one\ntwo\n" * 30).strip()


def test_a_text_without_spaces_is_cut_at_its_line_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also those of Windows: the tokens are those of the whole."""
    monkeypatch.setattr(sources, "PIECE", 16)
    gpt2, text = get_tokenizer("gpt2"), "one\r\ntwo\r\nthree\r\n\r\nfour's\r" * 20
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = read(tmp_path / "a.txt")
    assert len(parts) > 20 and "".join(parts) == text
    assert [i for part in parts for i in gpt2.encode(part)] == gpt2.encode(text).tolist()


def test_a_byte_order_mark_in_hellaswag(tmp_path: Path) -> None:
    item = {"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 2}
    (tmp_path / "items.jsonl").write_bytes(MARK + json.dumps(item).encode() + b"\r\n")
    assert [item.label for item in read_items(str(tmp_path / "items.jsonl"))] == [2]


@pytest.mark.parametrize("command", ["train", "prepare", "tokenizer", "sft", "eval"])
def test_a_pipe_is_no_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `<(cat my.txt)` gives one; nobody writes to it, so that a command that opened it would wait for ever."""
    pipe, model, out = tmp_path / "pipe", tmp_path / "model", ["--out", str(tmp_path / "out")]
    os.mkfifo(pipe)
    GPT2(GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=1)).save_pretrained(model)
    args = {
        "train": ["--data", str(pipe), *out],
        "prepare": [str(pipe), *out],
        "tokenizer": ["train", str(pipe), *out],
        "sft": ["--data", str(pipe), "--init", str(model), *out],
        "eval": [str(model), "--data", str(pipe)],
    }
    assert main([command, *args[command]]) == 2
    told = f"cannot read the data {pipe}: it is a pipe, which can be read only once; write what it gives into a file"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {told}"
    assert not (tmp_path / "out").exists()


def test_the_standard_input_is_no_data_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "-", "--out", str(tmp_path / "out")]) == 2
    assert "gpt2c prepare - --out FOLDER makes tokens of it" in capsys.readouterr().err
