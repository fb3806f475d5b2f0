"""Sketches: the Gram matrix seen by a few probes, and the metric made of them."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import Gram, Sketch, linen
from linboost_optax._kinds import Conv, Dense
from linboost_optax._layer import Affine, Layer
from linboost_optax._statistics.sketch import probes
from tests import oracle

EXACT = 1e-9  # float64; two eigendecompositions
F64 = jnp.dtype("float64")
BLOCKS, ROWS, FEATURES, OUTPUTS, RANK = 2, 40, 24, 3, 6


def make(statistic, x, biased=True):
    kind = Dense((), (x.shape[-1],), (OUTPUTS,))
    bias = "bias" if biased else None
    layer = Layer(("layer",), kind, statistic, x.shape[1:], str(x.dtype), bias=bias)
    measured = jax.vmap(lambda block: statistic.measure(layer, block))(x)
    return replace(layer, stack=(BLOCKS,)), measured


def inputs(span=FEATURES, dtype=F64):
    """Inputs that span ``span`` dimensions, with a mean."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (BLOCKS, ROWS, span), dtype)
    mix = jax.random.normal(jax.random.fold_in(key, 1), (span, FEATURES), dtype)
    return x @ mix * jnp.logspace(0, -2, FEATURES, dtype=dtype)[None, None] + 1


def gradient(biased, dtype=F64):
    key = jax.random.key(7)
    w = jax.random.normal(key, (BLOCKS, FEATURES, OUTPUTS), dtype)
    b = jax.random.normal(jax.random.fold_in(key, 1), (BLOCKS, OUTPUTS), dtype)
    return Affine(w, b if biased else None)


@partial(jax.jit, static_argnames="bound")
def first_update(bound, measured):
    view, step = bound.read(measured), jnp.zeros((), jnp.int32)
    return view, bound.update(bound.init(), view, step)


def updated(statistic, x, *, biased, ridge=0.1):
    layer, measured = make(statistic, x, biased)
    bound = lbo.Cholesky(ridge=ridge, shrinkage=0.0).bind(layer)
    return bound, *first_update(bound, measured)


def close(got, want, tolerance=EXACT):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("features", "rank"), [(1, 1), (5, 5), (7, 3), (784, 64), (20_000, 8)]
)
def test_probes_are_orthonormal_and_always_the_same(features, rank):
    got = probes(features, rank, jnp.dtype("float32"))
    close(got.T @ got, np.eye(rank), 1e-4)
    np.testing.assert_array_equal(got, probes(features, rank, jnp.dtype("float32")))


def test_probes_are_signed_columns_of_a_cosine_transform():
    close(probes(30, 7, F64), oracle.probes(30, 7))


def test_probes_see_every_feature():
    norms = np.sum(np.asarray(probes(500, 32, jnp.dtype("float32"))) ** 2, axis=1)
    assert norms.min() > 0.2 * norms.mean()


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(cell, x, _):
            return nn.tanh(cell(x)), None

        cell = nn.Dense(x.shape[-1])
        scan = nn.scan(
            body, variable_broadcast="params", split_rngs={"params": False}, length=3
        )
        return scan(cell, x, None)[0]


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        vmapped = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        return vmapped(4)(x)


