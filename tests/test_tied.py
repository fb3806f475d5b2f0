"""Tied embeddings against a dense metric: one row and column a weight, in NumPy."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from linboost_optax._kinds import Dense, Embed, Tied
from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.tied import SumOfArrows, TwoSided
from linboost_optax._statistics.counts import CountSums
from linboost_optax._statistics.gram import GramSums
from linboost_optax._statistics.uses import Uses, UseSums
from linboost_optax._taps.primitive import Tap, emit
from tests.oracle import probes

EXACT = 1e-10  # direct solves in float64: rounding alone is left
FLOAT32 = 1e-4

VOCABULARY, SIZE, ROWS = 7, 4, 30
UNSEEN = (2, 5)  # tokens that never occur
KIND = Tied(VOCABULARY, SIZE)


def make_layer(statistic="gram", *, kind=KIND, dtype="float64", stack=()):
    asked = lbo._statistics.resolve(statistic)
    return Layer(
        path=("embed",),
        kind=kind,
        statistic=kind.statistic(asked),
        input_shape=(ROWS,),
        dtype=dtype,
        kernel="embedding",
        bias=None,
        stack=stack,
    )


def make_batch(seed, *, rows=ROWS, kind=KIND, dtype="float64"):
    """Tokens and hidden states, as many of them again."""
    rng = np.random.default_rng(seed)
    seen = [t for t in range(kind.vocabulary) if t not in UNSEEN]
    tokens = rng.choice(seen, rows, p=_zipf(len(seen)))
    mix = np.random.default_rng(99).normal(size=(kind.size, kind.size))
    h = (rng.normal(size=(2 * rows, kind.size)) @ mix + 0.5).astype(dtype)
    return tokens.astype(np.int32), h


def _zipf(count):
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def make_gradient(kind=KIND, blocks=1, dtype="float64"):
    w = np.random.default_rng(5).normal(size=(blocks, *kind.kernel_shape))
    return Affine(jnp.asarray(w, dtype), None)


def measure(layer, batch):
    """Both uses, each measured for itself, and added up."""
    tokens, h = batch
    own = layer.statistic
    each = (own.measure(layer, jnp.asarray(x)) for x in (tokens, h))
    return jax.tree.map(jnp.add, *each)


def moments_of(batch, kind=KIND):
    """The second moments of a batch's uses, over the samples of both, in NumPy."""
    tokens, h = batch
    samples = len(tokens) + len(h)
    counts = np.bincount(tokens, minlength=kind.vocabulary)
    return counts / samples, h.T @ h / samples


def averaged(each, decay):
    """The moving average of arrays, corrected for its start."""
    weights = decay ** np.arange(len(each))[::-1]
    return np.tensordot(weights / weights.sum(), np.stack(each), 1)


def dense(share, second, ridge):
    """The metric of all weights, row after row: D (x) I + I (x) S + ridge."""
    tokens, size = len(share), len(second)
    metric = np.kron(np.diag(share), np.eye(size)) + np.kron(np.eye(tokens), second)
    return metric + ridge * np.eye(tokens * size)


def power(metric, p, w):
    """A power of a dense metric times weights."""
    values, vectors = np.linalg.eigh(metric)
    flat = np.asarray(w, np.float64).reshape(-1)
    return (vectors @ (values**p * (vectors.T @ flat))).reshape(np.shape(w))


def close(got, want, tolerance=EXACT):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# Compiled once for all batches of a shape.
@partial(jax.jit, static_argnames=("bound",))
def advance(bound, state, value, step):
    return bound.update(state, bound.read(value), step)


def follow(bound, values):
    state = bound.init()
    for step, value in enumerate(values):
        state = advance(bound, state, value, jnp.asarray(step))
    return state


# --- what a tap emits --------------------------------------------------------------


