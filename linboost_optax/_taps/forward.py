"""Losses in forward mode, which taps do not support: how they are recognised."""

from collections.abc import Callable
from typing import Any

import jax

from linboost_optax._taps.fresh import fresh_trace
from linboost_optax._taps.plan import Place, Plan
from linboost_optax._taps.survey import Adapter
from linboost_optax._taps.table import Taps

FORWARD = (
    "`loss_fn` differentiates the network in forward mode (jax.jvp, jax.jacfwd, "
    "jax.hessian or jax.linearize), which taps do not support: statistics travel "
    "backwards. Use jax.grad, jax.vjp or jax.jacrev inside the loss, or compute that "
    "term from `linen.without_taps(params)`, whose layers then add nothing to the "
    "statistics."
)


@jax.custom_vjp
def _reverse(y: jax.Array) -> jax.Array:
    """Returns ``y`` by a rule for reverse mode alone, and measures nothing."""
    return y


_reverse.defvjp(lambda y: (_reverse(y), None), lambda _, g: (g,))  # alive as `emit`


def is_forward(
    adapter: Adapter,
    taps: Taps,
    plan: Plan | None,
    loss: Callable,
    params: Any,
    has_aux: bool,
) -> bool:
    """Whether a loss that cannot be differentiated fails for being in forward mode.

    One that differentiates without taps and not with a rule for reverse mode in their
    places is; one that differentiates with it has met an error in what a tap measures.
    """

    def alone(params):
        value = loss(params)
        return value[0] if has_aux else value

    def claim(place: Place, kernel: Any) -> tuple[Any, None] | None:
        return (kernel, None) if plan is None or place in plan.layers else None

    def visit(_: None, call: Callable[[], jax.Array], x: jax.Array) -> jax.Array:
        del x
        return _reverse(call())

    def blank(params):
        with adapter.intercept(taps.layers, claim, visit):
            return alone(params)

    return _differentiates(alone, params) and not _differentiates(blank, params)


def _differentiates(function: Callable[..., Any], params: Any) -> bool:
    """Whether a loss can be differentiated at all."""
    try:
        with fresh_trace():
            jax.eval_shape(jax.grad(function), params)
    except Exception:
        return False
    return True
