"""Jobs run once, on the smallest task, and share what they compile."""

import contextlib
import io
from typing import NamedTuple

import jax
import pytest

from benchmarks import driver, training
from benchmarks.jobs import defaults, memory, races, sensitivity, step_time


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's own Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session", autouse=True)
def _compile_once():
    """Nearly all the time of a quick job goes into compiling its steps."""
    trainers, evaluations = {}, {}

    def compile_trainer(task, optimizer):
        key = task.title, task.steps, optimizer.build, str(optimizer.statistic)
        if key not in trainers:
            trainers[key] = training.compile_trainer(task, optimizer)
        return trainers[key]

    def compile_evaluate(task):
        key = task.title, task.steps
        if key not in evaluations:
            evaluations[key] = training.compile_evaluate(task)
        return evaluations[key]

    with pytest.MonkeyPatch.context() as patch:
        for job in (defaults, memory, races, sensitivity, step_time):
            patch.setattr(job, "compile_trainer", compile_trainer)
        for job in (defaults, races, sensitivity):
            patch.setattr(job, "compile_evaluate", compile_evaluate)
        yield


class Raced(NamedTuple):
    folder: str
    printed: str


@pytest.fixture(scope="session")
def raced(tmp_path_factory):
    """A quick race of Adam and whitened Adam on two seeds: its files and its output."""
    folder, printed = tmp_path_factory.mktemp("raced"), io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        contextlib.redirect_stdout(printed),
    ):
        arguments = [
            "--seeds",
            "2",
            "--tasks",
            "factorisation",
            "--optimizers",
            "whiten",
        ]
        driver.main(["whiten", "--quick", "--out", str(folder), *arguments])
    return Raced(folder, printed.getvalue())
