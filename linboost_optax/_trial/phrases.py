"""Figures in words: what all that is said of a trial has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from linboost_optax._trial.analysis import Record, Spread, figures
from linboost_optax._trial.competitors import OWN

LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}


def times(ratio: Spread) -> str:
    """A ratio with its range, where that says more."""
    return _with_range(ratio, lambda value: f"{value:.2f}", "x")


def loss(value: Spread) -> str:
    """A loss, with its range over the seeds."""
    return _with_range(value, lambda each: f"{each:.3g}")


def counted(number: int, name: str) -> str:
    """A number of things, in words."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def listed(words: Sequence[str]) -> str:
    """One, one and another, or more with commas."""
    *first, last = words
    return " and ".join([", ".join(first), last] if first else [last])


def share(record: Record, name: str, than: str | None = None) -> str:
    """The time to a loss that was reached, as text."""
    seconds = figures(record, name, than).seconds
    assert seconds is not None
    return times(seconds)


def label(record: Record, name: str) -> str:
    """The name of a competitor."""
    return record["entries"][name]["label"]


def at_rate(record: Record, name: str) -> str:
    """A competitor with its learning rate."""
    return f"{label(record, name)} at {record['entries'][name]['rate']:g}"


def whose(record: Record) -> str:
    """Whose loss is raced for."""
    return "your" if record["baseline"] == OWN else "tuned Adam's"


def compared(it: Spread, base: Spread) -> str:
    """How losses compare, the spread over seeds considered."""
    if it.high < base.low:
        return "lower"
    return "higher" if it.low > base.high else "equal within the spread"


def _with_range(value: Spread, form: Callable[[float], str], unit: str = "") -> str:
    low, high, middle = form(value.low), form(value.high), f"{form(value.middle)}{unit}"
    return middle if low == high else f"{middle} ({low} to {high})"
