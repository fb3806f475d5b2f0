"""Marks that a user's function leaves in its trace: what is not to be measured.

All there is to know of a mark is in its name, with numbers that are never used again:
what JAX keeps of one trace may turn up in another.
"""

import itertools
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_UNTAPPED, _MASK, _ROWS = "linboost_untapped", "linboost_mask", "linboost_rows"
_numbers = itertools.count()


def untapped(x: jax.Array) -> jax.Array:
    """Returns ``x``, which is no longer taken for a kernel."""
    return checkpoint_name(x, _UNTAPPED)


def is_untapped(name: str) -> bool:
    """Whether a name is the mark of ``untapped``."""
    return name == _UNTAPPED


def rows(masks: Iterable[tuple[str, Any]]) -> AbstractContextManager[Any]:
    """Leaves masks in the trace; returns the context of what they are for.

    Args:
      masks: names of layers, each with an array, or None for all rows. One array is one
        mask, however often it is named.
    """
    context = next(_numbers)
    slots: dict[int, int] = {}
    for name, mask in masks:
        if mask is None:
            checkpoint_name(jax.numpy.zeros(()), f"{_MASK}:{context}::{name}")
        else:
            slot = slots.setdefault(id(mask), next(_numbers))
            checkpoint_name(mask, f"{_MASK}:{context}:{slot}:{name}")
    return jax.named_scope(f"{_ROWS}_{context}_")


def mask_of(name: str) -> tuple[int, int | None, str] | None:
    """Returns what a name says of a mask: its context, its number, of which layers."""
    parts = name.split(":", 3)
    if parts[0] != _MASK:
        return None
    _, context, slot, layers = parts
    return int(context), int(slot) if slot else None, layers


def rows_context(stack: str) -> int | None:
    """Returns the number of the innermost context of masks in a name stack, or None."""
    found = re.findall(rf"{_ROWS}_(\d+)_", stack)
    return int(found[-1]) if found else None


def rows_mapped(stack: str) -> bool:
    """Whether a name stack has the context of a mask inside of ``jax.vmap``."""
    before, found, _ = stack.partition(f"{_ROWS}_")
    return bool(found) and "vmap(" in before
