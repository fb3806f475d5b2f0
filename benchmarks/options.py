"""The few options that every job shares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analysis import BASELINE
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tasks import TASKS


@dataclass(frozen=True)
class Options:
    """What to run and where to write."""

    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    seeds: int
    out: str
    quick: bool


def parse(
    job: str, argv: Sequence[str], tasks: Sequence[str], optimizers: Sequence[str]
) -> Options:
    """Read a job's options; the baseline always runs, and runs first."""
    parser = argparse.ArgumentParser(f"python -m benchmarks {job}".replace(" main", ""))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=tasks)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--seeds", type=_positive, default=1, help="how many")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="a few steps: a smoke run")
    args = parser.parse_args(argv)
    chosen = args.optimizers or optimizers
    return Options(
        tasks=tuple(args.tasks),
        optimizers=(BASELINE, *(name for name in chosen if name != BASELINE)),
        seeds=args.seeds,
        out=args.out,
        quick=args.quick,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value
