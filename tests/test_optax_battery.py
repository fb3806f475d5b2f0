"""What Optax asks of its own optimizers, and how they compose with its wrappers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP, data, squared_error

# Optax's own wrappers promote implicitly in many places.
pytestmark = pytest.mark.lenient("wrappers of Optax promote implicitly")

CLOSE = 1e-4  # float32, after some steps

SOLVERS = {
    "cholesky": lbo.Cholesky(every=2),
    "incomplete": lbo.IncompleteCholesky(),
    "cg": lbo.ConjugateGradient(),
}
RATE = {"lnb": 0.1, "scale": 0.1, "whiten": 0.03, "polar": 0.03}
OPTIMIZERS = [
    *(("lnb", solver) for solver in SOLVERS),
    *(("scale", solver) for solver in SOLVERS),
    ("whiten", "cholesky"),
    ("whiten", "incomplete"),
    ("polar", "cholesky"),
]
each_optimizer = pytest.mark.parametrize(("name", "solver"), OPTIMIZERS)
# Of the three that share all but a weight decay, wrappers see one.
each_wrapped = pytest.mark.parametrize(
    ("name", "solver"), [each for each in OPTIMIZERS if each[0] != "scale"]
)


def optimizer(name, solver, taps, rate=None):
    rate, solver = RATE[name] if rate is None else rate, SOLVERS[solver]
    if name == "lnb":
        return lbo.lnb(rate, taps, solver)
    if name == "scale":
        scale = lbo.scale_by_lnb(taps, solver)
        return optax.chain(scale, optax.scale_by_learning_rate(rate))
    if name == "polar":
        return lbo.polar(rate, taps, solver)
    return lbo.whiten(optax.adam(rate), taps, solver)


def setup(dtype=jnp.float32):
    model, batch = MLP((4, 3), dtype=dtype), data(dtype=dtype)
    params = model.init(jax.random.key(1), batch[0])["params"]
    taps = linen.taps(model, batch[0], statistic="gram")
    return squared_error(model), params, batch, taps


def train(loss_fn, params, batch, taps, make, steps=6, extra=None):
    """Trains in a scan, which also refuses a state that changes its tree or dtypes.

    Args:
      loss_fn: the loss.
      params: where to start.
      batch: the batch.
      taps: the taps.
      make: maps statistics to the transformation that is used in a step.
      steps: number of steps.
      extra: maps loss and gradients to further extra arguments; without it the
        statistics are no argument either, they are bound.
    """
    of = lambda p: p.fast if isinstance(p, optax.LookaheadParams) else p  # noqa: E731

    def body(carry, _):
        params, state = carry
        loss, grads, stats = linen.value_and_grad(loss_fn, taps)(of(params), batch)
        args = {} if extra is None else {"stats": stats, **extra(loss, grads)}
        updates, state = make(stats).update(grads, state, params, **args)
        return (optax.apply_updates(params, updates), state), loss

    def run(carry):
        return jax.lax.scan(body, carry, length=steps)

    (params, state), losses = jax.jit(run)((params, make(None).init(params)))
    return params, state, np.asarray(losses)


def nothing(loss, grads):
    del loss, grads
    return {}


def assert_trees_close(got, want, tolerance=CLOSE):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@functools.cache
def plain(name, solver):
    """The parameters that the optimizer alone arrives at."""
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)
    return train(loss_fn, params, batch, taps, lambda _: tx, extra=nothing)[0]


# --- what every optimizer must do -------------------------------------------------


@each_optimizer
def test_unknown_extra_arguments_and_no_recompilation(name, solver):
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)

    @jax.jit
    def step(params, state):
        loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
        updates, state = tx.update(
            grads, state, params, stats=stats, value=loss, nobody_expects=1
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    facts = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree
    )
    want = facts((params, state))
    for _ in range(6):
        params, state = step(params, state)
        assert facts((params, state)) == want
    assert step._cache_size() == 1
    assert_trees_close(params, plain(name, solver))


@each_wrapped
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_updates_keep_the_dtype_and_state_its_own_under_cond(name, solver, dtype):
    with jax.enable_x64(dtype == "float64"):
        loss_fn, params, batch, taps = setup(jnp.dtype(dtype))
        _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
        tx = optimizer(name, solver, taps)

        @jax.jit
        def maybe(flag, state):
            return jax.lax.cond(
                flag,
                lambda s: tx.update(grads, s, params, stats=stats),
                lambda s: (jax.tree.map(jnp.zeros_like, grads), s),
                state,
            )

        updates, _ = maybe(True, tx.init(params))
        for leaf in jax.tree.leaves(updates):
            assert leaf.dtype == dtype
            assert bool(jnp.isfinite(leaf).all())
            assert bool(jnp.any(leaf != 0))


@each_optimizer
def test_tree_map_params_sees_parameters_alone(name, solver):
    _, params, _, taps = setup()
    tx = optimizer(name, solver, taps)
    state = tx.init(params)
    assert_trees_close(optax.tree.map_params(tx, lambda leaf: leaf, state), state, 0)
    marked = optax.tree.map_params(tx, lambda leaf: leaf + 7, state)
    like_params = {leaf.shape for leaf in jax.tree.leaves(params)}
    changed = [
        new.shape
        for new, old in zip(jax.tree.leaves(marked), jax.tree.leaves(state))
        if bool(jnp.any(new != old))
    ]
    # One average of the gradients, or Adam's two; of kernels one, of biases two.
    assert len(changed) == {"whiten": 8, "polar": 2 * 1 + 2 * 2}.get(name, 4)
    assert set(changed) == like_params


@each_optimizer
def test_converges_on_least_squares(name, solver):
    """To the solution of `numpy.linalg.lstsq`."""
    x = jax.random.normal(jax.random.key(0), (64, 5)) + 1.0
    y = x @ jnp.linspace(-1, 1, 15).reshape(5, 3) + 0.3
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), x)["params"]
    taps = linen.taps(model, x, statistic="gram")
    rate = optax.cosine_decay_schedule(1.0 if name == "scale" else 0.5, 300)
    tx = optimizer(name, solver, taps, rate)
    loss_fn = squared_error(model)
    got, _, _ = train(loss_fn, params, (x, y), taps, lambda _: tx, 300, nothing)
    tilde = np.c_[x, np.ones(len(x))]
    want = np.linalg.lstsq(tilde, np.asarray(y))[0]
    np.testing.assert_allclose(got["kernel"], want[:-1], rtol=3e-2, atol=3e-2)
    np.testing.assert_allclose(got["bias"], want[-1], rtol=3e-2, atol=3e-2)


@each_optimizer
def test_converges_in_a_curved_valley(name, solver):
    """Rosenbrock's valley is `v w = 1` here: two linear layers of one weight."""
    x = jnp.asarray([[1.0], [-1.0]])
    model = nn.Sequential([nn.Dense(1, use_bias=False), nn.Dense(1, use_bias=False)])
    params = {
        "layers_0": {"kernel": jnp.asarray([[0.1]])},
        "layers_1": {"kernel": jnp.asarray([[3.0]])},
    }
    taps = linen.taps(model, x, statistic="gram")
    tx = optimizer(name, solver, taps, optax.cosine_decay_schedule(0.2, 300))
    loss_fn = squared_error(model)
    got, _, losses = train(loss_fn, params, (x, x), taps, lambda _: tx, 300, nothing)
    product = got["layers_0"]["kernel"] * got["layers_1"]["kernel"]
    np.testing.assert_allclose(product, [[1.0]], atol=1e-2)
    assert losses[0] > 0.4


