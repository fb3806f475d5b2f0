"""Differentiating a loss and collecting statistics, whatever the framework."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from linboost_optax._sharding import here
from linboost_optax._taps import rows
from linboost_optax._taps.arguments import of_arrays
from linboost_optax._taps.collector import Collector, Nested, traces
from linboost_optax._taps.forward import FORWARD, is_forward
from linboost_optax._taps.fresh import fresh_trace
from linboost_optax._taps.plan import Plan, refuse_repeated, refuse_unseen
from linboost_optax._taps.survey import Adapter, kernels, survey
from linboost_optax._taps.table import Taps


def value_and_grad(
    adapter: Adapter,
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool,
    allow_unconnected: bool,
) -> Callable[..., Any]:
    """Returns what differentiates ``loss_fn`` and collects the statistics.

    The loss sees its parameters as they are. Taps reach the model from the side, when
    it is called.

    Args:
      adapter: of the framework that the model is written in.
      loss_fn: ``loss_fn(params, *args, **kwargs)``.
      taps: the tapped layers.
      has_aux: whether ``loss_fn`` returns auxiliary data.
      allow_unconnected: whether the loss may leave tapped layers out.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(value, grads,
      stats)``.
    """

    @functools.wraps(loss_fn)
    def wrapped(params, *args, **kwargs):
        if rows.active():
            raise ValueError(rows.OUTSIDE)

        def loss(params):
            return loss_fn(params, *args, **kwargs)

        plan = _plan(adapter, taps, loss_fn, params, args, kwargs)
        if plan is not None:
            refuse_repeated(taps, plan)
            refuse_unseen(plan)
        collect = functools.partial(
            _collect, adapter, taps, plan, loss, params, has_aux, allow_unconnected
        )
        if not traces():
            try:
                return collect(True)
            except Nested:
                pass
        # Functions that JAX has traced before do not call Python again, so that no tap
        # would reach a model inside; and they must not be served ours later.
        with fresh_trace():
            return collect(False)

    return wrapped


def _plan(
    adapter: Adapter, taps: Taps, loss_fn: Callable, params: Any, args: Any, kwargs: Any
) -> Plan | None:
    kernels(taps, params)  # raises if one is missing
    loss, arrays = of_arrays(
        loss_fn, args, kwargs, lambda leaf: isinstance(leaf, jax.Array)
    )
    try:
        return survey(adapter, taps, loss, params, arrays)
    except Exception:
        # A loss that looks at numbers, or is wrong: what comes next says which.
        return None


def _collect(
    adapter: Adapter,
    taps: Taps,
    plan: Plan | None,
    loss: Callable[[Any], Any],
    params: Any,
    has_aux: bool,
    allow_unconnected: bool,
    eager: bool,
) -> Any:
    collector = Collector(taps, plan, eager)

    def tapped(params, zeros):
        collector.begin(params, zeros)
        with adapter.intercept(taps.layers, collector.claim, collector.visit):
            return loss(params)

    function = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=has_aux)
    try:
        value, (grads, stats) = function(params, taps.zeros())
    except (TypeError, NotImplementedError) as error:
        if is_forward(adapter, taps, plan, loss, params, has_aux):
            raise TypeError(FORWARD) from error
        raise
    if eager and plan is not None and collector.claimed != set(plan.layers):
        raise Nested
    if not allow_unconnected:
        collector.check()
    # JAX 0.8 types the cotangent of a tap that went into `auto_axes` as it is in there.
    return value, grads, {key: here(stat.value) for key, stat in stats.items()}
