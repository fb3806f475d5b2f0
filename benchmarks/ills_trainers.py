"""The trainers that the ILLS benchmark compares, each compiled once a shape.

Every trainer maps start weights and data to curves over its iterations: training
error, and with ``full=True`` validation and test errors too. Times are taken with
``full=False``, where nothing but training is computed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import linboost_optax as lbo

BATCH = 32


def rmse(network: lbo.Network, params: Any, data: Any) -> jax.Array:
    x, y = data
    return jnp.sqrt(jnp.mean((lbo.predict(network, params, x) - y) ** 2))


def _errors(network, params, split, full):
    sets = split if full else split[:1]
    return jnp.stack([rmse(network, params, data) for data in sets])


def _loss(network, params, data, loss):
    x, y = data
    residual = lbo.predict(network, params, x) - y
    if loss == "squared":
        return jnp.mean(residual**2)
    return jnp.mean(optax.losses.huber_loss(residual))


@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def adam(network, params, split, rate, *, steps=2000, full=False, loss="squared"):
    """Full-batch Adam."""
    tx = optax.adam(rate)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: _loss(network, p, split[0], loss))(
            params
        )
        errors = _errors(network, params, split, True) if full else value[None]
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), errors

    (params, _), curve = jax.lax.scan(
        step, (params, tx.init(params)), None, length=steps
    )
    return params, curve


@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def adam_batches(
    network, params, split, rate, *, steps=100, full=False, loss="squared"
):
    """Mini-batch Adam; one entry of the curve is an epoch."""
    tx = optax.adam(rate)
    x, y = split[0]
    batches = x.shape[0] // BATCH

    def epoch(carry, key):
        order = jax.random.permutation(key, x.shape[0])[: batches * BATCH]

        def step(carry, rows):
            params, state = carry
            value, grads = jax.value_and_grad(
                lambda p: _loss(network, p, (x[rows], y[rows]), loss)
            )(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        carry, values = jax.lax.scan(step, carry, order.reshape(batches, BATCH))
        if full:
            return carry, _errors(network, carry[0], split, True)
        return carry, jnp.mean(values)[None]

    keys = jax.random.split(jax.random.key(0), steps)
    (params, _), curve = jax.lax.scan(epoch, (params, tx.init(params)), keys)
    return params, curve


@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def lbfgs(network, params, split, *, steps=1000, full=False, loss="squared"):
    """L-BFGS of Optax, with its zoom line search."""
    tx = optax.lbfgs()

    def value_fn(p):
        return _loss(network, p, split[0], loss)

    evaluate: Any = optax.value_and_grad_from_state(value_fn)

    def step(carry, _):
        params, state = carry
        value, grads = evaluate(params, state=state)
        errors = _errors(network, params, split, True) if full else value[None]
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )
        return (optax.apply_updates(params, updates), state), errors

    (params, _), curve = jax.lax.scan(
        step, (params, tx.init(params)), None, length=steps
    )
    return params, curve


@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "options"))
def ills(network, params, split, *, steps=300, full=False, options=()):
    """ILLS; ``options`` are pairs of argument and value of `lbo.ills`."""
    tx: Any = lbo.ills(network, **dict(options))
    x, y = split[0]

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, inputs=x, targets=y)
        params = optax.apply_updates(params, updates)
        if full:
            return (params, state), _errors(network, params, split, True)
        return (params, state), state.objective[None]

    (params, _), curve = jax.lax.scan(
        step, (params, tx.init(params)), None, length=steps
    )
    return params, curve


def first_below(curve: np.ndarray, target: float) -> float:
    """Iterations until the error is at the target; infinite if it never is."""
    hit = np.flatnonzero(curve <= target)
    return float(hit[0] + 1) if len(hit) else float("inf")
