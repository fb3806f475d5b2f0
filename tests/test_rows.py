"""Rows that are no samples are left out of every statistic, by a mask.

Expected statistics are NumPy's, of the rows that count; expected training is that of
the same sequences without padding.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._kinds import Conv
from linboost_optax._kinds.base import some_rows
from tests.oracle import probes
from tests.test_kinds import CONV, DENSE, F32, name, reaching, setting

CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # float32 sums in another order
TRAINED = {"rtol": 1e-5, "atol": 1e-5}  # after a few steps, padded or not

pytestmark = pytest.mark.lenient("models that mask, as users write them")

LENGTHS = jnp.array([2, 5, 1])
MASK = jnp.arange(5) < LENGTHS[:, None]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# What is beyond a sequence's end is garbage.
X = jnp.where(MASK[..., None], normal(0, 3, 5, 4), 1e3 * normal(1, 3, 5, 4))
REAL = np.asarray(X)[np.asarray(MASK)]


def loss_of(model, mask=MASK):
    """A masked loss; `which` goes to `only_rows`, unless it is None."""

    def loss(params, x, which):
        if which is None:
            y = model.apply({"params": params}, x)
        else:
            with lbo.only_rows(which):
                y = model.apply({"params": params}, x)
        y = y.reshape(*mask.shape, -1)
        return jnp.sum(jnp.mean(jnp.square(y - 1), -1), where=mask) / jnp.sum(mask)

    return loss


def initial(model, x=X):
    return jax.jit(model.init)(jax.random.key(2), x)["params"]


def measured(model, statistic, which=MASK, x=X, mask=MASK, exact=True):
    """The statistics, whose gradients are those of the plain loss."""
    params, loss = initial(model, x), loss_of(model, mask)
    taps = linen.taps(model, x, statistic=statistic)
    collect = jax.jit(linen.value_and_grad(loss, taps))
    value, grads, stats = collect(params, x, which)
    want = jax.jit(jax.value_and_grad(loss))(params, x, None)
    for a, b in zip(jax.tree.leaves((value, grads)), jax.tree.leaves(want)):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:  # where a cotangent is read, XLA may add it up in another order
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-8)
    return taps, stats


def check_rows(stat, rows):
    rows = np.asarray(rows, np.float64)
    np.testing.assert_array_equal(stat.count, [len(rows)])
    np.testing.assert_allclose(stat.sum[0], rows.sum(0), **CLOSE)
    if hasattr(stat, "sum_sq"):
        np.testing.assert_allclose(stat.sum_sq[0], np.square(rows).sum(0), **CLOSE)


DENSE_ONE = nn.Dense(2)


def test_gram():
    _, stats = measured(DENSE_ONE, "gram")
    check_rows(stats[""], REAL)
    np.testing.assert_allclose(stats[""].outer[0], REAL.T @ REAL, **CLOSE)


def test_moments():
    check_rows(measured(DENSE_ONE, "moments")[1][""], REAL)


def test_sketch():
    _, stats = measured(DENSE_ONE, lbo.Sketch(2))
    check_rows(stats[""], REAL)
    want = REAL.T @ REAL @ probes(4, 2)
    np.testing.assert_allclose(stats[""].outer[0], want, **CLOSE)


@pytest.mark.parametrize("statistic", [lbo.Gram(6), lbo.Sketch(4, 6)], ids=str)
def test_some_rows_are_those_of_the_choice_that_count(statistic):
    _, stats = measured(DENSE_ONE, statistic)
    chosen = some_rows(15, 6)
    kept = np.asarray(MASK).ravel()[chosen]
    assert 0 < kept.sum() < 6
    check_rows(stats[""], np.asarray(X).reshape(15, 4)[chosen][kept])
    check_rows(stats[""].channels, REAL)  # those of all rows


def test_a_choice_of_rows_that_all_do_not_count_is_unseen():
    chosen = some_rows(15, 3)
    mask = np.ones(15, bool)
    mask[chosen] = False
    mask = jnp.array(mask.reshape(3, 5))
    taps, stats = measured(DENSE_ONE, lbo.Gram(3), mask, mask=mask)
    assert stats[""].count.tolist() == [0]
    tx = lbo.lnb(0.1, taps)
    params = initial(DENSE_ONE)
    updates, _ = tx.update(params, tx.init(params), params, stats=stats)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("mask", [MASK, jnp.array([True, False, True])])
def test_embedded_tokens(mask):
    tokens = jnp.array([[1, 2, 0, 0, 0], [3, 3, 3, 1, 4], [2, 0, 0, 0, 0]])
    shape = MASK & mask.reshape(3, -1)
    _, stats = measured(nn.Embed(5, 2), "auto", mask, tokens, mask=shape)
    kept = np.asarray(tokens)[np.broadcast_to(mask.reshape(3, -1), (3, 5))]
    assert stats[""].sum[0].tolist() == np.bincount(kept, minlength=5).tolist()
    assert stats[""].count.tolist() == [len(kept)]


@pytest.mark.parametrize(("module", "shape"), DENSE + CONV, ids=name)
def test_samples_have_axes(module, shape):
    module, params, x, layer = setting(module, shape, "gram", True)
    kind, met = layer.kind, reaching(module, x)
    axes = kind.sample_axes(met.shape)
    assert math.prod(axes) == jax.eval_shape(kind.design, met).shape[1]
    y = jax.eval_shape(module.apply, {"params": params}, x)
    batch, shape = () if isinstance(kind, Conv) else kind.batch, y.shape
    if isinstance(kind, Conv):  # one batch axis, whatever the image had
        spatial = shape[len(shape) - len(kind.window) - 1 :]
        shape = (math.prod(shape) // math.prod(spatial), *spatial)
    assert shape[len(batch) :][: len(axes)] == axes


@pytest.mark.parametrize("statistic", ["gram", "moments", "inputs"])
@pytest.mark.parametrize(
    ("module", "shape"), DENSE[:2] + DENSE[-3:] + CONV[::4], ids=name
)
def test_every_kind(module, shape, statistic):
    """All rows of a whole batch, and some: as of a batch of these alone."""
    module, _, x, layer = setting(module, shape, statistic, True)
    x = reaching(module, x)
    own = layer.statistic
    axes = layer.kind.sample_axes(x.shape)
    everything = jnp.ones(math.prod(axes), bool)
    same = own.measure(layer, x, None, everything), own.measure(layer, x)
    for a, b in zip(*map(jax.tree.leaves, same), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = np.ones(axes or 1, bool)
    rows[0] = False
    got = own.moments(layer, own.measure(layer, x, None, jnp.asarray(rows.reshape(-1))))
    if not rows.any():
        assert got.count.tolist() == [0] * layer.blocks
        return
    if isinstance(layer.kind, Conv):
        want = lbo.Moments().measure(layer, x[1:])
        want = lbo.Moments().moments(layer, want)
    else:
        design = np.asarray(layer.kind.design(x))[:, rows.reshape(-1)]
        mean, square = design.mean(1), np.square(design).mean(1)
        want = (np.full(len(design), rows.sum()), mean, square)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def windows(x, size):
    """The patches of a convolution over time without padding."""
    return np.stack([x[:, i : x.shape[1] - size + 1 + i] for i in range(size)], axis=-2)


def test_places_of_a_convolution_without_padding():
    mask = jnp.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]]) > 0
    conv = nn.Conv(2, (3,), padding="VALID")
    _, stats = measured(conv, "gram", mask, mask=mask)
    patches = windows(np.asarray(X), 3)[np.asarray(mask)].reshape(4, 12)
    check_rows(stats[""]._replace(sum=stats[""].sum), patches)
    np.testing.assert_allclose(stats[""].outer[0], patches.T @ patches, rtol=2e-5)
    # Its pixels are those that an output reads which counts.
    read = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    check_rows(stats[""].channels, np.asarray(X)[read])


def test_pixels_of_a_convolution_with_padding_are_its_places():
    _, stats = measured(nn.Conv(2, (3,)), "gram")
    check_rows(stats[""].channels, REAL)
    ends = np.pad(np.asarray(X), ((0, 0), (1, 1), (0, 0)))
    patches = windows(ends, 3)[np.asarray(MASK)].reshape(8, 12)
    np.testing.assert_allclose(stats[""].outer[0], patches.T @ patches, rtol=2e-5)


def test_infinite_padding_is_left_out():
    x = jnp.where(MASK[..., None], X, jnp.inf)
    for statistic in ("gram", "moments", lbo.Sketch(2)):
        taps = linen.taps(DENSE_ONE, x, statistic=statistic)
        layer = taps.layers[0]
        rows = MASK.reshape(-1)
        got = layer.statistic.measure(layer, x, None, rows)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
        check_rows(got, REAL)


# --- layers of a model ------------------------------------------------------------


class Block(nn.Module):
    """Attention over what is no padding, a hidden layer, a pooled output."""

    pooled: bool = False

    @nn.compact
    def __call__(self, x):
        mask = jnp.arange(x.shape[1]) < LENGTHS[:, None]
        attend = nn.MultiHeadDotProductAttention(2, qkv_features=4, name="attend")
        h = x + attend(x, mask=mask[:, None, None, :])
        h = jnp.tanh(nn.Dense(6, name="hidden")(h))
        if self.pooled:
            h = jnp.sum(h, 1, where=mask[..., None])
        return nn.Dense(5 if self.pooled else 2, name="out")(h)


def test_every_layer_of_a_model_and_shared_inputs():
    taps, stats = measured(Block(), "moments")
    assert {layer.key: layer.stats_key for layer in taps.layers}["attend/key"] == (
        "attend/query"
    )
    check_rows(stats["attend/query"], REAL)
    assert {key: stat.count.tolist() for key, stat in stats.items()} == {
        key: [8] for key in ("attend/out", "attend/query", "hidden", "out")
    }


def test_a_pooled_layer_needs_a_mask_of_its_own():
    model = Block(pooled=True)
    with pytest.raises(
        ValueError,
        match=r"layer 'out' has samples of shape \(3,\) \(its input has shape "
        r"\(3, 6\)\), got a `mask` of shape \(3, 5\).*\n?.*'out': None, '\*': mask",
    ):
        measured(model, "moments")
    _, stats = measured(model, "moments", {"out": None, "*": MASK})
    counts = {key: int(stat.count[0]) for key, stat in stats.items()}
    assert counts == {"attend/query": 8, "attend/out": 8, "hidden": 8, "out": 3}
    _, stats = measured(model, "moments", {"attend": MASK})  # all below, none beside
    counts = {key: int(stat.count[0]) for key, stat in stats.items()}
    assert counts == {"attend/query": 8, "attend/out": 8, "hidden": 15, "out": 3}


def test_layers_that_share_an_input_share_its_mask():
    with pytest.raises(ValueError, match=r"same array for layers 'attend/.*share one"):
        measured(Block(), "moments", {"attend/key": MASK})
    mask = np.asarray(MASK)
    params = initial(Block())

    def loss(params):
        with lbo.only_rows({"attend/key": mask, "*": mask}):
            return jnp.mean(Block().apply({"params": params}, X))

    taps = linen.taps(Block(), X, statistic="moments")
    _, _, stats = linen.value_and_grad(loss, taps)(params)
    check_rows(stats["attend/query"], REAL)


def test_a_model_that_is_called_twice_with_two_masks():
    params, taps = initial(DENSE_ONE), linen.taps(DENSE_ONE, X, statistic="gram")
    first = jnp.array([True, False, False])

    def loss(params, x, masks, apply):
        total = 0.0
        for mask in masks:
            with lbo.only_rows(mask):
                total += jnp.mean(apply({"params": params}, x))
        return total

    cases = [
        ((first, ~first), 15),
        ((first,), 5),
        ((~first,), 10),
        ((~first, MASK), 18),
    ]
    model = nn.jit(nn.Dense)(2)
    for apply in (DENSE_ONE.apply, jax.jit(DENSE_ONE.apply), model.apply):
        run = functools.partial(loss, apply=apply)
        for how in (jax.jit, lambda f: f):
            collect = how(linen.value_and_grad(run, taps))
            for masks, count in cases:
                _, _, stats = collect(params, X, masks)
                assert stats[""].count.tolist() == [count]
    # One array is one mask: the same rows count once.
    run = functools.partial(loss, apply=DENSE_ONE.apply)
    _, _, stats = linen.value_and_grad(run, taps)(params, X, (MASK, MASK))
    assert stats[""].count.tolist() == [8]


def test_the_innermost_mask_counts_and_none_after():
    params, taps = initial(DENSE_ONE), linen.taps(DENSE_ONE, X, statistic="gram")

    def loss(params):
        with lbo.only_rows(jnp.zeros(3, bool)), lbo.only_rows(MASK):
            total = jnp.mean(DENSE_ONE.apply({"params": params}, X))
        return total + jnp.mean(DENSE_ONE.apply({"params": params}, 2 * X))

    _, _, stats = linen.value_and_grad(loss, taps)(params)
    assert stats[""].count.tolist() == [8 + 15]


@pytest.mark.parametrize("lift", ["remat", "jit", "vmap", "scan", "outer vmap"])
def test_transforms(lift):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = {"remat": nn.remat, "jit": nn.jit}.get(lift, lambda c: c)(nn.Dense)
            if lift == "vmap":  # two layers, each of all rows
                dense = nn.vmap(
                    dense,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=None,
                    out_axes=-1,
                    axis_size=2,
                )
            if lift == "scan":
                dense = nn.scan(
                    Step,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=2,
                )
                return dense(name="d")(x, None)[0]
            return dense(4, name="d")(x)

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, name="d")(x), None

    model = Stack()
    if lift == "outer vmap":
        params, taps = initial(model), linen.taps(model, X, statistic="gram")

        def one(params, x, mask):
            with lbo.only_rows(mask):
                return model.apply({"params": params}, x)

        def loss(params):
            y = jax.vmap(one, (None, 0, 0))(params, X, MASK)
            return jnp.sum(y, where=MASK[..., None])

        _, _, stats = jax.jit(linen.value_and_grad(loss, taps))(params)
        check_rows(stats["d"], REAL)
        return
    _, stats = measured(model, "gram")
    (stat,) = stats.values()
    assert set(np.ravel(stat.count)) == {8}
    first = jax.tree.map(lambda s: s[0], stat) if lift == "scan" else stat
    check_rows(first, REAL)


def test_of_several_names_the_longest_counts():
    masks = {"*": MASK, "attend": ~MASK, "attend/out": None}
    for names in (masks, dict(reversed(masks.items()))):
        _, stats = measured(Block(), "moments", names)
        counts = {key: int(stat.count[0]) for key, stat in stats.items()}
        assert counts == {"attend/query": 7, "attend/out": 15, "hidden": 8, "out": 8}


# --- rows that the loss depends on ------------------------------------------------


def reached(model, statistic, x=X, mask=MASK):
    """The statistics without a mask, of the rows with a cotangent."""
    _, stats = measured(model, lbo.Reached(statistic), None, x, mask, exact=False)
    return stats


@pytest.mark.parametrize("statistic", [lbo.Gram(), lbo.Moments(), lbo.Sketch(3)])
def test_rows_without_a_cotangent_are_left_out(statistic):
    """Every layer's own, through attention."""
    stats = reached(Block(), statistic)
    check_rows(stats["attend/value"], REAL)
    for key in ("query", "key"):  # nothing to choose in a sequence of one
        check_rows(stats[f"attend/{key}"], REAL[:-1])
    assert {int(stat.count[0]) for stat in stats.values()} == {7, 8}
    np.testing.assert_equal(
        jax.tree.map(np.shape, stats["attend/query"]),
        jax.tree.map(np.shape, measured(Block(), statistic)[1]["attend/query"]),
    )


