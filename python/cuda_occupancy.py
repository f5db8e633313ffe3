"""How much of a multiprocessor a kernel can fill: NVIDIA's occupancy calculation (cuda_occupancy.h of the toolkit)."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS = 65536  # of a multiprocessor, on all of these
WARP_REGISTERS_UNIT = 256  # a warp gets registers in units of these
SCHEDULERS = 4  # parts of a multiprocessor, each with a quarter of the registers


@dataclass(frozen=True)
class Architecture:
    warps: int  # resident on a multiprocessor, at most
    blocks: int
    shared: int  # bytes of shared memory of a multiprocessor
    reserved: int  # bytes of it that each block loses to the driver
    shared_unit: int  # a block gets shared memory in units of these

    @property
    def shared_per_block(self) -> int:
        return self.shared - self.reserved


# CUDA C++ programming guide, "Technical specifications per compute capability"; the same numbers stand in CCCL's
# cuda/__device/arch_traits.h.
ARCHITECTURES = {
    75: Architecture(32, 16, 64 << 10, 0, 256),
    80: Architecture(64, 32, 164 << 10, 1024, 128),
    86: Architecture(48, 16, 100 << 10, 1024, 128),
    89: Architecture(48, 24, 100 << 10, 1024, 128),
    90: Architecture(64, 32, 228 << 10, 1024, 128),
    100: Architecture(64, 32, 228 << 10, 1024, 128),
    120: Architecture(48, 24, 100 << 10, 1024, 128),
}


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def resident_blocks(arch: int, threads: int, registers: int, shared: int) -> int:
    """Blocks that a multiprocessor of sm_<arch> holds at a time, of `threads` threads with `registers` each and
    `shared` bytes of static and dynamic shared memory; 0 if not even one fits."""
    limits = ARCHITECTURES[arch]
    if shared > limits.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    by_warps = min(limits.blocks, limits.warps // warps)
    warp_registers = round_up(registers * WARP, WARP_REGISTERS_UNIT)
    by_registers = REGISTERS // SCHEDULERS // warp_registers * SCHEDULERS // warps
    block_shared = round_up(shared + limits.reserved, limits.shared_unit)
    by_shared = limits.shared // block_shared if block_shared else by_warps
    return min(by_warps, by_registers, by_shared)


def occupancy(arch: int, threads: int, registers: int, shared: int) -> float:
    """Resident warps over those that the multiprocessor has room for, 0 to 1."""
    warps = -(-threads // WARP)
    return resident_blocks(arch, threads, registers, shared) * warps / ARCHITECTURES[arch].warps
