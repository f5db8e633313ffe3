"""The CUDA kernels on the emulator, under what the op tests do not vary: schedules, barriers that are left out, and
conflicts of shared memory's banks. Whether results are right is what the op tests say; here they must be the same
bits."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import emulation
import pytest
import remote
from emulation import mutate
from emulation.cases import CASES, running, same_bits
from torch import Tensor

sys.path.insert(0, str(remote.ROOT / "python"))
import cuda_mutations  # noqa: E402

pytestmark = pytest.mark.skipif(not emulation.cuda_headers(), reason="CUDA's headers are missing")

ORDERS = ("forward", "reversed", "shuffled:1", "shuffled:2", "shuffled:3")
# fp16 is bf16's templates once more, but on sm_75; python/cuda_mutations.py takes all.
NAMES = [name for name in CASES if "fp16" not in name or "sm_75" in name]
ATTENTION = [name for name in NAMES if name.startswith("attention")]


class Runs(NamedTuple):
    """Of all these cases, in all orders."""

    results: dict[tuple[str, str], list[Tensor]]  # by order and case
    kernels: set[str]  # without template arguments
    sites: set[str]  # FILE:LINE of barriers and waits


@pytest.fixture(scope="module")
def runs() -> Runs:
    runs = Runs({}, set(), set())
    for order in ORDERS:
        for sm in {case.sm for case in CASES.values()}:
            with running(f"{order},sm={sm}") as server:
                runs.results.update({(order, name): case.run() for name in NAMES if (case := CASES[name]).sm == sm})
                runs.kernels.update(kernel.split("<")[0] for kernel in server.launched_kernels())
                runs.sites.update(site.split("@")[0] for site in server.reached_sites())
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_schedules(runs: Runs, name: str) -> None:
    first = runs.results[ORDERS[0], name]
    assert first and all(x.isfinite().all() for x in first)
    for order in ORDERS[1:]:
        assert same_bits(runs.results[order, name], first), f"the results differ with the order {order}"


def test_cases_reach_everything(runs: Runs) -> None:
    kernels, places = set(), set()
    for path in (remote.ROOT / "csrc" / "cuda").glob("*.cu*"):
        text = re.sub(r"//.*", "", path.read_text())
        kernels |= set(re.findall(r"__global__[^;{]*?(\w+)\(", re.sub(r"__launch_bounds__\(.*?\)\s", "", text)))
        if path.name != "ptx.cuh":
            lines = enumerate(text.splitlines(), 1)
            places |= {f"{path.name}:{n}" for n, line in lines if re.search("__sync(threads|warp)|cp_async_wait", line)}
    assert runs.kernels == kernels
    assert runs.sites == places


@pytest.mark.parametrize("name", ATTENTION)
def test_no_bank_conflicts(name: str) -> None:
    run, sm = CASES[name]
    with running(f"shuffled:1,sm={sm},conflicts") as server:
        run()
        counted = server.shared_accesses()
    assert sum(at.accesses for at in counted) > 0
    assert [at for at in counted if at.conflicts] == []


@pytest.mark.parametrize("op", ["attention", "layernorm", "gelu", "cross_entropy", "adamw"])
def test_barriers_are_needed(op: str) -> None:
    # In one dtype; python/cuda_mutations.py takes all.
    names = [name for name in CASES if name.startswith(f"{op}-bf16")]
    detections = mutate.leave_out_each(names)
    assert detections
    assert [site for site, detection in detections.items() if not detection] == []


def test_mutation_table() -> None:
    detections = {
        "a.cu:3@kernel<float>": "race on shared memory x+0: a read after a write at a.cu:4",
        "a.cu:3@kernel<bf16>": "read of uninitialised shared memory x+0 at a.cu:4",
        "b.cuh:7@kernel<float>": "",
    }
    table = cuda_mutations.mutation_table(detections, {"a.cu:3": "__syncthreads();", "b.cuh:7": "__syncwarp();"})
    score, _, _, _, *lines = table.splitlines()
    assert score.startswith("2 of 3 were noticed")
    assert lines == [
        "| `a.cu:3` | `__syncthreads();` | race, uninitialised | 2 | 2 |",
        "| `b.cuh:7` | `__syncwarp();` | not noticed | 1 | 0 |",
    ]