def test_a_layer_without_queries_has_its_own_rows():
    class First(nn.Module):
        """A loss of the first token alone: one query, all keys."""

        @nn.compact
        def __call__(self, x):
            query, key, value = (
                nn.Dense(4, name=name)(x) for name in ("query", "key", "value")
            )
            y = jax.nn.dot_product_attention(
                *(a[:, :, None] for a in (query, key, value))
            )
            return y.reshape(x.shape)

    first = jnp.broadcast_to(jnp.arange(5) == 0, (3, 5))
    stats = reached(First(), lbo.Gram(), normal(5, 3, 5, 4), first)
    counts = {key: int(stat.count[0]) for key, stat in stats.items()}
    assert counts == {"query": 3, "key": 15, "value": 15}


def test_a_loop_over_time_and_its_padding():
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.RNN(nn.SimpleCell(4, name="cell"))(x, seq_lengths=LENGTHS)

    stats = reached(Recurrent(), lbo.Gram())
    check_rows(stats["cell/i"], REAL)
    assert stats["cell/h"].count.tolist() == [8]


def test_of_a_convolution_the_outputs_and_of_embeddings_the_tokens():
    stats = reached(nn.Conv(2, (3,)), lbo.Gram())
    ends = np.pad(np.asarray(X), ((0, 0), (1, 1), (0, 0)))
    patches = windows(ends, 3)[np.asarray(MASK)].reshape(8, 12)
    np.testing.assert_allclose(stats[""].outer[0], patches.T @ patches, rtol=2e-5)
    check_rows(stats[""].channels, REAL)
    tokens = jnp.where(MASK, jnp.array([3]), jnp.array([0]))
    assert reached(nn.Embed(5, 2), lbo.Auto(), tokens)[""].sum.tolist() == [
        [0, 0, 0, 8, 0]
    ]


