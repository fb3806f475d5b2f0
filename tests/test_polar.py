"""Orthogonalised momentum: against singular value decompositions, kind by kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._precondition import roots
from linboost_optax._precondition.roots import by_eigenvectors, by_products
from linboost_optax._statistics.sketch import probes
from tests.networks import MLP, data, squared_error, train_step

EXACT = 1e-9  # float64, through an eigendecomposition
DAMPING = 1e-6  # of the trace: `_precondition/roots.py`

pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")


class Tower(nn.Module):
    """Every shape of a kernel: wide, tall, window, groups, several axes, a table."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 6)(tokens)  # [sample, 8, 6]
        x = nn.Conv(4, (3,), name="window")(x)
        x = nn.Conv(6, (3,), feature_group_count=2, name="groups")(jnp.tanh(x))
        x = nn.DenseGeneral((2, 5), name="heads")(jnp.tanh(x))
        x = nn.DenseGeneral(3, axis=(-2, -1), name="joined")(jnp.tanh(x))
        return nn.Dense(9, name="wide")(nn.LayerNorm()(x))


# Kernels as matrices [block, in, out], written down by hand.
AS_MATRICES = {
    "window": lambda w: w.reshape(1, 18, 4) if w.ndim == 3 else None,
    "groups": lambda w: np.moveaxis(w.reshape(3 * 2, 2, 3), 1, 0),
    "heads": lambda w: w.reshape(1, 6, 10),
    "joined": lambda w: w.reshape(1, 10, 3),
    "wide": lambda w: w.reshape(1, 3, 9),
}


def tower():
    model = Tower()
    tokens = jax.random.randint(jax.random.key(0), (4, 8), 0, 7)
    params = model.init(jax.random.key(1), tokens)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    return model, params, tokens


def gradients(params, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
        for _ in range(steps)
    ]


def ahead_of(grads, beta):
    """Nesterov's look ahead of the moving average, after all gradients."""
    average = 0.0
    for g in grads:
        average = beta * average + (1 - beta) * g
    return beta * average + (1 - beta) * grads[-1]


def factor_by_svd(momentum):
    """The damped polar factor of the momentum, elements of mean square 1 at most."""
    u, s, vt = np.linalg.svd(momentum / np.linalg.norm(momentum), full_matrices=False)
    return (u * s / np.sqrt(s**2 + DAMPING)) @ vt * np.sqrt(max(momentum.shape))


@pytest.mark.parametrize("name", AS_MATRICES)
def test_the_step_of_every_kind_of_layer_is_a_polar_factor(name):
    with jax.enable_x64(True):
        model, params, tokens = tower()
        taps = linen.taps(model, tokens)
        tx = lbo.scale_by_polar(taps, momentum=0.9, decay=0.0, every=1)
        state, grads = tx.init(params), gradients(params, 3)
        for g in grads:
            updates, state = tx.update(g, state)
        kernels = [np.asarray(g[name]["kernel"]) for g in grads]
        momentum = ahead_of([AS_MATRICES[name](w) for w in kernels], 0.9)
        got = AS_MATRICES[name](np.asarray(updates[name]["kernel"]))
        want = np.stack([0.2 * factor_by_svd(block) for block in momentum])
        np.testing.assert_allclose(got, want, rtol=EXACT, atol=EXACT)


def test_everything_else_is_scaled_by_adam():
    with jax.enable_x64(True):
        model, params, tokens = tower()
        tx, adam = lbo.scale_by_polar(linen.taps(model, tokens)), optax.scale_by_adam()
        state, adam_state = tx.init(params), adam.init(params)
        for g in gradients(params, 3):
            got, state = tx.update(g, state)
            want, adam_state = adam.update(g, adam_state)
        rest = {
            (name, leaf)
            for name, leaves in params.items()
            for leaf in leaves
            if leaf != "kernel"
        }
        assert ("Embed_0", "embedding") in rest
        assert ("LayerNorm_0", "scale") in rest
        for name, leaf in rest:
            np.testing.assert_array_equal(got[name][leaf], want[name][leaf])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (4, 1), (1, 4)])
