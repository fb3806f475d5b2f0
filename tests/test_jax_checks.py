"""What JAX can check of a program is clean: leaks, NaNs, precision, donated buffers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(3, name="gate")(x) * nn.Dense(3, name="value")(x)
        return x + jnp.tanh(y), None


class Net(nn.Module):
    """An embedding, and layers that share an input in a loop and a checkpoint."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 3)(tokens)
        stack = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = stack(name="stack")(x, None)
        return nn.Dense(2, name="head")(x)


MODEL, TOKENS = Net(), jnp.array([[1, 2, 3], [4, 5, 6]])


def loss_fn(params, tokens):
    return jnp.mean(MODEL.apply({"params": params}, tokens) ** 2)


def transformations(taps):
    return {
        "lnb": lbo.lnb(0.1, taps),
        "lnb-incomplete": lbo.lnb(0.1, taps, lbo.IncompleteCholesky()),
        "whiten": lbo.whiten(optax.sgd(0.1), taps),
        "polar": lbo.polar(0.1, taps),
    }


def train(taps, tx, params, steps=2, **jit):
    @functools.partial(jax.jit, **jit)
    def step(params, state):
        loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, TOKENS)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    for _ in range(steps):
        params, state, loss = step(params, state)
    return params, state, loss


def initial():
    return MODEL.init(jax.random.key(0), TOKENS)["params"]


@pytest.mark.parametrize("statistic", ["auto", "moments"])
def test_no_tracer_leaks(statistic):
    params = initial()
    with jax.checking_leaks():  # JAX caches nothing meanwhile, so that nothing is run
        taps = linen.taps(MODEL, TOKENS, statistic=statistic)
        assert any(layer.source is not None for layer in taps.layers)
        tx = transformations(taps)["whiten"]

        def step(params, state):
            loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, TOKENS)
            return tx.update(grads, state, params, stats=stats)

        jax.make_jaxpr(step)(params, jax.eval_shape(tx.init, params))


@pytest.mark.parametrize("name", ["lnb", "lnb-incomplete", "whiten"])
def test_no_nan_on_the_way(name):
    # Masked-out branches, too: `debug_nans` looks at every result.
    taps = linen.taps(MODEL, TOKENS)
    with jax.debug_nans(True), jax.debug_infs(True):
        params, _, _ = train(taps, transformations(taps)[name], initial())
    assert all(jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["lnb", "lnb-incomplete", "whiten"])
def test_64_bits_switched_on(name):
    taps = linen.taps(MODEL, TOKENS)
    narrow, _, _ = train(taps, transformations(taps)[name], initial())
    with jax.enable_x64(True):
        params = initial()
        assert params["head"]["kernel"].dtype == jnp.float32  # as Flax has it
        wide_taps = linen.taps(MODEL, TOKENS)
        got, state, _ = train(wide_taps, transformations(wide_taps)[name], params)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(got)}
        assert dtypes == {jnp.dtype(jnp.float32)}
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(narrow), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["lnb", "lnb-incomplete", "whiten"])
def test_donated_buffers(name):
    taps = linen.taps(MODEL, TOKENS)
    tx = transformations(taps)[name]
    want, _, _ = train(taps, tx, initial(), steps=3)
    got, _, _ = train(taps, tx, initial(), steps=3, donate_argnums=(0, 1))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
