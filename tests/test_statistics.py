"""Statistics against NumPy, in every dtype, and their counts under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import _statistics
from linboost_optax._statistics import Gram, Moments, accumulation_dtype

F32 = jnp.dtype(jnp.float32)
# float32 sums of 64 terms of order one
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def samples(dtype="float32", shape=(64, 2, 3)):
    return jax.random.normal(jax.random.key(0), shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_moments(dtype):
    x = samples(dtype)
    got, wide = _statistics.moments(x, F32), np.asarray(x, np.float64)
    assert [leaf.dtype for leaf in got] == [F32] * 3
    assert got.count.tolist() == [64]
    np.testing.assert_allclose(got.sum, wide.sum(0), **FLOAT32)
    np.testing.assert_allclose(got.sum_sq, np.square(wide).sum(0), **FLOAT32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8", "int32"])
def test_gram(dtype):
    # 200 squared overflows uint8: integers are widened before the product.
    x = (samples() * 10 + 200).astype(dtype) if dtype == "uint8" else samples(dtype)
    design = jnp.moveaxis(x, 1, 0)
    got, wide = _statistics.gram(design, F32), np.asarray(design, np.float64)
    assert [leaf.dtype for leaf in got] == [F32] * 3
    assert got.count.tolist() == [64]
    np.testing.assert_allclose(got.sum, wide.sum(1), **FLOAT32)
    np.testing.assert_allclose(
        got.outer, np.einsum("gnd,gne->gde", wide, wide), **FLOAT32
    )


def test_bfloat16_counts_beyond_its_own_precision():
    # bfloat16 cannot represent 257; a sum in it would stick at 256.
    ones = jnp.ones((1000, 1, 1), jnp.bfloat16)
    assert _statistics.moments(ones, F32) == Moments(1000, 1000, 1000)
    assert _statistics.gram(ones[None, :, 0], F32) == Gram(1000, 1000, 1000)


def test_float64():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (64, 2, 3), jnp.float64)
        f64 = jnp.dtype(jnp.float64)
        got = _statistics.gram(jnp.moveaxis(x, 1, 0), f64)
        want = np.einsum("ngd,nge->gde", x, x)
        assert got.outer.dtype == f64
        np.testing.assert_allclose(got.outer, want, rtol=0, atol=1e-12)
        narrowed = _statistics.gram(jnp.moveaxis(x, 1, 0), F32)
        assert {leaf.dtype for leaf in narrowed} == {F32}
        assert {leaf.dtype for leaf in _statistics.moments(x, F32)} == {F32}


def test_token_moments():
    tokens = jnp.array([[0, 2, 2], [1, 2, 0]])
    got, onehot = _statistics.token_moments(tokens, 4, F32), np.eye(4)[tokens.ravel()]
    assert got.count.tolist() == [6]
    np.testing.assert_array_equal(got.sum, onehot.sum(0)[None])
    np.testing.assert_array_equal(got.sum_sq, np.square(onehot).sum(0)[None])


@pytest.mark.parametrize(
    ("dtypes", "want"),
    [
        (["float32"], "float32"),
        (["bfloat16"], "float32"),
        (["int32", "float16"], "float32"),
        (["float32", "float64"], "float64"),
    ],
)
def test_accumulation_dtype(dtypes, want):
    assert accumulation_dtype(*dtypes) == jnp.dtype(want)


@pytest.mark.parametrize("value", [1.0, 0.0, jnp.nan, jnp.inf])
def test_batched_ones_is_one_whatever_the_input(value):
    assert _statistics.batched_ones(jnp.full(3, value), F32).tolist() == [1, 1, 1]


def test_no_samples():
    assert _statistics.moments(jnp.zeros((0, 1, 2)), F32).count.tolist() == [0]
    empty = _statistics.gram(jnp.zeros((1, 0, 2)), F32)
    assert empty.count.tolist() == [0]
    np.testing.assert_array_equal(empty.outer, np.zeros((1, 2, 2)))