def test_the_root_is_that_of_an_average_and_kept(shape):
    """Five steps with a root remade in the first and in the fourth, by hand."""
    with jax.enable_x64(True):
        taps = lbo.dense_taps({"layer": shape}, bias=None)
        params = {"layer": {"kernel": jnp.zeros(shape)}}
        tx = lbo.scale_by_polar(taps, momentum=0.5, decay=0.8, every=3)
        grads, state = gradients(params, 5), tx.init(params)
        total, weight, seen = 0.0, 0.0, []
        for i, g in enumerate(grads):
            updates, state = tx.update(g, state)
            seen.append(np.asarray(g["layer"]["kernel"]))
            unit = ahead_of(seen, 0.5)
            unit = unit / np.linalg.norm(unit)
            wide = shape[0] < shape[1]
            if i % 3 == 0:
                gram = unit @ unit.T if wide else unit.T @ unit
                total, weight = 0.8 * total + 0.2 * gram, 0.8 * weight + 0.2
                values, vectors = np.linalg.eigh(total / weight)
                root = vectors @ np.diag((values + DAMPING) ** -0.5) @ vectors.T
            factor = root @ unit if wide else unit @ root
            factor *= min(1.0, np.sqrt(min(shape)) / np.linalg.norm(factor))
            np.testing.assert_allclose(
                updates["layer"]["kernel"],
                0.2 * np.sqrt(max(shape)) * factor,
                rtol=EXACT,
                atol=EXACT,
            )


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_steps_have_the_size_of_adams_whatever_the_gradients(scale):
    model, batch = MLP((8, 3)), data()
    params = model.init(jax.random.key(1), batch[0])["params"]
    tx = lbo.scale_by_polar(linen.taps(model, batch[0]))
    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(12):
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32),
            params,
        )
        updates, state = tx.update(grads, state)
        for name in params:
            rms = jnp.sqrt(jnp.mean(updates[name]["kernel"] ** 2))
            assert 0.05 < rms < 0.2001


def test_a_momentum_that_turns_where_the_root_is_large_is_not_stretched():
    """The root knows one direction; the next gradients have another."""
    taps = lbo.dense_taps({"layer": (4, 3)}, bias=None)
    first = jnp.zeros((4, 3)).at[0, 0].set(1.0)
    then = jnp.zeros((4, 3)).at[1, 1].set(1e6)
    tx = lbo.scale_by_polar(taps, every=100)
    state = tx.init({"layer": {"kernel": first}})
    _, state = tx.update({"layer": {"kernel": first}}, state)
    updates, state = tx.update({"layer": {"kernel": then}}, state)
    # Never longer than a polar factor: 0.2 sqrt(max) sqrt(min) = 0.2 sqrt(12).
    assert jnp.linalg.norm(updates["layer"]["kernel"]) <= 0.2 * np.sqrt(12) * 1.0001


def test_gradients_of_zero_make_steps_of_zero_and_leave_no_mark():
    taps = lbo.dense_taps({"layer": (4, 3)}, bias=None)
    zero = {"layer": {"kernel": jnp.zeros((4, 3))}}
    g = {"layer": {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}}
    tx = lbo.scale_by_polar(taps, every=100)
    updates, state = tx.update(zero, tx.init(zero))
    np.testing.assert_array_equal(updates["layer"]["kernel"], 0)
    got, _ = tx.update(g, state)  # the first to have a root, in the second step
    want, _ = tx.update(g, tx.init(zero))
    np.testing.assert_allclose(
        got["layer"]["kernel"], want["layer"]["kernel"], rtol=1e-5
    )


