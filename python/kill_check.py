#!/usr/bin/env python3
"""Kills a training run at random moments, again and again, and looks at every checkpoint after each kill.

    python python/kill_check.py [--kills 100]

One run is killed by SIGKILL after a random time, looked at, and resumed, until it has been killed so often; then it is
let finish, and must end with the very bytes of a run that was never killed. After each kill every checkpoint there is
must be whole by its hashes. Needs gpt2c installed; takes a few minutes. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpt2c import checkpoint
from gpt2c.errors import UserError

SETTINGS = "--n-layer 4 --n-head 4 --n-embd 192 --context 32 --batch-size 4 --dropout 0.1 --warmup-steps 2 --lr 1e-3"
OFTEN = "--checkpoint-every 1 --eval-every 50 --eval-tokens 512 --sample-every 0 --sample-tokens 4 --keep 3"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often the run is killed")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the run, more than the kills leave time for")
    args = parser.parse_args()
    started, problems, looked, in_writing, kills = time.monotonic(), [], 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        while kills < args.kills:
            process = start(killed, args.steps)
            size = file_size(killed / "metrics.jsonl")
            while file_size(killed / "metrics.jsonl") == size and process.poll() is None:
                time.sleep(0.001)  # until it trains
            time.sleep(random.uniform(0, 0.25))
            if process.poll() is not None:
                print(f"the run has ended after {kills} kills: give more --steps", file=sys.stderr)
                return 1
            process.kill()
            process.wait()
            kills += 1
            in_writing += any((killed / "checkpoints").glob(".*.tmp"))
            for path in checkpoint.list_all(killed):
                looked += 1
                try:
                    checkpoint.verify(path)
                except UserError as error:
                    problems.append(f"kill {kills}: {error}")
            print(f"\r{kills} kills, {looked} checkpoints looked at, {len(problems)} problems", end="", flush=True)
        for run in (killed, whole):
            if start(run, args.steps).wait():
                problems.append(f"{run.name}: the run fails")
        if state(killed) != state(whole):
            problems.append("the run that was killed ends with other weights than the one that was not")
    seconds = time.monotonic() - started
    print(f"\n{in_writing} of {kills} kills came while a checkpoint was written or removed; {seconds:.0f} s")
    print("\n".join(problems) or "every checkpoint was whole, and the run ended bit for bit as if never killed")
    return 1 if problems else 0


def start(run: Path, steps: int) -> subprocess.Popen:
    """`gpt2c train`, resumed where there is a run."""
    resume = ["--resume"] if (run / "run.json").exists() else []
    command = [sys.executable, "-m", "gpt2c", "train", "--out", str(run), "--steps", str(steps)]
    return subprocess.Popen(
        [*command, *SETTINGS.split(), *OFTEN.split(), *resume],
        cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def state(run: Path) -> list[bytes]:
    last = checkpoint.latest(run)
    return [(last / name).read_bytes() for name in ("model.safetensors", "training.safetensors")] if last else []


if __name__ == "__main__":
    sys.exit(main())
