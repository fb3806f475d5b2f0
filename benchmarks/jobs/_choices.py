"""What a job on the training tasks runs by default, and what one may ask of it."""

from __future__ import annotations

from typing import Any

from benchmarks import optimizers, tasks


def choices(job: str) -> dict[str, Any]:
    """Arguments of `Job`: the tasks and optimizers that name it, all, a text."""
    return {
        "tasks": tasks.of(job),
        "all_tasks": tuple(tasks.TASKS),
        "optimizers": optimizers.of(job),
        "all_optimizers": tuple(optimizers.OPTIMIZERS),
        "reads_text": True,
    }
