"""`gpt2c bench`: the benchmarks as subcommands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gpt2c.bench.account import Account
from gpt2c.bench.docs import Docs
from gpt2c.bench.generate import Generate
from gpt2c.bench.kernels import Kernels
from gpt2c.bench.train import Train


@dataclass(frozen=True)
class Bench:
    """Measure gpt2c beside its peers and the machine's floors; tables, JSON and pictures. Never passes or fails."""

    benchmark: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[
            Annotated[Kernels, tyro.conf.subcommand("kernels")]
            | Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Account, tyro.conf.subcommand("account")]
            | Annotated[Generate, tyro.conf.subcommand("generate")]
            | Annotated[Docs, tyro.conf.subcommand("docs")]
        ]
    ]

    def run(self) -> int:
        """Measure and show. Returns 0."""
        return self.benchmark.run()