def test_each_use_measures_its_own_part_and_zeros_elsewhere():
    with jax.enable_x64(True):
        layer, (tokens, h) = make_layer(), make_batch(0)
        counts = np.bincount(tokens, minlength=VOCABULARY)
        lookup = layer.statistic.measure(layer, jnp.asarray(tokens))
        close(lookup.lookup.count, [ROWS])
        close(lookup.lookup.sum, counts[None])
        assert not any(leaf.any() for leaf in jax.tree.leaves(lookup.attend))
        attend = layer.statistic.measure(layer, jnp.asarray(h))
        close(attend.attend.count, [2 * ROWS])
        close(attend.attend.outer, (h.T @ h)[None])
        assert not any(leaf.any() for leaf in jax.tree.leaves(attend.lookup))
        for value in (lookup, attend):
            got = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), value)
            want = layer.statistic_shapes()
            assert got == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), want)


def tied_loss(embedding, t, tokens, targets, layer, rows=None):
    uses = layer.statistic
    lookup = Tap(t.value, uses.layer_of(layer, layer.kind.lookup))
    attend = Tap(t.value, uses.layer_of(layer, layer.kind.attend))
    mask = None if rows is None else jnp.asarray(rows)
    h = jnp.tanh(emit(lookup, embedding[tokens], tokens, mask))
    logits = emit(attend, h @ embedding.T, h, mask)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.mean(each, where=mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("statistic", ["gram", lbo.Reached(lbo.Gram())])
def test_cotangents_of_both_uses_add_up_to_one_value(statistic, masked):
    with jax.enable_x64(True):
        layer = make_layer(statistic)
        tokens = make_batch(1)[0].reshape(5, 6)
        rows = np.arange(6)[None] < np.array([6, 2, 1, 4, 3])[:, None]
        embedding = make_gradient().w[0]
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layer.statistic_shapes()
        )
        reached = statistic != "gram"
        assert layer.statistic.as_read == make_layer().statistic
        targets = jnp.asarray(tokens[:, ::-1])
        args = (jnp.asarray(tokens), targets, layer, rows if masked else None)
        grad = jax.grad(tied_loss, argnums=1)(embedding, Tap(zeros, layer), *args)
        value = grad.value
        assert isinstance(value, UseSums)
        assert isinstance(value.lookup, CountSums)
        assert isinstance(value.attend, GramSums)
        assert layer.statistic.reads_cotangent == reached

        kept = tokens[rows] if masked else tokens.reshape(-1)
        h = np.tanh(np.asarray(embedding)[kept])
        close(value.lookup.sum[0], np.bincount(kept, minlength=VOCABULARY))
        close(value.lookup.count, [len(kept)])
        close(value.attend.outer[0], h.T @ h)
        close(value.attend.sum[0], h.sum(0))
        close(value.attend.count, [len(kept)])


def by_hand(embedding, t, tokens, targets, layer):
    """Inside `shard_map`: a mesh of one device has the types of a larger one."""

    def local(embedding, t, tokens, targets):
        loss = tied_loss(embedding, t, tokens, targets, layer)
        return jax.lax.pmean(loss, "data")

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P(), P(), P("data"), P("data"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    return mapped(embedding, t, tokens, targets)


def by_example(embedding, t, tokens, targets, layer):
    def each(tokens, targets):
        return tied_loss(embedding, t, tokens, targets, layer)

    return jnp.mean(jax.vmap(each)(tokens, targets))


@pytest.mark.parametrize("loss", [by_hand, by_example])
def test_uses_add_up_under_transformations_of_the_loss(loss):
    with jax.enable_x64(True):
        layer, embedding = make_layer(), make_gradient().w[0]
        tokens = jnp.asarray(make_batch(1)[0].reshape(5, 6))
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layer.statistic_shapes()
        )
        grad = jax.jit(jax.grad(loss, argnums=1), static_argnums=4)
        value = grad(embedding, Tap(zeros, layer), tokens, tokens[:, ::-1], layer).value
        h = np.tanh(np.asarray(embedding)[np.asarray(tokens).reshape(-1)])
        close(
            value.lookup.sum[0], np.bincount(tokens.reshape(-1), minlength=VOCABULARY)
        )
        close(value.lookup.count, [tokens.size])
        close(value.attend.outer[0], h.T @ h)
        close(value.attend.count, [tokens.size])