@each_optimizer
def test_a_schedule_of_the_rate_is_followed(name, solver):
    loss_fn, params, batch, taps = setup()
    schedule = optax.piecewise_constant_schedule(RATE[name], {3: 0.0})
    tx = optimizer(name, solver, taps, schedule)
    run = functools.partial(train, loss_fn, params, batch, taps, lambda _: tx)
    (three, _, _), (six, _, _) = run(3, nothing), run(6, nothing)
    assert_trees_close(six, three, 0)
    assert_trees_close(
        optax.tree.norm(jax.tree.map(jnp.subtract, three, params)) > 0, 1
    )


@each_wrapped
def test_inject_hyperparams(name, solver):
    loss_fn, params, batch, taps = setup()
    inject = functools.partial(optax.inject_hyperparams, static_args=("taps", "solver"))
    if name == "lnb":
        make = inject(lbo.lnb)
        tx = make(learning_rate=RATE[name], taps=taps, solver=SOLVERS[solver])
    else:
        make = optax.inject_hyperparams(
            lambda learning_rate: optimizer(name, solver, taps, learning_rate)
        )
        tx = make(learning_rate=RATE[name])
    got, state, _ = train(loss_fn, params, batch, taps, lambda _: tx, extra=nothing)
    assert_trees_close(got, plain(name, solver))
    np.testing.assert_allclose(state.hyperparams["learning_rate"], RATE[name])


# --- wrappers that change nothing -------------------------------------------------

