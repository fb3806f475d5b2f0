"""What preconditioning a model covers, costs and keeps, before any of it is run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from linboost_optax._solvers import Cholesky, Solver
from linboost_optax._solvers.base import check
from linboost_optax._taps.cost import LayerCost, costs
from linboost_optax._taps.groups import PlainGroup, grouped
from linboost_optax._taps.table import Taps, columns


@dataclass(frozen=True)
class Report:
    """What preconditioning a model covers, costs and keeps.

    Costs are floating-point operations, counted as ``_taps/work.py`` says, for inputs
    of the shape that the taps were made with. They are no times: products run faster
    than factorisations, and small arrays slower than large ones. They assume that every
    layer is used once a step, that the loss is differentiated with respect to its
    input, that ``Cholesky`` reads the statistic (``IncompleteCholesky`` reads moments
    alone, and under ``jit`` the rest is not computed) and that solvers refresh in one
    of ``solver.every`` steps. What the model computes outside of tapped layers is not
    known: of the whole model the share is smaller. Numbers are NaN for layers of
    hand-written code, whose inputs are not known, and for statistics that do not say.

    Attributes:
      solver: that is asked about.
      layers: the tapped layers.
      plain: the parameters without a tap, those alike together.
    """

    solver: Solver
    layers: tuple[LayerCost, ...]
    plain: tuple[PlainGroup, ...]

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return _sum(self.layers, "parameters") + _sum(self.plain, "parameters")

    @property
    def covered(self) -> float:
        """Share of all parameters that are preconditioned."""
        return _sum(self.layers, "parameters") / max(self.parameters, 1)

    @property
    def kernel_parameters(self) -> int:
        """Number of parameters in kernels, plain ones those with two axes or more."""
        name = "kernel_parameters"
        return _sum(self.layers, name) + _sum(self.plain, name)

    @property
    def kernels_covered(self) -> float:
        """Share of the parameters in kernels that are preconditioned."""
        tapped = _sum(self.layers, "kernel_parameters")
        return tapped / max(self.kernel_parameters, 1)

    @property
    def flops(self) -> float:
        """Operations of the tapped layers themselves, forward and backward."""
        return _sum(self.layers, "flops")

    @property
    def cost(self) -> float:
        """Operations that are added to a step."""
        return _sum(self.layers, "cost")

    @property
    def share(self) -> float:
        """Operations added to a step, over those of the tapped layers themselves."""
        return self.cost / self.flops if self.flops else math.inf

    @property
    def statistic_bytes(self) -> int:
        """Bytes of all statistics."""
        return _sum(self.layers, "statistic_bytes")

    @property
    def state_bytes(self) -> int:
        """Bytes of the solver's state; the moving average of gradients is apart."""
        return _sum(self.layers, "state_bytes")

    def __str__(self) -> str:
        lines = [f"preconditioned by {self.solver}"]
        lines += columns([_HEADER, *(_row(each) for each in self.layers)], 7)
        for each in self.plain:
            arrays = f"{each.arrays} array{'s' if each.arrays > 1 else ''}"
            lines += [
                f"plain: {each.pattern}  {arrays}, {each.parameters:,} parameters",
                f"  why: {each.reason}",
                f"  what to do: {each.advice}",
            ]
        return "\n".join(
            [
                *lines,
                f"covered: {self.covered:.1%} of {self.parameters:,} parameters, "
                f"{self.kernels_covered:.1%} of {self.kernel_parameters:,} in kernels",
                f"cost of a step: {self._cost()}",
                f"memory: statistics {self.statistic_bytes:,} bytes, solver "
                f"{self.state_bytes:,} bytes",
            ]
        )

    def _cost(self) -> str:
        if math.isnan(self.share):
            return (
                "unknown (inputs of a hand-written layer, or a statistic that does not "
                "say)"
            )
        parts = (f"{n} {_percent(_sum(self.layers, n), self.flops)}" for n in _PARTS)
        return (
            f"{_percent(self.cost, self.flops)} of the tapped layers' own "
            f"{_si(self.flops)}FLOP ({', '.join(parts)})"
        )

    __repr__ = __str__


_PREFIXES = ("", "k", "M", "G", "T", "P")
_PARTS = ("measuring", "solving", "refreshing")
_HEADER = ("path", "kind", "parameters", "FLOP", *_PARTS, "statistic", "solver bytes")


def report(taps: Taps, solver: Any = None) -> Report:
    """Returns what ``Taps.report`` does."""
    solver = Cholesky() if solver is None else check(solver)
    return Report(solver, tuple(costs(taps, solver)), tuple(grouped(taps.plain)))


def _sum(items: Iterable[Any], name: str) -> Any:
    return sum(getattr(each, name) for each in items)


def _row(layer: LayerCost) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        f"{layer.parameters:,}",
        _si(layer.flops),
        *(_percent(getattr(layer, name), layer.flops) for name in _PARTS),
        f"{layer.statistic_bytes:,}",
        f"{layer.state_bytes:,}",
    )


def _percent(part: float, whole: float) -> str:
    if math.isnan(part) or math.isnan(whole):
        return "unknown"
    share = 100 * part / whole if whole else math.inf
    return f"{share:.1f}%" if share < 100 else f"{share:,.0f}%"


def _si(number: float) -> str:
    """Returns a number with three digits and a prefix, for a unit to follow."""
    if math.isnan(number):
        return "unknown "
    power = 0
    while number >= 999.5 and power < len(_PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {_PREFIXES[power]}"
