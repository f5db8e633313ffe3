"""What nvcc makes of csrc/cuda/*.cu: registers and memory as ptxas tells them, instructions as nvdisasm does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
TOOLKIT = Path("/usr/local/cuda/bin")  # where the toolkit is if the PATH does not say
CACHE = ROOT / "build" / "cuda-report"
FLAGS = ("-O3", "-std=c++17", "-Xptxas", "-v", "-cubin")
DTYPES = {"float": "fp32", "bf16": "bf16", "f16": "fp16", "fp16": "fp16"}

# What is counted in the machine code, by the name in the tables. Modifiers may stand in between: LDG.E.128.CONSTANT.
INSTRUCTIONS = {
    "HMMA": r"HMMA\.",
    "HMMA.1688": r"HMMA\.1688\.",
    "LDSM": r"LDSM\.",
    "LDGSTS": r"LDGSTS\.",
    "LDG.128": r"LDG\.(?:\w+\.)*128\b",
    "STG.128": r"STG\.(?:\w+\.)*128\b",
    "LDS.128": r"LDS\.(?:\w+\.)*128\b",
    "STS.128": r"STS\.(?:\w+\.)*128\b",
    "traps": r"BPT\.TRAP\b",
}


class ToolMissing(Exception):
    """A program that the report needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Tools:
    nvcc: Path
    nvdisasm: Path
    version: str  # of nvcc


@dataclass(frozen=True)
class Instance:
    """One instance of a kernel, compiled for one architecture. Bytes are a thread's, static_shared a block's."""

    file: str  # where the kernel is defined, without .cu or .cuh
    kernel: str  # its name without the template's arguments
    arguments: str  # these, as a reader wants them: "bf16, D=64, M=2, dropout"
    arch: int  # 80 is sm_80
    registers: int
    stack: int
    spills: int
    static_shared: int
    instructions: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.kernel}<{self.arguments}>" if self.arguments else self.kernel

    @property
    def dtype(self) -> str:
        """fp32, bf16, fp16, or nothing for a kernel that has no such argument."""
        return next((d for d in self.arguments.split(", ") if d in DTYPES.values()), "")

    def argument(self, name: str) -> int | None:
        """The value of an int argument of the template."""
        found = re.search(rf"\b{name}=(-?\d+)", self.arguments)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Compiled:
    instances: list[Instance]
    seconds: float  # of processor time that nvcc took, when it last compiled this


def find_tools() -> Tools:
    """nvcc and nvdisasm of the PATH, of the toolkit, or of PyPI's wheels beside this Python."""
    folders = [TOOLKIT]
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations or () if spec else ():
        folders += sorted(Path(location).glob("cu*/bin"), reverse=True)
    paths = []
    for tool in ("nvcc", "nvdisasm"):
        found = shutil.which(tool) or next((str(f / tool) for f in folders if (f / tool).is_file()), None)
        if not found:
            raise ToolMissing(
                f"{tool} not found: install the CUDA toolkit, or its parts from PyPI (docs/cuda.md has the command)"
            )
        paths.append(Path(found))
    output = subprocess.run([paths[0], "--version"], capture_output=True, text=True, check=True).stdout
    return Tools(*paths, version=re.search(r"release [\d.]+, V([\d.]+)", output)[1])


def compile_file(tools: Tools, source: Path, arch: int) -> Compiled:
    """Compiles `source` for sm_<arch>, or takes what an earlier run has kept of the same sources and compiler."""
    kept = CACHE / f"{source.stem}-sm_{arch}-{_digest(tools, source)}.json"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{source.stem}-sm_{arch}-*"):
            old.unlink()
        kept.write_text(json.dumps(_compile(tools, source, arch, kept.with_suffix(".cubin"))))
    found = json.loads(kept.read_text())
    return Compiled(read_instances(found["ptxas"], found["code"], source, arch), found["seconds"])


