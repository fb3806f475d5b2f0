"""What some optimizers need besides gradients, and the tasks that cannot give it."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.tasks import Task

# Extra arguments of an update, and `task`: it is built with the task, not with taps.
NEEDS = ("value", "grad", "value_fn", "batch", "task")


def given(
    needs: tuple[str, ...],
    task: Task,
    state: Any,
    batch: dict[str, jax.Array],
    value: jax.Array,
    grad: Any,
) -> dict[str, Any]:
    """The extra arguments that an optimizer asks for."""
    have = {
        "value": value,
        "grad": grad,
        "value_fn": lambda params: task.loss(params, state, batch)[0],
        "batch": batch,
    }
    return {name: have[name] for name in needs if name in have}


def refusal(needs: tuple[str, ...], task: Task | None) -> str | None:
    """Why an optimizer cannot run on a task; None if it can.

    Args:
      needs: what the optimizer needs.
      task: None for the task of a job that does not train.
    """
    if task is None:
        return "it asks for more of a task than the job has. Leave it out."
    if "value_fn" in needs and not task.whole:
        return (
            "it searches along a line of one function, and a batch is "
            f"{task.batch_size} of {len(task.train['x'])} samples. Take a task whose "
            "batch is the whole training set, e.g. factorisation."
        )
    if "task" in needs and task.criterion is None:
        return (
            "it has to know the loss, and the task names no criterion. Take a dense "
            "task, e.g. digits_autoencoder."
        )
    return None
