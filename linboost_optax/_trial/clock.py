"""The budget of a trial, and a bar that shows it."""

from __future__ import annotations

import time
from typing import Any

from linboost_optax._trial.extras import require


class Clock:
    """Counts down from the start of a trial.

    Args:
      minutes: the budget.
      shown: whether a bar shows progress; it needs tqdm, in the extra ``trial``.
    """

    def __init__(self, minutes: float, shown: bool):
        self.budget = 60 * minutes
        self._start = time.monotonic()
        self._bar: Any = None
        if shown:
            require("tqdm")
            from tqdm import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s"
            self._bar = tqdm(total=self.budget, bar_format=form)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - self.elapsed

    def tick(self, doing: str) -> None:
        """Tells the bar what is going on."""
        if self._bar is not None:
            self._bar.set_description_str(doing, refresh=False)
            self._bar.update(min(self.elapsed, self.budget) - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
