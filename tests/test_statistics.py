"""Statistics against NumPy, in every dtype, and their counts under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
from linboost_optax import _statistics
from linboost_optax._kinds import Embed
from linboost_optax._layer import Layer
from linboost_optax._statistics.base import accumulation_dtype, batched_ones
from linboost_optax._statistics.gram import GramSums, gram_sums
from linboost_optax._statistics.moments import MomentSums, channel_sums

F32 = jnp.dtype(jnp.float32)
# float32 sums of 64 terms of order one
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def samples(dtype="float32", shape=(64, 2, 3)):
    return jax.random.normal(jax.random.key(0), shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_moments(dtype):
    x = samples(dtype)
    got, wide = channel_sums(x, F32), np.asarray(x, np.float64)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [F32] * 3
    assert got.count.tolist() == [64]
    np.testing.assert_allclose(got.sum, wide.sum(0), **FLOAT32)
    np.testing.assert_allclose(got.sum_sq, np.square(wide).sum(0), **FLOAT32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8", "int32"])
def test_gram(dtype):
    # 200 squared overflows uint8: integers are widened before the product.
    x = (samples() * 10 + 200).astype(dtype) if dtype == "uint8" else samples(dtype)
    design = jnp.moveaxis(x, 1, 0)
    got, wide = gram_sums(design, F32), np.asarray(design, np.float64)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [F32] * 3
    assert got.count.tolist() == [64]
    np.testing.assert_allclose(got.sum, wide.sum(1), **FLOAT32)
    np.testing.assert_allclose(
        got.outer, np.einsum("gnd,gne->gde", wide, wide), **FLOAT32
    )


def test_bfloat16_counts_beyond_its_own_precision():
    # bfloat16 cannot represent 257; a sum in it would stick at 256.
    ones = jnp.ones((1000, 1, 1), jnp.bfloat16)
    assert channel_sums(ones, F32) == MomentSums(1000, 1000, 1000)
    assert gram_sums(ones[None, :, 0], F32) == GramSums(1000, 1000, 1000)


def test_float64():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (64, 2, 3), jnp.float64)
        f64 = jnp.dtype(jnp.float64)
        got = gram_sums(jnp.moveaxis(x, 1, 0), f64)
        want = np.einsum("ngd,nge->gde", x, x)
        assert got.outer.dtype == f64
        np.testing.assert_allclose(got.outer, want, rtol=0, atol=1e-12)
        narrowed = gram_sums(jnp.moveaxis(x, 1, 0), F32)
        assert {leaf.dtype for leaf in jax.tree.leaves(narrowed)} == {F32}
        assert {leaf.dtype for leaf in channel_sums(x, F32)} == {F32}


def test_counts_of_tokens():
    tokens = jnp.array([[0, 2, 2], [1, 2, 0]])
    layer = Layer((), Embed(4, 3), lbo.Counts(), (2, 3), bias=None)
    got, onehot = layer.statistic.measure(layer, tokens), np.eye(4)[tokens.ravel()]
    assert got.count.tolist() == [6]
    np.testing.assert_array_equal(got.sum, onehot.sum(0)[None])
    moments = layer.statistic.moments(layer, got)
    np.testing.assert_allclose(moments.mean[0], onehot.mean(0), **FLOAT32)
    np.testing.assert_allclose(moments.mean_sq[0], np.square(onehot).mean(0), **FLOAT32)


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
    assert batched_ones(jnp.full(3, value), F32).tolist() == [1, 1, 1]


def test_no_samples():
    assert channel_sums(jnp.zeros((0, 1, 2)), F32).count.tolist() == [0]
    empty = gram_sums(jnp.zeros((1, 0, 2)), F32)
    assert empty.count.tolist() == [0]
    np.testing.assert_array_equal(empty.outer, np.zeros((1, 2, 2)))


def test_names_stand_for_defaults():
    named = {name: _statistics.resolve(name) for name in ("auto", "gram", "moments")}
    assert named == {"auto": lbo.Auto(), "gram": lbo.Gram(), "moments": lbo.Moments()}
    assert _statistics.resolve(lbo.Sketch(3)) == lbo.Sketch(3)


@pytest.mark.parametrize("asked", [lbo.Gram, None, 3, lambda kind: lbo.Gram()])
def test_anything_else_than_a_statistic_is_refused(asked):
    with pytest.raises(TypeError, match="`statistic` must be a statistic or the name"):
        _statistics.resolve(asked)


@pytest.mark.parametrize("make", [lbo.Gram, lbo.Auto, lbo.Sketch])
def test_max_samples_must_be_positive(make):
    with pytest.raises(ValueError, match="`max_samples` must be >= 1, got 0"):
        make(max_samples=0)
    with pytest.raises(TypeError, match="`max_samples` must be a whole number, got"):
        make(max_samples=1.5)


@pytest.mark.parametrize("make", [lbo.Auto, lbo.Sketch])
def test_rank_must_be_positive(make):
    with pytest.raises(ValueError, match="`rank` must be >= 1, got 0"):
        make(rank=0)


def test_a_statistic_must_say_how_it_is_measured():
    class Nothing(lbo._statistics.Statistic):
        name = "nothing"

    with pytest.raises(TypeError, match="abstract"):
        Nothing()
