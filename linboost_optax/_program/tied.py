"""Embeddings that are the output layer, too: two geometries of one kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from linboost_optax._kinds import Embed, Tied
from linboost_optax._layer import Layer
from linboost_optax._program.uses import Use


def tied_of(uses: Iterable[Use]) -> Tied | None:
    """Returns the kind of a kernel that is looked up, and whose transpose is one.

    None unless that is all that it is used for.
    """
    uses = list(uses)
    kind = Tied.of(use.kind for use in uses)
    if kind is None or not all(_as_laid_out(kind, use) for use in uses):
        return None
    return kind


def as_tied(uses: Iterable[Use]) -> Use | None:
    """Returns the look-up of a tied embedding as a use of that kind."""
    uses = list(uses)
    kind = tied_of(uses)
    if kind is None:
        return None
    first = next(use for use in uses if isinstance(use.kind, Embed))
    return replace(first, kind=kind, bias=None)


def fits(layer: Layer, use: Use) -> bool:
    """Whether a use is one of those that a layer's statistic is of."""
    if isinstance(layer.kind, Tied):
        return _as_laid_out(layer.kind, use)
    own = layer.arrangement
    same = use.arrangement == own if own else use.arrangement.is_identity
    return same and (use.kind, use.stack) == (layer.kind, layer.stack)


def _as_laid_out(kind: Tied, use: Use) -> bool:
    """Whether a use reads the matrix by rows, or multiplies by its transpose."""
    order = {kind.lookup: (0, 1), kind.attend: (1, 0)}.get(use.kind)
    plain = not use.arrangement.flipped and use.stack == ()
    return plain and order is not None and use.arrangement.order == order
