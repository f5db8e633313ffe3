"""`gpt2c export` and `gpt2c import`: what they write is used, and a mistake leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.finite import DTYPES
from gpt2c.formats import hf, llmc
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.tokenizer import decode, get_tokenizer, printable, save_tokenizer
from gpt2c.tokenizer.learn import learn
from gpt2c.train import train

pytestmark = pytest.mark.filterwarnings("ignore:llm.c's format has no place for the tokenizer")
USES = {"hf": "transformers.AutoModelForCausalLM.from_pretrained('{}')", "llmc": "./train_gpt2cu -e {}"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train(tiny.config(tmp_path_factory.mktemp("finished"))).run.folder


def weights(folder: Path) -> list[torch.Tensor]:
    return [p.detach() for p in load_model(str(folder))[0].parameters()]


@pytest.mark.parametrize(("name", "dtype"), [("hf", "fp32"), ("hf", "fp16"), ("llmc", "fp32"), ("llmc", "bf16")])
def test_there_and_back(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, dtype: str) -> None:
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["export", str(finished), there, "--format", name, "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    assert f"as {name} in {dtype}, 0." in out and f"MB; use it: {USES[name].format(there)}\n" in out
    assert main(["import", there, back]) == 0
    assert "a GPT-2 of 21,504 parameters with the tokenizer bytes" in capsys.readouterr().out
    for found, exact in zip(weights(tmp_path / "back"), weights(finished), strict=True):
        assert torch.equal(found.float(), exact.to(DTYPES[dtype]).float())
    assert main(["sample", back, "--max-new-tokens", "5"]) == 0
    text = str(finished.parent / "text.txt")
    flags = ["--init", back, "--data", text, "--context", "16", "--steps", "2", "--warmup-steps", "0"]
    assert main(["train", *flags, "--out", str(tmp_path / "tuned")]) == 0


@pytest.mark.parametrize(("name", "dtype"), [("gguf", "fp16"), ("gguf", "q8_0"), ("onnx", "fp32")])
def test_the_other_formats(finished: Path, tmp_path: Path, name: str, dtype: str) -> None:
    pytest.importorskip(name)
    assert main(["export", str(finished), str(tmp_path / "out"), "--format", name, "--dtype", dtype]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out").stat().st_size > 20_000


def test_llmc_files_have_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of one's own, it is taken from beside the file, or asked for."""
    tokenizer = learn(["the cat and the dog sat there and ate " * 9], 270, "own")
    model = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    llmc.export(model, tokenizer, tmp_path / "m.bin")
    assert main(["import", str(tmp_path / "m.bin"), str(tmp_path / "out")]) == 2
    assert f"has a vocabulary of {tokenizer.vocab_size}, expected that of a known" in capsys.readouterr().err
    save_tokenizer(tokenizer, tmp_path)
    assert main(["import", str(tmp_path / "m.bin"), str(tmp_path / "out")]) == 0
    assert load_model(str(tmp_path / "out"))[1].encode("the cat").tolist() == tokenizer.encode("the cat").tolist()


def test_a_model_that_is_no_gpt2_is_not_imported(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(finished), str(tmp_path / "theirs")]) == 0
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_layer": 2}))
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "out")]) == 2
    assert "lacks the tensor h.1.ln_1.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["hf", "gguf", "onnx", "llmc"])
