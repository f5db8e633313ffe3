"""What was measured on: the processor, the memory, the versions; and how much memory this process has taken."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import gpt2c
from gpt2c import _native

PEERS = ("transformers", "ctranslate2")
CACHE_IF_UNKNOWN = 64 << 20


def describe(threads: int) -> dict[str, str]:
    """The machine in facts, each a short line."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {os.cpu_count()} logical cores, {cache_bytes() >> 20} MB of last-level cache",
        "threads": str(threads),
        "kernels": _native.active_isa(),
        "memory": f"{_meminfo().get('MemTotal', 0) / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "gpt2c": f"{getattr(gpt2c, '__version__', 'not installed')}{_commit()}",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    return facts | {name: version for name in PEERS if (version := _version(name))}


def cache_bytes() -> int:
    """The last-level cache's size, or a large one's where the system does not tell."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=CACHE_IF_UNKNOWN)


def available_bytes() -> int | None:
    """Memory that can be had without swapping, within a container's limit; None where the system does not tell."""
    rooms = [room for room in (_meminfo().get("MemAvailable"), _group_bytes()) if room is not None]
    return min(rooms, default=None)


def swap_bytes() -> int:
    """Swap space that is free."""
    return _meminfo().get("SwapFree", 0)


def peak_bytes() -> int:
    """The most memory that this process has had at once."""
    # Not ru_maxrss where there is better: a new process begins with that of the one that started it.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds since some beginning: of the clock times the number of processors; of all processes, and what a
    hypervisor took; and of this process with its children that have ended."""

    capacity: float
    all: float
    own: float

    @classmethod
    def now(cls) -> ProcessorTime | None:
        """None where the system does not tell."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        lines = [line.split() for line in stat.read_text().splitlines() if re.match(r"cpu\d+ ", line)]
        ticks = os.sysconf("SC_CLK_TCK")
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
        all_ = sum(int(line[i]) for line in lines for i in (1, 2, 3, 6, 7, 8)) / ticks
        return cls(time.monotonic() * len(lines), all_, sum(os.times()[:4]))

    def others_since(self, before: ProcessorTime) -> float:
        """The share of the processors that others had meanwhile."""
        others = (self.all - before.all) - (self.own - before.own)
        return max(0.0, others / (self.capacity - before.capacity))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    facts = [re.search(rf"^{name}\s*: (.+)$", text, re.MULTILINE) for name in ("model name", "cpu family", "model")]
    if not all(facts):
        return platform.processor() or platform.machine()
    # The family and the model tell generations apart where a virtual machine hides the name.
    name, family, model = (found[1] for found in facts)
    return f"{name} (family {family}, model {model})"


def _meminfo() -> dict[str, int]:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}


def _group_bytes(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limits of this process's control groups leave, see the kernel's Documentation/admin-guide/cgroup-v2.rst
    and cgroup-v1/memory.rst; None without a limit. Files that were read and may be dropped count as free."""
    rooms = []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, dropped = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            dropped = "total_inactive_file"
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents) if own.is_relative_to(top) else ():
            try:
                most = (folder / limit).read_text().strip()
                stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                if most != "max":
                    rooms.append(int(most) - int((folder / usage).read_text()) + int(stat.get(dropped, 0)))
            except OSError:  # the root of all groups has no limit; a container may not see its parents
                continue
            if folder == top:
                break
    return max(0, min(rooms)) if rooms else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The checkout's commit, if the package is imported from one."""
    root = Path(gpt2c.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