@pytest.mark.parametrize("steps", [15])
def test_polar_does_not_see_how_inputs_are_mixed(steps):
    """Whitened, a network and the same with mixed inputs take the same steps.

    `x T` with weights `T^-1 W` is the same function, and stays it: what a step does to
    the outputs depends on the inputs' span alone. Adam is no such optimizer.
    """
    with jax.enable_x64(True):
        model, (x, y) = MLP((6, 3), dtype=jnp.float64), data(dtype=jnp.float64)
        rng = np.random.default_rng(0)
        mix = jnp.asarray(rng.normal(size=(5, 5)) + 2 * np.eye(5))
        params = model.init(jax.random.key(1), x)["params"]
        kernel = jnp.linalg.solve(mix, params["Dense_0"]["kernel"])
        mixed = {**params, "Dense_0": {**params["Dense_0"], "kernel": kernel}}
        solver = lbo.Cholesky(ridge=0.0, shrinkage=0.0)
        taps = linen.taps(model, x, statistic="gram")

        def losses(params, x):
            tx = lbo.polar(3e-2, taps, solver)
            step = jax.jit(train_step(squared_error(model), taps, tx))
            state, found = tx.init(params), []
            for _ in range(steps):
                params, state, loss = step(params, state, (x, y))
                found.append(float(loss))
            return found

        got, want = losses(mixed, x @ mix), losses(params, x)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert want[-1] < 0.7 * want[0]


def test_polar_is_its_parts_in_whitened_coordinates():
    model, batch = MLP((8, 3)), data()
    params = model.init(jax.random.key(1), batch[0])["params"]
    taps = linen.taps(model, batch[0])
    parts = optax.chain(
        lbo.scale_by_polar(taps), optax.add_decayed_weights(1e-2), optax.sgd(3e-2)
    )
    ends = []
    whole = lbo.polar(3e-2, taps, weight_decay=1e-2)
    for tx in (whole, lbo.whiten(parts, taps)):
        step, at = jax.jit(train_step(squared_error(model), taps, tx)), params
        state = tx.init(params)
        for _ in range(12):
            at, state, _ = step(at, state, batch)
        ends.append(at)
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_weights_decay_as_they_are():
    model, batch = MLP((8, 3)), data()
    params = model.init(jax.random.key(1), batch[0])["params"]
    taps = linen.taps(model, batch[0])
    loss_fn = squared_error(model)
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    steps = []
    for decay in (0.0, 0.5):
        tx = lbo.polar(0.1, taps, weight_decay=decay)
        steps.append(tx.update(grads, tx.init(params), params, stats=stats)[0])
    for a, b, w in zip(*map(jax.tree.leaves, (*steps, params)), strict=True):
        np.testing.assert_allclose(b - a, -0.1 * 0.5 * w, rtol=1e-4, atol=1e-6)


def test_steps_that_are_not_finite_are_skipped_with_the_root():
    model, batch = MLP((8, 3)), data()
    params = model.init(jax.random.key(1), batch[0])["params"]
    taps = linen.taps(model, batch[0])
    tx = lbo.polar(0.1, taps)
    _, grads, stats = linen.value_and_grad(squared_error(model), taps)(params, batch)
    _, state = tx.update(grads, tx.init(params), params, stats=stats)
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads)
    updates, after = tx.update(bad, state, params, stats=stats)
    assert not any(jnp.any(u != 0) for u in jax.tree.leaves(updates))
    assert int(optax.tree.get(after, "skipped")) == 1
    for a, b in zip(jax.tree.leaves(after.inner), jax.tree.leaves(state.inner)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda t: lbo.scale_by_polar(None), TypeError, "`taps` must be"),
        (lambda t: lbo.scale_by_polar(t, momentum=1.0), ValueError, "`momentum`"),
        (lambda t: lbo.scale_by_polar(t, decay=-0.1), ValueError, "`decay`"),
        (lambda t: lbo.scale_by_polar(t, every=0), ValueError, "`every`"),
        (lambda t: lbo.polar(t, t), TypeError, r"polar\(1e-2, taps\)"),
        (lambda t: lbo.polar(-1.0, t), ValueError, "`learning_rate`"),
        (lambda t: lbo.polar(1.0, t, weight_decay=-1.0), ValueError, "`weight_decay`"),
        (
            lambda t: lbo.polar(1.0, t, lbo.ConjugateGradient()),
            ValueError,
            "has no factor",
        ),
    ],
)
def test_mistakes_are_told_at_construction(make, error, match):
    model, batch = MLP((8, 3)), data()
    taps = linen.taps(model, batch[0])
    with pytest.raises(error, match=match):
        make(taps)


