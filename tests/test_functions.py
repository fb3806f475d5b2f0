"""Layers are read off functions: whatever is multiplied with data, however it is held.

Expected statistics are NumPy's second moments of the inputs as written out here.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import extend
from linboost_optax._arrangement import Arrangement, arrange, reshape, whole

pytestmark = pytest.mark.lenient("functions as users write them")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 6, 3)
W, B = normal(1, 3, 4), normal(2, 4)


def gram(*inputs):
    """The sum of outer products of all rows."""
    rows = [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in inputs]
    return sum(x.T @ x for x in rows), sum(len(x) for x in rows)


def collect(function, params, *args, loss=None, **options):
    """The taps of a function, and the statistics of the mean of its squares."""
    taps = lbo.taps(function, params, *args, statistic="gram", **options)

    def mean_square(params, *args):
        return jnp.mean(function(params, *args) ** 2)

    loss = loss or mean_square
    for how in (lambda f: f, jax.jit):
        value, grads, stats = how(lbo.value_and_grad(loss, taps))(params, *args)
        want, plain = jax.value_and_grad(loss)(params, *args)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(plain)):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    return taps, stats


def check(stat, *inputs, block=0):
    outer, count = gram(*inputs)
    np.testing.assert_allclose(stat.outer[block], outer, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(stat.count, count)


PARAMS = {"w": W, "b": B}


@pytest.mark.parametrize(
    ("function", "params"),
    [
        (lambda p, x: x @ p["w"] + p["b"], PARAMS),
        (lambda p, x: jnp.dot(x, p["w"]) + p["b"][None], PARAMS),
        (lambda p, x: (p["w"] @ x.T + p["b"][:, None]).T, {"w": W.T, "b": B}),
        (
            lambda p, x: jax.vmap(lambda x: p["w"] @ x + p["b"])(x),
            {"w": W.T, "b": B},
        ),
        (lambda p, x: p["b"] + jnp.einsum("ni,oi->no", x, p["w"]), {"w": W.T, "b": B}),
        (lambda p, x: x @ p["w"].astype(jnp.float32)[:, ::-1] + p["b"], PARAMS),
        (
            lambda p, x: x @ p["w"].reshape(3, 4) + p["b"].reshape(-1),
            {"w": W.reshape(3, 2, 2), "b": B.reshape(2, 2)},
        ),
        (lambda p, x: jax.jit(lambda p, x: x @ p["w"])(p, x) + p["b"], PARAMS),
        (lambda p, x: jax.checkpoint(lambda p, x: x @ p["w"] + p["b"])(p, x), PARAMS),
    ],
)
def test_a_dense_layer_however_it_is_written(function, params):
    taps, stats = collect(function, params, X)
    (layer,) = taps.layers
    assert (layer.kernel, layer.bias, taps.plain) == ("w", "b", ())
    check(stats[""], X)


def test_the_step_is_that_of_the_layer_as_a_matrix():
    """A transposed, reshaped kernel is solved as the plain one is."""
    x = normal(5, 40, 3)

    def plain(p, x):
        return x @ p["w"] + p["b"]

    def other(p, x):
        return (p["w"].reshape(4, 3) @ x.T + p["b"].reshape(4, 1)).T

    steps = []
    for function, params in (
        (plain, PARAMS),
        (other, {"w": W.T.reshape(2, 2, 3), "b": B.reshape(2, 2)}),
    ):
        taps, stats = collect(function, params, x)
        grads = jax.grad(lambda p, f=function: jnp.mean(f(p, x) ** 2))(params)
        for tx in (lbo.lnb(0.1, taps), lbo.whiten(optax.adam(0.1, eps=1e-3), taps)):
            updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
            w = np.asarray(updates["w"])
            steps.append(
                (w if w.ndim == 2 else w.reshape(4, 3).T, updates["b"].ravel())
            )
    for one, same in ((steps[0], steps[2]), (steps[1], steps[3])):
        np.testing.assert_allclose(one[0], same[0], rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(one[1], same[1], rtol=2e-4, atol=1e-6)


def test_parameters_in_lists_tuples_and_one_dictionary():
    x1 = np.tanh(np.asarray(X @ W + B))
    w, b = normal(3, 4, 2), normal(4, 2)

    def lists(p, x):
        for w, b in p:
            x = jnp.tanh(x @ w + b)
        return x

    taps, stats = collect(lists, [(W, B), (w, b)], X)
    assert [str(layer) for layer in taps.layers] == ["0", "1"]
    check(stats["1"], x1)

    def flat(p, x):
        return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    taps, stats = collect(flat, {"w1": W, "b1": B, "w2": w, "b2": b}, X)
    assert [str(layer) for layer in taps.layers] == ["w1", "w2"]
    assert [layer.bias for layer in taps.layers] == ["b1", "b2"]
    check(stats["w2"], x1)


def test_parameters_that_are_one_array():
    taps, stats = collect(lambda w, x: x @ w, W, X)
    check(stats[""], X)
    tx = lbo.lnb(0.1, taps, lbo.Cholesky(shrinkage=0.0))
    updates, _ = tx.update(W, tx.init(W), W, stats=stats)
    moment = np.asarray(X, np.float64).T @ X / 6
    ridge = 1e-3 * np.eye(3) * np.trace(moment) / 3
    direction = np.linalg.solve(moment + ridge, np.asarray(W, np.float64))
    cosine = np.sum(updates * direction) / np.linalg.norm(direction)
    np.testing.assert_allclose(-cosine / np.linalg.norm(updates), 1, atol=1e-3)


def test_two_kernels_and_one_bias():
    h = normal(7, 6, 5)
    params = {"wx": W, "wh": normal(8, 5, 4), "b": B}
    taps, stats = collect(
        lambda p, x, h: x @ p["wx"] + h @ p["wh"] + p["b"], params, X, h
    )
    assert [layer.biased for layer in taps.layers].count(True) == 1
    check(stats["wx"], X)
    check(stats["wh"], h)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_bias_of_a_sum_is_that_of_its_last_product(swapped):
    params = {"t": normal(3, 5, 3), "w": normal(4, 3, 3), "b": normal(5, 3)}
    tokens = jnp.array([0, 4, 4])

    def function(p, i):
        x = p["t"][i]
        y = jnp.tanh(x) @ p["w"]
        return (y + x if swapped else x + y) + p["b"]

    taps, stats = collect(function, params, tokens)
    assert {str(layer): layer.bias for layer in taps.layers} == {"t": None, "w": "b"}
    check(stats["w"], jnp.tanh(params["t"][tokens]))


def test_tokens_one_at_a_time():
    table, tokens = normal(1, 5, 2), jnp.array([[0, 1, 1], [4, 0, 1]])
    one = lambda p, i: p["t"][i]  # noqa: E731
    for function in (
        jax.vmap(jax.vmap(one, (None, 0)), (None, 0)),
        lambda p, i: jax.lax.map(lambda i: one(p, i), i.reshape(-1)),
    ):
        taps = lbo.taps(function, {"t": table}, tokens)
        assert taps.layers[0].kind == extend.Embed(5, 2)
        loss = lambda p, i, f=function: jnp.sum(f(p, i) ** 2)  # noqa: E731
        _, _, stats = lbo.value_and_grad(loss, taps)({"t": table}, tokens)
        np.testing.assert_allclose(stats[""].sum[0], [2, 3, 0, 0, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_stacked_along_any_axis_and_scanned(axis):
    w = normal(3, 2, 3, 3)
    params = {"w": jnp.moveaxis(w, 0, axis), "b": normal(4, 2, 3)}

    def function(p, x):
        def body(x, layer):
            return jnp.tanh(x @ layer[0] + layer[1]), None

        return jax.lax.scan(body, x, (jnp.moveaxis(p["w"], axis, 0), p["b"]))[0]

    taps, stats = collect(function, params, X)
    (layer,) = taps.layers
    assert layer.stack == (2,)
    inputs = [X, jnp.tanh(X @ w[0] + params["b"][0])]
    for i, x in enumerate(inputs):
        np.testing.assert_allclose(stats[""].outer[i, 0], gram(x)[0], rtol=2e-5)
    tx = lbo.lnb(0.1, taps)
    grads = jax.grad(lambda p: jnp.mean(function(p, X) ** 2))(params)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    assert updates["w"].shape == params["w"].shape


def test_a_stack_that_is_walked_over_in_python():
    w, b = normal(3, 2, 3, 3), normal(4, 2, 3)

    def function(p, x):
        for i in range(2):
            x = jnp.tanh(x @ p["w"][i] + p["b"][i])
        return x

    taps, stats = collect(function, {"w": w, "b": b}, X)
    (layer,) = taps.layers
    assert (layer.stack, layer.biased) == ((2,), True)
    for i, x in enumerate([X, jnp.tanh(X @ w[0] + b[0])]):
        np.testing.assert_allclose(stats[""].outer[i, 0], gram(x)[0], rtol=2e-5)
        np.testing.assert_allclose(stats[""].count[i], 6)


def test_convolutions_that_are_mapped_over_their_kernels():
    x, w, b = normal(0, 2, 5, 7, 3), normal(1, 2, 3, 3, 4), normal(2, 2, 4)

    def one(w, b, x):
        numbers = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=numbers)
        return y + b

    taps, stats = collect(
        lambda p, x: jax.vmap(one)(p["w"], p["b"], x), {"w": w, "b": b}, x
    )
    (layer,) = taps.layers
    assert (layer.blocks, layer.biased) == (2, True)
    for i in range(2):
        windows = np.stack([np.asarray(x[i, :, k : k + 5]) for k in range(3)], axis=2)
        outer = gram(windows.reshape(-1, 9))[0]
        np.testing.assert_allclose(stats[""].outer[i], outer, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda p, x: x @ p["w"] + p["b"] + p["b"], None),
        (lambda p, x: (x @ p["w"] + p["b"]) * p["b"], None),
        (lambda p, x: jnp.stack([x @ p["w"] + p["b"], x @ p["v"] + p["b"]]), None),
        (lambda p, x: x @ p["w"] + p["b"][0], None),
        (lambda p, x: x @ p["w"] + p["b"] * (x[:, :1] > 0), None),
        (lambda p, x: (x @ p["w"])[:, :1] + p["b"], None),
        (
            lambda p, x: x @ p["w"] + jnp.sum(x[:, :, None] * p["w"], 1),
            "element by elem",
        ),
        (lambda p, x: jnp.hstack([x @ p["w"][:, :2], x @ p["w"][:, 2:]]), "a part"),
    ],
)
def test_parameters_that_are_something_else_too(function, reason):
    """A bias that data meets again is no bias; such a kernel is no layer."""
    params = {**PARAMS, "v": normal(3, 3, 4)}

    def model(p, x):
        return function(p, x) + jnp.sum(x @ p["v"])

    taps = lbo.taps(model, params, X)
    plain = {p.path: p.reason for p in taps.plain}
    assert "b" in plain
    assert not any(layer.biased for layer in taps.layers)
    assert ("w" in plain) == (reason is not None)
    assert reason is None or reason in plain["w"]
    # The same in a loss, with taps of a call that was plain.
    if "v" in {layer.key for layer in taps.layers} and reason != "a part":
        usual = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X)
        with pytest.raises(ValueError, match="outside of the layer"):
            lbo.value_and_grad(lambda p, x: jnp.sum(function(p, x)), usual)(params, X)


@pytest.mark.parametrize(
    "other",
    [
        lambda w, z: z @ jnp.stack([w[:, i] for i in range(4)], 1),
        lambda w, z: z @ jnp.concatenate([w[:, :2], w[:, 2:]], 1),
        lambda w, z: z @ jnp.tile(w, (1, 2)),
        lambda w, z: z @ jnp.concatenate([w[:2], jnp.zeros((1, 4))]),
        lambda w, z: z @ w.at[0].set(0.0),
        lambda w, z: z @ jax.lax.dynamic_update_slice(jnp.zeros((3, 4)), w, (0, 0)),
        lambda w, z: z @ jnp.cumsum(w, 0),
        lambda w, z: z @ jnp.linalg.qr(w)[0],
        lambda w, z: jnp.einsum("bi,io->b", z, w),
        lambda w, z: jnp.sum(z[0][:, None] * w, 0),
        lambda w, z: jax.lax.map(lambda row: z[:, :1] * row, w),
        lambda w, z: z @ jax.lax.reduce(w, 0.0, jax.lax.add, (1,))[:, None],
        lambda w, z: jax.scipy.linalg.solve_triangular(w[:, :3], z.T),
    ],
)
def test_a_kernel_that_meets_data_in_ways_that_are_not_read(other):
    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X)

    def loss(p, x):
        y = jnp.mean((x @ p["w"] + p["b"]) ** 2)
        return y + jnp.mean(other(p["w"], 2 * x) ** 2)

    with pytest.raises(ValueError, match="outside of the layer's own call"):
        lbo.value_and_grad(loss, taps)(PARAMS, X)

    def plain(p, x):
        return jnp.sum(other(p["w"], x)) + x @ p["v"]

    taps = lbo.taps(plain, {"w": W, "v": W}, X)
    assert "w" in {p.path for p in taps.plain}


def test_complex_data_and_vectors_in_a_loss():
    def function(p, x):
        return x @ p["w"] + (x @ p["v"])[:, None]

    params = {"w": W, "v": W[:, 0]}
    taps = lbo.taps(function, params, X)
    with pytest.raises(ValueError, match="its inputs are complex"):
        lbo.value_and_grad(
            lambda p, x: jnp.sum(jnp.abs(function(p, x * (1 + 1j)))), taps
        )(params, X)
    with pytest.raises(ValueError, match="data meets it element by element"):
        lbo.value_and_grad(
            lambda p, x: (
                jnp.sum(function(p, x) ** 2) + jnp.sum(jnp.sum(x * p["v"], 1) ** 2)
            ),
            taps,
        )(params, X)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda w, z: (z @ w) / jnp.linalg.norm(w, axis=0), 12),
        (lambda w, z: z @ (w / jnp.linalg.norm(w, axis=0)), 12),
        (lambda w, z: z @ jax.lax.stop_gradient(w), 6),
        (lambda w, z: jnp.sum(jnp.cumsum(w, 0) ** 2) + jnp.max(jnp.sort(w)), 6),
        (lambda w, z: z @ (w * (z[:1].T > 0)), 12),
    ],
)
def test_norms_penalties_and_masks_of_a_kernel_are_no_other_use(function, count):
    taps = lbo.taps(lambda w, x: x @ w, W, X, statistic="gram")
    z = 2 * X[::-1]

    def loss(w, x):
        return jnp.mean((x @ w) ** 2) + jnp.mean(function(w, z) ** 2)

    _, grads, stats = lbo.value_and_grad(loss, taps)(W, X)
    np.testing.assert_allclose(grads, jax.grad(loss)(W, X), rtol=1e-4, atol=1e-5)
    check(stats[""], *([X, z] if count == 12 else [X]))


@pytest.mark.parametrize("mode", ["fill", "clip", "drop"])
def test_tokens_out_of_range_are_counted_as_they_are_read(mode):
    tokens, table = jnp.array([0, 4, 5, 7, -1, -7]), normal(1, 5, 2)

    def function(p, i):
        return p["t"].at[i].get(mode=mode, fill_value=0)

    taps = lbo.taps(function, {"t": table}, tokens)
    loss = lambda p, i: jnp.sum(function(p, i) * 3.0)  # noqa: E731
    _, grads, stats = lbo.value_and_grad(loss, taps)({"t": table}, tokens)
    # The gradient adds 3 up for every time that a row is read.
    np.testing.assert_allclose(stats[""].sum[0], grads["t"][:, 0] / 3)


def test_look_ups_of_columns():
    tokens, table = jnp.array([[0, 1, 1], [4, 0, 1]]), normal(1, 2, 5)
    taps = lbo.taps(lambda p, i: p["t"][:, i], {"t": table}, tokens)
    loss = lambda p, i: jnp.sum(p["t"][:, i] ** 2)  # noqa: E731
    _, _, stats = lbo.value_and_grad(loss, taps)({"t": table}, tokens)
    np.testing.assert_allclose(stats[""].sum[0], [2, 3, 0, 0, 1])


def test_a_kernel_in_a_loop_over_time():
    def function(p, x):
        def body(h, x):
            h = jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"])
            return h, h

        return jax.lax.scan(body, jnp.zeros((6, 4)), x)[1]

    params = {**PARAMS, "u": normal(3, 4, 4)}
    x = normal(9, 5, 6, 3)
    _, stats = collect(function, params, x)
    hidden = np.asarray(function(params, x))
    check(stats["w"], x)
    check(stats["u"], np.concatenate([np.zeros((1, 6, 4)), hidden[:-1]]))


@pytest.mark.parametrize("index", [0, 1])
def test_only_the_branch_that_runs(index):
    def function(p, x, index):
        def first(x):
            return x @ p["w"] + p["b"]

        def second(x):
            return (2 * x) @ p["w"] + p["b"]

        return jax.lax.switch(index, [first, second], x)

    _, stats = collect(function, PARAMS, X, index)
    check(stats[""], (index + 1) * X)


def test_changed_parameters_and_noise_of_every_example():
    masks = jax.random.bernoulli(jax.random.key(3), 0.5, (6, 3, 4))

    def function(p, x, masks):
        def one(x, mask):
            return x @ (p["w"] * mask) + p["b"]

        return jax.vmap(one)(x, masks)

    taps, stats = collect(function, PARAMS, X, masks)
    assert taps.layers[0].biased
    check(stats[""], X)


def test_averaged_copies_are_measured_both():
    params = {"one": PARAMS, "two": jax.tree.map(jnp.cos, PARAMS)}

    def function(p, x):
        mean = jax.tree.map(lambda a, b: (a + b) / 2, p["one"], p["two"])
        return x @ mean["w"] + mean["b"]

    taps, stats = collect(function, params, X)
    assert [layer.biased for layer in taps.layers] == [True, True]
    check(stats[taps.layers[0].stats_key], X)


@pytest.mark.parametrize(
    "look_up", [lambda t, i: t[i], lambda t, i: jnp.take(t, i, axis=0)]
)
@pytest.mark.parametrize("mapped", [False, True])
def test_rows_that_are_looked_up(look_up, mapped):
    tokens = jnp.array([[0, 1, 1], [4, 0, 1]])

    def one(p, i):
        return look_up(p["t"], i)

    function = jax.vmap(one, (None, 0)) if mapped else one
    taps = lbo.taps(function, {"t": normal(1, 5, 2)}, tokens)
    assert taps.layers[0].kind == extend.Embed(5, 2)

    def loss(p, i):
        return jnp.sum(function(p, i) ** 2)

    _, _, stats = lbo.value_and_grad(loss, taps)({"t": normal(1, 5, 2)}, tokens)
    np.testing.assert_allclose(stats[""].sum[0], [2, 3, 0, 0, 1])


def test_convolutions_channels_first_and_kernels_of_pytorch():
    x, w = normal(0, 2, 3, 7, 6), normal(1, 4, 3, 2, 3)
    b = normal(2, 4)

    def function(p, x):
        y = jax.lax.conv_general_dilated(x, p["w"], (1, 2), "VALID")  # NCHW, OIHW
        return y + p["b"][:, None, None]

    taps, stats = collect(function, {"w": w, "b": b}, x)
    (layer,) = taps.layers
    assert layer.biased
    patches = jax.lax.conv_general_dilated_patches(x, (2, 3), (1, 2), "VALID")
    patches = np.moveaxis(np.asarray(patches, np.float64), 1, -1).reshape(-1, 3, 2, 3)
    patches = np.moveaxis(patches, 1, -1).reshape(-1, 18)  # window, then channel
    np.testing.assert_allclose(stats[""].outer[0], patches.T @ patches, rtol=1e-4)


def test_experts_have_the_rows_that_reach_them():
    x, w, sizes = normal(0, 10, 3), normal(1, 3, 3, 4), jnp.array([4, 5, 1])

    def function(p, x, sizes):
        return jax.lax.ragged_dot(x, p["w"], sizes)

    taps, stats = collect(function, {"w": w}, x, sizes)
    assert taps.layers[0].kind == extend.Experts(3, 3, 4)
    for i, (start, stop) in enumerate([(0, 4), (4, 9), (9, 10)]):
        outer, _ = gram(x[start:stop])
        np.testing.assert_allclose(stats[""].outer[i], outer, rtol=1e-5, atol=1e-6)

    def dispatched(p, x):
        return jnp.einsum("ecd,edf->ecf", x, p["w"])

    x = normal(0, 3, 5, 3)
    _, stats = collect(dispatched, {"w": w}, x)
    for i in range(3):
        check(stats[""], x[i], block=i)


def test_data_that_a_loss_makes_itself():
    params = {"one": {"w": W, "b": B}, "two": {"w": normal(3, 4, 2)}}

    def function(p, x):
        return jnp.tanh(x @ p["one"]["w"] + p["one"]["b"]) @ p["two"]["w"]

    def loss(p, x):
        noise = jax.random.normal(jax.random.key(5), (7, 3))
        return jnp.mean(function(p, noise) ** 2) + jnp.mean(
            function(p, jnp.ones((2, 3)))
        )

    noise, ones = normal(5, 7, 3), jnp.ones((2, 3))
    _, stats = collect(function, params, X, loss=loss)
    check(stats["one"], noise, ones)
    check(stats["two"], *(jnp.tanh(x @ W + B) for x in (noise, ones)))


def test_layers_with_one_input_share_and_others_do_not():
    params = {"q": W, "k": W + 1, "v": W - 1, "o": W * 2}

    def function(p, x):
        q, k = x @ p["q"], x.astype(jnp.float32) @ p["k"]
        v = jnp.einsum("ni,io->no", x, p["v"])
        return q + k + v + (2 * x) @ p["o"]

    taps, stats = collect(function, params, X)
    assert {str(layer): layer.stats_key for layer in taps.layers} == {
        "q": "q",
        "k": "q",
        "v": "q",
        "o": "o",
    }
    check(stats["q"], X)
    check(stats["o"], 2 * X)


def test_penalties_on_norms_and_products_of_kernels_are_no_uses():
    def loss(p, x):
        y = jnp.mean((x @ p["w"] + p["b"]) ** 2)
        spectral = jnp.sum((p["w"].T @ p["w"] - jnp.eye(4)) ** 2)
        return y + spectral + sum(jnp.sum(jnp.square(leaf)) for leaf in p.values())

    def function(p, x):
        return x @ p["w"] + p["b"]

    _, stats = collect(function, PARAMS, X, loss=loss)
    check(stats[""], X)


def test_spectral_normalisation_by_hand():
    def function(p, x, u):
        v = jax.lax.stop_gradient(p["w"].T @ u)
        sigma = u @ p["w"] @ v
        return x @ (p["w"] / sigma) + p["b"]

    _, stats = collect(function, PARAMS, X, normal(3, 3))
    check(stats[""], X)


def test_gradients_in_a_loss_measure_the_inputs_once():
    def loss(p, x):
        slope = jax.vmap(jax.grad(lambda x: jnp.sum(jnp.tanh(x @ p["w"] + p["b"]))))(x)
        return jnp.mean(slope**2)

    def function(p, x):
        return x @ p["w"] + p["b"]

    _, stats = collect(function, PARAMS, X, loss=loss)
    check(stats[""], X)


def test_a_gradient_step_inside_the_loss():
    def function(p, x):
        return x @ p["w"] + p["b"]

    def mean_square(p, x):
        return jnp.mean(function(p, x) ** 2)

    def loss(p, x):
        grads = jax.grad(mean_square)(p, x)
        return mean_square(jax.tree.map(lambda w, g: w - 0.1 * g, p, grads), 3 * x)

    _, stats = collect(function, PARAMS, X, loss=loss)
    check(stats[""], X, 3 * X)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (
            lambda p, x: jnp.sum(jax.jvp(lambda x: x @ p["w"] + p["b"], (x,), (x,))[1]),
            "forward mode",
        ),
        (lambda p, x: jnp.sum(x @ p["w"]), "no bias added"),
        (
            lambda p, x: jnp.sum((x @ p["w"] + p["b"]) @ p["w"].T),
            "outside of the layer",
        ),
        (lambda p, x: jnp.sum(x @ p["w"][:, :2]), "outside of the layer|did not reach"),
        (lambda p, x: jnp.sum(p["b"]), "did not reach the loss"),
    ],
)
def test_losses_that_use_a_layer_as_another(loss, match):
    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X)
    with pytest.raises((TypeError, ValueError), match=match):
        lbo.value_and_grad(loss, taps)(PARAMS, X)


def test_a_function_with_a_derivative_of_its_own():
    @jax.custom_vjp
    def model(p, x):
        return jnp.tanh(x @ p["w"] + p["b"])

    model.defvjp(lambda p, x: (model(p, x), (p, x)), lambda _, g: (PARAMS, X))
    with pytest.raises(ValueError, match=r"derivative of its own \(jax.custom_vjp"):
        lbo.taps(model, PARAMS, X)
    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X)
    with pytest.raises(ValueError, match="which taps cannot enter"):
        lbo.value_and_grad(lambda p, x: jnp.sum(model(p, x)), taps)(PARAMS, X)


def test_masks():
    mask = jnp.array([True, False, True, True, False, False])

    def loss(p, x, mask):
        with lbo.only_rows(mask):
            return jnp.mean((x @ p["w"] + p["b"]) ** 2)

    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X, statistic="gram")
    for how in (lambda f: f, jax.jit):
        _, _, stats = how(lbo.value_and_grad(loss, taps))(PARAMS, X, mask)
        check(stats[""], X[mask])


def test_auxiliary_data_of_any_type_and_static_arguments():
    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X)

    def loss(p, x, name, *, times=1):
        y = x @ p["w"] + p["b"]
        return jnp.mean(times * y), {"name": name, "y": y, "none": None}

    step = lbo.value_and_grad(loss, taps, has_aux=True)
    (value, aux), _, _ = step(PARAMS, X, "layer", times=2)
    assert aux["name"] == "layer"
    assert aux["none"] is None
    np.testing.assert_allclose(aux["y"], X @ W + B, rtol=1e-5)
    np.testing.assert_allclose(value, 2 * jnp.mean(X @ W + B), rtol=1e-5)


def test_compiled_losses_are_traced_and_compiled_once():
    traced = []

    @jax.jit
    def loss(p, x):
        traced.append(1)
        return jnp.mean((x @ p["w"] + p["b"]) ** 2)

    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X, statistic="gram")
    step = lbo.value_and_grad(loss, taps)
    for i in range(3):
        _, _, stats = step(PARAMS, X + i)
        check(stats[""], X + i)
    assert len(traced) == 1
    # Another one's taps on the same compiled function are its own.
    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X, statistic="moments")
    _, _, stats = lbo.value_and_grad(loss, taps)(PARAMS, X)
    np.testing.assert_allclose(stats[""].sum[0], X.sum(0), rtol=1e-5)


def test_shard_map():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def by_hand(p, x):
        return jax.lax.pmean(jnp.mean((x @ p["w"] + p["b"]) ** 2), "data")

    loss = jax.shard_map(
        by_hand, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec()
    )
    taps = lbo.taps(loss, PARAMS, X, statistic="gram")
    value, grads, stats = jax.jit(lbo.value_and_grad(loss, taps))(PARAMS, X)
    np.testing.assert_allclose(value, loss(PARAMS, X), rtol=1e-6)
    np.testing.assert_allclose(grads["w"], jax.grad(loss)(PARAMS, X)["w"], rtol=1e-4)
    check(stats[""], X)


def test_masks_of_a_compiled_function_are_compiled_once():
    traced = []

    @jax.jit
    def forward(p, x):
        traced.append(1)
        return x @ p["w"] + p["b"]

    def loss(p, x, mask):
        with lbo.only_rows(mask):
            return jnp.mean(forward(p, x) ** 2)

    taps = lbo.taps(forward, PARAMS, X, statistic="gram")
    step = lbo.value_and_grad(loss, taps)
    for rows in ([0, 1], [2, 3, 4], []):
        mask = jnp.zeros(6, bool).at[jnp.array(rows, int)].set(True)
        _, _, stats = step(PARAMS, X, mask)
        check(stats[""], X[mask])
    assert len(traced) <= 2  # for `taps`, and under a mask


def test_one_compiled_function_with_one_array_twice_and_with_two():
    @jax.jit
    def f(p, a, b):
        return jnp.mean((a @ p["w"]) ** 2) + jnp.mean((b @ p["w"]) ** 2)

    taps = lbo.taps(f, {"w": W}, X, 2 * X, statistic="gram")
    step = lbo.value_and_grad(f, taps)
    other = 3 * X
    for args in ((X, X), (X, other), (X, X)):
        _, _, stats = step({"w": W}, *args)
        check(stats[""], *(args if args[1] is other else args[:1]))


def test_masks_inside_a_mapped_function():
    x = normal(3, 4, 4, 3)
    mask = jnp.array([True, False, True, True])

    def loss(p, x, mask, axes):
        def one(x, mask):
            with lbo.only_rows(mask):
                return x @ p["w"] + p["b"]

        return jnp.mean(jax.vmap(one, axes)(x, mask) ** 2)

    taps = lbo.taps(lambda p, x: x @ p["w"] + p["b"], PARAMS, X, statistic="gram")
    both = jnp.stack([mask, ~mask, mask, mask])
    _, _, stats = lbo.value_and_grad(loss, taps)(PARAMS, x, both, (0, 0))
    check(stats[""], x[both])
    with pytest.raises(ValueError, match="which of the axes it is of cannot be told"):
        lbo.value_and_grad(loss, taps)(PARAMS, x, mask, (0, None))


def test_threads():
    """Traces of several threads do not meet."""
    barrier = threading.Barrier(4)

    def work(i):
        x = normal(i, 5 + i, 3)

        def function(p, x):
            return jnp.tanh(x @ p["w"] + p["b"])

        for _ in range(5):
            barrier.wait()
            _, stats = collect(function, PARAMS, x)
            check(stats[""], x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_mistakes():
    def function(p, x):
        return x @ p["w"] + p["b"]

    with pytest.raises(TypeError, match="`function` must be callable, got dict"):
        lbo.taps(PARAMS, X)
    with pytest.raises(TypeError, match=r"got the Flax module Dense. Use `linen.taps"):
        lbo.taps(nn.Dense(3), X)
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    with pytest.raises(TypeError, match="got the Equinox module Linear"):
        lbo.taps(linear, X)
    with pytest.raises(TypeError, match=r"must be a number or a schedule.*lnb\(0.3"):
        lbo.lnb(lbo.taps(function, PARAMS, X), 0.3)
    with pytest.raises(TypeError, match=r"tree of arrays, got str at \['name'\]"):
        lbo.taps(function, {**PARAMS, "name": "dense"}, X)
    with pytest.raises(ValueError, match="no layer that can be tapped"):
        lbo.taps(lambda p, x: x * p["b"].sum(), PARAMS, X)
    with pytest.raises(ValueError, match="must name a layer, got 'out'"):
        lbo.taps(function, PARAMS, X, exclude="out")
    taps = lbo.taps(function, PARAMS, X)
    with pytest.raises(TypeError, match="`argnums` is no argument"):
        lbo.value_and_grad(function, taps, argnums=1)
    with pytest.raises(ValueError, match="which the parameters lack"):
        lbo.value_and_grad(function, taps)({"b": B}, X)
    with pytest.raises(ValueError, match="which the parameters lack"):
        lbo.value_and_grad(lambda p, x: jnp.sum(x @ p["w"]), taps)({"w": W}, X)


def test_arrangements_of_axes():
    """Against NumPy: reshapes, transposes and flips of numbered elements."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = tuple(rng.choice([1, 2, 3, 4, 6], rng.integers(1, 4)))
        x = np.arange(np.prod(shape)).reshape(shape)
        axes, y = whole(shape), x
        for _ in range(4):
            order = rng.permutation(y.ndim)
            axes, y = tuple(axes[i] for i in order), y.transpose(order)
            new = _some_shape(rng, y.size)
            reshaped = reshape(axes, new)
            if reshaped is not None:
                axes, y = reshaped, y.reshape(new)
        arrangement = arrange(shape, [atom for axis in axes for atom in axis])
        assert isinstance(arrangement, Arrangement)
        np.testing.assert_array_equal(
            arrangement.apply(jnp.asarray(x)).ravel(), y.ravel()
        )
        np.testing.assert_array_equal(arrangement.undo(jnp.asarray(y)), x)


def _some_shape(rng, size):
    shape = []
    while size > 1:
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        shape.append(int(rng.choice(divisors)))
        size //= shape[-1]
    return tuple(shape) or (1,)


def test_a_part_is_no_arrangement():
    assert arrange((4, 3), [*whole((2, 3))[0], *whole((2, 3))[1]]) is None


def test_declared_layers():
    """A product that nobody can read is a layer if its kind is told."""
    from linboost_optax._taps.declared import declare

    def function(p, x):
        y = jnp.sum(x[:, :, None] * p["w"], axis=1) + p["b"]
        return declare(extend.Dense((), (3,), (4,)), y, x, p["w"], p["b"])

    taps, stats = collect(function, PARAMS, X)
    assert taps.layers[0].biased
    check(stats[""], X)

    def mapped(p, x):
        return jax.vmap(functools.partial(one, p))(x)

    def one(p, x):
        y = jnp.sum(x[:, None] * p["w"], axis=0) + p["b"]
        return declare(extend.Dense((), (3,), (4,)), y, x, p["w"], p["b"])

    _, stats = collect(mapped, PARAMS, X)
    check(stats[""], X)
