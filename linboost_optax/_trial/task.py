"""What is tried: a task of the user's, read from a file or handed over."""

from __future__ import annotations

import inspect
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from linboost_optax._trial.stages import stage

TRAIN, TEST = "train", "test"
NEEDED, OPTIONAL = ("model", "loss", "batches"), ("optimizer", "schedule")

# A model of a random key; a loss of it and a batch; batches of a split and a seed.
Model = Callable[[Any], Any]
Loss = Callable[..., Any]
Batches = Callable[[str, int], Iterable[Any]]
# An Optax transformation of a learning rate, which has a default: the user's own.
OwnOptimizer = Callable[..., optax.GradientTransformation]
# The share of the highest rate at a step of so many.
Schedule = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Task:
    """A model, a loss and batches, and what the user trains them with today.

    Attributes:
      name: for headings and file names.
      model: ``model(key)`` returns what is trained.
      loss: ``loss(model, batch)`` or ``loss(model, batch, key)``.
      batches: ``batches(split, seed)``.
      optimizer: ``optimizer(learning_rate)``, with the user's rate as the default;
        None for none.
      schedule: ``schedule(step, steps)``; None for the one that all take.
    """

    name: str
    model: Model
    loss: Loss
    batches: Batches
    optimizer: OwnOptimizer | None = None
    schedule: Schedule | None = None

    def __post_init__(self):
        for name in (*NEEDED, *OPTIONAL):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name in OPTIONAL):
                raise TypeError(
                    f"`{name}` must be a function, got {type(value).__name__}. "
                    f"{_FORMS[name]}"
                )
        if self.optimizer is not None:
            _ = self.own_rate

    @property
    def takes_key(self) -> bool:
        """Whether the loss takes a random key, None where it is evaluated."""
        return len(_positional(self.loss)) > 2

    @property
    def own_rate(self) -> float:
        """The learning rate that the user's optimizer has today.

        Raises:
          ValueError: if it has none.
        """
        first = next(iter(_positional(self.optimizer)), None)
        default = inspect.Parameter.empty if first is None else first.default
        rate = None
        if isinstance(default, int | float) and not isinstance(default, bool):
            rate = float(default)
        if rate is None or not rate > 0:
            got = "none" if default is inspect.Parameter.empty else repr(default)
            raise ValueError(
                "`optimizer` must have your learning rate, a number > 0, as the "
                f"default of its argument, got {got}. {_FORMS['optimizer']}"
            )
        return rate


_FORMS = {
    "model": (
        "Write `def model(key)`, and return Linen's variables, an NNX module, or a "
        "tree of parameters."
    ),
    "loss": "Write `def loss(model, batch)`, and return a scalar.",
    "batches": (
        'Write `def batches(split, seed)`, and yield batches for "train" and "test".'
    ),
    "optimizer": (
        "Write `def optimizer(learning_rate=1e-3)`, and return an Optax "
        "transformation, without a schedule."
    ),
    "schedule": (
        "Write `def schedule(step, steps)`, and return the share of the rate at a step."
    ),
}


def load(path: str | Path) -> Task:
    """Reads a task from a file of Python: its names are those of ``Task``.

    The file's folder is where its imports are looked up.

    Raises:
      FileNotFoundError: if there is no such file.
      TrialError: if it fails when it is run, or lacks a name.
      TypeError: if a name is no function.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`task` must be a file of Python or CSV, got '{path}', which is no file. "
            "Name the file that has `model`, `loss` and `batches`."
        )
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with stage(f"running {path.name}"):
            found = runpy.run_path(str(path), run_name="trial")
    finally:
        sys.path.pop(0)
    return of(path.stem, found)


def of(name: str, found: Mapping[str, Any]) -> Task:
    """Makes a task of what a file has."""
    missing = [each for each in NEEDED if each not in found]
    if missing:
        raise ValueError(
            f"'{name}' must have the names {', '.join(NEEDED)}, and has no "
            f"`{missing[0]}`. {_FORMS[missing[0]]}"
        )
    named = {each: found[each] for each in (*NEEDED, *OPTIONAL) if each in found}
    return Task(name, **named)


def _positional(function: Any) -> list[inspect.Parameter]:
    """The parameters that a call by position fills."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each for each in parameters if each.kind in kinds]
