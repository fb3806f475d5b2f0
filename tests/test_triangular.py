"""Inverses of triangular matrices, and what LAPACK is asked for in a step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._jaxprs import subjaxprs
from linboost_optax._solvers.triangular import lower_inverse

# Measured: above these widths its threads spin for tens of milliseconds when done.
WIDEST = {"triangular_solve": 16, "cholesky": 128, "eigh": 64}
# They do at widths that are common, so that steps do without.
WIDEST |= dict.fromkeys(("qr", "geqrf", "householder_product", "svd", "lu"), 0)


def factors(n, condition, blocks=2):
    """Cholesky factors of matrices of a condition number."""
    rng = np.random.default_rng(n)
    basis = np.linalg.qr(rng.normal(size=(blocks, n, n)))[0]
    values = np.logspace(0, -np.log10(condition), n)
    return np.linalg.cholesky((basis * values) @ np.swapaxes(basis, 1, 2))


@pytest.mark.parametrize("condition", [1e0, 1e4, 1e8])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 32, 33, 63, 100, 128, 200])
def test_the_inverse_is_that_of_the_matrix(n, condition):
    with jax.enable_x64(True):
        lower = factors(n, condition)
        got = np.asarray(jax.jit(lower_inverse)(jnp.asarray(lower)))
        np.testing.assert_array_equal(got, np.tril(got))
        # Rounding alone, times the condition number of the factor.
        left = np.linalg.norm(got @ lower - np.eye(n), axis=(1, 2))
        bound = 8 * n * np.finfo(np.float64).eps * np.sqrt(condition)
        assert left.max() < bound
        want = np.linalg.inv(lower)
        error = np.linalg.norm(got - want, axis=(1, 2))
        assert (error / np.linalg.norm(want, axis=(1, 2))).max() < bound


def test_in_float32_it_is_as_good_as_a_triangular_solve():
    lower = factors(100, 1e6).astype(np.float32)
    want = np.linalg.inv(lower.astype(np.float64))
    identity = jnp.broadcast_to(jnp.eye(100), lower.shape)
    solved = jax.lax.linalg.triangular_solve(
        lower, identity, left_side=True, lower=True
    )
    ours, theirs = (
        np.abs(each - want).max() for each in (lower_inverse(lower), solved)
    )
    assert ours < 4 * theirs


def test_what_is_not_finite_stays_so():
    lower = jnp.eye(40)[None].at[0, 30, 3].set(jnp.nan)
    assert not bool(jnp.all(jnp.isfinite(lower_inverse(lower))))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in subjaxprs(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize(
    "make",
    [
        lambda taps: lbo.lnb(0.1, taps),
        lambda taps: lbo.whiten(optax.adamw(1e-3, weight_decay=0.1), taps),
        lambda taps: lbo.polar(1e-2, taps, weight_decay=0.1),
    ],
    ids=["lnb", "whiten", "polar"],
)
def test_no_step_wakes_threads_of_its_own(make):
    """Default steps of layers on both sides of all limits, read from the program."""
    model = nn.Sequential([nn.Dense(n) for n in (100, 200, 70, 300, 128, 10)])
    x = jnp.ones((4, 90))
    taps = linen.taps(model, x)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    tx = make(taps)
    state = jax.eval_shape(tx.init, params)
    stats = jax.eval_shape(taps.zeros)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam
        program = jax.make_jaxpr(lambda p, s, v: tx.update(p, s, p, stats=v))(
            params, state, stats
        )
    widths = {}
    for equation in equations(program.jaxpr):
        name = equation.primitive.name
        if name in WIDEST:
            widths.setdefault(name, set()).add(equation.invars[0].aval.shape[-1])
    assert "eigh" in widths
    for name, found in widths.items():
        assert max(found) <= WIDEST[name], (name, found)
