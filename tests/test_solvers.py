"""Every solver against an exact oracle, and against inputs that break solvers."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
from linboost_optax import Counts, Gram, Inputs, Moments, Sketch
from linboost_optax._kinds import Dense, Embed
from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers import base
from linboost_optax._solvers.dual import Dual
from linboost_optax._solvers.gram import GramInverse, GramRoot
from linboost_optax._solvers.incomplete_cholesky import ArrowMetric
from linboost_optax._solvers.nystrom import Nystrom

# Direct solves in float64: rounding alone is left.
EXACT = 1e-10

BLOCKS, ROWS, FEATURES, OUTPUTS = 3, 40, 5, 4


STATISTICS = {"gram": Gram(), "inputs": Inputs(), "moments": Moments()}


def make_layer(
    statistic="gram", *, rows=ROWS, features=FEATURES, dtype="float64", biased=True
):
    kind = Dense((), (features,), (OUTPUTS,))
    statistic = STATISTICS.get(statistic, statistic)
    bias = "bias" if biased else None
    shape = (rows, features)
    return Layer(("layer",), kind, statistic, shape, dtype, bias=bias, stack=(BLOCKS,))


def make_inputs(rows=ROWS, features=FEATURES, dtype=jnp.float64, seed=0):
    key = jax.random.key(seed)
    mix = jax.random.normal(jax.random.fold_in(key, 1), (features, features), dtype)
    x = jax.random.normal(key, (BLOCKS, rows, features), dtype)
    return jnp.einsum("knd,de->kne", x, mix) + 0.5


def measure(layer, x):
    own = replace(layer, stack=())
    return jax.vmap(lambda block: own.statistic.measure(own, block))(x)


def make_gradient(biased=True, features=FEATURES, dtype=jnp.float64):
    key = jax.random.key(7)
    w = jax.random.normal(key, (BLOCKS, features, OUTPUTS), dtype)
    b = jax.random.normal(jax.random.fold_in(key, 1), (BLOCKS, OUTPUTS), dtype)
    return Affine(w, b if biased else None)


# Compiled once for all inputs of a shape: eager branches compile anew every time.
@partial(jax.jit, static_argnames=("bound", "layer", "steps"))
def run_bound(bound, layer, x, g, steps=1, start=None):
    view, state = bound.read(measure(layer, x)), bound.init()
    for step in range(steps):
        state = bound.update(state, view, jnp.asarray(step))
    if isinstance(bound, base.SolvesFrom):
        start = jax.tree.map(jnp.zeros_like, g) if start is None else start
        return bound.solve_from(start, state, view, g), state
    return bound.solve(state, view, g), state


def run(solver, layer, x, g, **options):
    layer = layer if g.b is not None else layer.without_bias()
    return run_bound(solver.bind(layer), layer, x, g, **options)


def oracle(x, g, ridge):
    """Solves every block densely in NumPy, the constant appended last."""
    x, w = np.asarray(x), np.asarray(g.w)
    penalty = np.ones(x.shape[-1])
    if g.b is not None:
        x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
        w = np.concatenate([w, np.asarray(g.b)[:, None]], axis=1)
        penalty = np.append(penalty, 0.0)
    second = np.einsum("knd,kne->kde", x, x) / x.shape[1]
    h = np.linalg.solve(second + ridge * np.diag(penalty), w)
    if g.b is None:
        return Affine(h, None)
    return Affine(h[:, :-1], h[:, -1])


def assert_close(got, want, tolerance=EXACT):
    assert (got.b is None) == (want.b is None)
    np.testing.assert_allclose(got.w, want.w, rtol=tolerance, atol=tolerance)
    if got.b is not None:
        np.testing.assert_allclose(got.b, want.b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_cholesky_is_exact(biased, ridge):
    with jax.enable_x64(True):
        x, g = make_inputs(), make_gradient(biased)
        h, _ = run(lbo.Cholesky(ridge=ridge, shrinkage=0.0), make_layer(), x, g)
        assert_close(h, oracle(x, g, ridge))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [3, ROWS])
def test_dual_is_exact(biased, rows):
    with jax.enable_x64(True):
        x, g = make_inputs(rows), make_gradient(biased)
        h, _ = run(
            lbo.Cholesky(0.1, shrinkage=0.0), make_layer("inputs", rows=rows), x, g
        )
        assert_close(h, oracle(x, g, 0.1))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("statistic", ["gram", Sketch(FEATURES), "inputs"], ids=str)
@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
def test_shrinkage_reduces_correlations_and_keeps_variances(
    statistic, shrinkage, biased
):
    """By its formula, written out: of the covariance, or of what has no mean."""
    with jax.enable_x64(True):
        x, g = make_inputs(), make_gradient(biased)
        h, _ = run(lbo.Cholesky(0.1, shrinkage=shrinkage), make_layer(statistic), x, g)
        for block, (rows, w) in enumerate(zip(np.asarray(x), np.asarray(g.w))):
            mean = rows.mean(axis=0) if biased else np.zeros(rows.shape[1])
            sigma = (rows - mean).T @ (rows - mean) / len(rows)
            sigma = (1 - shrinkage) * sigma + shrinkage * np.diag(np.diagonal(sigma))
            metric = sigma + 0.1 * np.eye(len(sigma))
            b = None if g.b is None else np.asarray(g.b[block])
            right = w if b is None else w - np.outer(mean, b)
            want = np.linalg.solve(metric, right)
            np.testing.assert_allclose(h.w[block], want, rtol=EXACT, atol=EXACT)
            if h.b is not None:
                want = b - mean @ want
                np.testing.assert_allclose(h.b[block], want, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("statistic", ["gram", "inputs"])
def test_conjugate_gradient_converges_to_the_exact_solution(biased, statistic):
    with jax.enable_x64(True):
        x, g = make_inputs(), make_gradient(biased)
        solver = lbo.ConjugateGradient(ridge=0.1, iterations=60, tolerance=0.0)
        h, _ = run(solver, make_layer(statistic), x, g)
        assert_close(h, oracle(x, g, 0.1))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_conjugate_gradient_iterates_do_not_depend_on_the_statistic(biased, iterations):
    with jax.enable_x64(True):
        x, g = make_inputs(), make_gradient(biased)
        start = make_gradient(biased)
        solver = lbo.ConjugateGradient(iterations=iterations)
        gram, _ = run(solver, make_layer("gram"), x, g, start=start)
        inputs, _ = run(solver, make_layer("inputs"), x, g, start=start)
        assert_close(gram, inputs)


def test_conjugate_gradient_stops_at_its_tolerance():
    with jax.enable_x64(True):
        x, g = make_inputs(), make_gradient()
        exact = oracle(x, g, 0.1)
        exact = Affine(jnp.asarray(exact.w), jnp.asarray(exact.b))
        nudged = jax.tree.map(lambda a: a * (1 + 1e-8), exact)
        solver = lbo.ConjugateGradient(tolerance=1e-5)
        h, _ = run(solver, make_layer(), x, g, start=nudged)
        assert_close(h, nudged, 0.0)  # good enough already: not touched
        strict = lbo.ConjugateGradient(tolerance=0.0, iterations=60)
        assert_close(run(strict, make_layer(), x, g, start=nudged)[0], exact)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("statistic", ["moments", "gram", "inputs"])
def test_incomplete_cholesky_against_its_formula(biased, statistic):
    with jax.enable_x64(True):
        x, g = make_inputs(), make_gradient(biased)
        h, _ = run(lbo.IncompleteCholesky(), make_layer(statistic), x, g, steps=3)
        mean, square = np.mean(x, axis=1), np.mean(np.square(x), axis=1)
        variance = np.maximum(square - mean**2, 0)
        variance = 0.9 * variance + 0.1 * variance.mean(axis=1, keepdims=True)
        if biased:
            w = (g.w - mean[:, :, None] * g.b[:, None]) / variance[:, :, None]
            want = Affine(w, g.b - np.einsum("kd,kdo->ko", mean, w))
        else:
            want = Affine(g.w / (variance + mean**2)[:, :, None], None)
        assert_close(h, want)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("solver", [lbo.IncompleteCholesky(), lbo.Cholesky()])
@pytest.mark.parametrize("statistic", [Moments(), Gram(), Sketch(3)], ids=str)
def test_whitening_maps_fit_together(statistic, solver, biased):
    """``solve`` is ``unwhiten`` after ``whiten``, whatever each of them caches."""
    with jax.enable_x64(True):
        layer = make_layer(statistic, biased=biased)
        x, g = make_inputs(), make_gradient(biased)
        h, _ = run(solver, layer, x, g)
        factor = solver.bind_factor(layer)
        view = factor.read(measure(layer, x))
        state = factor.update(factor.init(), view, jnp.asarray(0))
        whitened = factor.whiten(state, g)
        assert_close(factor.unwhiten(state, whitened), h)
        # C^T and C^-T undo each other, and C^-1 is the transpose of C^-T.
        v = factor.coordinates(state, h)
        assert_close(factor.unwhiten(state, v), h)
        assert_close(v, whitened)


def test_cholesky_coordinates_have_white_inputs():
    with jax.enable_x64(True):
        layer, x = make_layer(), make_inputs()
        factor = lbo.Cholesky(ridge=0.0, shrinkage=0.0).bind_factor(layer)
        view = factor.read(measure(layer, x))
        state = factor.update(factor.init(), view, jnp.asarray(0))
        # The gradient of sum(W^T x) is x: whitened inputs are whitened gradients.
        columns = jnp.swapaxes(x, 1, 2)
        white = factor.whiten(state, Affine(columns, jnp.ones((BLOCKS, ROWS))))
        second = jnp.einsum("kdn,ken->kde", white.w, white.w) / ROWS
        eye = np.broadcast_to(np.eye(FEATURES), second.shape)
        np.testing.assert_allclose(second, eye, atol=EXACT)
        np.testing.assert_allclose(white.w.mean(axis=2), 0, atol=EXACT)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("factor", [1e3, 1e6, 1e15])
@pytest.mark.parametrize(("statistic", "tolerance"), [("gram", 1e-4), ("inputs", 0.05)])
def test_a_feature_of_another_unit_does_not_hide_the_others(
    statistic, tolerance, factor, biased
):
    """Compared where every feature has the same scale, that is as outputs.

    Products with raw inputs are subtracted from each other, which leaves less.
    """
    scales = np.r_[factor, np.ones(FEATURES - 1)]
    x = np.asarray(make_inputs(dtype=jnp.float32), np.float64) * scales
    delta = np.random.default_rng(0).normal(size=(BLOCKS, ROWS, OUTPUTS))
    x = np.asarray(x, np.float32)
    w = np.einsum("knd,kno->kdo", x, delta, dtype=np.float64) / ROWS
    g = Affine(np.asarray(w, np.float32), None)
    if biased:
        g = g._replace(b=np.asarray(delta.mean(axis=1), np.float32))
    layer = make_layer(statistic, dtype="float32")
    h, _ = run(lbo.Cholesky(ridge=0.03, shrinkage=0.0), layer, jnp.asarray(x), g)
    want = oracle(x.astype(np.float64), g, 0.03)
    scaled = scales[:, None]
    got, want = np.asarray(h.w, np.float64) * scaled, want.w * scaled
    assert np.linalg.norm(got - want) < tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("factor", [1e4, 1e15])
def test_a_sketch_knows_the_variances_of_features_of_any_scale(factor):
    scales = np.r_[factor, np.ones(FEATURES - 1)]
    x = np.random.default_rng(0).normal(size=(BLOCKS, 4000, FEATURES)) * scales
    x = jnp.asarray(x, jnp.float32)
    layer = make_layer(Sketch(FEATURES), rows=4000, dtype="float32")
    g = make_gradient(dtype=jnp.float32)
    h, _ = run(lbo.Cholesky(ridge=0.03, shrinkage=0.0), layer, x, g)
    want = oracle(x, g, 0.03)
    # Of independent features the variances are all there is, but for the sample's.
    got, want = np.asarray(h.w)[:, 1:], want.w[:, 1:]
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


def test_a_state_has_one_meaning():
    """An inverse and a root have the same shape and are not taken for each other."""
    layer, g = make_layer(dtype="float32"), make_gradient(dtype=jnp.float32)
    solver = lbo.Cholesky()
    inverse, root = solver.bind(layer), solver.bind_factor(layer)
    with pytest.raises(AttributeError, match="no attribute 'inverse'"):
        inverse.solve(root.init(), None, g)
    with pytest.raises(AttributeError, match="no attribute 'root'"):
        root.whiten(inverse.init(), g)


SOLVERS = [
    lbo.IncompleteCholesky(),
    lbo.ConjugateGradient(),
    lbo.ConjugateGradient(ridge=0.0, iterations=10),
    lbo.Cholesky(),
    lbo.Cholesky(ridge=0.0, shrinkage=0.0),
]
DEGENERATE = {
    "zeros": lambda x: jnp.zeros_like(x),
    "constant": lambda x: jnp.full_like(x, 3.0),
    "dead unit": lambda x: x.at[:, :, 0].set(0),
    "constant unit": lambda x: x.at[:, :, 0].set(100.0),
    "rank one": lambda x: x[:, :, :1] * jnp.ones_like(x),
    "duplicates": lambda x: x.at[:, :, 1].set(x[:, :, 0]),
    "one sample": lambda x: x[:, :1],
    "fewer samples than features": lambda x: x[:, :2],
    "huge": lambda x: x * 1e6,
    "tiny": lambda x: x * 1e-6,
    "far from zero": lambda x: x + 1e4,
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_degenerate_inputs_give_finite_solutions(solver, case, biased):
    x = DEGENERATE[case](make_inputs(dtype=jnp.float32))
    layer = make_layer(rows=x.shape[1], dtype="float32")
    # Gradients of a real layer lie in the span of its inputs.
    delta = jax.random.normal(jax.random.key(3), (*x.shape[:2], OUTPUTS))
    w = jnp.einsum("knd,kno->kdo", x, delta) / x.shape[1]
    g = Affine(w, delta.mean(axis=1) if biased else None)
    h, _ = run(solver, layer, x, g, steps=2)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(h))


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=str)
def test_blocks_without_samples_keep_their_state(solver):
    layer = make_layer(dtype="float32")
    g = make_gradient(dtype=jnp.float32)
    seen, bound = measure(layer, make_inputs(dtype=jnp.float32)), solver.bind(layer)
    _, state = run(solver, layer, make_inputs(dtype=jnp.float32), g)
    empty = jax.tree.map(lambda leaf: leaf.at[1].set(0), seen)
    after = bound.update(state, bound.read(empty), jnp.asarray(10))
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(new[1], old[1])
    moved = [
        bool(jnp.any(new[0] != old[0]))
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True)
    ]
    assert any(moved)


def test_cholesky_refreshes_on_schedule_and_when_a_block_is_new():
    layer = make_layer(dtype="float32")
    bound = lbo.Cholesky(every=3).bind(layer)
    first = measure(layer, make_inputs(dtype=jnp.float32))
    late = jax.tree.map(lambda leaf: leaf.at[1].set(0), first)
    other = measure(layer, make_inputs(dtype=jnp.float32, seed=5))

    def advance(state, statistic, step):
        return bound.update(state, bound.read(statistic), jnp.asarray(step))

    def inverse(state):
        return state.factor.value.inverse

    zero = advance(bound.init(), late, 0)
    np.testing.assert_array_equal(zero.factor.ready, [True, False, True])
    one = advance(zero, late, 1)
    np.testing.assert_array_equal(inverse(one), inverse(zero))
    two = advance(one, other, 2)  # not due, but block 1 appears
    np.testing.assert_array_equal(two.factor.ready, True)
    three = advance(two, other, 3)
    assert bool(jnp.any(inverse(three) != inverse(two)))
    four = advance(three, first, 4)
    np.testing.assert_array_equal(inverse(four), inverse(three))


def test_cholesky_keeps_the_last_good_factor():
    layer = make_layer(dtype="float32")
    bound = lbo.Cholesky(every=1).bind(layer)
    good = measure(layer, make_inputs(dtype=jnp.float32))
    state = bound.update(bound.init(), bound.read(good), jnp.asarray(0))
    # An indefinite "Gram" matrix in one block: no factor exists.
    bad = good._replace(outer=good.outer.at[0].multiply(-100.0))
    after = bound.update(state, bound.read(bad), jnp.asarray(1))
    for new, old in zip(after.factor[:2], state.factor[:2], strict=True):
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
            np.testing.assert_array_equal(a[0], b[0])
    assert bool(jnp.any(after.average.total[1][0] != state.average.total[1][0]))


def test_cholesky_passes_gradients_through_before_its_first_factor():
    layer, solver = make_layer(dtype="float32"), lbo.Cholesky()
    g = make_gradient(dtype=jnp.float32)
    bound, factor = solver.bind(layer), solver.bind_factor(layer)
    for h in (
        bound.solve(bound.init(), None, g),
        factor.whiten(factor.init(), g),
        factor.unwhiten(factor.init(), g),
        factor.coordinates(factor.init(), g),
    ):
        assert_close(h, g, 0.0)


def test_inputs_used_twice_are_not_trusted():
    layer = make_layer("inputs", dtype="float32")
    statistic = measure(layer, make_inputs(dtype=jnp.float32))
    twice = statistic._replace(uses=2 * statistic.uses)
    for view in (layer.statistic.moments, layer.statistic.second_moment):
        np.testing.assert_array_equal(view(layer, statistic).count, ROWS)
        np.testing.assert_array_equal(view(layer, twice).count, 0)


def test_cholesky_is_what_a_statistic_allows():
    solver = lbo.Cholesky(ridge=0.2, decay=0.9, shrinkage=0.0)
    embed = Layer((), Embed(7, 2), Counts(), (3,), bias=None)
    for layer, solves, whitens in [
        (make_layer(Gram()), GramInverse, GramRoot),
        (make_layer(Sketch(3)), Nystrom, Nystrom),
        (make_layer(Moments()), ArrowMetric, ArrowMetric),
        (embed, ArrowMetric, ArrowMetric),
    ]:
        assert isinstance(solver.bind(layer), solves)
        assert isinstance(solver.bind_factor(layer), whitens)
    same_age = lbo.IncompleteCholesky(b_mu=0.9, b_nu=0.9)
    assert solver.bind(make_layer(Moments())).options == same_age
    inputs = make_layer("inputs")
    assert isinstance(solver.bind(inputs), Dual)
    with pytest.raises(ValueError, match=r"no factor for layer 'layer' .*'inputs'"):
        solver.bind_factor(inputs)
    with pytest.raises(ValueError, match=r"`ridge` must be > 0 for layer 'layer'"):
        lbo.Cholesky(ridge=0).bind(inputs)


def test_the_measured_choice_is_what_cholesky_is():
    assert lbo.Cholesky() == lbo.Cholesky(
        ridge=0.03, decay=0.95, every=10, shrinkage=0.1
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: lbo.IncompleteCholesky(b_mu=1.0),
            r"`b_mu` must be in \[0, 1\), got 1",
        ),
        (lambda: lbo.IncompleteCholesky(b_nu=-0.1), r"`b_nu` must be in \[0, 1\)"),
        (
            lambda: lbo.IncompleteCholesky(shrinkage=2),
            r"`shrinkage` must be in \[0, 1\]",
        ),
        (lambda: lbo.ConjugateGradient(ridge=-1), r"`ridge` must be >= 0, got -1"),
        (lambda: lbo.ConjugateGradient(iterations=0), r"`iterations` must be >= 1"),
        (lambda: lbo.ConjugateGradient(tolerance=-1), r"`tolerance` must be >= 0"),
        (lambda: lbo.ConjugateGradient(shrinkage=2), r"`shrinkage` must be in"),
        (lambda: lbo.Cholesky(ridge=float("nan")), r"`ridge` must be finite, got nan"),
        (lambda: lbo.Cholesky(decay=1), r"`decay` must be in \[0, 1\)"),
        (lambda: lbo.Cholesky(every=0), r"`every` must be >= 1"),
    ],
)
def test_hyper_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_hyper_parameters_of_another_type():
    with pytest.raises(TypeError, match=r"`ridge` must be a number, got 'big'"):
        lbo.Cholesky(ridge="big")
    with pytest.raises(TypeError, match=r"`every` must be a whole number, got 2.5"):
        lbo.Cholesky(every=2.5)
    with pytest.raises(TypeError, match=r"`solver` must be .* got 'cholesky'"):
        base.check("cholesky")