GROUPS = {"Dense_0": "a", "Dense_1": "a"}
TRANSPARENT = {
    "chain": lambda tx: optax.chain(optax.clip(1e6), tx, optax.scale(1.0)),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1e6)), ("tx", tx)),
    "masked": lambda tx: optax.masked(tx, {"Dense_0": True, "Dense_1": True}),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.sgd(1.0)}, GROUPS),
    "multi_transform": lambda tx: optax.multi_transform({"a": tx}, GROUPS),
    "selective": lambda tx: optax.selective_transform(
        tx, freeze_mask={"Dense_0": False, "Dense_1": False}
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "mask": lambda tx: optax.conditionally_mask(tx, lambda step: step >= 0),
    "transform": lambda tx: optax.conditionally_transform(tx, lambda step: step >= 0),
    "add_noise": lambda tx: optax.chain(tx, optax.add_noise(0.0, 0.5, 0)),
    "snapshot": lambda tx: optax.chain(tx, optax.snapshot("u", lambda u: u)),
}


@pytest.mark.parametrize("wrapper", TRANSPARENT)
@pytest.mark.parametrize(
    ("name", "solver"), [("lnb", "cholesky"), ("lnb", "cg"), ("whiten", "incomplete")]
)
def test_transparent_wrappers(name, solver, wrapper):
    loss_fn, params, batch, taps = setup()
    tx = TRANSPARENT[wrapper](optimizer(name, solver, taps))
    got, _, _ = train(loss_fn, params, batch, taps, lambda _: tx, extra=nothing)
    assert_trees_close(got, plain(name, solver))


@each_wrapped
def test_a_plateau_and_a_step_that_is_long_enough_change_nothing(name, solver):
    """What reads the loss, and the search that evaluates it."""
    loss_fn, params, batch, taps = setup()

    def extra(loss, grads):
        def value_fn(params, stats):
            del stats
            return loss_fn(params, batch)

        return {"value": loss, "grad": grads, "value_fn": value_fn}

    tx = optax.chain(
        optimizer(name, solver, taps),
        optax.contrib.reduce_on_plateau(patience=100),
        optax.scale_by_backtracking_linesearch(5, slope_rtol=1e-6),
    )
    got, _, _ = train(loss_fn, params, batch, taps, lambda _: tx, extra=extra)
    assert_trees_close(got, plain(name, solver))
    short = optax.chain(
        optimizer(name, solver, taps),
        optax.contrib.reduce_on_plateau(patience=1, rtol=0.99, factor=0.5),
    )
    value = lambda loss, grads: {"value": loss}  # noqa: E731
    _, state, _ = train(loss_fn, params, batch, taps, lambda _: short, extra=value)
    assert float(state[1].scale) < 1


# --- wrappers that change what happens --------------------------------------------


@each_wrapped
def test_a_layer_that_is_frozen_or_of_another_optimizer(name, solver):
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)
    frozen = {"Dense_0": False, "Dense_1": True}
    for wrapped in (
        optax.selective_transform(tx, freeze_mask=frozen),
        optax.chain(tx, optax.freeze(frozen)),
    ):
        make = lambda _, wrapped=wrapped: wrapped  # noqa: E731
        got, _, losses = train(loss_fn, params, batch, taps, make, extra=nothing)
        assert_trees_close(got["Dense_1"], params["Dense_1"], 0)
        assert losses[-1] < losses[0]
    both = optax.partition(
        {"tapped": tx, "plain": optax.sgd(0.01)},
        {"Dense_0": "tapped", "Dense_1": "plain"},
    )
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    updates, _ = both.update(grads, both.init(params), params, stats=stats)
    assert_trees_close(
        updates["Dense_1"], jax.tree.map(lambda g: -0.01 * g, grads["Dense_1"])
    )