def test_taps_of_another_model_are_refused():
    batch = data()
    taps = linen.taps(MLP((8, 3)), batch[0])
    other = MLP((7, 3)).init(jax.random.key(0), batch[0])["params"]
    with pytest.raises(ValueError, match="belong to another model"):
        lbo.scale_by_polar(taps).init(other)


def spectrum_of(lowest, size=12, blocks=2, dtype=np.float64):
    """Matrices of trace 1 whose eigenvalues fall to a part of the largest."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(blocks, size, size)))[0]
    values = np.logspace(0, np.log10(lowest), size)
    values /= values.sum()
    gram = (basis * values) @ np.swapaxes(basis, 1, 2)
    root = (basis / np.sqrt(values + DAMPING)) @ np.swapaxes(basis, 1, 2)
    return jnp.asarray(gram, dtype), root


@pytest.mark.parametrize("lowest", [1.0, 1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("inverse_root", [by_eigenvectors, by_products])
def test_both_ways_to_the_inverse_root(inverse_root, lowest):
    """On a CPU one of them runs, on accelerators the other."""
    with jax.enable_x64(True):
        gram, want = spectrum_of(lowest)
        got = jax.jit(inverse_root)(gram)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("lowest", [1.0, 1e-5, 1e-9])
@pytest.mark.parametrize("inverse_root", [by_eigenvectors, by_products])
def test_roots_in_float32_make_factors_of_what_is_not_noise(inverse_root, lowest):
    gram, want = spectrum_of(lowest, dtype=np.float32)
    got = np.asarray(jax.jit(inverse_root)(gram), np.float64)
    assert np.all(np.isfinite(got))
    # What a root is for: its product with a square root of the matrix has no scale.
    values, vectors = np.linalg.eigh(np.asarray(gram, np.float64))
    half = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ np.swapaxes(
        vectors, 1, 2
    )
    np.testing.assert_allclose(half @ got, half @ want, atol=0.05)


def test_a_root_of_nothing_is_finite():
    nothing = jnp.zeros((1, 4, 4))
    for inverse_root in (by_eigenvectors, by_products):
        np.testing.assert_allclose(
            inverse_root(nothing), 1e3 * np.eye(4)[None], rtol=1e-4
        )


# --- wide sides: a sketch of the matrix -------------------------------------------


def dense_root(average, omega):
    """The root of a sketched matrix, all of it written out."""
    sketch = average @ omega
    low = sketch @ np.linalg.pinv(omega.T @ sketch, rcond=1e-14) @ sketch.T
    values, vectors = np.linalg.eigh((low + low.T) / 2)
    kept = values > DAMPING
    rest = (1 - values[kept].sum()) / (len(average) - kept.sum())
    level = np.where(kept, values, rest)
    return (vectors / np.sqrt(level + DAMPING)) @ vectors.T


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("lowest", [1.0, 1e-3, 1e-12])
def test_wide_sides_have_the_root_of_what_a_sketch_finds(lowest, columns):
    with jax.enable_x64(True):
        side, rank = 30, 6
        gram, _ = spectrum_of(lowest, side)
        root = roots.of(side, columns, rank)
        x = np.linalg.cholesky(np.asarray(gram) + 1e-15 * np.eye(side))
        seen = root.seen(turned(x, columns))
        y = np.random.default_rng(1).normal(size=(2, side, 4))
        scale = jnp.asarray([1.0, -3.0])
        got = root.apply(root.inverse(seen), scale, turned(y, columns))
        omega = probes(side, rank, np.float64)
        for block in range(2):
            want = dense_root(np.asarray(gram[block]), omega) @ y[block]
            want = scale[block] * turned(want, columns)
            np.testing.assert_allclose(got[block], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns", [False, True])
def test_narrow_sides_have_the_root_of_the_whole(columns):
    with jax.enable_x64(True):
        gram, want = spectrum_of(1e-3, 5)
        root = roots.of(5, columns)
        x = np.linalg.cholesky(np.asarray(gram))
        y = np.random.default_rng(1).normal(size=(2, 5, 7))
        seen = root.seen(turned(x, columns))
        scale = jnp.asarray([2.0, 0.5])
        got = root.apply(root.inverse(seen), scale, turned(y, columns))
        want = scale[:, None, None] * turned(want @ y, columns)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def turned(x, columns):
    """Returns the side of matrices, their first, along columns if asked for."""
    return jnp.asarray(np.swapaxes(x, -1, -2) if columns else x)


@pytest.mark.parametrize("shape", [(200, 150), (150, 200)])
def test_momenta_of_few_directions_are_made_orthogonal_on_wide_sides(shape):
    """Where the sketch sees all there is, the step is the polar factor."""
    with jax.enable_x64(True):
        taps = lbo.dense_taps({"layer": shape}, bias=None, dtype=jnp.float64)
        rng = np.random.default_rng(0)
        g = rng.normal(size=(shape[0], 20)) @ rng.normal(size=(20, shape[1]))
        params = {"layer": {"kernel": jnp.asarray(g)}}
        tx = lbo.scale_by_polar(taps)
        updates, state = tx.update(params, tx.init(params))
        u, s, vt = np.linalg.svd(g / np.linalg.norm(g), full_matrices=False)
        s, u, vt = s[:20], u[:, :20], vt[:20]
        want = 0.2 * np.sqrt(200) * (u * s / np.sqrt(s**2 + DAMPING)) @ vt
        np.testing.assert_allclose(
            updates["layer"]["kernel"], want, rtol=1e-6, atol=1e-6
        )
        largest = max(leaf.size for leaf in jax.tree.leaves(state))
        assert largest == 150 * 200  # the momentum's: nothing is a side squared


def test_wide_sides_of_zero_momenta_are_finite():
    root = roots.of(30, rank=6)
    nothing = root.inverse(root.zeros(1, jnp.dtype("float32")))
    x = jnp.ones((1, 30, 2))
    assert bool(jnp.all(jnp.isfinite(root.apply(nothing, jnp.ones(1), x))))


def test_stacked_layers_are_made_orthogonal_one_by_one():
    """A kernel ``[layer, in, out]`` of `nn.scan` is that many layers of their own."""
    with jax.enable_x64(True):

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return jnp.tanh(nn.Dense(4, name="dense", dtype=x.dtype)(x)), None

        class Deep(nn.Module):
            @nn.compact
            def __call__(self, x):
                stack = nn.scan(
                    Block, {"params": 0}, split_rngs={"params": True}, length=3
                )
                return stack(name="stack")(x, None)[0]

        x = jnp.ones((5, 4))
        taps = linen.taps(Deep(), x)
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)))
        bias = jnp.zeros((3, 4))
        params = {"stack": {"dense": {"kernel": kernel, "bias": bias}}}
        tx = lbo.scale_by_polar(taps)
        updates, _ = tx.update(params, tx.init(params))
        got = updates["stack"]["dense"]["kernel"]
        for one, g in zip(got, kernel, strict=True):
            np.testing.assert_allclose(
                one, 0.2 * factor_by_svd(np.asarray(g)), rtol=EXACT, atol=EXACT
            )