@pytest.mark.parametrize(("module", "shape"), DENSE + CONV, ids=name)
def test_every_kind_is_reached_where_its_output_is(module, shape):
    module, params, x, layer = setting(module, shape, "gram", True)
    y = jax.eval_shape(module.apply, {"params": params}, x)
    x = reaching(module, x)
    rows = np.random.default_rng(0).random(layer.kind.design(x).shape[1]) < 0.5
    batch = 1 if isinstance(layer.kind, Conv) else layer.kind.groups
    g = np.zeros((batch, len(rows), math.prod(y.shape) // len(rows) // batch), F32)
    g[-1, rows, -1] = -1e-30  # one output of one group is enough
    got = layer.kind.reached(jnp.asarray(g.reshape(y.shape)))
    np.testing.assert_array_equal(got, rows)


def test_a_mask_and_the_rule_both_leave_out():
    _, stats = measured(
        DENSE_ONE, lbo.Reached(lbo.Gram()), MASK & (LENGTHS < 5)[:, None]
    )
    assert stats[""].count.tolist() == [3]


@pytest.mark.parametrize(
    ("statistic", "solver"),
    [
        (lbo.Gram(), lbo.Cholesky()),
        (lbo.Sketch(2), lbo.Cholesky()),
        (lbo.Moments(), lbo.IncompleteCholesky()),
        (lbo.Gram(), lbo.ConjugateGradient()),
        (lbo.Inputs(), lbo.Cholesky()),
    ],
    ids=str,
)
def test_solvers_read_what_is_reached_as_what_is_masked(statistic, solver):
    updates = []
    for asked, which in ((lbo.Reached(statistic), None), (statistic, MASK)):
        taps, stats = measured(DENSE_ONE, asked, which)
        params = initial(DENSE_ONE)
        tx = lbo.scale_by_lnb(taps, solver, min_norm=1e3)
        updates.append(tx.update(params, tx.init(params), params, stats=stats)[0])
    for a, b in zip(*map(jax.tree.leaves, updates), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def test_what_is_reached_refuses():
    from tests.test_extend import Positive

    with pytest.raises(TypeError, match="`of` must be a statistic, got 'gram'"):
        lbo.Reached("gram")
    with pytest.raises(
        ValueError, match=r"`of` must be .* got Positive\(\), which cou"
    ):
        linen.taps(DENSE_ONE, X, statistic=lbo.Reached(Positive()))
    taps = lbo.dense_taps({"d": (4, 2)}, lbo.Reached(lbo.Gram()))
    with pytest.raises(ValueError, match=r"'reached gram', which reads the cotang"):
        jax.grad(lambda t: jnp.sum(lbo.tap(X, t["d"])))(taps.zeros())
    assert lbo.Reached() == lbo.Reached(lbo.Auto())


# --- training ---------------------------------------------------------------------


class Sequences(nn.Module):
    """A model that treats a padded sequence like the sequence itself."""

    @nn.compact
    def __call__(self, x, mask):
        h = nn.Dense(6, name="first")(x)
        attend = nn.MultiHeadDotProductAttention(2, qkv_features=6, name="attend")
        h = h + attend(h, mask=mask[:, None, None, :])
        h = nn.Conv(6, (3,), name="conv")(jnp.where(mask[..., None], h, 0.0))
        return nn.Dense(2, name="out")(jnp.tanh(h))


def train(optimizer, statistic, lengths, masked, steps=4):
    """Trains on sequences of one length, apart, or padded: a batch of each."""
    model = Sequences()
    clean = normal(3, 3, 5, 4)
    full = jnp.ones((1, 5), bool)
    params = jax.jit(model.init)(jax.random.key(4), clean[:1], full)["params"]
    taps = linen.taps(model, clean, MASK, statistic=statistic)
    tx = optimizer(taps)
    total = sum(lengths)
    if masked is None:  # a call a sequence
        parts = [
            (clean[i : i + 1, :n], jnp.ones((1, n), bool))
            for i, n in enumerate(lengths)
        ]
    else:
        mask = jnp.arange(5) < jnp.array(lengths)[:, None]
        parts = [(jnp.where(mask[..., None], clean, 7.0), mask)]

    def loss(params):
        value = 0.0
        for x, mask in parts:
            with lbo.only_rows(mask if masked else jnp.ones_like(mask)):
                y = model.apply({"params": params}, x, mask)
            value += jnp.sum(jnp.mean(jnp.square(y - 1), -1), where=mask) / total
        return value

    @jax.jit
    def step(params, state):
        value, grads, stats = linen.value_and_grad(loss, taps)(params)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    for _ in range(steps):
        params, state, value = step(params, state)
    return params, value


OPTIMIZERS = {
    "lnb": lambda solver: lambda taps: lbo.lnb(0.1, taps, solver),
    "whiten": lambda solver: lambda taps: lbo.whiten(optax.sgd(0.1), taps, solver),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("statistic", "solver"),
    [(lbo.Gram(), lbo.Cholesky()), (lbo.Moments(), lbo.IncompleteCholesky())],
    ids=["cholesky", "incomplete"],
)
def test_padded_sequences_train_like_the_sequences_themselves(name, statistic, solver):
    optimizer, lengths = OPTIMIZERS[name](solver), (2, 5, 1)
    for each, masked in ((lbo.Reached(statistic), False), (statistic, True)):
        want, _ = train(optimizer, each, lengths, None)
        got, _ = train(optimizer, each, lengths, masked)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, **TRAINED)
    counted, _ = train(optimizer, statistic, lengths, False)
    gap = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), counted, want)
    assert max(jax.tree.leaves(gap)) > 1e-2  # what padding does


