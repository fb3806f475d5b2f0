"""The last layer's regression where its features are many and nearly dependent."""

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax import ills
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._numerics.least_squares import (
    add_diagonal,
    solve,
    weighted_gram,
)
from linboost_optax.ills._options import resolve
from linboost_optax.ills._steps.problem import refit_output
from tests.ills import reference as ref

RIDGE, UNITS, SAMPLES = 1e-6, 100, 500


def wide_problem():
    """Smooth targets, and tanh units that are nearly linear in three inputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 3)).astype(np.float32)
    y = np.sin(3 * x[:, :1] * x[:, 1:2]) + x[:, 2:] ** 2
    params = ills.init_mlp(jax.random.key(0), (3, UNITS, 1))
    layers = ref.augmented(params)
    return params, layers, x, y.astype(np.float32)


def objective(layers, last, x, y):
    """In float64, whatever the weights are."""
    (_, design), _ = ref.forward([*layers[:-1], last], x.astype(np.float64))
    residual = y - design @ np.float64(last)
    return np.mean(residual**2) + RIDGE * np.sum(np.float64(last)[:-1] ** 2)


def test_rounding_of_the_gram_matrix_does_not_count():
    params, layers, x, y = wide_problem()
    omega = np.full(y.shape, 1 / SAMPLES)
    best = ref.refit(layers, x.astype(np.float64), y, omega, RIDGE)
    settings = resolve(ills.network(params), output_ridge=RIDGE)
    weights = jnp.full((1, SAMPLES), 1 / SAMPLES)
    matrices = [jnp.asarray(w, jnp.float32) for w in layers]
    batch = Batch(jnp.asarray(x), jnp.asarray(y), weights.T)
    got = refit_output(settings, matrices, 0.0, batch)

    (_, design), _ = ref.forward(layers, x)
    a = jnp.asarray(design.T, jnp.float32)
    ridge = jnp.full(UNITS + 1, RIDGE).at[-1].set(0)
    gram = add_diagonal(weighted_gram(a, weights), ridge[None])
    unrefined = solve(gram, a @ (weights * y.T).T)

    least = objective(layers, best, x, y)
    lost = [objective(layers, w, x, y) / least - 1 for w in (got, unrefined)]
    assert lost[0] < 1e-3
    assert lost[1] > 5 * lost[0]
