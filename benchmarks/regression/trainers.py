"""The trainers that the ILLS benchmark compares, each compiled once a shape.

Every trainer maps start weights, data and a learning rate to curves over its
iterations: training error, and with ``full=True`` validation and test errors too.
Times are taken with ``full=False``, where nothing but training is computed.

A new one is one function under one decorator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.regression.problems import CORRUPTIONS
from linboost_optax import ills

BATCH = 32
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# Robust losses compete on data with outliers only.
HUBER: dict[str, Any] = {"loss": "huber", "corruptions": ("outliers",)}
TUKEY: dict[str, Any] = {"loss": "tukey", "corruptions": ("outliers",)}


@dataclass(frozen=True)
class Trainer:
    """How to train, for how long, at which rates, and on which data."""

    train: Callable[..., tuple[Any, jax.Array]]
    label: str
    steps: int
    timed: int  # iterations that the clock sees
    rates: tuple[float | None, ...] = (None,)  # the best one counts
    loss: str = "squared"
    corruptions: tuple[str, ...] = CORRUPTIONS
    unit: str = "iterations"


TRAINERS: dict[str, Trainer] = {}


def trainer(
    name: str, label: str, steps: int, *, timed: int | None = None, **facts: Any
) -> Callable[[Any], Any]:
    """List a function as a trainer; several times under several names."""

    def add(train: Any) -> Any:
        TRAINERS[name] = Trainer(train, label, steps, timed or steps, **facts)
        return train

    return add


def rmse(network: ills.Network, params: Any, data: Any) -> jax.Array:
    x, y = data
    return jnp.sqrt(jnp.mean((ills.predict(network, params, x) - y) ** 2))


def _errors(network, params, split, full):
    sets = split if full else split[:1]
    return jnp.stack([rmse(network, params, data) for data in sets])


def _loss(network, params, data, loss):
    x, y = data
    residual = ills.predict(network, params, x) - y
    if loss == "squared":
        return jnp.mean(residual**2)
    return jnp.mean(optax.losses.huber_loss(residual))


@trainer("adam_huber", "Adam, Huber", 2000, rates=RATES, **HUBER)
@trainer("adam", "Adam", 2000, rates=RATES)
@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def adam(network, params, split, rate, *, steps, full=False, loss="squared"):
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


@trainer("adam_batches", "Adam, mini-batch", 100, rates=RATES, unit="epochs")
@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def adam_batches(network, params, split, rate, *, steps, full=False, loss="squared"):
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


@trainer("lbfgs", "L-BFGS", 1000, timed=200)
@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def lbfgs(network, params, split, rate, *, steps, full=False, loss="squared"):
    """L-BFGS of Optax, with its zoom line search."""
    del rate
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


@trainer("ills_tukey", "ILLS, Tukey", 300, **TUKEY)
@trainer("ills_huber", "ILLS, Huber", 300, **HUBER)
@trainer("ills", "ILLS", 300)
@functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
def least_squares(network, params, split, rate, *, steps, full=False, loss="squared"):
    """ILLS, all else by default."""
    del rate
    tx: Any = ills.ills(network, loss=loss)
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
