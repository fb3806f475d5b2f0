"""Which arrays are one and the same while a function is traced."""

import weakref
from typing import Any


class Identities:
    """Numbers arrays by identity, without keeping any of them alive.

    Tracers that outlive their trace are leaks to ``jax.checking_leaks``; and an
    identity alone may be used again by Python once its object is gone.
    """

    def __init__(self):
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._count = 0

    def number(self, x: Any) -> int:
        """Returns the number of ``x``: the same one as long as it lives."""
        reference, number = self._known.get(id(x), (None, 0))
        if reference is None or reference() is not x:
            number = self._count = self._count + 1
            self._known[id(x)] = (weakref.ref(x), number)
        return number
