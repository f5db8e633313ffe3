#!/usr/bin/env python3
"""Tokens a second of gpt2c's generation on the CPU beside transformers' and CTranslate2's, of one random GPT-2.

All sides live in one process and take turns, so that they meet the same machine. Every time is that of a whole greedy
generation; a token's time is the difference to a generation of one token, divided by the further ones. The floor of a
token is the time to read its weights once: their bytes over the bandwidth at which torch sums the fp32 ones in the same
turns.

    python python/bench_generate.py
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

import gpt2c
from gpt2c import _native
from gpt2c.decode import WEIGHTS

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
PAUSE = 0.25  # seconds after which no side's idle threads spin any more (OpenMP's do for 0.2)


@dataclass(frozen=True)
class Args:
    """Compare generation of gpt2c with that of transformers and CTranslate2."""

    preset: str = "gpt2"
    """Size of the model, one of GPT2Config's presets."""
    prompts: tuple[int, ...] = (16, 512)
    """Lengths of the prompts, in tokens."""
    batches: tuple[int, ...] = (1, 8)
    """Numbers of sequences."""
    new_tokens: int = 48
    """Tokens that are generated."""
    rounds: int = 5
    """Turns of every side; medians are shown."""
    threads: int = torch.get_num_threads()
    """Threads of each side."""
    peers: bool = True
    """Whether transformers and CTranslate2 run, too, where they are installed."""
    json: Path | None = None
    """File to write everything measured to."""


# A side generates `new` tokens after `prompt` (B,T).
Side = Callable[[torch.Tensor, int], object]


def our_sides(model: gpt2c.GPT2) -> dict[str, Side]:
    def side(weights: str) -> Side:
        return lambda prompt, new: model.generate(prompt, new, temperature=0, weights=weights)

    return {f"gpt2c {weights}": side(weights) for weights in WEIGHTS}


def peer_sides(model: gpt2c.GPT2, folder: str, threads: int) -> dict[str, Side]:
    """The same weights in transformers and CTranslate2, as far as they are installed."""
    sides: dict[str, Side] = {}
    model.save_pretrained(folder)
    try:
        import transformers
    except ModuleNotFoundError:
        print("transformers is not installed: left out, and CTranslate2, whose converter needs it")
        return sides
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    theirs.generation_config.pad_token_id = theirs.generation_config.eos_token_id = None
    sides[f"transformers {transformers.__version__} fp32"] = lambda prompt, new: theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, min_new_tokens=new, do_sample=False
    )
    try:
        import ctranslate2
    except ModuleNotFoundError:
        print("ctranslate2 is not installed: left out")
        return sides
    vocabulary = {f"t{i}": i for i in range(model.config.vocab_size - 1)} | {
        "<|endoftext|>": model.config.vocab_size - 1
    }
    (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
    (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
    transformers.GPT2Tokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt").save_pretrained(folder)
    converted = f"{folder}/ctranslate2"
    ctranslate2.converters.TransformersConverter(folder).convert(converted)
    for kind in ("float32", "int8"):
        generator = ctranslate2.Generator(converted, device="cpu", compute_type=kind, intra_threads=threads)
        name = f"ctranslate2 {ctranslate2.__version__} {'fp32' if kind == 'float32' else kind}"
        sides[name] = lambda prompt, new, generator=generator: generator.generate_batch(
            [[f"t{token}" for token in row] for row in prompt.tolist()],
            max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, end_token=[],
        )  # fmt: skip
    return sides


def warm_up(call: Callable[[], object]) -> None:
    time.sleep(PAUSE)
    call()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bandwidth(matrices: list[torch.Tensor]) -> float:
    """Bytes a second at which all threads read the fp32 weights, the best of five times."""
    warm_up(matrices[0].sum)
    times = [seconds(lambda: [m.sum() for m in matrices]) for _ in range(5)]
    return sum(m.nbytes for m in matrices) / min(times)


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = [ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9)]
    return {"median": statistics.median(ordered), "p10": at[0], "p90": at[1]}


@torch.no_grad()
def measure(args: Args, sides: dict[str, Side], matrices: list[torch.Tensor], prompt: torch.Tensor) -> dict:
    """Of each side the seconds of a prompt (with its one token) and of each further token, and the bandwidth."""
    first: dict[str, list[float]] = {name: [] for name in sides}
    token: dict[str, list[float]] = {name: [] for name in sides}
    bytes_per_second = []
    for turn in range(args.rounds + 1):  # the first is not counted
        read = bandwidth(matrices)
        for name, side in sides.items():
            warm_up(lambda side=side: side(prompt[:, :1], 2))
            short = seconds(lambda side=side: side(prompt, 1))
            long = seconds(lambda side=side: side(prompt, args.new_tokens))
            if turn:
                first[name].append(short)
                token[name].append((long - short) / (args.new_tokens - 1))
        if turn:
            bytes_per_second.append(read)
    return {
        "batch": prompt.shape[0],
        "prompt": prompt.shape[1],
        "bandwidth": spread(bytes_per_second),
        "sides": {name: {"first": spread(first[name]), "token": spread(token[name])} for name in sides},
    }


def show(case: dict, weights: int) -> None:
    """A table of one case; `weights` is their number."""
    batch, prompt, sides = case["batch"], case["prompt"], case["sides"]
    read = case["bandwidth"]["median"]
    print(f"\n{batch} x {prompt} tokens of prompt; the weights are read at {read / 1e9:.1f} GB/s")
    peers = [name for name in sides if not name.startswith("gpt2c")]
    header = "".join(f"  / {name.split()[0][:12]} {name.split()[-1]}".rjust(22) for name in peers)
    print(f"{'':26}{'tok/s':>8}{'10-90 %':>16}{'of floor':>10}{'prompt tok/s':>14}{header}")
    for name, times in sides.items():
        token = times["token"]
        floor = weights * BYTES[name.split()[-1]] / read
        rates = [batch / token[key] for key in ("median", "p90", "p10")]
        ratios = "".join(f"{sides[peer]['token']['median'] / token['median']:>22.2f}" for peer in peers)
        print(
            f"{name:26}{rates[0]:>8.1f}{f'{rates[1]:.1f}-{rates[2]:.1f}':>16}{floor / token['median']:>9.0%}"
            f"{batch * prompt / times['first']['median']:>15.0f}{ratios}"
        )


def main() -> None:
    args = tyro.cli(Args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = gpt2c.GPT2(gpt2c.GPT2Config.preset(args.preset)).eval()
    matrices = [p.detach() for name, p in model.named_parameters() if p.ndim == 2 and name != "wpe.weight"]
    weights = sum(m.numel() for m in matrices)
    machine = {
        "machine": f"{platform.machine()}, {_native.active_isa()}, {args.threads} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{args.preset}: {weights:,} weights in matrices, {args.new_tokens} new tokens, greedy, {args.rounds} turns")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        sides = our_sides(model) | (peer_sides(model, folder, args.threads) if args.peers else {})
        for prompt in args.prompts:
            for batch in args.batches:
                ids = torch.randint(0, model.config.vocab_size - 1, (batch, prompt))
                cases.append(measure(args, sides, matrices, ids))
                show(cases[-1], weights)
    if args.json:
        record = {**machine, "weights": weights, "args": {k: str(v) for k, v in asdict(args).items()}, "cases": cases}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
