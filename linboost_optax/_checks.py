"""Checks of hyper-parameters at construction, and their messages."""

import math
import numbers

import jax


def _number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number, got {value!r}. Solvers are static: schedules "
            "belong to the learning rate."
        )
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")


def whole(name: str, value: int, low: int) -> None:
    """Raises unless ``value`` is an integer >= ``low``."""
    _number(name, value)
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a whole number, got {value}.")
    at_least(name, value, low)


def optional_whole(name: str, value: int | None, low: int) -> None:
    """Raises unless ``value`` is None or an integer >= ``low``."""
    if value is not None:
        whole(name, value, low)


def at_least(name: str, value: float, low: float) -> None:
    """Raises unless ``value >= low``."""
    _number(name, value)
    if value < low:
        hint = "1 or more" if low >= 1 else "a small value, e.g. 1e-3"
        raise ValueError(f"`{name}` must be >= {low}, got {value}. Use {hint}.")


def positive(name: str, value: float) -> None:
    """Raises unless ``value > 0``."""
    _number(name, value)
    if value <= 0:
        raise ValueError(
            f"`{name}` must be > 0, got {value}. Use a small value, e.g. 1e-2."
        )


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises unless ``low <= value <= high``."""
    _number(name, value)
    if not low <= value <= high:
        raise ValueError(
            f"`{name}` must be in [{low}, {high}], got {value}. Clip it, or keep the "
            "default."
        )


def fraction(name: str, value: float) -> None:
    """Raises unless ``0 <= value < 1``: the decay of a moving average."""
    _number(name, value)
    if not 0 <= value < 1:
        raise ValueError(
            f"`{name}` must be in [0, 1), got {value}. A decay of 1 never learns; use "
            "e.g. 0.9."
        )


def is_array(value: object) -> bool:
    """Whether a hyper-parameter was injected: its range cannot be checked then."""
    return isinstance(value, jax.Array)