def test_only_rows_that_the_loss_depends_on_are_reached():
    with jax.enable_x64(True):
        layer = make_layer(lbo.Reached(lbo.Gram()))
        _, h = make_batch(2)
        attend = layer.statistic.layer_of(layer, layer.kind.attend)
        g = np.ones((len(h), VOCABULARY))
        g[::3] = 0
        value = attend.statistic.measure(attend, jnp.asarray(h), jnp.asarray(g))
        kept = np.delete(h, np.s_[::3], axis=0)
        close(value.attend.outer[0], kept.T @ kept)
        close(attend.statistic.moments(attend, value).mean[0], kept.mean(0))


@pytest.mark.parametrize(
    ("asked", "lookup", "attend"),
    [
        ("auto", lbo.Counts(), lbo.Gram(128)),
        ("moments", lbo.Counts(), lbo.Moments()),
        ("inputs", lbo.Counts(), lbo.Gram()),
        (
            lbo.Reached(lbo.Inputs()),
            lbo.Reached(lbo.Counts()),
            lbo.Reached(lbo.Gram()),
        ),
    ],
)
def test_statistic_of_each_use_is_what_was_asked_if_it_adds_up(asked, lookup, attend):
    layer = make_layer(asked)
    assert layer.statistic == Uses(lookup, attend)
    assert layer.statistic.additive


def test_a_wide_embedding_has_a_sketch():
    assert make_layer("auto", kind=Tied(5, 129)).statistic.attend == lbo.Sketch(64, 128)
    assert make_layer("auto", kind=Tied(5, 128)).statistic.attend == lbo.Gram(128)


# --- exact solves and roots --------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_solve_and_root_are_those_of_the_dense_metric(ridge, every):
    with jax.enable_x64(True):
        layer, g = make_layer(), make_gradient()
        batches = [make_batch(seed) for seed in range(5)]
        shares, seconds = zip(*map(moments_of, batches))
        # The factor is of the last step at which it was due: 3 of steps 0 to 4.
        last = {1: 5, 3: 4}[every]
        share, second = averaged(shares[:last], 0.8), averaged(seconds[:last], 0.8)
        assert not share[list(UNSEEN)].any()
        metric = dense(share, second, ridge)

        solver = lbo.Cholesky(ridge=ridge, decay=0.8, every=every, shrinkage=0.0)
        values = [measure(layer, batch) for batch in batches]
        bound = solver.bind(layer)
        assert isinstance(bound, TwoSided)
        state = follow(bound, values)
        want = np.linalg.solve(metric, np.asarray(g.w).reshape(-1))
        close(bound.solve(state, None, g).w[0].reshape(-1), want)

        factor = solver.bind_factor(layer)
        state = follow(factor, values)
        close(factor.whiten(state, g).w[0], power(metric, -0.5, g.w[0]))
        close(factor.unwhiten(state, g).w[0], power(metric, -0.5, g.w[0]))
        close(factor.coordinates(state, g).w[0], power(metric, 0.5, g.w[0]))


def test_float32_is_close_to_the_dense_metric():
    layer, g = make_layer(dtype="float32"), make_gradient(dtype="float32")
    batch = make_batch(0, dtype="float32")
    bound = lbo.Cholesky(ridge=0.03, shrinkage=0.0).bind(layer)
    state = follow(bound, [measure(layer, batch)])
    metric = dense(*moments_of(batch), 0.03)
    got = bound.solve(state, None, g).w[0]
    assert got.dtype == jnp.float32
    close(got, power(metric, -1, g.w[0]), FLOAT32)


@pytest.mark.parametrize("statistic", [lbo.Gram(8), lbo.Sketch(2, 8), lbo.Moments()])
def test_some_rows_of_a_batch_stand_for_all_of_them(statistic):
    with jax.enable_x64(True):
        layer, (tokens, h) = make_layer(statistic), make_batch(3)
        value = measure(layer, (tokens, h))
        count, share = layer.statistic.numbers(layer, value)
        close(count, [3 * ROWS])
        close(share, [1 / 3])


