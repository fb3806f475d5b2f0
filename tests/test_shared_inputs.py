"""Layers with the same input share one statistic and one solver state."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import train_step

CLOSE = 1e-5  # float32

pytestmark = pytest.mark.lenient("Flax and Optax promote implicitly")


class Heads(nn.Module):
    """Three layers on one input, of different widths, then one on their sum."""

    swap: bool = False

    @nn.compact
    def __call__(self, x):
        other = jnp.sin(x) if self.swap else x
        q, k = nn.Dense(4, name="q")(x), nn.Dense(4, name="k")(other)
        v = nn.Dense(6, name="v")(x)
        free = nn.Dense(4, use_bias=False, name="free")(x)
        return nn.Dense(2, name="out")(jnp.concatenate([q * k, v, free], axis=-1))


def setup(statistic="gram"):
    model = Heads()
    x = jax.random.normal(jax.random.key(0), (32, 5)) + 1.0
    params = model.init(jax.random.key(1), x)["params"]

    def loss_fn(params, x):
        return jnp.mean(jnp.square(model.apply({"params": params}, x) - 1.0))

    return model, x, params, loss_fn, linen.taps(model, x, statistic=statistic)


def alone(taps):
    """The same taps, every layer with one of its own."""
    return lbo.Taps(tuple(replace(layer, source=None) for layer in taps.layers))


@pytest.mark.parametrize("statistic", ["moments", "gram"])
def test_who_shares_with_whom(statistic):
    _, x, params, loss_fn, taps = setup(statistic)
    sources = {layer.key: layer.stats_key for layer in taps.layers}
    # A layer without bias has another covariance: not shared.
    assert sources == {"q": "q", "k": "q", "v": "q", "free": "free", "out": "out"}
    _, _, stats = linen.value_and_grad(loss_fn, taps)(params, x)
    assert set(stats) == set(taps.zeros()) == {"q", "free", "out"}
    np.testing.assert_array_equal(stats["q"].count, 32)
    np.testing.assert_allclose(stats["q"].sum[0], x.sum(axis=0), rtol=CLOSE)
    assert "of q" in str(taps)


@pytest.mark.parametrize(
    "make",
    [
        lambda taps: lbo.lnb(0.1, taps, lbo.IncompleteCholesky()),
        lambda taps: lbo.lnb(0.1, taps, lbo.ConjugateGradient()),
        lambda taps: lbo.lnb(0.1, taps, lbo.Cholesky(every=2)),
        lambda taps: lbo.whiten(optax.adam(0.1), taps, lbo.Cholesky(every=2)),
    ],
    ids=["incomplete", "cg", "cholesky", "whiten"],
)
def test_sharing_changes_nothing_but_the_cost(make):
    _, x, params, loss_fn, taps = setup()
    results, states = [], []
    for each in (taps, alone(taps)):
        tx, new = make(each), params
        state = tx.init(params)
        step = jax.jit(train_step(loss_fn, each, tx))
        for _ in range(4):
            new, state, _ = step(new, state, x)
        results.append(new)
        states.append(sum(leaf.size for leaf in jax.tree.leaves(state)))
    for got, want in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=CLOSE)
    assert states[0] < states[1]


def test_attention_and_recurrent_gates_share():
    x = jnp.ones((2, 3, 8))
    attention = linen.taps(nn.MultiHeadDotProductAttention(num_heads=2), x)
    sources = {layer.key: layer.stats_key for layer in attention.layers}
    assert sources["key"] == sources["value"] == sources["query"] == "query"
    gates = linen.taps(nn.RNN(nn.GRUCell(4)), x)
    sources = {layer.path[-1]: layer.stats_key for layer in gates.layers}
    assert sources["iz"] == sources["in"] == sources["ir"]
    assert sources["hz"] == sources["hr"] != sources["hn"]  # hn alone has a bias


def test_layers_stacked_by_scan_share_block_by_block():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(5)(nn.tanh(nn.Dense(5)(x) * nn.Dense(5)(x))), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(name="blocks")(x, None)[0]

    x = jax.random.normal(jax.random.key(0), (7, 5))
    model = Stack()
    params = model.init(jax.random.key(1), x)["params"]
    taps = linen.taps(model, x)
    sources = {layer.path[-1]: layer.stats_key for layer in taps.layers}
    # Dense_0 is made first and called last: on the product of the other two.
    assert sources["Dense_2"] == sources["Dense_1"] == "blocks/Dense_1"

    def loss_fn(params):
        return jnp.mean(jnp.square(model.apply({"params": params}, x)))

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
    assert stats["blocks/Dense_1"].outer.shape == (3, 1, 5, 5)
    tx = lbo.scale_by_lnb(taps)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))


def test_inputs_that_differ_in_the_loss_are_both_counted():
    _, x, params, _, taps = setup()
    changed = Heads(swap=True)

    def loss_fn(params, x):
        return jnp.mean(changed.apply({"params": params}, x))

    _, _, stats = linen.value_and_grad(loss_fn, taps)(params, x)
    np.testing.assert_array_equal(stats["q"].count, 64)
    want = x.sum(axis=0) + jnp.sin(x).sum(axis=0)
    np.testing.assert_allclose(stats["q"].sum[0], want, rtol=1e-4)


def test_the_first_layer_of_a_group_may_be_left_out():
    model, x, params, _, taps = setup()

    class OnlyKey(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="k")(x)

    def loss_fn(params, x):
        return jnp.mean(jnp.square(OnlyKey().apply({"params": params}, x)))

    function = linen.value_and_grad(loss_fn, taps, allow_unconnected=True)
    _, _, stats = function(params, x)
    np.testing.assert_array_equal(stats["q"].count, 32)
    np.testing.assert_array_equal(stats["out"].count, 0)


def test_branches_do_not_share_what_they_share_in_init():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, flag):
            first, second = nn.Dense(4, name="a"), nn.Dense(4, name="b")
            if self.is_initializing():
                return first(x) + second(x)
            return nn.cond(flag, lambda _, x: first(x), lambda _, x: second(x), self, x)

    taps = linen.taps(Model(), jnp.ones((9, 3)), jnp.array(True))
    assert [layer.source for layer in taps.layers] == [None, None]


def test_a_source_that_is_not_tapped_does_not_serve():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            twice = nn.Conv(4, (1,), name="a")  # the geometry changes: not tapped
            twice(jnp.concatenate([x, x], axis=-2)[..., :2])
            return nn.Dense(2, name="b")(x) + nn.Dense(2, name="c")(x)

    taps = linen.taps(Model(), jnp.ones((2, 5, 2)))
    for layer in taps.layers:
        assert layer.stats_key in {other.key for other in taps.layers}


def test_a_cached_function_is_not_taken_for_unconnected():
    model, x, params, _, taps = setup()
    apply = jax.jit(lambda params, x: model.apply({"params": params}, x))

    def loss_fn(params, x):
        return jnp.mean(apply(params, x))

    function = linen.value_and_grad(loss_fn, taps)
    first, second = function(params, x)[2], function(params, x)[2]
    for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("solver", [lbo.ConjugateGradient(), lbo.Cholesky()], ids=str)
def test_a_masked_source_still_serves(solver):
    _, x, params, loss_fn, taps = setup()
    mask = {name: name != "q" for name in params}
    tx = optax.masked(lbo.scale_by_lnb(taps, solver), mask)
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    np.testing.assert_array_equal(updates["q"]["kernel"], grads["q"]["kernel"])
    assert bool(jnp.any(updates["k"]["kernel"] != grads["k"]["kernel"]))
