"""The trainers that the ILLS benchmark compares, each compiled once a shape.

Every trainer maps start weights, data and a learning rate to curves over its
iterations: training error, and with ``full=True`` validation and test errors too.
Times are taken with ``full=False``, where nothing but training is computed.

A new one is one function under one decorator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.regression.errors import errors as errors_of
from benchmarks.regression.jacobians import marquardt, variable_projection
from benchmarks.regression.problems import CORRUPTIONS, Split
from linboost_optax import ills

BATCH = 32
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# Robust losses compete on data with outliers only.
HUBER: dict[str, Any] = {"loss": "huber", "corruptions": ("outliers",)}
TUKEY: dict[str, Any] = {"loss": "tukey", "corruptions": ("outliers",)}
# A Jacobian of more entries than that is no longer a small problem.
SMALL: dict[str, Any] = {"corruptions": ("clean", "noise"), "largest": 2**19}


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
    largest: float = math.inf  # entries of a Jacobian: outputs x samples x parameters
    # Weights by early stopping of its own; without, they are taken from the curves.
    stop: Callable[..., Any] | None = None

    def competes(self, corruption: str, split: Split, params: Any) -> bool:
        """Whether it is meant for such data and not too large for such a network."""
        entries = split.train[1].size * sum(
            leaf.size for leaf in jax.tree.leaves(params)
        )
        return corruption in self.corruptions and entries <= self.largest


TRAINERS: dict[str, Trainer] = {}


def trainer(
    name: str, label: str, steps: int, *, timed: int | None = None, **facts: Any
) -> Callable[[Any], Any]:
    """List a function as a trainer; several times under several names."""

    def add(train: Any) -> Any:
        TRAINERS[name] = Trainer(train, label, steps, timed or steps, **facts)
        return train

    return add


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
        errors = errors_of(network, params, split, True) if full else value[None]
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
            return carry, errors_of(network, carry[0], split, True)
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
        errors = errors_of(network, params, split, True) if full else value[None]
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )
        return (optax.apply_updates(params, updates), state), errors

    (params, _), curve = jax.lax.scan(
        step, (params, tx.init(params)), None, length=steps
    )
    return params, curve


def by_ills(**options: Any) -> Callable[..., tuple[Any, jax.Array]]:
    """ILLS, all but some options by default."""

    @functools.partial(jax.jit, static_argnames=("network", "steps", "full", "loss"))
    def train(network, params, split, rate, *, steps, full=False, loss="squared"):
        del rate
        tx: Any = ills.ills(network, loss=loss, **options)
        x, y = split[0]

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, inputs=x, targets=y)
            params = optax.apply_updates(params, updates)
            if full:
                return (params, state), errors_of(network, params, split, True)
            return (params, state), state.objective[None]

        (params, _), curve = jax.lax.scan(
            step, (params, tx.init(params)), None, length=steps
        )
        return params, curve

    return train


def stopped_early(network, params, split, *, steps, loss):
    """Weights that ``fit_ills`` keeps of all its paths."""
    return ills.fit_ills(
        network,
        params,
        *split.train,
        validation=split.validation,
        max_iter=steps,
        loss=loss,
    ).params


least_squares = by_ills()
trainer("ills", "ILLS", 300, stop=stopped_early)(least_squares)
trainer("ills_huber", "ILLS, Huber", 300, stop=stopped_early, **HUBER)(least_squares)
trainer("ills_tukey", "ILLS, Tukey", 300, stop=stopped_early, **TUKEY)(least_squares)
trainer("published", "ILLS, published", 300, corruptions=("clean", "noise"))(
    by_ills(method="published")
)
trainer("marquardt", "Levenberg-Marquardt", 100, timed=20, **SMALL)(marquardt)
trainer("projection", "variable projection", 100, timed=20, **SMALL)(
    variable_projection
)