def test_a_matrix_of_some_rows_has_the_weight_of_all():
    with jax.enable_x64(True):
        layer, g = make_layer(lbo.Gram(max_samples=8)), make_gradient()
        tokens, h = make_batch(3)
        value = measure(layer, (tokens, h))
        close(value.attend.count, [8])
        second = np.asarray(value.attend.outer[0]) / 8 * 2 / 3
        share, _ = moments_of((tokens, h))
        bound = lbo.Cholesky(ridge=0.1, shrinkage=0.0).bind(layer)
        got = bound.solve(follow(bound, [value]), None, g)
        close(got.w[0], power(dense(share, second, 0.1), -1, g.w[0]))


def test_stacked_layers_are_solved_apart():
    with jax.enable_x64(True):
        single, g = make_layer(), make_gradient(blocks=3)
        batches = [make_batch(seed) for seed in range(3)]
        values = [measure(single, batch) for batch in batches]
        value = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
        bound = lbo.Cholesky(ridge=0.1, shrinkage=0.0).bind(make_layer(stack=(3,)))
        got = bound.solve(follow(bound, [value]), None, g)
        for i, batch in enumerate(batches):
            metric = dense(*moments_of(batch), 0.1)
            close(got.w[i], power(metric, -1, g.w[i]))


@pytest.mark.parametrize(
    "solver", [lbo.Cholesky(0.1, 0.8, 1, 0.0), lbo.IncompleteCholesky()]
)
@pytest.mark.parametrize("missing", ["lookup", "attend"])
def test_a_batch_without_one_use_has_the_metric_of_the_other(missing, solver):
    with jax.enable_x64(True):
        layer = make_layer()
        batches = [make_batch(seed) for seed in range(3)]
        values = [measure(layer, batch) for batch in batches]
        empty = jax.tree.map(jnp.zeros_like, getattr(values[1], missing))
        values[1] = values[1]._replace(**{missing: empty})
        tokens, h = batches[1]
        batches[1] = (tokens[:0], h) if missing == "lookup" else (tokens, h[:0])
        shares, seconds = zip(*map(moments_of, batches))
        bound = solver.bind(layer)
        state = follow(bound, values)
        if isinstance(bound, TwoSided):
            metric = dense(averaged(shares, 0.8), averaged(seconds, 0.8), 0.1)
            g = make_gradient()
            got = bound.solve(state, None, g)
            close(got.w[0], power(metric, -1, g.w[0]))
        else:
            lookup, attend = (each.mean_sq[0] / (1 - 0.999**3) for each in state)
            close(lookup, averaged(shares, 0.999))
            close(attend, np.diagonal(averaged(seconds, 0.999)))


def test_a_batch_without_both_changes_nothing():
    with jax.enable_x64(True):
        layer, g = make_layer(), make_gradient()
        value = measure(layer, make_batch(0))
        zeros = jax.tree.map(jnp.zeros_like, value)
        bound = lbo.Cholesky(every=1).bind(layer)
        before = bound.init()
        close(bound.solve(follow(bound, [zeros]), None, g).w, g.w)
        before = follow(bound, [value])
        after = advance(bound, before, zeros, jnp.asarray(1))
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_only_one_use_is_the_metric_of_that_use():
    """Look-ups alone scale rows, an output layer alone is a dense layer's problem."""
    with jax.enable_x64(True):
        layer, g, batch = make_layer(), make_gradient(), make_batch(0)
        tokens, h = batch
        share, _ = moments_of((tokens, h[:0]))
        _, second = moments_of((tokens[:0], h))
        value = measure(layer, batch)
        bound = lbo.Cholesky(ridge=0.1, shrinkage=0.0).bind(layer)

        none = jax.tree.map(jnp.zeros_like, value.attend)
        got = bound.solve(follow(bound, [value._replace(attend=none)]), None, g)
        close(got.w[0], np.asarray(g.w[0]) / (share[:, None] + 0.1))
        none = jax.tree.map(jnp.zeros_like, value.lookup)
        got = bound.solve(follow(bound, [value._replace(lookup=none)]), None, g)
        want = np.linalg.solve(second + 0.1 * np.eye(SIZE), np.asarray(g.w[0]).T).T
        close(got.w[0], want)


