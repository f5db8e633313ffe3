"""Damaged weights, and numbers that a format cannot hold: one sentence with tensor and value; nothing is written."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2c.cli import main
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.finite import require_fit
from gpt2c.formats import gguf, hf, llmc, onnx
from gpt2c.model import GPT2
from gpt2c.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")
WHERE = "h.0.mlp.c_fc.weight"


def make_model(value: float, at: tuple[int, ...] = (3, 5), name: str = WHERE) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(257, n_positions=16, n_embd=32, n_layer=1, n_head=2)).eval()
    with torch.no_grad():
        model.get_parameter(name)[at] = value
    return model


@pytest.mark.parametrize(
    ("kind", "held", "too_large"),
    [
        ("fp32", torch.finfo(torch.float32).max, 1e39),
        ("fp16", 65519.0, 65520.0),  # halfway to the next, which there is not
        ("bf16", 3.396e38, 3.3963e38),
        ("q8_0", 8.32e6, 8.33e6),
    ],
)
def test_the_largest_number_of_a_kind(kind: str, held: float, too_large: float) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    for sign in (-1, 1):
        x[1, 2] = sign * held
        require_fit("x", x, kind)
        x[1, 2] = sign * too_large
        with pytest.raises(
            UserError, match=re.escape(f"x holds {sign * too_large:.6g} at [1, 2], which {kind} cannot hold")
        ):
            require_fit("x", x, kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_with_its_place(value: float, dtype: torch.dtype) -> None:
    x = torch.ones(4, 5, dtype=dtype)
    x[2, 1] = value
    with pytest.raises(UserError, match=rf"^x holds {value} at \[2, 1\], expected finite numbers"):
        require_fit("x", x)
    require_fit("x", x[:2])
    require_fit("x", x[:0])


EXPORTS = [
    (hf, "fp32", 1e5, math.nan), (hf, "fp16", 6e4, 7e4), (hf, "bf16", 1e38, 3.4e38),
    (gguf, "fp32", 1e5, -math.inf), (gguf, "fp16", 6e4, -7e4), (gguf, "q8_0", 1e6, 1e7),
    (llmc, "fp32", 1e5, math.inf), (llmc, "bf16", 1e38, -3.4e38), (onnx, "fp32", 1e5, math.nan),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:llm.c's format")
@pytest.mark.parametrize(("kind", "dtype", "fine", "bad"), EXPORTS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_every_export(kind: object, dtype: str, fine: float, bad: float, tmp_path: Path) -> None:
    if kind in (gguf, onnx):
        pytest.importorskip(kind.__name__.rpartition(".")[2])
    how = () if kind is onnx else (dtype,)
    kind.export(make_model(fine), BYTES, tmp_path / "fine", *how)
    with pytest.raises(UserError, match=re.escape(f"{WHERE} holds {bad:.6g} at [3, 5], ")):
        kind.export(make_model(bad), BYTES, tmp_path / "bad", *how)
    with pytest.raises(UserError, match=r"^ln_f.bias holds nan at \[31\], expected finite numbers"):
        kind.export(make_model(math.nan, (31,), "ln_f.bias"), BYTES, tmp_path / "bad", *how)
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_gguf_keeps_vectors_in_fp32_which_may_be_larger(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    gguf.export(make_model(7e4, (1,), "ln_f.weight"), BYTES, tmp_path / "m.gguf", "fp16")


COMMANDS = [
    ["sample", "MODEL"], ["chat", "MODEL"], ["serve", "MODEL", "--port", "0"], ["eval", "MODEL", "--data", "TEXT"],
    ["export", "MODEL", "new"], ["export", "MODEL", "new.onnx"], ["export", "MODEL", "new.bin"],
    ["import", "MODEL", "new"], ["sample", "MODEL", "--weights", "int8"], ["sample", "MODEL", "--weights", "bf16"],
    ["train", "--init", "MODEL", "--data", "TEXT", "--out", "new", "--context", "16"],
]  # fmt: skip


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with an infinity among its weights."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    hf.export(make_model(0.0), BYTES, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"transformer.{WHERE}"][3, 5] = math.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_no_command_takes_a_damaged_model(
    args: list[str], damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 200)
    assert main([{"MODEL": str(damaged), "TEXT": "text.txt"}.get(arg, arg) for arg in args]) == 2
    error = capsys.readouterr().err
    assert f"{damaged}: {WHERE} holds inf at [3, 5], expected finite numbers" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_float64_that_fp32_cannot_hold(damaged: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in load_file(damaged / "model.safetensors").items()}
    tensors[f"transformer.{WHERE}"][3, 5] = 1e300
    (tmp_path / "config.json").write_bytes((damaged / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"c_fc.weight holds 1e\+300 at \[3, 5\], which fp32 cannot hold"):
        GPT2.from_pretrained(tmp_path)
    tensors[f"transformer.{WHERE}"][3, 5] = 1 / 3
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="holds weights in float64, which are rounded to fp32"):
        assert GPT2.from_pretrained(tmp_path).h[0].mlp.c_fc.weight[3, 5] == np.float32(1 / 3)


@pytest.mark.filterwarnings("ignore:llm.c's format")
@pytest.mark.parametrize("row", [3, 300])
def test_import_of_a_damaged_file_of_llmc(row: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Also in a tensor of more rows than the vocabulary has."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(257, n_positions=400, n_embd=8, n_layer=1, n_head=1))
    llmc.export(model, BYTES, tmp_path / "m.bin")
    with open(tmp_path / "m.bin", "rb+") as file:
        file.seek(1024 + 4 * 8 * (384 + row))
        file.write(struct.pack("<f", math.nan))
    assert main(["import", str(tmp_path / "m.bin"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"m.bin: wpe.weight, which ends at byte {1024 + 4 * 8 * 784}, holds nan at [{row}, 0], expected" in error
    assert not (tmp_path / "out").exists()
