"""python/cuda_report.py: reading what ptxas and nvdisasm say, the gates, occupancy, the table's text."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
import cuda_compile  # noqa: E402
import cuda_errors  # noqa: E402
import cuda_gates  # noqa: E402
import cuda_launches  # noqa: E402
import cuda_occupancy  # noqa: E402
import cuda_report  # noqa: E402
import cuda_roofline  # noqa: E402
import cuda_table  # noqa: E402
import cuda_tested  # noqa: E402
from cuda_compile import Instance  # noqa: E402

FORWARD = "_ZN5gpt2c4cuda36_GLOBAL__N__12345678_4_x_cu_876543217forwardINS_4bf16ELi8ELb1EEEvPKfPf"
SUM = "_Z3sumPKfPf"

PTXAS = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{FORWARD}' for 'sm_80'
ptxas info    : Function properties for {FORWARD}
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 512 bytes smem, 416 bytes cmem[0]
ptxas info    : Compile time = 28.488 ms
ptxas info    : Compiling entry function '{SUM}' for 'sm_80'
ptxas info    : Function properties for {SUM}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 368 bytes cmem[0]
"""

CODE = f"""\
\t.section\t.text.{FORWARD},"ax",@progbits
.text.{FORWARD}:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R8, [R8.64] ;
        /*0020*/              @!P0 LDG.E.128.CONSTANT R12, [R8.64+0x10] ;
        /*0030*/                   LDG.E.64 R4, [R8.64] ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R4], [R8.64] ;
        /*0050*/                   LDSM.16.M88.4 R4, [R5] ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R4.reuse, R12, RZ ;
        /*0070*/                   HMMA.1688.F32 R4, R4, R12, RZ ;
        /*0080*/               @P1 STG.E.128 [R4.64], R8 ;
        /*0090*/                   STS.128 [R4], R8 ;
        /*00a0*/                   STS [R4], R8 ;
.L_x_1:
        /*00b0*/                   LDS.128 R8, [R4] ;
        /*00c0*/                   BPT.TRAP 0x1 ;
\t.section\t.text.{SUM},"ax",@progbits
.text.{SUM}:
        /*0000*/                   STG.E.64 [R4.64], R8 ;
"""

SOURCE = """\
enum class Weights { plain, masters = 1 };
template <class T, int V, bool kDropout>
__global__ void __launch_bounds__(Shape<V>::kThreads, V == 8 ? 3 : 2)
    forward(const T* x, T* y);
__global__ void sum(const float* x, float* y);
"""


@pytest.fixture
def instances(tmp_path: Path) -> list[Instance]:
    source = tmp_path / "x.cu"
    source.write_text(SOURCE)
    return cuda_compile.read_instances(PTXAS, CODE, source, 80)


def test_ptxas_and_nvdisasm_are_read(instances: list[Instance]) -> None:
    forward, total = instances
    assert (forward.file, forward.name, forward.dtype) == ("x", "forward<bf16, V=8, dropout>", "bf16")
    assert (forward.registers, forward.stack, forward.spills, forward.static_shared) == (40, 16, 20, 512)
    assert forward.instructions == {
        "HMMA": 2, "HMMA.1688": 1, "LDSM": 1, "LDGSTS": 1, "LDG.128": 2, "STG.128": 1, "LDS.128": 1, "STS.128": 1,
        "traps": 1,
    }  # fmt: skip
    assert (total.name, total.dtype, total.registers, total.spills) == ("sum", "", 8, 0)
    assert not any(total.instructions.values())


@pytest.mark.parametrize(
    ("demangled", "expected"),
    [
        ("void n::(anonymous namespace)::f<n::bf16, 64, false>(int, void (*)(int))", ("f", ["bf16", "64", "false"])),
        ("gpt2c::cuda::(anonymous namespace)::norm(double const*)", ("norm", [])),
    ],
)  # fmt: skip
def test_names_are_shortened(demangled: str, expected: tuple[str, list[str]]) -> None:
    assert cuda_compile.split_name(demangled) == expected


def test_template_arguments_are_described() -> None:
    parameters = ("Weights weights", "class T", "int kRows", "bool kKeys", "bool kDropout")
    values = ["(Weights)1", "f16", "8", "true", "false"]
    words = cuda_compile.describe(values, parameters, {"Weights": ["plain", "masters"]})
    assert words == ["masters", "fp16", "rows=8", "keys"]


def test_enumerators_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.cu").write_text(SOURCE)
    assert cuda_compile.enumerators([tmp_path / "x.cu"]) == {"Weights": ["plain", "masters"]}