@each_wrapped
def test_apply_if_finite_and_the_guard_agree(name, solver):
    loss_fn, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    tx = optax.apply_if_finite(optimizer(name, solver, taps), 1)
    state = tx.init(params)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    for _ in range(3):
        updates, state = tx.update(bad, state, params, stats=stats)
        moved = optax.tree.get(state, "skipped")  # Optax gives up after one, we do not
    assert int(moved) == 2
    assert int(state.total_notfinite) == 3
    new = optax.apply_updates(params, updates)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize(
    "wrapper", ["schedule_free", "zoom", "nonnegative", "every second"]
)
@each_wrapped
def test_wrappers_that_train(name, solver, wrapper):
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)

    def extra(loss, grads):
        def value_fn(params, stats):
            del stats
            return loss_fn(params, batch)

        if wrapper == "zoom":
            return {"value": loss, "grad": grads, "value_fn": value_fn}
        return {}

    wrapped = {
        "schedule_free": lambda: optax.contrib.schedule_free(tx, RATE[name]),
        "zoom": lambda: optax.chain(tx, optax.scale_by_zoom_linesearch(5)),
        "nonnegative": lambda: optax.chain(tx, optax.keep_params_nonnegative()),
        "every second": lambda: optax.conditionally_mask(
            tx, lambda step: step % 2 == 0
        ),
    }[wrapper]()
    if wrapper == "nonnegative":
        params = jax.tree.map(jnp.abs, params)
    got, _, losses = train(
        loss_fn, params, batch, taps, lambda _: wrapped, steps=12, extra=extra
    )
    if wrapper == "nonnegative":  # clipped in the plain coordinates: no descent
        assert all(bool((leaf >= 0).all()) for leaf in jax.tree.leaves(got))
    else:
        assert losses[-1] < 0.95 * losses[0]


@each_wrapped
def test_mechanize_finds_the_rate(name, solver):
    loss_fn, params, batch, taps = setup()
    tx = optax.contrib.mechanize(optimizer(name, solver, taps, 1.0))
    _, _, losses = train(loss_fn, params, batch, taps, lambda _: tx, 150, nothing)
    assert losses[-1] < 0.5 * losses[0]


# --- wrappers that drop extra arguments -------------------------------------------


def with_stats(tx, stats):
    """The way around: a transformation whose statistics are bound."""
    return optax.GradientTransformation(
        tx.init, functools.partial(tx.update, stats=stats)
    )


@each_wrapped
def test_lookahead_with_bound_statistics(name, solver):
    """Against the two loops of the paper, written out."""
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)

    def make(stats):
        return optax.lookahead(with_stats(tx, stats), 3, 0.5)

    start = optax.LookaheadParams.init_synced(params)
    got, _, _ = train(loss_fn, start, batch, taps, make)

    @jax.jit
    def inner(carry, _):
        loss, grads, stats = linen.value_and_grad(loss_fn, taps)(carry[0], batch)
        updates, state = tx.update(grads, carry[1], carry[0], stats=stats)
        return (optax.apply_updates(carry[0], updates), state), loss

    slow, state = params, tx.init(params)
    for _ in range(2):
        (fast, state), _ = jax.lax.scan(inner, (slow, state), length=3)
        slow = jax.tree.map(lambda s, f: s + 0.5 * (f - s), slow, fast)
    assert_trees_close(got.slow, slow)
    assert_trees_close(got.fast, slow)
    loss = loss_fn(got.slow, batch)
    assert loss < loss_fn(params, batch)


@each_wrapped
def test_lookahead_may_reset_the_state(name, solver):
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)

    def make(stats):
        return optax.lookahead(with_stats(tx, stats), 3, 0.5, reset_state=True)

    start = optax.LookaheadParams.init_synced(params)
    _, state, losses = train(loss_fn, start, batch, taps, make)
    assert_trees_close(state.fast_state, tx.init(params), 0)
    assert losses[-1] < losses[0]


@each_wrapped
def test_sam_with_bound_statistics(name, solver):
    """Every second step is that of the optimizer, with what a perturbation brought."""
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))

    def make(stats):
        return optax.contrib.sam(with_stats(tx, stats), adversary)

    got, _, _ = train(loss_fn, params, batch, taps, make)
    want, state = params, tx.init(params)
    collect = jax.jit(linen.value_and_grad(loss_fn, taps))
    for _ in range(3):
        _, grads, _ = collect(want, batch)
        climb, _ = adversary.update(grads, adversary.init(want))
        _, grads, stats = collect(jax.tree.map(jnp.subtract, want, climb), batch)
        updates, state = tx.update(grads, state, want, stats=stats)
        want = optax.apply_updates(want, updates)
    assert_trees_close(got, want)


def test_wrappers_that_drop_statistics_say_so():
    loss_fn, params, batch, taps = setup()
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
    tx = optax.lookahead(lbo.lnb(0.1, taps), 3, 0.5)
    both = optax.LookaheadParams.init_synced(params)
    state = tx.init(both)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'stats'"):
        tx.update(grads, state, both, stats=stats)
    with pytest.raises(ValueError, match=r"`stats` is missing.*lookahead.*composition"):
        tx.update(grads, state, both)


# --- flat parameters --------------------------------------------------------------


