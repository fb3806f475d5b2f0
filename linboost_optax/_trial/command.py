"""``python -m linboost_optax trial``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from linboost_optax._trial import TrialError, task
from linboost_optax._trial.extras import require
from linboost_optax._trial.plan import BudgetError
from linboost_optax._trial.run import trial_of

# What has a message for the user; all else is a fault of this package.
_SAID = (TrialError, BudgetError, ModuleNotFoundError)


def main(argv: Sequence[str]) -> int:
    """Runs what the command line asks for; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        require("tqdm", "matplotlib")
        found = task.load(args.task)
    except (*_SAID, OSError, TypeError, ValueError) as error:
        return _refused(args.task, error)
    try:
        result = trial_of(found, args.minutes, args.steps, args.seeds, shown=True)
    except _SAID as error:
        return _refused(args.task, error)
    print(f"\n{result}\n")
    print(f"Wrote {', '.join(str(path) for path in result.save(args.out))}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser("python -m linboost_optax")
    commands = result.add_subparsers(dest="command", metavar="command", required=True)
    made = commands.add_parser(
        "trial",
        help="race optimizers on your own task",
        description=(
            "Races your optimizer, Adam, Muon, LNB and polar on a task of your own, "
            "and says which to take, and why. It has three functions, `model(key)`, "
            "`loss(model, batch)` and `batches(split, seed)`, and may have "
            "`optimizer(learning_rate=1e-3)`: see docs/trial.md."
        ),
    )
    made.add_argument("task", help="a file of Python")
    made.add_argument(
        "--minutes", type=_positive, default=10.0, help="the budget (default 10)"
    )
    made.add_argument("--steps", type=_whole, help="of a race (default: what fits)")
    made.add_argument(
        "--seeds", type=_whole, default=3, help="of a race, at most (default 3)"
    )
    made.add_argument(
        "--out", default="trials", help="the folder to write to (default trials)"
    )
    return result


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be > 0, got {text}")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {text}")
    return value


def _refused(name: str, error: Exception) -> int:
    """Says why there is no trial, without a traceback; returns the exit status."""
    print(f"{name}: {error}", file=sys.stderr)
    return 1