def test_raw_inputs_solve_as_those_of_the_rows_alone():
    rows = np.flatnonzero(np.asarray(MASK))
    for solver in (lbo.Cholesky(), lbo.ConjugateGradient()):
        got, want = [], []
        for x, mask, into in (
            (X.reshape(15, 4), MASK.reshape(15), got),
            (jnp.asarray(REAL), jnp.ones(len(rows), bool), want),
        ):
            model, params = DENSE_ONE, initial(DENSE_ONE)
            taps = linen.taps(model, x, statistic="inputs")
            loss = loss_of(model, mask)
            _, grads, stats = linen.value_and_grad(loss, taps)(params, x, mask)
            tx = lbo.scale_by_lnb(taps, solver, min_norm=1e3)
            updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
            into += jax.tree.leaves(updates)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# --- hand-written layers ----------------------------------------------------------


def by_hand(mask, x=X, context=None):
    taps = lbo.dense_taps({"d": (4, 2)}, "gram")
    kernel = jnp.ones((4, 2))

    def loss(kernel, zeros):
        return jnp.sum(lbo.tap(x, zeros["d"], mask=mask) @ kernel)

    with lbo.only_rows(context) if context is not None else jax.named_scope("none"):
        return jax.grad(loss, 1)(kernel, taps.zeros())["d"].value


