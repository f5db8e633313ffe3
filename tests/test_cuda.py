"""Tensors on a real GPU, from Python down: devices, streams, CUDA graphs, and the model as on the CPU.

(What each kernel computes is tested by the ops' own tests on the backend `cuda`.)
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile

import on_gpu
import pytest
import torch
from torch import Tensor

import gpt2c
from gpt2c import ops

pytestmark = pytest.mark.skipif(bool(on_gpu.gpu_problem()), reason=f"no GPU to run on: {on_gpu.gpu_problem()}")

GPU = torch.device("cuda", 0)
CONFIG = gpt2c.GPT2Config(vocab_size=101, n_positions=80, n_embd=128, n_layer=2, n_head=2)
# Of the largest element. fp32: sums of up to 512 products in another order, through two layers. 16-bit: a dozen
# activations in a row are stored with 8 (bf16) or 11 bits (fp16).
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def tokens() -> tuple[Tensor, Tensor]:
    idx = torch.randint(0, CONFIG.vocab_size, (3, 71))
    return idx[:, :-1].contiguous(), idx[:, 1:].contiguous()


def trained(model: gpt2c.GPT2, idx: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What a training step makes: the loss, every gradient and its first moment, in float64 on the CPU. (Parameters
    move by lr at first, whatever their gradient's size: no measure for an almost zero one.)"""
    optimizer = gpt2c.AdamW(model.parameters(), lr=1e-3)
    _, loss = model(idx, targets)
    loss.backward()
    norm = ops.grad_norm([p.grad for p in model.parameters()])
    optimizer.step(grad_scale=1 / (norm + 1))
    results = {"loss": loss, "norm": norm}
    for name, p in model.named_parameters():
        results |= {f"d{name}": p.grad, f"moment of d{name}": optimizer.state[p]["exp_avg"]}
    return {name: value.detach().cpu().double() for name, value in results.items()}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_training_step_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    idx, targets = tokens()
    model = gpt2c.GPT2(CONFIG)
    here = trained(copy.deepcopy(model), idx, targets)
    there = trained(model.to(GPU, dtype), idx.to(GPU), targets.to(GPU))
    for name, expected in here.items():
        error = (there[name] - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCE[dtype], f"{name} differs by {error:.2g} of its largest element"


def test_greedy_text_is_that_of_the_cpu() -> None:
    """Through the key/value cache, one query at a time."""
    model = gpt2c.GPT2(CONFIG).eval()
    prompt = tokens()[0][:, :9]
    here = model.generate(prompt, 60, temperature=0)
    assert torch.equal(model.to(GPU).generate(prompt.to(GPU), 60, temperature=0).cpu(), here)


def test_kernels_wait_for_their_stream() -> None:
    """What is queued before them on it has written their input."""
    x = torch.zeros(1000, device=GPU)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # clock cycles
        x.fill_(1)
        y = ops.gelu(x)
    stream.synchronize()
    assert (y.cpu() - ops.gelu(torch.ones(1000))).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_gpu() -> None:
    idx, targets = (t.to(GPU) for t in tokens())
    model = gpt2c.GPT2(CONFIG).to(GPU)
    optimizer = gpt2c.AdamW(model.parameters())
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(2):
            model(idx, targets)[1].backward()
            norm = ops.grad_norm([p.grad for p in model.parameters()])
            optimizer.step(grad_scale=1 / (norm + 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_of_forward_and_backward() -> None:
    idx, targets = (t.to(GPU) for t in tokens())
    model = gpt2c.GPT2(CONFIG).to(GPU)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(idx, targets)[1], list(model.parameters())))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients()  # torch's matrix products make their workspaces
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    for tensor, new in zip((idx, targets), tokens(), strict=True):
        tensor.copy_(new)
    graph.replay()
    for got, expected in zip(captured, gradients(), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_results_are_the_same_each_time() -> None:
    q, k, v, do = (torch.randn(2, 3, 300, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True) for _ in range(4))

    def run() -> list[Tensor]:
        o = ops.attention(q, k, v, causal=True)
        return [o, *torch.autograd.grad(o, (q, k, v), do)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_the_tensors_gpu_is_used_and_the_callers_stays_current() -> None:
    x = torch.randn(100)
    y = ops.gelu(x.to("cuda:1"))
    assert y.device == torch.device("cuda", 1) and torch.cuda.current_device() == 0
    assert (y.cpu() - ops.gelu(x)).abs().max() < 1e-6


def test_tensors_on_two_devices_are_refused() -> None:
    x = torch.ones(2, 8, device=GPU)
    with pytest.raises(ValueError, match="layernorm: weight is on cpu, expected cuda:0, where x is"):
        ops.layernorm(x, torch.ones(8), torch.ones(8, device=GPU))


def test_an_id_out_of_range_fails_an_assertion_on_the_gpu() -> None:
    """In a process of its own, since the GPU is lost to it."""
    program = """
import torch, gpt2c
x = gpt2c.ops.embedding(torch.tensor([[5]]).cuda(), torch.ones(5, 8).cuda(), torch.ones(1, 8).cuda())
torch.cuda.synchronize()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "device-side assert" in done.stderr
