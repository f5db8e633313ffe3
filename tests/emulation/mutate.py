"""Whether each barrier and wait of the CUDA kernels is needed, and its absence noticed (python/cuda_mutations.py).

The cases of tests/emulation/cases.py, which reach every kernel, are run as they are, and then once more for each
`__syncthreads`, `__syncwarp` and `cp_async_wait` that an instance of a kernel template reached, with this one left out
in this instance. That is noticed if the emulator reports an error, or if a result changes by a bit.
"""

from __future__ import annotations

import re

from torch import Tensor

from emulation.cases import CASES, running, same_bits


def reach(name: str) -> tuple[list[Tensor], list[str]]:
    """The results of a case, and the barriers and waits that it comes to: "FILE:LINE@KERNEL"."""
    run, sm = CASES[name]
    with running(f"shuffled:1,sm={sm}") as server:
        return run(), server.reached_sites()


def detection(name: str, expected: list[Tensor], site: str) -> str:
    """How the case notices that the site is left out; empty if it does not."""
    run, sm = CASES[name]
    with running(f"shuffled:1,sm={sm},skip={site}"):
        try:
            results = run()
        except AssertionError as error:
            return re.sub(r"^.*dynamic shared memory: ", "", str(error).splitlines()[0])
        return "" if same_bits(results, expected) else "other results"


def leave_out_each(names: list[str]) -> dict[str, str]:
    """For each barrier and wait that these cases come to, how the first case that notices its absence does."""
    detections: dict[str, str] = {}
    for name in names:
        expected, sites = reach(name)
        for site in sites:
            if not detections.get(site):
                detections[site] = detection(name, expected, site)
    return detections