def test_a_tap_by_hand():
    check_rows(by_hand(MASK), REAL)
    check_rows(by_hand(np.array([True, False, False])), np.asarray(X)[0])
    assert by_hand(None).count.tolist() == [15]


def test_a_tap_by_hand_does_not_read_the_context():
    with pytest.raises(ValueError, match=r"'d' is tapped by hand inside `only_rows`"):
        by_hand(None, context=MASK)
    check_rows(by_hand(MASK, context=MASK), REAL)


# --- what is refused --------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, 1, jnp.ones((3, 5)), np.ones(3, int)])
def test_a_mask_is_boolean(mask):
    context = lbo.only_rows(mask)
    with pytest.raises(TypeError, match=r"`mask` must be a boolean array.*mask > 0"):
        context.__enter__()


def test_masks_by_name_are_boolean():
    context = lbo.only_rows({"out": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"`mask\['out'\]` must be a boolean array"):
        context.__enter__()


def test_a_name_fits_a_layer():
    with pytest.raises(ValueError, match=r"`mask` must name a layer, got 'ouut'"):
        measured(Block(), "moments", {"ouut": MASK})


def test_a_mask_outside_of_the_loss_is_refused():
    taps, params = linen.taps(DENSE_ONE, X), initial(DENSE_ONE)
    step = jax.jit(linen.value_and_grad(loss_of(DENSE_ONE), taps))
    step(params, X, None)
    for function in (step, linen.value_and_grad(loss_of(DENSE_ONE), taps)):
        refused = pytest.raises(ValueError, match="called inside of `only_rows`")
        with refused, lbo.only_rows(MASK):
            function(params, X, None)


def test_a_loop_over_an_axis_of_the_mask_is_refused():
    model = nn.RNN(nn.SimpleCell(4))
    with pytest.raises(ValueError, match=r"samples of shape \(3,\).*nn.RNN"):
        measured(model, "moments")


def test_a_statistic_that_counts_every_row_is_refused():
    from tests.test_extend import Positive

    with pytest.raises(ValueError, match=r"'positive', which counts every row.*reads_"):
        measured(DENSE_ONE, Positive())


def test_two_names_of_one_length_are_refused():
    masks = {"h*": MASK, "*n": ~MASK, "attend": MASK}
    with pytest.raises(ValueError, match=r"one longest name for layer 'hidden', got"):
        measured(Block(), "moments", masks)
    measured(Block(), "moments", {**masks, "hidden": MASK})
