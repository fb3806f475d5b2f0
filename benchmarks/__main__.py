"""`python -m benchmarks [job] [options]`: every number in the README.

Jobs:
    main         digits: LNB beside tuned Adam (the default)
    whiten       every task, every optimizer, all tuned
    step_time    time and memory of one step against Adam
    sensitivity  a 100x range of learning rates
    memory       temporary memory and state by task and statistic
    defaults     whiten(Adam) with one default changed at a time
    ills         iterative linear least squares
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# LAPACK's threads spin against XLA's when cores are few: 3 ms or 500 ms for one
# factorisation, by chance. One thread is the steadier clock, and the same for all.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

JOBS = ("main", "whiten", "step_time", "sensitivity", "memory", "defaults", "ills")
ALL_TASKS = [
    *("digits_classifier", "digits_autoencoder", "autoencoder_784"),
    *("cnn", "cnn_batch_norm", "transformer", "gru", "factorisation"),
]
TASKS = {
    "main": ["digits_classifier", "digits_autoencoder"],
    "whiten": ALL_TASKS,
    "step_time": ["mlp_784", "autoencoder_784", "cnn", "transformer_128"],
    "sensitivity": ALL_TASKS,
    "memory": [*ALL_TASKS, "mlp_784", "transformer_128"],
    "defaults": ["digits_autoencoder", "autoencoder_784", "cnn", "transformer", "gru"],
}
_ALL = ["adam", "muon", "lnb", "whiten_ic", "whiten"]
OPTIMIZERS = {
    "main": ["adam", "lnb_ic", "lnb_cg", "lnb"],
    "whiten": _ALL,
    "step_time": [*_ALL, "lnb_ic", "lnb_exact", "whiten_exact", "lnb_cg"],
    "sensitivity": ["adam", "lnb", "whiten"],
    "memory": ["adam", "whiten_ic", "whiten", "whiten_exact"],
    "defaults": ["adam", "whiten"],
}


def main(argv: Sequence[str]) -> None:
    """Dispatch to a job."""
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    job, rest = (argv[0], argv[1:]) if argv and argv[0][0] != "-" else ("main", argv)
    if job not in JOBS:
        raise SystemExit(f"Unknown job '{job}'. Choose one of {', '.join(JOBS)}.")
    if job == "ills":
        return _ills(rest)
    # Imported here so that `--help` and `ills` do not wait for the other jobs.
    from benchmarks import defaults, memory, options, races, sensitivity, step_time

    chosen = options.parse(job, rest, TASKS[job], OPTIMIZERS[job])
    if job == "step_time":
        step_time.main(chosen)
    elif job == "sensitivity":
        sensitivity.main(chosen)
    elif job == "memory":
        memory.main(chosen)
    elif job == "defaults":
        defaults.main(chosen)
    else:
        races.main(job, chosen)


def _ills(argv: Sequence[str]) -> None:
    try:
        from benchmarks import ills  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise SystemExit(f"This version has no ILLS benchmark ({error}).") from error
    ills.main(list(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