def test_without_a_ridge_directions_never_seen_stay_finite():
    with jax.enable_x64(True):
        layer, g = make_layer(), make_gradient()
        tokens, h = make_batch(0)
        h = h.copy()
        h[:, 1] = 0
        bound = lbo.Cholesky(ridge=0.0, shrinkage=0.0).bind(layer)
        state = follow(bound, [measure(layer, (tokens, h))])
        got = np.asarray(bound.solve(state, None, g).w[0])
        assert np.isfinite(got).all()
        # Directions that were seen are solved as if the others were not there.
        share, second = moments_of((tokens, h))
        kept, seen = [0, 2, 3], [t for t in range(VOCABULARY) if t not in UNSEEN]
        metric = dense(share, second[np.ix_(kept, kept)], 0.0)
        want = power(metric, -1, np.asarray(g.w[0])[:, kept])
        close(got[:, kept][seen], want[seen], 1e-8)


# --- a sketch of the hidden states -------------------------------------------------


def sketched(second, rank):
    """The sketch's approximation: low rank, and the average of the rest elsewhere."""
    omega = probes(len(second), rank)
    y = second @ omega
    low = y @ np.linalg.pinv(omega.T @ y, hermitian=True) @ y.T
    values, vectors = np.linalg.eigh(low)
    rest = np.trace(second - low) / (len(second) - rank)
    values[: len(second) - rank] = rest
    return (vectors * values) @ vectors.T


def test_a_sketch_is_low_rank_and_the_average_of_the_rest():
    with jax.enable_x64(True):
        kind = Tied(VOCABULARY, 10)
        layer = make_layer(lbo.Sketch(rank=6), kind=kind)
        g = make_gradient(kind)
        batches = [make_batch(seed, kind=kind) for seed in range(3)]
        shares, seconds = zip(*(moments_of(batch, kind) for batch in batches))
        share, second = averaged(shares, 0.9), averaged(seconds, 0.9)
        metric = dense(share, sketched(second, 6), 0.1)
        factor = lbo.Cholesky(ridge=0.1, decay=0.9, every=1, shrinkage=0.0).bind_factor(
            layer
        )
        state = follow(factor, [measure(layer, batch) for batch in batches])
        close(factor.solve(state, None, g).w[0], power(metric, -1, g.w[0]), 1e-8)
        close(factor.whiten(state, g).w[0], power(metric, -0.5, g.w[0]), 1e-8)
        close(factor.coordinates(state, g).w[0], power(metric, 0.5, g.w[0]), 1e-8)


@pytest.mark.parametrize(
    ("dtype", "rank"), [("float32", 6), ("float64", 6), ("float64", 64)]
)
def test_a_sketch_of_few_dimensions_is_exact(dtype, rank):
    with jax.enable_x64(True):
        kind = Tied(VOCABULARY, 10)
        layer, g = make_layer(lbo.Sketch(rank), kind=kind), make_gradient(kind)
        layer = replace(layer, dtype=dtype)
        g = Affine(g.w.astype(dtype), None)
        tokens, h = make_batch(0, kind=kind, dtype=dtype)
        h = h[:, :3] @ np.random.default_rng(1).normal(size=(3, 10)).astype(dtype)
        bound = lbo.Cholesky(ridge=0.1, shrinkage=0.0).bind(layer)
        state = follow(bound, [measure(layer, (tokens, h))])
        metric = dense(*moments_of((tokens, h), kind), 0.1)
        tolerance = {"float32": 1e-3, "float64": 1e-8}[dtype]
        got = bound.solve(state, None, g).w[0]
        close(got, power(metric, -1, g.w[0]), tolerance)


# --- the other solvers -------------------------------------------------------------


@pytest.mark.parametrize("solver", [lbo.IncompleteCholesky(), lbo.Cholesky()])
def test_moments_make_the_sum_of_the_uses_diagonals(solver):
    with jax.enable_x64(True):
        layer, g, (tokens, h) = make_layer("moments"), make_gradient(), make_batch(0)
        bound = solver.bind_factor(layer)
        assert isinstance(bound, SumOfArrows)

        def diagonal(x):
            return 0.9 * x.var(0) + 0.1 * x.var(0).mean() + x.mean(0) ** 2

        rows = diagonal(np.eye(VOCABULARY)[tokens])
        metric = rows[:, None] / 3 + diagonal(h) * 2 / 3
        state = follow(bound, [measure(layer, (tokens, h))])
        w = np.asarray(g.w)
        close(bound.solve(state, None, g).w, w / metric)
        close(bound.whiten(state, g).w, w / np.sqrt(metric))
        close(bound.unwhiten(state, g).w, w / np.sqrt(metric))
        close(bound.coordinates(state, g).w, w * np.sqrt(metric))


