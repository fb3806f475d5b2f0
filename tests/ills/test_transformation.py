"""ILLS as an Optax transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linboost_optax import ills
from tests.ills.problems import ROUNDING, X, Y, problem, run, stepper


def test_vmap_over_an_ensemble():
    """A start and bootstrap weights a member: trained together as if alone."""
    x, y = problem(0, 40, 3, 1)
    tx, _ = stepper(3, (5,), 1, ())
    keys = jax.random.split(jax.random.key(0), 3)
    starts = jax.vmap(lambda key: ills.init_mlp(key, (3, 5, 1)))(keys)
    counts = jnp.asarray(np.random.default_rng(0).poisson(1.0, (3, 40)), jnp.float32)

    def member(params, weights):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(
                None, state, params, inputs=x, targets=y, sample_weight=weights
            )
            return (optax.apply_updates(params, updates), state), state.objective

        return jax.lax.scan(step, (params, tx.init(params)), None, length=6)[1]

    together = jax.jit(jax.vmap(member))(starts, counts)
    one = jax.jit(member)
    alone = jnp.stack(
        [one(jax.tree.map(lambda a, i=i: a[i], starts), counts[i]) for i in range(3)]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    assert np.all(np.diff(together, axis=1) <= ROUNDING * together[:, :-1])


def test_state_and_updates_keep_structure_and_dtype():
    tx, update = stepper(3, (5,), 1, ())
    params = ills.init_mlp(jax.random.key(0), (3, 5, 1))
    x, y = problem(0, 40, 3, 1)
    state = tx.init(params)
    updates, new = update(state, params, x, y)
    for a, b in ((updates, params), (new, state)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert [v.dtype for v in jax.tree.leaves(a)] == [
            v.dtype for v in jax.tree.leaves(b)
        ]


def test_scan_equals_a_loop():
    tx, update = stepper(3, (5,), 1, ())
    start = ills.init_mlp(jax.random.key(0), (3, 5, 1))
    x, y = problem(0, 40, 3, 1)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, inputs=x, targets=y)
        return (optax.apply_updates(params, updates), state), state.objective

    _, scanned = jax.lax.scan(step, (start, tx.init(start)), None, length=6)
    np.testing.assert_allclose(scanned, run(tx, update, start, x, y, 6)[2], rtol=1e-4)


def test_chained_and_masked():
    params = {"net": ills.init_mlp(jax.random.key(0), (3, 5, 1)), "other": jnp.ones(3)}
    x, y = problem(0, 40, 3, 1)
    described = ills.network(params["net"])
    net = ills.Network(
        tuple(
            ills.DenseLayer(
                f"net/{layer.kernel}",
                f"net/{layer.bias}",
                layer.features_in,
                layer.features_out,
                layer.activation,
            )
            for layer in described.layers
        )
    )
    tx = optax.chain(
        optax.masked(ills.ills(net), {"net": True, "other": False}), optax.scale(0.5)
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda s, p: tx.update(zeros, s, p, inputs=x, targets=y))
    state, errors = tx.init(params), []
    for _ in range(24):  # of half the steps, while the ridges fall
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        errors.append(
            float(jnp.mean((ills.predict(described, params["net"], x) - y) ** 2))
        )
    np.testing.assert_array_equal(params["other"], 1)
    assert errors[-1] < 0.3 * errors[0]


def test_inject_hyperparams():
    params = ills.init_mlp(jax.random.key(0), (3, 5, 1))
    x, y = problem(0, 40, 3, 1)
    net = ills.network(params)
    tx = optax.inject_hyperparams(
        ills.ills, static_args=("network", "chunk_size", "axis_name")
    )(net, output_ridge=1e-2)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(functools.partial(tx.update, zeros, inputs=x, targets=y))(
        tx.init(params), params
    )
    plain = ills.ills(net, output_ridge=1e-2)
    want, _ = jax.jit(functools.partial(plain.update, None, inputs=x, targets=y))(
        plain.init(params), params
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        updates,
        want,
    )


def test_network_must_be_described():
    with pytest.raises(TypeError, match="`network` must be a `Network`, got list"):
        ills.ills([])


def test_params_must_be_given():
    tx, _ = stepper(2, (4,), 1, ())
    params = ills.init_mlp(jax.random.key(0), (2, 4, 1))
    with pytest.raises(ValueError, match="`params` must be given to `update`"):
        tx.update(None, tx.init(params), inputs=X, targets=Y)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_published_refuses_what_has_no_inverse(activation):
    params = ills.init_mlp(jax.random.key(0), (2, 4, 1))
    net = ills.network(params, activation)
    with pytest.raises(ValueError, match=r"no inverse. Use one of \['identity'"):
        ills.ills(net, method="published")