@each_wrapped
def test_flatten_around_is_refused(name, solver):
    _, params, _, taps = setup()
    tx = optax.flatten(optimizer(name, solver, taps))
    match = r"got one array of shape \(39,\).*`whiten\(optax.flatten\(inner\), taps\)`"
    with pytest.raises(ValueError, match=match):
        tx.init(params)


@pytest.mark.parametrize("solver", ["cholesky", "incomplete"])
def test_flatten_inside_is_the_same_optimizer(solver):
    loss_fn, params, batch, taps = setup()
    inner = optax.flatten(optax.adam(RATE["whiten"]))
    tx = lbo.whiten(inner, taps, SOLVERS[solver])
    got, _, _ = train(loss_fn, params, batch, taps, lambda _: tx, extra=nothing)
    assert_trees_close(got, plain("whiten", solver))


def test_flatten_after():
    loss_fn, params, batch, taps = setup()
    scale = lbo.scale_by_lnb(taps, SOLVERS["cholesky"])
    tail = optax.chain(optax.add_decayed_weights(1e-4), optax.scale(-RATE["lnb"]))
    tx = optax.chain(scale, optax.flatten(tail))
    got, _, _ = train(loss_fn, params, batch, taps, lambda _: tx, extra=nothing)
    assert_trees_close(got, plain("lnb", "cholesky"))


# --- micro-batches and loss scales ------------------------------------------------


@each_wrapped
def test_accumulation_composes_with_masks_and_schedules(name, solver):
    loss_fn, params, batch, taps = setup()
    tx = optimizer(name, solver, taps)
    wrapped = optax.chain(
        optax.clip(1e6),
        optax.masked(lbo.multi_steps(tx, taps, 2), {"Dense_0": True, "Dense_1": True}),
    )
    got, _, _ = train(
        loss_fn, params, batch, taps, lambda _: wrapped, steps=12, extra=nothing
    )
    assert_trees_close(got, plain(name, solver), 5e-4)


def test_microbatch_of_optax_adds_statistics_up():
    loss_fn, params, (x, y), taps = setup()
    function = linen.value_and_grad(lambda p, x, y: loss_fn(p, (x, y)), taps)
    kinds = optax.microbatching.AccumulationType
    micro = optax.microbatching.microbatch(
        function, (1, 2), 8, (kinds.MEAN, kinds.MEAN, kinds.SUM)
    )
    assert_trees_close(jax.jit(micro)(params, x, y), function(params, x, y))


@each_wrapped
def test_dynamic_scale_of_flax(name, solver):
    """A scale that overflows float16 is halved until it fits; then training goes on."""

    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.tanh(nn.Dense(4, dtype=jnp.float16)(x))
            return nn.Dense(3, dtype=jnp.float16)(x).astype(jnp.float32)

    model, batch = Half(), data()
    params = model.init(jax.random.key(1), batch[0])["params"]
    taps = linen.taps(model, batch[0], statistic="gram")
    loss_fn, tx = squared_error(model), optimizer(name, solver, taps)

    def step(carry, _):
        params, state, scale = carry
        scaled = lambda p: scale.scale * loss_fn(p, batch)  # noqa: E731
        loss, grads, stats = linen.value_and_grad(scaled, taps)(params)
        grads = jax.tree.map(lambda g: g.astype("float32") / scale.scale, grads)
        new, finite, *_ = scale.value_and_grad(lambda p: optax.tree.vdot(grads, p))(
            params
        )
        updates, state = tx.update(grads, state, params, stats=stats)
        loss = loss / scale.scale
        count = stats["Dense_0"].count[0]
        return (optax.apply_updates(params, updates), state, new), (loss, finite, count)

    scale = DynamicScale(scale=jnp.float32(2.0**20), fin_steps=jnp.zeros((), jnp.int32))
    (_, state, scale), (losses, finite, counts) = jax.jit(
        lambda carry: jax.lax.scan(step, carry, length=16)
    )((params, tx.init(params), scale))
    bad = int((~finite).sum())
    assert 0 < bad < 8
    assert not np.asarray(finite[:bad]).any()
    assert int(optax.tree.get(state, "skipped")) == bad
    assert float(scale.scale) == 2.0 ** (20 - bad)
    np.testing.assert_array_equal(counts, 32)  # statistics are not scaled
    loss32, params32, batch32, taps32 = setup()
    want = train(
        loss32, params32, batch32, taps32, lambda _: tx, steps=16 - bad, extra=nothing
    )[2]
    np.testing.assert_allclose(losses[-1], want[-1], rtol=0.05)