@pytest.mark.parametrize("statistic", ["gram", "inputs"])
def test_conjugate_gradient_converges_to_the_exact_solution(statistic):
    with jax.enable_x64(True):
        layer, g, batch = make_layer(statistic), make_gradient(), make_batch(0)
        bound = lbo.ConjugateGradient(ridge=0.1, iterations=60, tolerance=0).bind(layer)
        value = measure(layer, batch)
        state = follow(bound, [value])
        start = jax.tree.map(jnp.zeros_like, g)
        got = bound.solve_from(start, state, bound.read(value), g)
        close(got.w[0], power(dense(*moments_of(batch), 0.1), -1, g.w[0]))


@pytest.mark.parametrize("statistic", [lbo.Sketch(), lbo.Gram(8), lbo.Moments()])
def test_conjugate_gradient_refuses_less_than_the_second_moment(statistic):
    with pytest.raises(ValueError, match="solves with the second moment of the whole"):
        lbo.ConjugateGradient().bind(make_layer(statistic))


# --- the kind, and whole optimizers ------------------------------------------------


def test_a_tied_embedding_is_known_by_the_kinds_of_its_uses():
    lookup, attend = Embed(VOCABULARY, SIZE), Dense((), (SIZE,), (VOCABULARY,))
    assert (KIND.lookup, KIND.attend) == (lookup, attend)
    assert Tied.of([attend, lookup, attend]) == KIND
    assert Tied.of([lookup]) is None
    assert Tied.of([attend]) is None
    assert Tied.of([lookup, Dense((), (SIZE,), (VOCABULARY + 1,))]) is None
    assert Tied.of([lookup, attend, Dense((), (3,), (2,))]) is None
    # Look-ups of the same tokens are no reason to share a statistic.
    assert KIND.design_key != lookup.design_key


@pytest.mark.parametrize("optimizer", ["lnb", "whiten"])
def test_an_optimizer_takes_the_step_of_the_dense_metric(optimizer):
    with jax.enable_x64(True):
        layer, g, batch = make_layer(), make_gradient(), make_batch(0)
        taps, solver = lbo.Taps((layer,)), lbo.Cholesky(shrinkage=0.0)
        params = {"embed": {"embedding": jnp.ones_like(g.w[0])}}
        grads = {"embed": {"embedding": g.w[0]}}
        if optimizer == "lnb":
            tx = lbo.lnb(1.0, taps, solver, weight_decay=0.0)
        else:
            tx = lbo.whiten(optax.sgd(1.0), taps, solver)
        stats = {"embed": measure(layer, batch)}
        update, state = tx.update(grads, tx.init(params), params, stats=stats)
        want = power(dense(*moments_of(batch), 0.03), -1, g.w[0])
        if optimizer == "lnb":
            want = want / np.sqrt(np.sum(want * np.asarray(g.w[0])))
        close(update["embed"]["embedding"], -want)
        # The state keeps shapes and dtypes, and takes another step.
        update, after = tx.update(grads, state, params, stats=stats)
        kept = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after
        )
        assert all(jax.tree.leaves(kept))


def test_shrinkage_is_of_the_correlations_of_hidden_states():
    with jax.enable_x64(True):
        layer, g, batch = make_layer(), make_gradient(), make_batch(0)
        bound = lbo.Cholesky(ridge=0.1, every=1, shrinkage=0.3).bind(layer)
        view, step = bound.read(measure(layer, batch)), jnp.zeros((), jnp.int32)
        got = bound.solve(bound.update(bound.init(), view, step), view, g)
        tokens, second = moments_of(batch)
        shrunk = 0.7 * second + 0.3 * np.diag(np.diagonal(second))
        close(got.w[0], power(dense(tokens, shrunk, 0.1), -1, g.w[0]))
