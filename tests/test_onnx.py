"""ONNX: onnxruntime computes our logits, for any batch and length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.formats import onnx as ours
from gpt2c.model import GPT2
from gpt2c.tokenizer import get_tokenizer

TOLERANCE = 1e-5  # of logits of about 3, in fp32 with sums in other orders


def make_model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=257, n_positions=48, n_embd=48, n_layer=3, n_head=4)).eval()
    for name, p in model.named_parameters():
        p.data.mul_(5) if p.ndim == 2 and name != "wte.weight" else p.data.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 48)])
def test_onnxruntime_computes_our_logits(tmp_path: Path, shape: tuple[int, int]) -> None:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    model = make_model()
    ours.export(model, get_tokenizer("bytes"), tmp_path / "m.onnx")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    idx = torch.randint(0, 257, shape)
    (logits,) = session.run(["logits"], {"idx": idx.numpy()})
    with torch.no_grad():
        exact = model(idx)[0]
    assert logits.shape == (*shape, 257) and float(exact.abs().max()) > 1
    torch.testing.assert_close(torch.from_numpy(logits), exact, rtol=TOLERANCE, atol=TOLERANCE)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts == {"context": "48", "vocab_size": "257", "end_of_text": "256"}


def test_a_model_that_no_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    monkeypatch.setattr(ours, "LARGEST", 1000)
    with pytest.raises(UserError, match="GB of weights, expected at most 2 GB"):
        ours.export(make_model(), get_tokenizer("bytes"), tmp_path / "m.onnx")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'ONNX needs the package onnx: pip install "gpt2c\[onnx\]"'):
        ours.export(make_model(), get_tokenizer("bytes"), tmp_path / "m.onnx")
