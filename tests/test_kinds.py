"""Kinds of layers: the design matrix reproduces the layer, for every kind."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import Counts, Gram, Inputs, Moments, Sketch, linen
from linboost_optax._kinds import Conv, Dense, Embed
from linboost_optax._kinds.base import some_rows
from linboost_optax._layer import Layer
from linboost_optax._precondition.stats import check_value
from linboost_optax._statistics.gram import GramSums
from linboost_optax._statistics.inputs import InputRows
from linboost_optax._statistics.moments import MomentSums
from tests.oracle import inputs_seen

# float32 products of up to 50 terms, summed in another order
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
F32 = jnp.dtype(jnp.float32)

DENSE = [
    (nn.Dense(3), (5, 4)),
    (nn.Dense(3), (4,)),
    (nn.Dense(3), (2, 3, 5, 4)),
    (nn.DenseGeneral(3), (5, 4)),
    (nn.DenseGeneral((2, 3)), (5, 4)),
    (nn.DenseGeneral(3, axis=(-2, -1)), (5, 2, 4)),
    (nn.DenseGeneral((3, 2), axis=(1, 2)), (5, 2, 4)),
    (nn.DenseGeneral(3, axis=1), (5, 2, 4)),
    (nn.DenseGeneral(3, axis=(0, -1)), (5, 2, 4)),
    (nn.DenseGeneral(3, axis=(-1, 1)), (5, 2, 4)),  # Flax sorts axes
    (nn.DenseGeneral(3, axis=-1, batch_dims=(1, 0)), (3, 2, 5, 4)),
    (nn.DenseGeneral(3, batch_dims=(0,)), (5, 2, 4)),
    (nn.DenseGeneral((2, 3), axis=(-2, -1), batch_dims=(0,)), (3, 5, 2, 4)),
    (nn.DenseGeneral(3, axis=(2,), batch_dims=(0, 1)), (3, 2, 4)),
    (nn.DenseGeneral(3, axis=(-1,), batch_dims=(0, 1)), (3, 2, 5, 4)),
]


def conv(size, shape, features=4, **kwargs):
    return nn.Conv(features, size, **kwargs), shape


CONV = [
    conv((3,), (2, 7, 3)),
    conv((3,), (7, 3)),
    conv((3,), (2, 2, 7, 3)),
    conv((3, 2), (2, 6, 5, 3)),
    conv((3, 2), (6, 5, 3)),
    conv((3, 2), (2, 2, 6, 5, 3)),
    conv((2, 3, 2), (2, 4, 5, 4, 2)),
    conv((4,), (2, 9, 3), strides=2),
    conv((4,), (2, 8, 3), strides=3),
    conv((2, 4), (2, 7, 6, 3), strides=(2, 3)),
    conv((3, 3), (2, 7, 6, 3), strides=(2, 1), padding="VALID"),
    conv((3, 3), (2, 7, 6, 3), padding=((2, 0), (1, 3))),
    conv((3, 3), (2, 7, 6, 3), padding=2),
    conv((3, 2), (2, 7, 6, 3), padding=(1, 0)),
    conv((3, 3), (2, 7, 6, 3), padding=((-1, 0), (0, -1))),
    conv((3, 2), (2, 7, 6, 3), padding="CIRCULAR"),
    conv((4,), (2, 9, 3), padding="CIRCULAR", strides=2),
    conv((3,), (2, 9, 3), padding="CIRCULAR", kernel_dilation=2),
    conv((3, 4), (2, 7, 6, 3), padding="REFLECT"),
    conv((3,), (2, 9, 3), padding="CAUSAL"),
    conv((3,), (2, 9, 3), padding="CAUSAL", kernel_dilation=2),
    conv((3, 2), (2, 9, 8, 3), kernel_dilation=(2, 3)),
    conv((3, 2), (2, 5, 4, 3), input_dilation=(2, 3), padding=((1, 2), (0, 1))),
    conv((3,), (2, 5, 3), input_dilation=2, padding=1, strides=2),
    conv((3,), (2, 5, 3), input_dilation=2, kernel_dilation=3, padding=((3, 2),)),
    conv((3,), (2, 6, 3), padding="SAME_LOWER", strides=2),
    conv((3, 2), (2, 6, 5, 6), features=4, feature_group_count=2),
    conv((3, 2), (2, 6, 5, 3), features=6, feature_group_count=3),
    conv((3,), (2, 6, 4), features=4, feature_group_count=4, strides=2),
    conv((1, 1), (2, 6, 5, 3)),
]


def reaching(module, x):
    """An input as it meets the kernel: images padded, what is contracted last."""
    x = np.asarray(x)
    if isinstance(module, nn.DenseGeneral):
        axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
        axes = sorted(axis % x.ndim for axis in axes)
        return jnp.asarray(np.moveaxis(x, axes, range(-len(axes), 0)))
    if isinstance(module, nn.Conv):  # Flax has one batch axis, whatever the input has
        x = x.reshape(-1, *x.shape[-len(module.kernel_size) - 1 :])
    modes = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}
    padding = getattr(module, "padding", None)
    if not isinstance(padding, str) or padding not in modes:
        return jnp.asarray(x)
    pads = []
    for size in module.kernel_size:
        reach = (size - 1) * (module.kernel_dilation or 1)
        pads.append((reach, 0) if padding == "CAUSAL" else (reach // 2, -(-reach // 2)))
    width = [(0, 0)] * (x.ndim - len(pads) - 1) + pads + [(0, 0)]
    return jnp.asarray(np.pad(x, width, mode=modes[padding]))


def measure(layer, x):
    return layer.statistic.measure(layer, x, None)


def setting(module, shape, statistic, bias):
    module = module.clone(
        use_bias=bias, bias_init=nn.initializers.normal(1.0), parent=None
    )
    x = jax.random.normal(jax.random.key(0), shape)
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    (layer,) = linen.taps(module, x, statistic=statistic).layers
    return module, params, x, layer


def name(value):
    """A short test id: the layer's settings that differ from the default."""
    if not isinstance(value, nn.Module):
        return str(value)
    fields = ("features", "kernel_size", "axis", "batch_dims", "strides", "padding")
    return ",".join(str(getattr(value, f)) for f in fields if hasattr(value, f))