def test_what_a_file_is_compiled_from() -> None:
    files = {f.name for f in cuda_compile.included(cuda_compile.SOURCES / "gelu.cu")}
    assert {"gelu.cu", "reduce.cuh", "device.cuh", "ptx.cuh", "dtype.h", "kernels.h"} <= files
    assert not any(name.startswith("attention") for name in files)


def instance(kernel: str = "layernorm.forward_kernel", arguments: str = "bf16, V=8", **changes: object) -> Instance:
    """One that keeps every rule, but for the changes; instructions are given by what is missing."""
    file, name = kernel.split(".")
    missing, traps = changes.pop("missing", ()), changes.pop("traps", 0)
    counts = {**{n: int(n not in missing) for n in cuda_compile.INSTRUCTIONS}, "traps": traps}
    whole = Instance(file, name, arguments, 80, 32, 0, 0, 0, counts)
    return dataclasses.replace(whole, **changes)


MMA = "attention_mma_forward.attention_forward_mma"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (instance(spills=8), "found 8 bytes of register spills, expected 0"),
        (instance(missing=["LDG.128"]), "found 0 LDG.128 instructions, expected at least 1"),
        (instance(missing=["STG.128"]), "found 0 STG.128 instructions, expected at least 1"),
        (instance(MMA, "bf16, D=64", missing=["HMMA"]), "found 0 HMMA instructions, expected at least 1"),
        (instance(MMA, "fp16, D=64", missing=["LDSM"]), "found 0 LDSM instructions, expected at least 1"),
        (instance(MMA, "bf16, D=64", missing=["LDGSTS"]), "found 0 LDGSTS instructions, expected at least 1"),
        (instance(MMA, "fp16, D=64", arch=75, missing=["HMMA.1688"]), "found 0 HMMA.1688 instructions"),
        (instance(traps=1), "found a trap, expected none"),
        (instance("layernorm.no_such_kernel"), "found a kernel without a rule"),
    ],
)
def test_a_broken_gate_is_told(given: Instance, message: str) -> None:
    (broken,) = cuda_gates.check(given)
    assert str(broken).startswith(f"{given.file}: {given.name} for sm_{given.arch}: ") and message in str(broken)


@pytest.mark.parametrize(
    "given",
    [
        instance(),
        instance(arguments="bf16, V=1", missing=["LDG.128", "STG.128"]),  # for memory that is not aligned
        instance("reduce.add_pieces_kernel", "bf16", missing=["LDG.128", "STG.128"]),
        instance(MMA, "bf16, D=64", missing=["LDG.128"]),  # its loads are LDGSTS
        instance(MMA, "fp16, D=64", arch=75, missing=["LDGSTS"]),
        instance(MMA, "bf16, D=64", arch=75, missing=list(cuda_compile.INSTRUCTIONS), traps=1),  # not launched there
    ],
)
def test_gates_that_hold(given: Instance) -> None:
    assert not list(cuda_gates.check(given))


def test_a_block_must_fit() -> None:
    fits, too_large = (cuda_table.Row(instance(arch=75), 128, shared) for shared in (64 << 10, (64 << 10) + 16))
    assert not list(cuda_gates.check_fit(fits))
    (broken,) = cuda_gates.check_fit(too_large)
    assert "found 128 threads of 32 registers, 65552 bytes of shared memory, expected a block that fits" in str(broken)


def test_sm75_has_tensor_cores_for_fp16() -> None:
    traps = instance(MMA, "fp16, D=64, keys=64", arch=75, missing=["HMMA.1688"], traps=1)
    (broken,) = cuda_gates.check_all([traps])
    assert str(broken) == f"{MMA} for sm_75: found no instance for fp16 with HMMA.1688, expected at least 1"
    assert not cuda_gates.check_all([traps, instance(MMA, "fp16, D=64, keys=32", arch=75)])


