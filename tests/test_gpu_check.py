"""python/gpu_check.py's logic: what it reads from other programs, its verdicts, its report; its harness on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import on_gpu
import pytest
import remote
import torch

import gpt2c

sys.path.insert(0, str(remote.ROOT / "python"))
import gpu_check  # noqa: E402
import gpu_report  # noqa: E402
import gpu_run  # noqa: E402
import gpu_tools  # noqa: E402
from gpu_report import Report, verdict  # noqa: E402
from gpu_tools import Counts  # noqa: E402

from gpt2c.bench.case import Measured, Work  # noqa: E402
from gpt2c.bench.floors import Floors  # noqa: E402
from gpt2c.bench.ops import Sizes  # noqa: E402
from gpt2c.bench.timing import Timing  # noqa: E402

CPU = torch.device("cpu")
SIZES = Sizes(B=1, T=8, H=2, D=8, V=16, L=1)
FLOORS = Floors(copy=1e9, update=1e9, read=1e9, gemm=1e9)


def all_right() -> Report:
    modules = (*gpu_tools.MODULES, *gpu_tools.MODULES_OF_NO_OP)
    return Report({"gpu": "a GPU"}, tests={module: Counts(passed=5) for module in modules})


def measured(
    op: str, way: str, label: str, floor: float, unavailable: dict | None = None, **seconds: float
) -> Measured:
    times = {name: Timing(median, median, median, 1) for name, median in seconds.items()}
    return Measured(op, way, label, times, Work(1.0, 1.0), floor, unavailable or {})


# ---- reading


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, "....\n4 passed in 1.2s\n", Counts(passed=4)),
        (0, "7 passed, 2 skipped, 90 deselected in 0.1s", Counts(passed=7, skipped=2)),
        (
            1,
            "FAILED tests/test_gelu.py::test_a[cuda-1] - AssertionError: x\n1 failed, 3 passed in 2s",
            Counts(passed=3, failed=1, failures=["tests/test_gelu.py::test_a[cuda-1]"]),
        ),
        (
            1,
            "ERROR tests/test_gelu.py::test_b[cuda-1]\n2 passed, 1 error in 2s",
            Counts(passed=2, failed=1, failures=["tests/test_gelu.py::test_b[cuda-1]"]),
        ),
        (5, "12 deselected in 0.1s", Counts(problem="pytest ended with code 5: 12 deselected in 0.1s")),
        (
            -1,
            "python did not end within 9 s",
            Counts(problem="pytest ended with code -1: python did not end within 9 s"),
        ),
        (-11, "....\n", Counts(problem="pytest ended with code -11: ....")),
        (1, "", Counts(problem="pytest ended with code 1: no output")),
    ],
)
def test_what_pytest_said(code: int, output: str, expected: Counts) -> None:
    assert gpu_tools.parse_pytest(code, output) == expected


def test_pytest_itself_is_read(tmp_path: Path) -> None:
    module = tmp_path / "test_x.py"
    module.write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert False\ndef test_not(): pytest.skip('no')\n"
    )
    found = gpu_tools.parse_pytest(
        *gpu_tools.run(gpu_tools.PYTEST, "-q", "-rfE", "--rootdir", tmp_path, module, timeout=100)
    )
    assert (found.passed, found.failed, found.skipped, found.problem) == (1, 1, 1, "")
    assert [name.split("::")[1] for name in found.failures] == ["test_bad"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("========= COMPUTE-SANITIZER\n4 passed in 9s\n========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 1 error\n", 1),
        ("========= ERROR SUMMARY: 2 errors\n========= ERROR SUMMARY: 1 error\n", 3),  # of two processes
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n", 2),
        ("Error: no device\n", "compute-sanitizer ended with code 1: Error: no device"),
    ],
)
def test_what_compute_sanitizer_said(output: str, expected: int | str) -> None:
    assert gpu_tools.parse_sanitizer(1, output) == expected


def test_a_program_that_does_not_end_or_is_not_there() -> None:
    code, output = gpu_tools.run(sys.executable, "-c", "import time; time.sleep(60)", timeout=0.5)
    assert code == -1 and output.endswith("did not end within 0 s")
    assert gpu_tools.run("no-such-program", timeout=1) == (-1, "no-such-program was not found")
    assert gpu_tools.one_line("no-such-program") == "unknown"


# ---- judging


def test_every_op_right() -> None:
    report = all_right()
    report.sanitizer = {module: {"memcheck": 0, "racecheck": 0} for module in gpu_tools.MODULES}
    found = [verdict(report, op) for op in gpu_tools.OPS]
    assert {v.result for v in found} == {"right"}
    assert found[0].why == "5 tests pass; memcheck, racecheck clean"
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("change", "result", "why"),
    [
        (lambda r: r.tests.update(gelu=Counts(passed=3, failed=2)), "wrong", "2 of 5 tests fail"),
        (lambda r: r.sanitizer.update(gelu={"memcheck": 0, "racecheck": 4}), "wrong", "racecheck finds 4 errors"),
        (lambda r: r.tests.pop("gelu"), "not tested", "no test ran"),
        (lambda r: r.tests.update(gelu=Counts(skipped=9)), "not tested", "no test ran"),
        (lambda r: r.tests.update(gelu=Counts(passed=9, problem="it crashed")), "not tested", "it crashed"),
    ],
)
def test_one_op_that_is_not_right(change, result: str, why: str) -> None:
    report = all_right()
    change(report)
    found = verdict(report, "bias_gelu")
    assert (found.result, found.why) == (result, why)
    assert verdict(report, "attention").result == "right"
    assert report.exit_code == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.problems.append("a training step: out of memory"),
        lambda r: r.tests.pop("cuda"),
        lambda r: r.tests.update(cuda=Counts(passed=1, failed=1)),
        lambda r: r.tests.update(model=Counts(passed=1, problem="it crashed")),
    ],
)
def test_what_belongs_to_no_op_counts_too(change) -> None:
    report = all_right()
    change(report)
    assert report.exit_code == 1


def test_speed_is_against_the_fastest_peer_and_the_floor() -> None:
    report = all_right()
    report.measured = [
        measured("attention", "forward", "", floor=1.0, gpt2c=2.0, slow=9.0, fast=4.0),
        measured("attention", "backward", "", floor=1.0, gpt2c=4.0, fast=2.0),
        measured("gelu", "forward", "", floor=0.5, unavailable={"fast": "no"}, gpt2c=1.0),
    ]
    found = verdict(report, "attention")
    assert (found.speedup, found.slowest) == (pytest.approx(1.0), pytest.approx(0.5))
    assert found.of_floor == pytest.approx((0.5 * 0.25) ** 0.5)
    assert report.measured[2].speedup is None


# ---- measuring, on the CPU


def test_a_whole_bench_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of ours are noted, and the rest goes on."""
    monkeypatch.setattr(gpu_run, "measure_floors", lambda device, dtype: FLOORS)
    config = gpt2c.GPT2Config(vocab_size=16, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    report = all_right()
    gpu_run.bench(report, CPU, [torch.float32, torch.float16], SIZES, config, compiled=False, repeats=1)
    assert {m.op for m in report.measured} == set(gpu_tools.OPS)
    assert [m.label for m in report.training] == ["float32"] and set(report.training[0].seconds) == {"gpt2c", "torch"}
    assert len(report.problems) == len(report.measured) + 1  # the CPU has no float16
    assert all("expected torch.float32 or torch.bfloat16" in problem for problem in report.problems)
    text = gpu_report.to_markdown(report)
    assert "## GPT-2 124M, one training step" in text and "| float32 |" in text


# ---- reporting


def test_the_report_in_both_forms(tmp_path: Path) -> None:
    report = all_right()
    report.tests["gelu"] = Counts(passed=3, failed=1, failures=["tests/test_gelu.py::test_a[cuda-1]"])
    report.sanitizer = {"attention": {"memcheck": 0, "racecheck": "it | crashed"}}
    report.measured = [measured("attention", "forward", "float16", 1e-6, {"cudnn": "no"}, gpt2c=2e-6, flash=3e-6)]
    gpu_report.write(report, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| attention | forward, float16 | 2.0 | 1.0 | 50% | flash 3.0, cudnn not available (no) | 1.50 |" in text
    assert "| attention | right | 5 tests pass; memcheck clean | 1.50 | 1.50 | 50% |" in text
    assert "| bias_gelu | wrong | 1 of 4 tests fail |  |  |  |" in text
    assert "it \\| crashed" in text and "- tests/test_gelu.py::test_a[cuda-1]" in text
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["exit_code"] == 1 and data["measured"][0]["speedup"] == pytest.approx(1.5)
    assert {v["op"]: v["result"] for v in data["verdicts"]}["bias_gelu"] == "wrong"


@pytest.mark.skipif(not on_gpu.gpu_problem(), reason="this machine has a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    script = remote.ROOT / "python" / "gpu_check.py"
    command = [sys.executable, script, "--out", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == f"error: no GPU to check the CUDA kernels on: {on_gpu.gpu_problem()}\n"
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["machine"]["torch"].startswith(torch.__version__) and data["no_gpu"] == on_gpu.gpu_problem()
    assert {v["result"] for v in data["verdicts"]} == {"not tested"}
    assert "## Tests" not in (tmp_path / "report.md").read_text()


def test_a_build_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gpu_tools, "install", lambda timeout: (1, "gpt2c: GPT2C_CUDA=ON, but no nvcc"))
    assert gpu_check.main(["--build"]) == 1
    assert capsys.readouterr().err == "gpt2c: GPT2C_CUDA=ON, but no nvcc\nerror: the build failed\n"


def test_after_a_build_the_check_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that loads what was installed."""
    started = []
    monkeypatch.setattr(gpu_tools, "install", lambda timeout: (0, ""))
    monkeypatch.setattr(subprocess, "call", lambda command: started.append(command) or 7)
    assert gpu_check.main(["--build", "--repeats", "3"]) == 7
    assert started[0][2:] == ["--repeats", "3"]


def test_packages_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gpu_check, "NEEDED", ("gpt2c", "no_such_package"))
    assert gpu_check.main([]) == 2
    assert "has no no_such_package: --build installs what is missing" in capsys.readouterr().err
