"""The tasks, listed in the order of the tables. A new one is one decorated function."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.tasks import dense, convolutional  # noqa: F401  # isort: skip
from benchmarks.tasks import text as _text  # noqa: F401  # isort: skip
from benchmarks.tasks._task import TASKS, Task, of

__all__ = ["TASKS", "Task", "load", "of", "shortened"]


def load(name: str, quick: bool = False, text: str | None = None) -> Task:
    """Build a task; a quick one takes a few steps and proves only that it runs.

    Args:
      name: of the task.
      quick: whether to take a few steps only.
      text: the file that tasks on a text of one's own read; None: what is bundled.
    """
    listed = TASKS[name]
    task = listed.build(text) if listed.reads_text else listed.build()
    return shortened(task) if quick else task


def shortened(task: Task) -> Task:
    """A task of a few small steps."""
    return replace(task, steps=4, every=2, batch_size=32, evaluated=32)
