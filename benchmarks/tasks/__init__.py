"""The tasks, listed in the order of the tables. A new one is one decorated function."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.tasks import dense, convolutional, text  # noqa: F401  # isort: skip
from benchmarks.tasks._task import TASKS, Task, of

__all__ = ["TASKS", "Task", "load", "of"]


def load(name: str, quick: bool = False) -> Task:
    """Build a task; a quick one takes a few steps and proves only that it runs."""
    task = TASKS[name].build()
    small = {"steps": 4, "every": 2, "batch_size": 32, "evaluated": 32}
    return replace(task, **small) if quick else task
