"""The tap: identity forward, statistics backward, clear errors, a readable table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
import linboost_optax.extend
from linboost_optax._statistics.inputs import InputRows
from linboost_optax._taps import Plain, Tap, Taps
from tests.oracle import probes

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def zeros(statistic, d=3):
    return lbo.dense_taps({"a": (d, 2)}, statistic).zeros()["a"]


def batch(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def loss(kernel, t, x):
    return jnp.sum(jnp.square(jnp.sin(lbo.tap(x, t)) @ kernel))


@pytest.mark.parametrize("statistic", ["moments", "gram"])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
def test_tap_emits_and_changes_nothing(statistic, shape):
    x, kernel = batch(*shape), batch(3, 2)
    t = zeros(statistic)
    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(kernel, t, x)
    plain = lambda k, x: jnp.sum(jnp.square(jnp.sin(x) @ k))  # noqa: E731
    want, want_grads = jax.value_and_grad(plain, argnums=(0, 1))(kernel, x)
    assert value == want
    np.testing.assert_allclose(grads[0], want_grads[0], **FLOAT32)
    np.testing.assert_allclose(grads[2], want_grads[1], **FLOAT32)
    rows = np.asarray(x, np.float64).reshape(-1, 3)
    measured = grads[1].value
    assert measured.count.tolist() == [len(rows)]
    np.testing.assert_allclose(measured.sum[0], rows.sum(0), **FLOAT32)
    if statistic == "gram":
        np.testing.assert_allclose(measured.outer[0], rows.T @ rows, **FLOAT32)
    else:
        square = np.square(rows).sum(0)
        np.testing.assert_allclose(measured.sum_sq[0], square, **FLOAT32)


def test_raw_inputs():
    x, layer = batch(5, 3), lbo.dense_taps({"a": (3, 2)}).layers[0]
    layer = replace(layer, statistic=lbo.Inputs(), input_shape=(5, 3))
    t = Tap(InputRows(jnp.zeros((5, 3)), jnp.zeros(5), jnp.zeros(1)), layer)
    got = jax.grad(loss, argnums=1)(batch(3, 2), t, x).value
    np.testing.assert_array_equal(got.x, x)
    assert got.uses.tolist() == [1]
    match = r"layer 'a' has `statistic` 'inputs' for inputs of shape \(5, 3\), got \(4,"
    with pytest.raises(ValueError, match=match):
        lbo.tap(batch(4, 3), t)


def test_statistics_do_not_depend_on_the_cotangent():
    x, t = batch(5, 3), zeros("gram")
    scaled = lambda t, s: s * jnp.sum(lbo.tap(x, t))  # noqa: E731
    one, tiny = (jax.grad(scaled)(t, s) for s in (1.0, 1e-30))
    np.testing.assert_array_equal(one.value.outer, tiny.value.outer)


@pytest.mark.parametrize("statistic", ["moments", "gram"])
def test_each_example_counts_under_vmap(statistic):
    x, kernel = batch(4, 3), batch(3, 2)
    total = lambda t: jnp.sum(jax.vmap(lambda r: loss(kernel, t, r))(x))  # noqa: E731
    got = jax.grad(total)(zeros(statistic))
    want = jax.grad(lambda t: loss(kernel, t, x))(zeros(statistic))
    assert got.value.count.tolist() == [4]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **FLOAT32)


def test_gradient_with_respect_to_inputs_inside_the_loss():
    x, kernel = batch(4, 3), batch(3, 2)

    def penalty(t):
        slope = jax.vmap(jax.grad(lambda r: loss(kernel, t, r)))(x)
        return jnp.sum(jnp.square(slope))

    got = jax.grad(penalty)(zeros("gram")).value
    assert got.count.tolist() == [4]
    np.testing.assert_allclose(got.outer[0], x.T @ x, **FLOAT32)


def test_bfloat16_inputs_have_float32_statistics():
    x = batch(300, 3).astype(jnp.bfloat16)
    assert lbo.tap(x, zeros("gram")).dtype == jnp.bfloat16
    got = jax.grad(lambda t: jnp.sum(lbo.tap(x, t)))(zeros("gram")).value
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    assert got.count.tolist() == [300]


def test_integer_inputs_are_refused():
    with pytest.raises(TypeError, match="`x` must be floating, got int32"):
        lbo.tap(jnp.ones((2, 3), jnp.int32), zeros("gram"))


@pytest.mark.parametrize("t", [jnp.zeros(3), zeros("gram").value])
def test_anything_else_than_a_tap_is_refused(t):
    with pytest.raises(TypeError, match=r"`t` must be a tap, got .*`taps\.zeros"):
        lbo.tap(batch(2, 3), t)


@pytest.mark.parametrize("statistic", ["moments", "gram", "sketch"])
def test_a_tap_of_another_width_is_refused(statistic):
    with pytest.raises(ValueError, match="`x` must have width 4 to match the tap of"):
        lbo.tap(batch(2, 3), zeros(statistic, 4))


def test_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match="`statistic` must be one of 'auto', 'moments"):
        lbo.dense_taps({"a": (3, 2)}, "grams")
    with pytest.raises(ValueError, match="`statistic` must be additive, got Inputs"):
        lbo.dense_taps({"a": (3, 2)}, "inputs")
    with pytest.raises(ValueError, match="`dtype` must be float32 or float64, got bf"):
        lbo.dense_taps({"a": (3, 2)}, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="`dtype` must be float32 where JAX computes"):
        lbo.dense_taps({"a": (3, 2)}, dtype="float64")
    with jax.enable_x64(True):
        (t,) = lbo.dense_taps({"a": (3, 2)}, dtype="float64").zeros().values()
        assert t.value.sum.dtype == jnp.float64


def test_kernel_with_more_axes_is_refused():
    with pytest.raises(
        ValueError, match=r"`shapes\['a'\]` must be \(feature, output\)"
    ):
        lbo.dense_taps({"a": (3, 3, 2)})  # type: ignore[dict-item]


def test_dense_taps_names():
    taps = lbo.dense_taps({"net/a": (3, 2)}, kernel="w", bias=None)
    (layer,) = taps.layers
    assert (layer.path, layer.kernel, layer.bias) == (("net", "a"), "w", None)
    assert layer.key == "net/a"


def test_taps_are_static():
    taps = lbo.dense_taps({"a": (3, 2)})
    assert hash(taps) == hash(lbo.dense_taps({"a": (3, 2)}))
    assert taps != lbo.dense_taps({"a": (4, 2)})


def test_zeros_are_zero():
    for leaf in jax.tree.leaves(zeros("gram")):
        assert not leaf.any()


def test_table():
    taps = lbo.dense_taps({"first": (100, 2), "second": (3, 2)}, "gram")
    taps = Taps(taps.layers, (Plain("scale", (2,), "a reason"), Plain("t", (), "b")))
    assert str(taps).split("\n") == [
        "path    kind          kernel  inputs  statistic   bytes",
        "first   Dense + bias  100x2   any     gram       40,404",
        "second  Dense + bias  3x2     any     gram           52",
        "scale   -             2       -       plain           0  (a reason)",
        "t       -             scalar  -       plain           0  (b)",
        "statistics: 40,456 bytes",
    ]
    assert repr(taps) == str(taps)


def test_wide_layers_of_hand_written_code_take_a_sketch():
    shapes = {"narrow": (4, 2), "wide": (9, 2)}
    taps = lbo.dense_taps(shapes, lbo.Auto(rank=3, max_samples=None))
    want = [lbo.Gram(), lbo.Sketch(rank=3)]
    assert [layer.statistic for layer in taps.layers] == want
    x, zeros = batch(5, 9), taps.zeros()
    stat = jax.grad(lambda t: jnp.sum(lbo.tap(x, t)))(zeros["wide"]).value
    seen = np.asarray(x.T) @ (np.asarray(x) @ probes(9, 3))
    np.testing.assert_allclose(stat.outer[0], seen, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stat.sum_sq[0], jnp.sum(x**2, axis=0), rtol=1e-5)


def test_max_samples_of_hand_written_code():
    taps = lbo.dense_taps({"a": (3, 2)}, lbo.Gram(max_samples=4))
    x = batch(9, 3)
    stat = jax.grad(lambda t: jnp.sum(lbo.tap(x, t)))(taps.zeros()["a"]).value
    assert stat.count.tolist() == [4]
    # The moments that published solvers read are of all rows all the same.
    assert stat.channels.count.tolist() == [9]
    np.testing.assert_allclose(stat.channels.sum[0], x.sum(0), rtol=1e-5)


def test_names_with_a_slash_do_not_collide():
    taps = lbo.dense_taps({"a/b": (3, 2), "a//b": (3, 2), "mlp//~//0": (3, 2)})
    layer, other, haiku = taps.layers
    assert (layer.path, other.path) == (("a", "b"), ("a/b",))
    assert haiku.path == ("mlp/~/0",)
    assert set(taps.zeros()) == {"a/b", "a//b", "mlp//~//0"}
    with pytest.raises(ValueError, match="names of their own, got 'a/b' twice"):
        Taps((layer, layer))


class Cotangents(lbo.extend.Statistic):
    """The sum of what comes back to a layer's output."""

    name = "cotangents"

    def shapes(self, layer):
        return lbo.extend.struct(layer, 1, layer.kind.outputs)

    def measure(self, layer, x, g):
        if g is None:
            return jnp.full((1, layer.kind.outputs), -1.0)
        return jnp.sum(g, axis=0, keepdims=True)

    def moments(self, layer, value):
        raise NotImplementedError


def test_a_tap_on_input_and_output_sees_the_cotangent():
    (t,) = lbo.dense_taps({"a": (3, 2)}, Cotangents()).zeros().values()
    x, kernel = batch(5, 3), batch(3, 2)
    outside = lambda t: jnp.sum(jnp.sin(lbo.tap(x, t, x @ kernel)))  # noqa: E731
    got = jax.grad(outside)(t).value
    want = jnp.sum(jnp.cos(x @ kernel), axis=0, keepdims=True)
    np.testing.assert_allclose(got, want, **FLOAT32)
    inside = lambda t: jnp.sum(lbo.tap(x, t) @ kernel)  # noqa: E731
    np.testing.assert_array_equal(jax.grad(inside)(t).value, [[-1.0, -1.0]])
