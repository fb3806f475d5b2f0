"""`python -m benchmarks [job] [options]`: see `python -m benchmarks --help`."""

from __future__ import annotations

import os
import sys

# LAPACK's threads spin against XLA's when cores are few: 3 ms or 500 ms for one
# factorisation, by chance. One thread is the steadier clock, and the same for all.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# `step_time` measures compilation: nothing may come out of a cache of earlier runs.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

# After the environment, which both libraries read when they are imported.
from benchmarks.driver import COMMANDS as JOBS
from benchmarks.driver import main

__all__ = ["JOBS", "main"]

if __name__ == "__main__":
    main(sys.argv[1:])
