"""What tapped layers cost a step and keep: theirs, their statistics', the solver's."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers import Solver
from linboost_optax._solvers.base import SolvesFrom
from linboost_optax._taps.table import Taps, kind_text, size_of
from linboost_optax._taps.work import Work, count
from linboost_optax._transforms.lnb import scale_by_lnb


@dataclass(frozen=True)
class LayerCost:
    """What one tapped layer costs a step, in floating-point operations, and keeps.

    Attributes:
      name: of the layer, as in the table.
      kind: of the layer, as in the table.
      parameters: number of its parameters.
      kernel_parameters: of these, those of the kernel.
      flops: the layer's own, forward and backward.
      measuring: of its statistic; 0 where another layer measures for it.
      solving: following the statistics and applying the solver, in every step.
      refreshing: remaking what the solver caches, spread over the steps between.
      statistic_bytes: of its statistic; 0 where it is another layer's.
      state_bytes: of the solver's state, likewise.
    """

    name: str
    kind: str
    parameters: int
    kernel_parameters: int
    flops: float
    measuring: float
    solving: float
    refreshing: float
    statistic_bytes: int
    state_bytes: int

    @property
    def cost(self) -> float:
        """All that is added to a step."""
        return self.measuring + self.solving + self.refreshing

    @property
    def share(self) -> float:
        """The cost over the layer's own operations."""
        return self.cost / self.flops if self.flops else math.inf


def costs(taps: Taps, solver: Solver) -> Iterator[LayerCost]:
    """Yields what every layer costs and keeps.

    Raises:
      ValueError: if the solver cannot solve with some layer's statistic.
    """
    state = jax.eval_shape(scale_by_lnb(taps, solver).init, ())
    # Layers alike cost alike, and are traced once.
    alike = functools.cache(functools.partial(_costs, solver))
    every = getattr(solver, "every", 1)
    for layer in taps.layers:
        flops, measuring, following, applying = alike(
            replace(layer, path=(), source=None)
        )
        kept = [state.starts.get(layer.key, ())]
        if layer.source is None:
            kept.append(state.metric[layer.key])
        else:
            measuring, following = 0.0, Work()
        sizes = {name: math.prod(shape) for name, shape in layer.shapes.items()}
        yield LayerCost(
            name=str(layer),
            kind=kind_text(layer),
            parameters=sum(sizes.values()),
            kernel_parameters=sizes[layer.kernel],
            flops=flops,
            measuring=measuring,
            solving=following.always + applying.always,
            refreshing=(following.branched + applying.branched) / every,
            statistic_bytes=size_of(layer),
            state_bytes=_bytes(kept),
        )


def _costs(solver: Solver, layer: Layer) -> tuple[float, float, Work, Work]:
    """Returns a layer's own operations, and those of measuring, following, solving."""
    times, shape = math.prod(layer.stack), layer.input_shape
    known = bool(shape)
    flops = times * layer.kind.flops(shape) if known else math.nan
    measuring = times * layer.statistic.flops(layer) if known else math.nan

    metric = solver.bind(layer.as_read())
    dtype = jnp.dtype(layer.dtype)
    value, state = layer.statistic_shapes(), jax.eval_shape(metric.init)
    view = jax.eval_shape(metric.read, value)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    blocks, outputs = layer.blocks, layer.kind.outputs
    w: Any = jax.ShapeDtypeStruct((blocks, layer.features, outputs), dtype)
    b: Any = jax.ShapeDtypeStruct((blocks, outputs), dtype) if layer.biased else None
    g = Affine(w, b)

    def follow(state: Any, value: Any, step: Any) -> Any:
        return metric.update(state, metric.read(value), step)

    if isinstance(metric, SolvesFrom):
        applying = count(metric.solve_from, g, state, view, g)
    else:
        applying = count(metric.solve, state, view, g)
    return flops, measuring, count(follow, state, value, step), applying


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