def test_a_full_disk(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name in ("gguf", "onnx"):
        pytest.importorskip(name)
    monkeypatch.setattr("gpt2c.files.os.fsync", full)
    assert main(["export", str(finished), str(tmp_path / "out"), "--format", name]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["export", "{run}", "{run}"], "exists: choose another name, or remove it"),
        (["import", "{run}", "{run}"], "exists: choose another name, or remove it"),
        (["export", "{run}", "out", "--dtype", "q8_0"], "--dtype is q8_0, expected one of fp32, fp16, bf16 for hf"),
        (["export", "./nowhere", "out"], "nowhere does not exist"),
        (["export", "{run}", "text.txt/out"], "cannot write text.txt/out: "),
        (["export", "{run}", "text.txt/out", "--format", "llmc"], "cannot write text.txt/out: Not a directory"),
        (["export", "{run}", "out", "--format", "onnx", "--dtype", "bf16"], "expected one of fp32 for onnx"),
        (["import", "text.txt", "out"], "text.txt is not a checkpoint of llm.c"),
    ],
)
def test_mistakes(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    words: str,
) -> None:
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([arg.format(run=finished) for arg in args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("out", "flags", "kind"),
    [
        ("m.gguf", [], "gguf"), ("M.GGUF", [], "gguf"), ("m.onnx", [], "onnx"), ("m.bin", [], "llmc"), ("m", [], "hf"),
        ("gpt2-v1.5", [], "hf"), ("m.bin", ["--format", "llmc"], "llmc"), ("m.step_8", ["--format", "llmc"], "llmc"),
    ],
)  # fmt: skip
def test_the_ending_decides(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, out: str, flags: list[str], kind: str
) -> None:
    if kind in ("gguf", "onnx"):
        pytest.importorskip(kind)
    assert main(["export", str(finished), str(tmp_path / out), *flags]) == 0
    assert f"as {kind} in fp32" in capsys.readouterr().out
    assert (tmp_path / out).is_dir() == (kind == "hf")


CONFLICTS = [
    *(
        (["export", "RUN", name, "--format", kind], f"{name} ends in {name[1:]}, which is {said}, but --format is")
        for name, said in (("m.gguf", "gguf"), ("m.onnx", "onnx"), ("m.bin", "llmc"))
        for kind in ("hf", "gguf", "onnx", "llmc")
        if kind != said
    ),
    *(
        (["export", "RUN", f"m{end}", *flags], f"m{end} ends in {end}, and no such file is written: expected")
        for end in (".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".json", ".zip", ".gz", ".tflite")
        for flags in ([], ["--format", "hf"])
    ),
    (["import", "RUN", "new.gguf"], "new.gguf ends in .gguf, which is gguf, but a folder is written"),
    (["import", "RUN", "new.safetensors"], "new.safetensors ends in .safetensors, and no such file is written"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "words"), CONFLICTS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_endings_that_contradict(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
FILES = [
    ("m.gguf", b"GGUF\3\0\0\0", "is a GGUF file, which is written here but not read: give the Hugging Face folder"),
    ("m.bin", b"GGUF\3\0\0\0", "is a GGUF file, which is written here but not read"),
    ("m.gguf", b"", "is a GGUF file, which is written here but not read"),
    ("m.onnx", b"\x08\x08", "is an ONNX file, which is written here but not read"),
    ("m.pt", b"PK\3\4rest", "is a pickle, as torch.save writes it, which is never read"),
    ("m.pth", b"\x80\x02rest", "is a pickle, as torch.save writes it, which is never read"),
    ("pytorch_model.bin", b"PK\3\4rest", "is a pickle, as torch.save writes it, which is never read"),
    ("m.ckpt", b"other", "is a pickle, as torch.save writes it, which is never read"),
    ("model.safetensors", SAFETENSORS, "is a file of weights: give the folder that holds it, as model.safetensors"),
    ("weights", SAFETENSORS, "is a file of weights: give the folder that holds it"),
]


@pytest.mark.parametrize(
    "command", ["import", "import --format hf", "import --format llmc", "sample", "export", "train"]
)
def test_a_file_in_place_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, contents, words in FILES:
        Path(name).write_bytes(contents)
        name_of, *flags = command.split()
        args = {"sample": [name], "train": ["--init", name, "--data", name]}.get(name_of, [name, "out", *flags])
        assert main([name_of, *args]) == 2
        assert f"{name} {words}" in (error := capsys.readouterr().err) and error.count("\n") == 1
        Path(name).unlink()
    Path("m.bin").write_bytes((20240326).to_bytes(4, "little"))
    if command.split()[0] != "import":
        assert (
            main([name_of, *({"sample": ["m.bin"], "train": ["--init", "m.bin"]}.get(name_of, ["m.bin", "out"]))]) == 2
        )
        assert "m.bin is a checkpoint of llm.c's: gpt2c import m.bin FOLDER makes a folder" in capsys.readouterr().err
    assert main(["sample", "gone.gguf"]) == 2
    assert "the file gone.gguf does not exist" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.bin"]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_a_folder_in_half_precision_is_sampled_from(
    tmp_path: Path, capsys: pytest.CaptureFixture, stored: torch.dtype, weights: str
) -> None:
    """Also with packed weights: by the command as by the library after float(), which the library's message names."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(257, n_positions=16, n_embd=32, n_layer=1, n_head=2)).eval().to(stored)
    hf.export(model, get_tokenizer("bytes"), tmp_path / "model")
    flags = ["--prompt", "ab", "--max-new-tokens", "8", "--temperature", "0", "--weights", weights]
    assert main(["sample", str(tmp_path / "model"), *flags]) == 0
    text, prompt = capsys.readouterr().out, torch.tensor([[97, 98]])
    if weights != "fp32":
        with pytest.raises(ValueError, match=r"expected one in float32 on cpu: call model.float\(\).cpu\(\)"):
            model.generate(prompt, 8, weights=weights)
    if weights != "fp32" or stored == torch.float16:
        model = model.float()
    ids = model.generate(prompt, 8, temperature=0, weights=weights)[0].tolist()
    ids = ids[: ids.index(256)] if 256 in ids else ids
    assert text == printable(decode(get_tokenizer("bytes"), ids)) + "\n"
