"""The least-squares kernel under hard conditions."""

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._numerics.least_squares import factorize, solve, weighted_gram


def test_gram_of_every_group():
    rng = np.random.default_rng(0)
    a, w = rng.normal(size=(30, 4)), rng.uniform(size=(30, 3))
    with jax.enable_x64(True):
        got = weighted_gram(jnp.asarray(a.T), jnp.asarray(w.T))
    want = np.einsum("ni,nj,nu->uij", a, a, w)
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_singular_group_does_not_disturb_the_others():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 4)).astype(np.float32)
    good = jnp.asarray(a.T @ a)
    # The second matrix is indefinite by rounding's worth, the third all 0.
    bad = jnp.ones((4, 4)).at[0, 1].add(1e-3).at[1, 0].add(1e-3)
    gram = jnp.stack([good, bad, jnp.zeros((4, 4))])
    rhs = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    got = solve(gram, rhs)
    np.testing.assert_allclose(got[:, 0], np.linalg.solve(good, rhs[:, 0]), rtol=1e-4)
    assert bool(jnp.all(jnp.isfinite(got)))
    _, factor = factorize(gram)
    alone = factorize(gram[:1])
    np.testing.assert_allclose(factor[0], alone[1][0], rtol=1e-6)


def test_no_answer_is_zero():
    gram = jnp.full((1, 3, 3), jnp.nan)
    np.testing.assert_array_equal(solve(gram, jnp.ones((3, 2))), 0)
