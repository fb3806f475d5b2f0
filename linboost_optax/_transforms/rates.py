"""What complete optimizers check of a learning rate and a weight decay."""

from typing import Any

from linboost_optax import _checks
from linboost_optax._taps import Taps


def check(learning_rate: Any, weight_decay: Any, call: str) -> None:
    """Raises where a rate or a decay is no such thing; arrays may be anything.

    Args:
      learning_rate: a number, an array, or a schedule.
      weight_decay: a number or an array.
      call: the right call, for errors.

    Raises:
      TypeError: if the taps are in the rate's place, or something is no number.
      ValueError: if a number is negative.
    """
    if isinstance(learning_rate, Taps):
        raise TypeError(
            "`learning_rate` must be a number or a schedule, got Taps. It comes first: "
            f"`{call}`."
        )
    if not callable(learning_rate) and not _checks.is_array(learning_rate):
        _checks.at_least("learning_rate", float(learning_rate), 0)
    if not _checks.is_array(weight_decay):
        _checks.at_least("weight_decay", weight_decay, 0)
