"""What must hold of every compiled kernel: no spills, tensor cores where they are meant, 16-byte accesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cuda_compile import Instance
from cuda_table import Row


@dataclass(frozen=True)
class Rule:
    tensor_cores: bool = False  # products of 16-bit tiles by mma, operands by ldmatrix and cp.async
    loads: bool = False  # from global memory 16 bytes at a time
    stores: bool = False  # to global memory 16 bytes at a time


MEMORY_BOUND = Rule(loads=True, stores=True)
SUM = Rule(loads=True)  # reads much and writes little
SMALL = Rule()  # moves little, or not in rows

# Every kernel, by the file that defines it and its name. Instances whose vectors have one element, for memory that is
# not aligned, are free of what is said of accesses here.
RULES = {
    "attention_mma_forward.attention_forward_mma": Rule(tensor_cores=True, stores=True),
    "attention_mma_backward.attention_backward_mma": Rule(tensor_cores=True, stores=True),
    "attention_simt.attention_forward_simt": SUM,
    "attention_simt.attention_backward_simt": SUM,
    "attention_simt.attention_stats": MEMORY_BOUND,
    "attention_decode.attention_decode": SUM,
    "attention_decode.attention_decode_add": SMALL,
    "layernorm.forward_kernel": MEMORY_BOUND,
    "layernorm.backward_kernel": MEMORY_BOUND,
    "layernorm.long_backward_kernel": MEMORY_BOUND,
    "gelu.forward_kernel": MEMORY_BOUND,
    "gelu.backward_kernel": MEMORY_BOUND,
    "reduce.add_pieces_kernel": SMALL,
    "cross_entropy.forward_kernel": SUM,
    "cross_entropy.backward_kernel": MEMORY_BOUND,
    "cross_entropy.total_kernel": SMALL,
    "embedding.forward_kernel": MEMORY_BOUND,
    "embedding.id_kernel": MEMORY_BOUND,
    "embedding.position_kernel": MEMORY_BOUND,
    "adamw.adamw_kernel": MEMORY_BOUND,
    "adamw.squares_kernel": SUM,
    "adamw.norm_kernel": SMALL,
}
VECTOR_PARAMETERS = ("V", "W")


@dataclass(frozen=True)
class Broken:
    """A gate that does not hold."""

    kernel: str
    arch: int
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.kernel} for sm_{self.arch}: found {self.found}, expected {self.expected}"


def check_all(instances: Sequence[Instance]) -> list[Broken]:
    """The gates that these break, alone and together."""
    broken = [b for instance in instances for b in check(instance)]
    for kernel in (k for k, rule in RULES.items() if rule.tensor_cores):
        of = [i for i in instances if f"{i.file}.{i.kernel}" == kernel and i.arch == 75]
        if of and not any(i.dtype == "fp16" and i.instructions["HMMA.1688"] for i in of):
            broken.append(Broken(kernel, 75, "no instance for fp16 with HMMA.1688", "at least 1"))
    return list(dict.fromkeys(broken))  # a kernel of a header is compiled with several files


def check_fit(row: Row) -> Iterator[Broken]:
    """Whether a multiprocessor holds a block of this kernel, launched as it is at GPT-2's widths."""
    i = row.instance
    if row.threads and not row.blocks:
        needs = (
            f"{row.threads} threads of {i.registers} registers, {i.static_shared + row.shared} bytes of shared memory"
        )
        yield Broken(f"{i.file}: {i.name}", i.arch, needs, "a block that fits")


def check(instance: Instance) -> Iterator[Broken]:
    """The gates that this instance breaks."""
    name = f"{instance.file}: {instance.name}"
    rule = RULES.get(f"{instance.file}.{instance.kernel}")
    if rule is None:
        yield Broken(name, instance.arch, "a kernel without a rule", "one in RULES of python/cuda_gates.py")
        return
    if instance.arch >= 80 and instance.instructions["traps"]:
        yield Broken(name, instance.arch, "a trap", "none")
    if instance.spills:
        yield Broken(name, instance.arch, f"{instance.spills} bytes of register spills", "0")
    for instruction in required(instance, rule):
        if not instance.instructions[instruction]:
            yield Broken(name, instance.arch, f"0 {instruction} instructions", "at least 1")


def not_for_this_gpu(instance: Instance) -> bool:
    """Whether this is one of the instances that sm_75 cannot run or has no room for: a trap in their place says that
    they are not launched there."""
    return instance.arch < 80 and instance.instructions["traps"] > 0


def required(instance: Instance, rule: Rule) -> list[str]:
    """The instructions that the machine code must contain."""
    unaligned = any(instance.argument(name) == 1 for name in VECTOR_PARAMETERS)
    if not_for_this_gpu(instance):
        return []
    names = []
    if rule.tensor_cores:
        names += ["HMMA", "LDSM", "LDGSTS"] if instance.arch >= 80 else ["HMMA.1688", "LDSM"]
    if rule.loads and not unaligned:
        names.append("LDG.128")
    if rule.stores and not unaligned:
        names.append("STG.128")
    return names