# A bias on every other layer of each list, and both on one of each kind.
CASES = [(m, s, i % 2 == 0) for i, (m, s) in enumerate(DENSE + CONV)]
CASES += [(*DENSE[0], False), (*DENSE[11], True), (*CONV[3], True)]


@pytest.mark.parametrize(("module", "shape", "bias"), CASES, ids=name)
def test_design_matrix_reproduces_the_layer(module, shape, bias):
    module, params, x, layer = setting(module, shape, "gram", bias)
    y = jax.jit(module.apply)({"params": params}, x)

    @jax.jit
    def by_matrices(params, x):
        assert x.shape == layer.input_shape
        affine = layer.to_affine(params["kernel"], params.get("bias"), F32)
        z = jnp.einsum("gnd,gdo->gno", layer.kind.design(x), affine.w)
        return z if affine.b is None else z + affine.b[:, None]

    z = by_matrices(params, reaching(module, x))
    # Groups are the batch axes of a dense layer and the channel blocks of a conv.
    if isinstance(layer.kind, Conv):
        z = jnp.moveaxis(z, 0, 1)
    np.testing.assert_allclose(z.reshape(y.shape), y, **FLOAT32)
    assert layer.bias == ("bias" if bias else None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stack", [(), (2, 3)])
@pytest.mark.parametrize(
    "kind",
    [
        Dense((2,), (3, 4), (5, 2)),
        Conv((3, 2), 6, 4, (1, 1), "SAME", "constant", (1, 1), (1, 1), 2),
        Embed(5, 3),
    ],
    ids=lambda kind: kind.name,
)
def test_matrices_and_arrays_round_trip(kind, stack, bias):
    layer = Layer(("a",), kind, Moments(), (), stack=stack)
    kernel = jax.random.normal(jax.random.key(0), stack + kind.kernel_shape)
    b = jax.random.normal(jax.random.key(1), stack + kind.bias_shape)
    b = b if bias else None
    affine = layer.to_affine(kernel, b, F32)
    blocks = math.prod(stack) * kind.groups
    outputs = math.prod(kind.bias_shape) // kind.groups
    assert affine.w.shape == (blocks, layer.features, outputs)
    back = layer.from_affine(affine)
    np.testing.assert_array_equal(back[0], kernel)
    if b is None:
        assert back[1] is None
    else:
        np.testing.assert_array_equal(back[1], b)


def patches_by_hand(x, window):
    """Patches of a VALID, unstrided 2-d convolution, one Python loop at a time."""
    n, h, w, _ = x.shape
    rows = [
        x[i, r : r + window[0], c : c + window[1]].reshape(-1)
        for i in range(n)
        for r in range(h - window[0] + 1)
        for c in range(w - window[1] + 1)
    ]
    return np.stack(rows)


def test_gram_of_patches_by_hand():
    _, _, x, layer = setting(*conv((3, 2), (2, 6, 5, 3), padding="VALID"), "gram", 1)
    got = measure(layer, x)
    design = patches_by_hand(np.asarray(x, np.float64), (3, 2))
    assert isinstance(got, GramSums)
    assert got.count.tolist() == [2 * 4 * 4]
    np.testing.assert_allclose(got.sum[0], design.sum(0), **FLOAT32)
    np.testing.assert_allclose(got.outer[0], design.T @ design, **FLOAT32)


@pytest.mark.parametrize("groups", [1, 3])
def test_convolution_moments_are_per_channel(groups):
    arguments = conv((3, 2), (2, 6, 5, 3), features=6, feature_group_count=groups)
    _, _, x, layer = setting(*arguments, "moments", True)
    got, pixels = measure(layer, x), np.asarray(x, np.float64).reshape(-1, 3)
    assert isinstance(got, MomentSums)
    assert got.count.tolist() == [60]
    assert got.sum.shape == (groups, 3 // groups)
    np.testing.assert_allclose(got.sum.reshape(-1), pixels.sum(0), **FLOAT32)
    np.testing.assert_allclose(
        got.sum_sq.reshape(-1), np.square(pixels).sum(0), **FLOAT32
    )


def test_block_moments_tile_channels_over_the_window():
    _, _, x, layer = setting(*conv((3, 2), (2, 6, 5, 3)), "moments", True)
    got = layer.statistic.moments(layer, measure(layer, x))
    mean = np.asarray(x, np.float64).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(got.mean[0], np.tile(mean, 6), **FLOAT32)


@pytest.mark.parametrize(("module", "shape"), [DENSE[12], CONV[3], CONV[26]], ids=name)
def test_three_statistics_agree(module, shape):
    blocks = []
    for statistic in ("gram", "inputs"):
        own, _, x, layer = setting(module, shape, statistic, True)
        x = reaching(own, x)
        measured = measure(layer, x)
        blocks.append(layer.statistic.moments(layer, measured))
    for a, b in zip(*blocks, strict=True):
        np.testing.assert_allclose(a, b, **FLOAT32)
    count, design, _ = layer.statistic.second_moment(layer, measured)
    second = np.einsum("knd,kne->kde", design, design) / count[:, None, None]
    _, _, _, gram_layer = setting(module, shape, "gram", True)
    gram = measure(gram_layer, x)
    outer = gram_layer.statistic.second_moment(gram_layer, gram).outer
    np.testing.assert_allclose(outer, second, **FLOAT32)


def test_embedding():
    module, tokens = nn.Embed(7, 3), jnp.array([[1, 1, 6], [0, 1, 2]])
    (layer,) = linen.taps(module, tokens).layers
    assert (layer.kernel, layer.bias, layer.statistic) == ("embedding", None, Counts())
    got = measure(layer, tokens)
    np.testing.assert_array_equal(got.sum[0], np.bincount([1, 1, 6, 0, 1, 2]))
    log = inputs_seen(module.apply, module.init(jax.random.key(0), tokens), tokens)
    (_, seen) = log[()][0]
    np.testing.assert_array_equal(seen, tokens)


def test_embedding_takes_no_vocabulary_squared_matrix():
    tokens = jax.ShapeDtypeStruct((8,), jnp.int32)
    layer = linen.taps(nn.Embed(50_000, 3), tokens, statistic="gram").layers[0]
    sizes = [leaf.size for leaf in jax.tree.leaves(layer.statistic_shapes())]
    assert max(sizes) == 50_000


@pytest.mark.parametrize("limit", [1, 4, 7, 10, 100, None])
def test_max_samples_takes_so_many_rows(limit):
    x = jax.random.normal(jax.random.key(0), (10, 3))
    (layer,) = linen.taps(nn.Dense(2), x, statistic=Gram(limit)).layers
    got = measure(layer, x)
    rows = some_rows(10, limit)
    kept = np.asarray(x, np.float64)[slice(None) if rows is None else rows]
    assert len(kept) == min(limit or 10, 10)
    assert got.count.tolist() == [len(kept)]
    np.testing.assert_allclose(got.outer[0], kept.T @ kept, **FLOAT32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "uint8"])
@pytest.mark.parametrize("statistic", [Moments(), Gram(), Gram(2), Sketch(2), Inputs()])
def test_statistics_have_their_own_dtype(dtype, statistic):
    x = jnp.arange(12).reshape(4, 3).astype(dtype)
    layer = Layer((), Dense((), (3,), (2,)), statistic, (4, 3))
    want = [(s.shape, s.dtype) for s in jax.tree.leaves(layer.statistic_shapes())]
    assert [(s.shape, s.dtype) for s in jax.tree.leaves(measure(layer, x))] == want


def test_float64_inputs_of_a_layer_described_in_float32():
    with jax.enable_x64(True):
        x = jnp.arange(12, dtype=jnp.float64).reshape(4, 3)
        for statistic in (Moments(), Gram(), Gram(2), Sketch(2), Inputs()):
            layer = Layer((), Dense((), (3,), (2,)), statistic, (4, 3))
            assert {leaf.dtype for leaf in jax.tree.leaves(measure(layer, x))} == {F32}


def test_inputs_used_twice_count_as_unseen():
    layer = Layer((), Dense((), (3,), (2,)), Inputs(), (4, 3))
    x = jnp.ones((4, 3))
    for uses, count in [(0.0, 0), (1.0, 4), (2.0, 0)]:
        value = InputRows(x, jnp.ones(4), jnp.array([uses]))
        got = layer.statistic.second_moment(layer, value).count
        assert got.tolist() == [count]


GRAM = Layer(("a", "b"), Dense((), (3,), (2,)), Gram(), ())


def test_wrong_statistic_is_refused():
    got = MomentSums(jnp.ones(1), jnp.ones((1, 3)), jnp.ones((1, 3)))
    match = r"`stats\['a/b'\]` must be what statistic 'gram' measures, GramSums, got Mo"
    with pytest.raises(ValueError, match=match):
        check_value(GRAM, got)


def test_statistic_of_the_wrong_shape_is_refused():
    got = GramSums(jnp.ones(1), jnp.ones((1, 4)), jnp.ones((1, 4, 4)))
    with pytest.raises(
        ValueError, match=r"must have shapes .*\(1, 3\).* got .*\(1, 4\)"
    ):
        check_value(GRAM, got)


def test_statistic_that_fits_is_accepted():
    got = GramSums(jnp.ones(1), jnp.ones((1, 3)), jnp.ones((1, 3, 3)))
    assert check_value(GRAM, got) is None


def test_padding_that_is_not_worked_out_is_refused():
    with pytest.raises(ValueError, match=r"`padding` must be .*`pad_mode` 'wrap'"):
        Conv((3,), 2, 4, (1,), "SAME", "wrap", (1,), (1,), 1)


def test_only_one_hot_inputs_are_counted():
    x = jax.ShapeDtypeStruct((8, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"got Counts\(\) for Dense with a kernel"):
        linen.taps(nn.Dense(2), x, statistic=Counts())


def test_the_design_of_an_embedding_is_one_hot():
    tokens, kind = jnp.array([[1, 1], [0, 4]]), Embed(5, 3)
    np.testing.assert_array_equal(kind.design(tokens)[0], np.eye(5)[[1, 1, 0, 4]])
    rows = some_rows(4, 2)
    np.testing.assert_array_equal(
        kind.design(tokens, 2)[0], np.eye(5)[[1, 1, 0, 4]][rows]
    )


@pytest.mark.parametrize(
    ("count", "limit"), [(1000, 256), (4096, 256), (97, 10), (12, 7)]
)
def test_some_rows_are_distinct_and_always_the_same(count, limit):
    rows = some_rows(count, limit)
    assert len(set(rows.tolist())) == limit
    assert rows.min() >= 0
    assert rows.max() < count
    np.testing.assert_array_equal(rows, some_rows(count, limit))


def test_some_rows_see_most_positions_of_a_sequence():
    positions = some_rows(4096, 256) % 64
    assert len(np.unique(positions)) >= 60


def test_no_limit_takes_all_rows():
    assert some_rows(10, None) is None
    assert some_rows(10, 10) is None


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Dense(3), (6, 7, 4)),
        (nn.DenseGeneral(3, axis=(-1, -3), batch_dims=()), (6, 7, 4)),
        (nn.Conv(4, (3,), padding="CAUSAL", kernel_dilation=2), (5, 9, 2)),
        (nn.Conv(4, (3, 2), strides=(2, 1), padding="SAME"), (3, 8, 7, 2)),
        (nn.Conv(4, (2, 3), feature_group_count=2, padding="CIRCULAR"), (3, 6, 7, 4)),
        (nn.Conv(2, (2, 2, 2), input_dilation=2, padding=1), (2, 4, 3, 4, 2)),
    ],
    ids=str,
)
def test_limited_design_is_some_rows_of_the_whole(module, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    kind = linen.taps(module, x).layers[0].kind
    whole = kind.design(x)
    some = kind.design(x, 5)
    rows = some_rows(whole.shape[1], 5)
    assert some.shape[1] == 5 < whole.shape[1]
    np.testing.assert_array_equal(some, whole[:, rows])
