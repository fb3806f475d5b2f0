"""The jobs by name, in the order of the report. A new one is a file with a `Job`."""

from __future__ import annotations

from benchmarks.job import Job
from benchmarks.jobs import (
    compile_time,
    coverage,
    defaults,
    faults,
    growth,
    ills,
    ills_growth,
    ills_memory,
    ills_planted,
    ills_recovery,
    ills_regressor,
    ills_robust,
    ills_search,
    ills_uci,
    large_models,
    memory,
    races,
    scaling,
    sensitivity,
    step_time,
    tied,
    transfer,
    trials,
)

JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        races.MAIN,
        races.WHITEN,
        step_time.JOB,
        compile_time.JOB,
        sensitivity.JOB,
        transfer.JOB,
        defaults.JOB,
        trials.JOB,
        memory.JOB,
        growth.JOB,
        scaling.JOB,
        large_models.JOB,
        coverage.JOB,
        tied.JOB,
        ills.JOB,
        ills_growth.JOB,
        ills_recovery.JOB,
        ills_regressor.JOB,
        ills_robust.JOB,
        ills_planted.JOB,
        ills_memory.JOB,
        ills_search.JOB,
        ills_uci.JOB,
        faults.JOB,
    )
}
