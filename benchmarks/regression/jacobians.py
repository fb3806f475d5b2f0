"""Trainers that hold a Jacobian of samples x parameters: Levenberg-Marquardt, twice.

Once over all weights, and once over those of the hidden layers, with the last layer
eliminated (variable projection). Both are Optimistix's solver, all else by default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.regression.errors import errors
from linboost_optax import ills

# Keeps the last layer finite where hidden units are alike; small enough for float32.
RIDGE = 1e-10


@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def marquardt(network, params, split, rate, *, steps, full=False, loss="squared"):
    """Levenberg-Marquardt on all weights."""
    del rate, loss
    x, y = split[0]

    def residual(params):
        return (ills.predict(network, params, x) - y) / jnp.sqrt(float(y.size))

    def seen(params):
        return errors(network, params, split, True)

    return _minimise(residual, params, steps, seen if full else None)


@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def variable_projection(
    network, params, split, rate, *, steps, full=False, loss="squared"
):
    """Levenberg-Marquardt on the hidden layers; the last one is solved for."""
    del rate, loss
    x, y = split[0]

    def seen(hidden):
        return errors(network, with_last(hidden, x, y), split, True)

    hidden, curve = _minimise(
        lambda hidden: projected_residual(hidden, x, y),
        params[:-1],
        steps,
        seen if full else None,
    )
    return with_last(hidden, x, y), curve


def projected_residual(hidden: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """What the best last layer leaves of the targets.

    Its derivative is Kaufman's: of the two terms of Golub and Pereyra the one that is
    orthogonal to the features. The gradient of the squared residual stays exact.

    References:
      Kaufman (1975), A variable projection method for solving separable nonlinear
      least squares problems, BIT 15.
    """
    a, b = _system(hidden, x, y)
    q, kernel = jax.lax.stop_gradient(_solve(a, b))
    left = b - a @ kernel
    return (left - q @ (q.T @ left)) / jnp.sqrt(float(y.shape[1]))


def with_last(hidden: Any, x: jax.Array, y: jax.Array) -> Any:
    """All weights: the hidden layers' and the best of the last."""
    _, kernel = _solve(*_system(hidden, x, y))
    return [*hidden, (kernel[:-1], kernel[-1])]


def _system(hidden: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least squares for the last layer: a mean over samples, with the ridge as rows."""
    units = hidden[-1][0].shape[1]
    # A last layer that does nothing shows the features.
    whole = [*hidden, (jnp.eye(units), jnp.zeros(units))]
    features = ills.predict(ills.network(whole), whole, x)
    design = jnp.concatenate([features, jnp.ones((len(x), 1))], axis=1)
    scale = jnp.sqrt(float(len(x)))
    ridge = jnp.sqrt(RIDGE) * jnp.eye(units + 1)
    nothing = jnp.zeros((units + 1, y.shape[1]))
    return (
        jnp.concatenate([design / scale, ridge]),
        jnp.concatenate([y / scale, nothing]),
    )


def _solve(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A basis of the columns of `a`, and the solution."""
    q, r = jnp.linalg.qr(a)
    return q, jax.scipy.linalg.solve_triangular(r, q.T @ b)


def _minimise(
    residual: Callable[[Any], jax.Array],
    weights: Any,
    steps: int,
    seen: Callable[[Any], jax.Array] | None,
) -> tuple[Any, jax.Array]:
    """Weights after so many steps, tried or taken, and what is seen after each."""
    equinox, optimistix = _packages()
    # It stops by the number of steps alone, as all trainers do.
    solver = optimistix.LevenbergMarquardt(rtol=0.0, atol=0.0)

    def function(weights, _):
        return residual(weights), None

    shape = jax.eval_shape(residual, weights)
    state = solver.init(function, weights, None, {}, shape, None, frozenset())
    arrays, facts = equinox.partition(state, equinox.is_array)

    def step(carry, _):
        weights, arrays = carry
        state = equinox.combine(arrays, facts)
        weights, state, _ = solver.step(function, weights, None, {}, state, frozenset())
        value = jnp.sum(state.f_info.residual**2)[None]
        arrays = equinox.filter(state, equinox.is_array)
        return (weights, arrays), seen(weights) if seen else value

    # A step ends with a proposal that the next one judges: the first judges the start.
    (weights, _), curve = jax.lax.scan(step, (weights, arrays), None, length=steps + 1)
    return weights, curve[1:]


def _packages() -> tuple[Any, Any]:
    """Imported late: half a second, and most jobs go without."""
    try:
        import equinox
        import optimistix
    except ImportError as error:
        raise ImportError(
            "Levenberg-Marquardt needs the package optimistix. Install it with "
            "`pip install -e '.[bench]'`, or name other trainers with `--optimizers`."
        ) from error
    return equinox, optimistix
