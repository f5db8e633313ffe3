"""The CUDA kernels on the emulator, under what the op tests do not vary: schedules, barriers that are left out, and
conflicts of shared memory's banks. Whether results are right is what the op tests say; here they must be the same
bits."""

from __future__ import annotations

import re

import emulation
import pytest
import remote
from emulation import mutate
from emulation.cases import CASES, running, same_bits
from torch import Tensor

pytestmark = pytest.mark.skipif(not emulation.cuda_headers(), reason="CUDA's headers are missing")

ORDERS = ("forward", "reversed", "shuffled:1", "shuffled:2", "shuffled:3")
ATTENTION = [name for name in CASES if name.startswith("attention")]


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], list[Tensor]]:
    """Of each case, by order and name."""
    by_order: dict[tuple[str, str], list[Tensor]] = {}
    for order in ORDERS:
        with running(order):
            by_order.update({(order, name): case() for name, case in CASES.items()})
    return by_order


@pytest.mark.parametrize("name", CASES)
def test_schedules(results: dict[tuple[str, str], list[Tensor]], name: str) -> None:
    first = results[ORDERS[0], name]
    assert first and all(x.isfinite().all() for x in first)
    for order in ORDERS[1:]:
        assert same_bits(results[order, name], first), f"the results differ with the order {order}"


def test_cases_reach_everything() -> None:
    kernels, places = set(), set()
    for path in (remote.ROOT / "csrc" / "cuda").glob("*.cu*"):
        text = re.sub(r"//.*", "", path.read_text())
        kernels |= set(re.findall(r"__global__[^;{]*?(\w+)\((?!k)", re.sub(r"__launch_bounds__\(.*?\)\s", "", text)))
        if path.name != "ptx.cuh":
            lines = enumerate(text.splitlines(), 1)
            places |= {f"{path.name}:{n}" for n, line in lines if re.search("__sync(threads|warp)|cp_async_wait", line)}
    with running() as server:
        for case in CASES.values():
            case()
        assert {name.split("<")[0] for name in server.launched_kernels()} == kernels
        assert {site.split("@")[0] for site in server.reached_sites()} == places


@pytest.mark.parametrize("name", ATTENTION)
def test_no_bank_conflicts(name: str) -> None:
    with running("shuffled:1,conflicts") as server:
        CASES[name]()
        counted = server.shared_accesses()
    assert sum(at.accesses for at in counted) > 0
    assert [at for at in counted if at.conflicts] == []


@pytest.mark.parametrize("op", ["attention", "layernorm", "gelu", "cross_entropy", "adamw"])
def test_barriers_are_needed(op: str) -> None:
    names = [name for name in CASES if name.startswith(f"{op}-bf16")]  # python -m emulation.mutate takes all
    detections = mutate.leave_out_each(names)
    assert detections
    assert [site for site, detection in detections.items() if not detection] == []