def _compile(tools: Tools, source: Path, arch: int, cubin: Path) -> dict[str, object]:
    command = [tools.nvcc, *FLAGS, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", "-o", cubin, source]
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        messages.seek(0)
        ptxas = messages.read()
    if process.returncode:
        raise RuntimeError(f"{source.name} does not compile for sm_{arch}:\n{ptxas}")
    seconds = usage.ru_utime + usage.ru_stime  # of nvcc and all that it starts, however busy the machine is
    code = subprocess.run([tools.nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    return {"seconds": seconds, "ptxas": ptxas, "code": code}


def _digest(tools: Tools, source: Path) -> str:
    digest = hashlib.sha256(f"{tools.version} {FLAGS}".encode())
    for file in sorted(included(source)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def included(source: Path) -> set[Path]:
    """The file and all of csrc that it includes."""
    files, new = set(), [source]
    while new:
        file = new.pop()
        if file not in files:
            files.add(file)
            new += [ROOT / "csrc" / name for name in re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE)]
    return files


def read_instances(ptxas: str, code: str, source: Path, arch: int) -> list[Instance]:
    """What `ptxas -v` and nvdisasm say of each kernel of a file."""
    usage, counts = read_ptxas(ptxas), count_instructions(code)
    parameters = {**template_parameters(SOURCES.glob("*.cuh")), **template_parameters([source])}
    enumerations = enumerators([source])
    instances = []
    for symbol, demangled in zip(usage, demangle(list(usage)), strict=True):
        kernel, values = split_name(demangled)
        file, names = parameters.get(kernel, (source.stem, ()))
        arguments = ", ".join(describe(values, names, enumerations))
        instances.append(Instance(file, kernel, arguments, arch, **usage[symbol], instructions=dict(counts[symbol])))
    return sorted(instances, key=lambda i: i.name)


def read_ptxas(text: str) -> dict[str, dict[str, int]]:
    """registers, stack, spills and static_shared of each kernel in the messages of `ptxas -v`, by symbol."""
    usage: dict[str, dict[str, int]] = {}
    symbol = ""
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            symbol = found[1]
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            usage.setdefault(symbol, {}).update(stack=int(found[1]), spills=int(found[2]) + int(found[3]))
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            usage.setdefault(symbol, {}).update(registers=int(found[1]), static_shared=int(shared[1]) if shared else 0)
    return usage


def count_instructions(code: str) -> dict[str, Counter[str]]:
    """How often each of INSTRUCTIONS stands in each kernel of nvdisasm's listing, by symbol."""
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in code.splitlines():
        if found := re.match(r"\.text\.(\w+):", line):
            current = counts.setdefault(found[1], Counter(dict.fromkeys(INSTRUCTIONS, 0)))
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line):
            current.update(name for name, pattern in INSTRUCTIONS.items() if re.match(pattern, found[1]))
    return counts


def demangle(symbols: list[str]) -> list[str]:
    """The C++ names of symbols, by binutils' c++filt, which is there wherever g++ is."""
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def split_name(demangled: str) -> tuple[str, list[str]]:
    """A kernel's own name and its template's arguments: f and bf16, 64 of "void ns::f<ns::bf16, 64>(int)"."""
    text = demangled.replace("(anonymous namespace)::", "")
    depth, end = 0, len(text)
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    name, _, arguments = text[:end].removeprefix("void ").partition("<")
    values = arguments.removesuffix(">").split(", ") if arguments else []
    return name.rpartition("::")[2], [v.rpartition("::")[2] for v in values]


def template_parameters(files: Iterable[Path]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of each kernel defined in the files: the file, and its template's parameters as written ("bool kDropout")."""
    definition = re.compile(
        r"(?:template\s*<([^>]*)>\s*)?__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\("
    )
    found = {}
    for file in files:
        for parameters, kernel in definition.findall(file.read_text()):
            found[kernel] = (file.stem, tuple(p.strip() for p in parameters.split(",") if p.strip()))
    return found


def enumerators(files: Iterable[Path]) -> dict[str, list[str]]:
    """The names of the values of each enum class defined in the files."""
    definition = re.compile(r"enum class (\w+)[^{;]*\{([^}]*)\}")
    return {
        name: [v.split("=")[0].strip() for v in values.split(",")]
        for file in files
        for name, values in definition.findall(file.read_text())
    }


def describe(values: list[str], parameters: tuple[str, ...], enumerations: dict[str, list[str]]) -> list[str]:
    """Template arguments for a reader: dtypes, classes, enumerators by name, ints as name=value, bools where true."""
    words = []
    for i, value in enumerate(values):
        kind, _, name = (parameters[i] if i < len(parameters) else "").partition(" ")
        if re.match("k[A-Z]", name):
            name = name[1:].lower()
        if kind == "bool":
            if value in ("true", "1"):
                words.append(name)
        elif kind == "int" and name:
            words.append(f"{name}={value}")
        elif kind in enumerations:
            words.append(enumerations[kind][int(value.rpartition(")")[2])])
        else:
            words.append(DTYPES.get(value, value))
    return words