def test_every_kernel_has_a_rule_and_every_rule_a_kernel() -> None:
    files = [*cuda_compile.SOURCES.glob("*.cu"), *cuda_compile.SOURCES.glob("*.cuh")]
    kernels = {f"{f.stem}.{k}" for f in files for k in cuda_compile.template_parameters([f])}
    assert len(kernels) > 10
    assert kernels == set(cuda_gates.RULES)


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks"),
    [
        # 24 registers: 768 a warp, 65536 / 768 = 85 warps, so that the 64 warps are the limit: 64 / 8.
        (80, 256, 24, 0, 8),
        # 255 registers: units of 256 make 8192 a warp, 2 warps for each quarter of 16384, 8 warps, 2 blocks of 4.
        (80, 128, 255, 0, 2),
        # 48 KiB and 1 KiB of the driver's: 164 / 49 = 3 blocks.
        (80, 128, 32, 48 << 10, 3),
        # The smallest blocks: 16 at a time on sm_75 and sm_86, 24 on sm_89 and sm_120, 32 on sm_90.
        (75, 32, 16, 0, 16),
        (86, 32, 16, 0, 16),
        (89, 32, 16, 0, 24),
        (120, 32, 16, 0, 24),
        (90, 32, 16, 0, 32),
        # 80 KiB: more than sm_75 has, once on sm_86 (99 KiB for a block), twice on sm_90 (228 / 81).
        (75, 128, 32, 80 << 10, 0),
        (86, 128, 32, 80 << 10, 1),
        (90, 128, 32, 80 << 10, 2),
    ],
)
def test_occupancy_by_hand(arch: int, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert cuda_occupancy.resident_blocks(arch, threads, registers, shared) == blocks
    expected = blocks * threads / 32 / cuda_occupancy.ARCHITECTURES[arch].warps
    assert cuda_occupancy.occupancy(arch, threads, registers, shared) == pytest.approx(expected)


# NVIDIA's own calculation, with the limits of cuda_occupancy.ARCHITECTURES, for lines of arch, its limits, threads,
# registers and shared memory.
CALCULATOR = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
    int arch, warps, reserved, threads, registers;
    size_t shared, total;
    while (std::scanf("%d %d %zu %d %d %d %zu", &arch, &warps, &total, &reserved, &threads, &registers, &shared) == 7) {
        cudaOccDeviceProp device{};
        device.computeMajor = arch / 10, device.computeMinor = arch % 10;
        device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * warps;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32, device.numSms = 1;
        device.sharedMemPerBlock = 48 << 10, device.sharedMemPerMultiprocessor = total;
        device.sharedMemPerBlockOptin = total - reserved, device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel{};
        kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.maxDynamicSharedSizeBytes = total;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        cudaOccDeviceState state{};
        cudaOccResult result{};
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return 1;
        std::printf("%d\n", result.activeBlocksPerMultiprocessor);
    }
}
"""


@pytest.mark.skipif(emulation.cuda_headers() is None, reason="CUDA's headers are missing")
def test_occupancy_is_nvidias(tmp_path: Path) -> None:
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    program = tmp_path / "calculator"
    subprocess.run(["g++", f"-I{emulation.cuda_headers()}", "-o", program, tmp_path / "calculator.cpp"], check=True)
    cases = list(
        itertools.product(
            cuda_occupancy.ARCHITECTURES,
            (32, 96, 128, 160, 256, 512, 1024),
            (16, 32, 40, 57, 64, 65, 96, 120, 128, 168, 200, 255),
            (0, 384, 4160, 12288, 33792, 49152, 65536, 66560, 81920, 100000),
        )
    )
    cases = [c for c in cases if c[2] * c[1] <= 65536]
    lines = []
    for arch, threads, registers, shared in cases:
        a = cuda_occupancy.ARCHITECTURES[arch]
        lines.append(f"{arch} {a.warps} {a.shared} {a.reserved} {threads} {registers} {shared}")
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    for case, expected in zip(cases, map(int, done.stdout.split()), strict=True):
        assert cuda_occupancy.resident_blocks(*case) == expected, case


def test_launches_are_read_and_their_kernels_known() -> None:
    kernels = {0x10: ("gelu", "forward_kernel", "Tanh, bf16, V=8")}
    log = "call gelu_forward bf16 +,+,2,768\nlaunch 10 128 64\nlaunch 99 1 0\ncall gelu_forward fp32 +,-,1,8\n"
    first, second = cuda_launches.read(log, kernels)
    assert (first.op, first.dtype, first.shape) == ("gelu_forward", "bf16", "+,+,2,768")
    assert first.launches == (cuda_launches.Launch("gelu", "forward_kernel", "Tanh, bf16, V=8", 128, 64),)
    assert second.launches == ()


@pytest.mark.skipif(emulation.cuda_headers() is None, reason="CUDA's headers are missing")
def test_all_kernels_are_launched_at_gpt2s_widths() -> None:
    launched = {f"{file}.{kernel}" for file, kernel, _ in cuda_launches.gpt2_launches(90)}
    assert launched == set(cuda_gates.RULES)


def test_a_row_holds_the_range_of_its_instances() -> None:
    launches = {("layernorm", "forward_kernel", "bf16, V=8"): (128, 12288)}
    rows = cuda_table.with_launches([instance(registers=40), instance(arguments="bf16, V=1")], launches)
    (line,) = cuda_table.kernel_table(rows).splitlines()[2:]
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[:10] == ["`layernorm: forward_kernel`", "bf16", "2", "128", "32 - 40", "0", "0", "0", "12288", "75 %"]


def test_what_kernels_went_through_is_counted() -> None:
    def call(dtype: str, shape: str) -> cuda_launches.Call:
        launch = cuda_launches.Launch("gelu", "forward_kernel", "Tanh", 128, 0)
        return cuda_launches.Call("gelu_forward", dtype, shape, (launch,))

    calls = [call("fp32", "1"), call("fp32", "1"), call("bf16", "1"), call("bf16", "2")]
    (line,) = cuda_tested.tested_table(calls).splitlines()[2:]
    assert line == "| `gelu: forward_kernel` | bf16, fp32 | 2 | 3 | 4 |"


def test_the_least_time_is_the_slower_ones_of_arithmetic_and_memory() -> None:
    gpu = cuda_roofline.Gpu("one", tensor=100, fp32=10, memory=1000, source="")
    work = cuda_roofline.Work("x", "x", "", flops=10**12, bytes=10**9, formula="")
    assert gpu.seconds(work) == pytest.approx(0.1)
    assert gpu.seconds(dataclasses.replace(work, tensor_cores=True)) == pytest.approx(0.01)
    assert gpu.seconds(dataclasses.replace(work, bytes=2 * 10**11)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "flops", "moved"),
    [  # the contracts of csrc/kernels.h, of B8 H12 T1024 D64 and of 8192 rows of 768; dtypes of 2 bytes
        ("attention_forward", 4 * 8 * 12 * 1024 * 1024 * 64 / 2, 2 * 8 * 12 * 64 * 4096 + 8 * 8 * 12 * 1024),
        ("attention_backward", 14 * 8 * 12 * 1024 * 1024 * 64 / 2, 2 * 8 * 12 * 64 * 13 * 1024 + 56 * 8 * 12 * 1024),
        ("adamw", 15 * 124_439_808, (3 * 2 + 16) * 124_439_808),
    ],
)
def test_work_is_that_of_the_contracts(name: str, flops: float, moved: int) -> None:
    (work,) = (w for w in cuda_roofline.WORK if w.name == name)
    assert work.bytes == moved
    assert work.flops == pytest.approx(flops, rel=1e-3)  # the diagonal of the causal mask


def test_errors_are_those_of_forward_and_backward() -> None:
    # y = 2 x, and so its gradient, are off by 1 % in ours and exact in torch's, whose float64 both are compared with.
    case = cuda_errors.Case("double", "torch's", {"x": (5,)}, lambda x: 2.02 * x, lambda x: 2 * x)
    ours, torchs = cuda_errors.errors(case, torch.float32)
    assert ours == pytest.approx([0.01, 0.01], rel=1e-4)
    assert torchs == [0, 0]


def test_text_between_markers_is_replaced() -> None:
    text = "a\n<!-- kernels -->\nold\n<!-- end of kernels -->\nb\n"
    new = cuda_table.replace_between(text, "kernels", "new")
    assert new == "a\n<!-- kernels -->\nnew\n<!-- end of kernels -->\nb\n"
    assert cuda_table.replace_between(new, "kernels", "new") == new
    with pytest.raises(ValueError, match="markers"):
        cuda_table.replace_between(text, "errors", "new")


def test_without_a_compiler_one_sentence_and_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_compile.shutil, "which", lambda tool: None)
    monkeypatch.setattr(cuda_compile, "TOOLKIT", Path("/nowhere"))
    monkeypatch.setattr(cuda_compile.importlib.util, "find_spec", lambda name: None)
    assert cuda_report.main(cuda_report.Args(arch=(80,), check=True)) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nvcc not found") and "PyPI" in line


def test_the_exit_code_tells_of_a_broken_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = cuda_compile.Tools(Path("nvcc"), Path("nvdisasm"), "13.0.88")
    monkeypatch.setattr(cuda_report, "find_tools", lambda: tools)
    compiled = {80: cuda_compile.Compiled([instance()], 1.0)}
    monkeypatch.setattr(cuda_report, "compile_all", lambda *args: {"layernorm.cu": compiled})
    args = cuda_report.Args(arch=(80,), check=True)
    assert cuda_report.main(args) == 0
    compiled[80] = cuda_compile.Compiled([instance(spills=4)], 1.0)
    assert cuda_report.main(args) == 1
    assert "broken gate: layernorm: forward_kernel<bf16, V=8> for sm_80" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_report.main(cuda_report.Args(arch=(70,))) == 2
    assert "expected some of 75, 80" in capsys.readouterr().err