MODELS = {
    "dense": (nn.Dense(3), (9, 5)),
    "twice": (nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(5)]), (9, 5)),
    "grouped convolution": (nn.Conv(4, (3, 2), feature_group_count=2), (2, 6, 5, 6)),
    "batched": (nn.DenseGeneral(3, batch_dims=(0,)), (4, 6, 5)),
    "over time": (Scanned(), (6, 5)),
    "stacked": (Stacked(), (2, 6, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_sketch_is_the_gram_matrix_times_the_probes(name):
    model, shape = MODELS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    variables = model.init(jax.random.key(1), x)

    def collect(statistic):
        taps = linen.taps(model, x, statistic=statistic)

        def loss(v):
            return jnp.sum(model.apply(v, x) ** 2)

        _, _, stats = jax.jit(linen.value_and_grad(loss, taps))(variables)
        return taps, stats

    (taps, sketches), (_, grams) = collect(Sketch(3)), collect("gram")
    for layer in taps.layers:
        sketch, gram = sketches[layer.key], grams[layer.key]
        seen = np.asarray(gram.outer) @ oracle.probes(layer.features, 3)
        close(sketch.outer, seen, 2e-4)
        close(sketch.sum_sq, jnp.diagonal(gram.outer, axis1=-2, axis2=-1), 2e-4)
        close((sketch.count, sketch.sum), (gram.count, gram.sum), 2e-4)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("span", [3, 5])
def test_inputs_of_low_rank_are_solved_exactly(span, biased):
    with jax.enable_x64(True):
        # Without a bias the mean is a dimension like any other.
        x, g = inputs(span), gradient(biased)
        solver, view, state = updated(Sketch(RANK), x, biased=biased)
        exact, gram, gram_state = updated(Gram(), x, biased=biased)
        close(solver.solve(state, view, g), exact.solve(gram_state, gram, g), 1e-8)


@pytest.mark.parametrize("biased", [True, False])
def test_as_many_probes_as_features_are_exact(biased):
    with jax.enable_x64(True):
        x, g = inputs(), gradient(biased)
        solver, view, state = updated(Sketch(2 * FEATURES), x, biased=biased)
        exact, gram, gram_state = updated(Gram(), x, biased=biased)
        close(solver.solve(state, view, g), exact.solve(gram_state, gram, g), 1e-8)


@pytest.mark.parametrize("biased", [True, False])
def test_the_metric_is_the_nystrom_approximation_with_an_exact_diagonal(biased):
    """Against NumPy: pseudo-inverse instead of eigendecompositions."""
    with jax.enable_x64(True):
        x = inputs()
        solver, view, state = updated(Sketch(RANK), x, biased=biased)
        g = gradient(biased)
        h = solver.solve(state, view, g)
        for block in range(BLOCKS):
            rows = np.asarray(x[block])
            mean = rows.mean(axis=0) if biased else np.zeros(FEATURES)
            sigma = rows.T @ rows / ROWS - np.outer(mean, mean)
            omega = oracle.probes(FEATURES, RANK)
            seen = sigma @ omega
            low = seen @ np.linalg.pinv(omega.T @ seen, hermitian=True) @ seen.T
            metric = low + np.diag(np.diag(sigma - low)) + 0.1 * np.eye(FEATURES)
            close(np.diag(metric), np.diag(sigma) + 0.1)
            rhs = np.asarray(g.w[block])
            if g.b is not None:
                rhs = rhs - np.outer(mean, g.b[block])
            want = np.linalg.solve(metric, rhs)
            close(h.w[block], want, 1e-8)
            if g.b is not None:
                close(h.b[block], np.asarray(g.b[block]) - mean @ want, 1e-8)


@pytest.mark.parametrize("biased", [True, False])
def test_whitening_maps_fit_together(biased):
    with jax.enable_x64(True):
        x, g = inputs(), gradient(biased)
        solver, view, state = updated(Sketch(RANK), x, biased=biased)
        h = solver.solve(state, view, g)
        whitened = solver.whiten(state, g)
        close(solver.unwhiten(state, whitened), h)
        close(solver.unwhiten(state, solver.coordinates(state, h)), h)
        close(solver.coordinates(state, h), whitened)


DEGENERATE = {
    "zeros": lambda x: jnp.zeros_like(x),
    "constant": lambda x: jnp.full_like(x, 3.0),
    "rank one": lambda x: x[:, :, :1] * jnp.ones_like(x),
    "duplicates": lambda x: x.at[:, :, 1].set(x[:, :, 0]),
    "repeated sample": lambda x: x[:, :1] * jnp.ones_like(x),
    "huge": lambda x: x * 1e6,
    "tiny": lambda x: x * 1e-6,
    "far from zero": lambda x: x + 1e4,
    "one huge unit": lambda x: x.at[:, :, 3].multiply(1e8),
}


@pytest.mark.parametrize("ridge", [0.1, 0.0])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_inputs_give_finite_solutions(case, ridge):
    x = DEGENERATE[case](inputs(dtype=jnp.dtype("float32")))
    delta = jax.random.normal(jax.random.key(3), (BLOCKS, ROWS, OUTPUTS))
    w = jnp.einsum("knd,kno->kdo", x, delta) / ROWS
    for biased in (True, False):
        g = Affine(w, delta.mean(axis=1) if biased else None)
        solver, view, state = updated(Sketch(RANK), x, biased=biased, ridge=ridge)
        np.testing.assert_array_equal(state.factor.ready, True)
        h = solver.solve(state, view, g)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(h))
        # A positive definite metric: H is a descent direction.
        descent = jnp.sum(h.w * g.w, axis=(1, 2))
        if g.b is not None:
            descent += jnp.sum(h.b * g.b, axis=1)
        assert bool(jnp.all(descent >= 0))


def test_gradients_pass_through_before_the_first_sample():
    layer, measured = make(Sketch(RANK), inputs(dtype=jnp.dtype("float32")))
    bound, g = lbo.Cholesky().bind_factor(layer), gradient(True, jnp.float32)
    state = bound.init()
    for h in (
        bound.solve(state, bound.read(measured), g),
        bound.whiten(state, g),
        bound.unwhiten(state, g),
        bound.coordinates(state, g),
    ):
        close(h, g, 0.0)


def test_nothing_in_the_optimizer_is_as_wide_as_it_is_high():
    model, x = nn.Dense(2), jnp.ones((4, 3000))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    taps = linen.taps(model, x)
    tx = lbo.whiten(optax.adam(1e-3), taps)
    state = jax.eval_shape(tx.init, params)
    leaves = jax.tree.leaves((taps.zeros(), state))
    assert max(leaf.size for leaf in leaves) == 64 * 3000


def test_convolution_patches_are_features():
    (layer,) = linen.taps(nn.Conv(4, (5, 5)), jnp.ones((2, 8, 8, 16))).layers
    assert isinstance(layer.kind, Conv)
    assert layer.statistic == Sketch(64, max_samples=128)
    assert layer.statistic_shapes().outer.shape == (1, 400, 64)


@pytest.mark.lenient("optimizers of Optax promote implicitly")
@pytest.mark.parametrize("transformation", ["lnb", "whiten"])
def test_a_wide_layer_trains_as_with_its_gram_matrix(transformation):
    """Strongly correlated inputs, wider than the sketch."""
    key = jax.random.key(0)
    base = jax.random.normal(key, (512, 10))
    mix = jax.random.normal(jax.random.fold_in(key, 1), (10, 200))
    x = base @ mix * jnp.logspace(0.5, -1.5, 200)[None] / 3
    y = x @ jax.random.normal(jax.random.fold_in(key, 2), (200, 3))
    model, solver = nn.Dense(3), lbo.Cholesky(ridge=1e-3, shrinkage=0.0)
    params = model.init(jax.random.key(3), x)

    def loss_fn(p):
        return jnp.mean((model.apply(p, x) - y) ** 2)

    def final(statistic):
        taps = linen.taps(model, x, statistic=statistic)
        if transformation == "lnb":
            tx = lbo.lnb(optax.cosine_decay_schedule(3.0, 60), taps, solver)
        else:
            inner = optax.sgd(optax.cosine_decay_schedule(0.5, 60))
            tx = lbo.whiten(inner, taps, solver)
        grad = linen.value_and_grad(loss_fn, taps)

        def step(carry, _):
            loss, grads, stats = grad(carry[0])
            updates, state = tx.update(grads, carry[1], carry[0], stats=stats)
            return (optax.apply_updates(carry[0], updates), state), loss

        carry = (params, tx.init(params))
        return float(jax.jit(lambda c: jax.lax.scan(step, c, None, 60))(carry)[1][-1])

    assert (
        final(Sketch(16, 128)) < 1.3 * final(Gram(128)) < 1e-3 * float(loss_fn(params))
    )
