"""``python -m linboost_optax trial``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from linboost_optax._trial import Trial, TrialError, task
from linboost_optax._trial.extras import require
from linboost_optax._trial.plan import FEWEST, BudgetError
from linboost_optax._trial.run import trial_of
from linboost_optax._trial.tabular import data
from linboost_optax._trial.tabular.compare import compare
from linboost_optax._trial.tabular.sheet import Sheet

# What has a message for the user; all else is a fault of this package.
_SAID = (TrialError, BudgetError, ModuleNotFoundError)


def main(argv: Sequence[str]) -> int:
    """Runs what the command line asks for; returns the exit status."""
    args = parser().parse_args(argv)
    kind = _on_table if args.task.endswith(".csv") else _on_task
    try:
        result = kind(args)
    except _SAID as error:
        print(f"{args.task}: {error}", file=sys.stderr)
        return 1
    print(f"\n{result}\n")
    print(f"Wrote {', '.join(str(path) for path in result.save(args.out))}")
    return 0


def _on_task(args: argparse.Namespace) -> Trial:
    """Optimizers on a file of Python."""
    require("tqdm", "matplotlib")
    try:
        found = task.load(args.task)
    except (OSError, TypeError, ValueError) as error:
        raise TrialError(str(error)) from error
    return trial_of(found, args.minutes, args.steps, args.seeds, shown=True)


def _on_table(args: argparse.Namespace) -> Sheet:
    """Regressors on a table."""
    require("tqdm", "matplotlib", "pandas", "sklearn")
    if args.target is None:
        raise TrialError(
            "`--target` must name the column to predict, got none. Add `--target NAME`."
        )
    try:
        table = data.read(args.task, args.target)
    except (OSError, ValueError) as error:
        raise TrialError(str(error)) from error
    return Sheet(compare(table, args.minutes, seed=0, shown=True))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser("python -m linboost_optax")
    commands = result.add_subparsers(dest="command", metavar="command", required=True)
    made = commands.add_parser(
        "trial",
        help="race optimizers on a task of your own, or regressors on a table",
        description=(
            "Races your optimizer, Adam, Muon, LNB and polar on a task of your own, "
            "and says which to take, and why. It has three functions, `model(key)`, "
            "`loss(model, batch)` and `batches(split, seed)`, and may have "
            "`optimizer(learning_rate=1e-3)`: see docs/trial.md."
        ),
    )
    made.add_argument("task", help="a file of Python, or a table: a file .csv")
    made.add_argument("--target", help="the column of a table to predict")
    made.add_argument(
        "--minutes", type=_positive, default=10.0, help="the budget (default 10)"
    )
    made.add_argument("--steps", type=_steps, help="of a race (default: what fits)")
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


def _whole(text: str, low: int = 1) -> int:
    value = int(text)
    if value < low:
        raise argparse.ArgumentTypeError(f"must be >= {low}, got {text}")
    return value


def _steps(text: str) -> int:
    return _whole(text, FEWEST)
