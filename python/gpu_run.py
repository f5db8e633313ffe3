"""What python/gpu_check.py does, from the tests to the report."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import gpu_report
import gpu_tools
import gpu_train
import torch
from gpu_report import Report

import gpt2c
from gpt2c.bench.case import Effort, measure
from gpt2c.bench.floors import measure_floors
from gpt2c.bench.ops import Setting, Sizes, cases

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import on_gpu  # noqa: E402


def check(out: Path, sanitizer: bool, compiled: bool, repeats: int, timeout: float) -> int:
    """Tests, measures and writes the report as far as this machine allows; returns the exit code."""
    report = Report(gpu_report.machine(), no_gpu=on_gpu.gpu_problem())
    if not report.no_gpu:
        test(report, timeout)
        if sanitizer:
            sanitize(report, timeout)
        gpu = torch.device("cuda", 0)
        dtypes = [torch.float32, torch.float16]
        if torch.cuda.get_device_capability(gpu) >= (8, 0):  # before, tensor cores do not take bf16
            dtypes.append(torch.bfloat16)
        bench(report, gpu, dtypes, Sizes(), gpt2c.GPT2Config.preset("gpt2"), compiled, repeats)
    gpu_report.write(report, out)
    print(gpu_report.to_markdown(report))
    print(f"written to {out / 'report.md'} and {out / 'report.json'}")
    if report.no_gpu:
        print(f"error: no GPU to check the CUDA kernels on: {report.no_gpu}", file=sys.stderr)
    return report.exit_code


def test(report: Report, timeout: float) -> None:
    """The tests of ops and model on the backend `cuda`, and tests/test_cuda.py."""
    for module in (*gpu_tools.MODULES, *gpu_tools.MODULES_OF_NO_OP):
        print(f"testing {module}", flush=True)
        report.tests[module] = gpu_tools.run_tests(module, timeout)


def sanitize(report: Report, timeout: float) -> None:
    """The op tests under compute-sanitizer's tools, if it is installed."""
    program = gpu_tools.find_sanitizer()
    report.machine["compute-sanitizer"] = program or "not installed"
    for module in gpu_tools.MODULES if program else ():
        for tool in gpu_tools.SANITIZER_TOOLS:
            print(f"{tool} over the tests of {module}", flush=True)
            found = gpu_tools.run_sanitizer(program, tool, module, timeout)
            report.sanitizer.setdefault(module, {})[tool] = found
            if isinstance(found, str):
                report.problems.append(f"{tool} over the tests of {module}: {found}")


def bench(
    report: Report, device: torch.device, dtypes: list[torch.dtype], sizes: Sizes,
    config: gpt2c.GPT2Config, compiled: bool, repeats: int,
) -> None:  # fmt: skip
    """Every op and a training step; an error of ours is a finding, not the end."""
    report.tokens = sizes.B * config.n_positions
    effort = Effort(seconds=0.0, least=repeats)
    for dtype in dtypes:
        print(f"measuring {dtype}", flush=True)
        floors = measure_floors(device, dtype)
        for case in cases(Setting(sizes, device, dtype, compiled), tuple(gpu_tools.OPS)):
            case = dataclasses.replace(case, label=f"{str(dtype).removeprefix('torch.')}, {case.label}")
            try:
                report.measured.append(measure(case, floors, effort, device))
            except Exception as error:
                report.problems.append(f"{case.op}, {case.way}, {case.label}: {error}")
        try:
            case = gpu_train.training_step(config, sizes.B, device, dtype, compiled)
            report.training.append(measure(case, floors, effort, device))
        except Exception as error:
            report.problems.append(f"a training step in {dtype}: {error}")
