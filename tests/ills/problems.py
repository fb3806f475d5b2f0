"""Problems that several tests of ILLS share, and steps that compile once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linboost_optax import ills

# Re-evaluating the same objective may round differently: a few units in the last
# place of a float32 sum.
ROUNDING = 1e-5


def problem(seed, n, d, outputs, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = np.sin(2 * x[:, :1]) + 0.5 * x[:, -1:] ** 2 + np.arange(outputs)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


@functools.cache
def stepper(d, hidden, outputs, options):
    params = ills.init_mlp(jax.random.key(0), (d, *hidden, outputs))
    tx = ills.ills(ills.network(params), **dict(options))
    return tx, jax.jit(
        lambda state, params, x, y: tx.update(None, state, params, inputs=x, targets=y)
    )


def run(tx, update, params, x, y, steps):
    state, objectives = tx.init(params), []
    for _ in range(steps):
        updates, state = update(state, params, x, y)
        params = optax.apply_updates(params, updates)
        objectives.append(float(state.objective))
    return params, state, np.asarray(objectives)


def never_rises(objectives):
    objectives = objectives[np.isfinite(objectives)]
    slack = ROUNDING * np.abs(objectives[:-1])
    return np.all(np.diff(objectives) <= slack)


def tanh_teacher(seed, n=1000):
    x = jax.random.normal(jax.random.key(100 + seed), (n, 5))
    teacher = ills.init_mlp(jax.random.key(1000 + seed), (5, 10, 1))
    teacher = [(2 * w, b) for w, b in teacher]
    y = ills.predict(ills.network(teacher), teacher, x)
    return x, (y - jnp.mean(y)) / jnp.std(y)


X, Y = problem(0, 30, 2, 1)


def fit(x, y, *, sizes=(2, 4, 1), params=None, **options):
    if params is None:
        params = ills.init_mlp(jax.random.key(0), sizes)
    output = options.pop("output_activation", "identity")
    net = ills.network(params, output_activation=output)
    return ills.fit_ills(net, params, x, y, **options)
