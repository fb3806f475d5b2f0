"""A process with so many devices, which measures under one layout and prints JSON.

See `python -m benchmarks.scaling.worker --help`. JAX reads the number of devices that
it is to make of a CPU when it is imported, so there is a process for each number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks.job import BASELINE
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.scaling.devices import environment
from benchmarks.scaling.layouts import LAYOUTS, mesh_of
from benchmarks.scaling.measure import measure, place
from benchmarks.steps import QUICK, Clock

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Work:
    """What one process measures: a layout on devices, with a batch of so many rows."""

    layout: str
    devices: int
    rows: int
    optimizers: tuple[str, ...]
    quick: bool = False

    def command(self) -> list[str]:
        """The command line that measures it."""
        return [
            *(sys.executable, "-m", "benchmarks.scaling.worker"),
            *(self.layout, str(self.devices), "--rows", str(self.rows)),
            *("--optimizers", *self.optimizers),
            *(["--quick"] if self.quick else []),
        ]


def launch(work: Work) -> dict[str, dict[str, Any]]:
    """Measures in a process of its own; returns what `measure` does.

    Raises:
      RuntimeError: if the process fails, with what it wrote to stderr.
    """
    command = work.command()
    env = environment(work.devices) | {
        # What is read is a program as users have it.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        # LAPACK's threads spin against XLA's when cores are few.
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"`{' '.join(command[1:])}` must end with 0, got {done.returncode}. Mend "
            f"what it says on stderr:\n{done.stderr}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.scaling.worker")
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("devices", type=int)
    parser.add_argument("--rows", type=int, required=True, help="of a batch")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, required=True)
    parser.add_argument("--quick", action="store_true", help="a tiny model, few steps")
    args = parser.parse_args(argv)
    if jax.device_count() != args.devices:
        parser.error(
            f"argument devices: must be as many as JAX has, got {args.devices} where "
            f"it has {jax.device_count()}. Set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={args.devices}"
        )
    if args.optimizers[0] != BASELINE:
        parser.error(
            f"argument --optimizers: must begin with {BASELINE}, which the others are "
            f"compared to, got {args.optimizers[0]}. Put {BASELINE} first."
        )
    placed = place(LAYOUTS[args.layout], mesh_of(args.devices), args.rows, args.quick)
    clock = QUICK if args.quick else Clock()
    print(json.dumps(measure(placed, args.optimizers, clock)))


if __name__ == "__main__":
    main(sys.argv[1:])
