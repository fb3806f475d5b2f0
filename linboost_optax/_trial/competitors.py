"""Who races: the user's own optimizer, Adam, Muon, LNB and the recommended recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from optax import contrib

from linboost_optax._precondition import slots
from linboost_optax._taps import Taps
from linboost_optax._transforms.lnb import lnb
from linboost_optax._transforms.polar import polar
from linboost_optax._trial.task import Task

OWN, TUNED = "own", "own_tuned"
OURS = ("lnb", "polar")  # what this package has; the recommended one comes last
POINTS = 7  # learning rates tried at first: three decades

Build = Callable[[Any, Taps], optax.GradientTransformation]


@dataclass(frozen=True)
class Competitor:
    """An optimizer, and where its learning rates lie.

    Attributes:
      label: its name in tables.
      build: makes it of a learning rate and the taps.
      centre: the middle of the rates that are tried, on a logarithmic scale.
      code: the expression that a user writes, of a rate.
      tapped: whether it reads statistics.
    """

    label: str
    build: Build
    centre: float
    code: str
    tapped: bool = False

    def rates(self) -> list[float]:
        """The learning rates that are tried first, a factor of 3.2 apart."""
        half = POINTS // 2
        return [beyond(self.centre, steps) for steps in range(-half, half + 1)]


def beyond(rate: float, points: int) -> float:
    """The learning rate so many points of the grid above another."""
    return rate if points == 0 else float(f"{rate * 10 ** (points / 2):.3g}")


def competitors(task: Task) -> dict[str, Competitor]:
    """All that race, the baseline first: the user's own optimizer, if there is one."""
    found = {}
    if task.optimizer is not None:
        own = task.optimizer
        found[OWN] = Competitor(
            "yours", lambda rate, taps: own(rate), task.own_rate, "optimizer({rate})"
        )
    return found | {
        "adam": Competitor(
            "Adam", lambda rate, taps: optax.adam(rate), 3e-3, "optax.adam({rate})"
        ),
        "muon": Competitor(
            "Muon", muon, 3e-3, "optax.contrib.muon({rate}, consistent_rms=0.2)"
        ),
        "lnb": Competitor("LNB", lnb, 0.3, "lbo.lnb({rate}, taps)", tapped=True),
        "polar": Competitor(
            "polar", polar, 3e-3, "lbo.polar({rate}, taps)", tapped=True
        ),
    }


def muon(rate: Any, taps: Taps) -> optax.GradientTransformation:
    """Muon on the kernels of layers, its own Adam on all else.

    ``consistent_rms`` gives both updates the size of Adam's: one rate serves.
    """

    def axes(params: optax.Params) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        found: list[Any] = [None] * len(leaves)
        for slot in slots.find(taps.layers, params):
            if not slot.layer.kind.one_hot and leaves[slot.kernel].ndim > 1:
                found[slot.kernel] = _axes(slot, leaves[slot.kernel].ndim)
        return jax.tree.unflatten(treedef, found)

    return contrib.muon(rate, muon_weight_dimension_numbers=axes, consistent_rms=0.2)


def _axes(slot: slots.Slot, ndim: int) -> contrib.MuonDimensionNumbers:
    """All axes but those of a stack and the last lead to the last.

    A kernel that is held ``[output, input]`` is orthogonalised all the same.
    """
    stacked = len(slot.layer.stack) if slot.layer.arrangement is None else 0
    if ndim - stacked < 2:
        stacked = 0
    return contrib.MuonDimensionNumbers(tuple(range(stacked, ndim - 1)), ndim - 1)
