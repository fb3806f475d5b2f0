"""Statistics are the second moments that the layers' Jacobians have, of every kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.jacobian import check_jacobian, normal, of, of_function

pytestmark = pytest.mark.lenient("functions as users write them")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def case(shape, cls, *sizes, **options):
    """Returns the case of a module, made with float64 parameters, and an input."""
    name = f"{cls.__module__.split('.')[1]}-{cls.__name__}-{sizes}-{options}-{shape}"
    return pytest.param(shape, cls, sizes, options, id=name.replace(" ", ""))


def check(shape, cls, sizes, options, **counts):
    options = {**options, "param_dtype": jnp.float64}
    if issubclass(cls, nnx.Module):
        options["rngs"] = nnx.Rngs(0)
    return check_jacobian(of(cls(*sizes, **options), normal(0, *shape)), **counts)


DENSE = [
    case((4, 3), nn.Dense, 2),
    case((4, 3), nn.Dense, 2, use_bias=False),
    case((2, 3, 2, 3), nn.Dense, 2),
    case((3,), nn.Dense, 2),
    case((4, 1), nn.Dense, 1),
    case((4, 3), nn.DenseGeneral, (2, 3)),
    case((4, 2, 3), nn.DenseGeneral, 2, axis=(-2, -1)),
    case((4, 2, 3), nn.DenseGeneral, (2, 2), axis=(1, 2)),
    case((4, 2, 3), nn.DenseGeneral, (2, 2), axis=(2, 1)),
    case((4, 3, 2), nn.DenseGeneral, 2, axis=1),
    case((2, 4, 3), nn.DenseGeneral, 2, axis=(0, -1)),
    case((3, 2, 2), nn.DenseGeneral, 2, axis=0, use_bias=False),
    case((3, 4, 2), nn.DenseGeneral, 2, batch_dims=(0,)),
    case((3, 2), nn.DenseGeneral, 2, batch_dims=(0,)),
    case((2, 4, 2, 3), nn.DenseGeneral, (2, 2), axis=(-2, -1), batch_dims=(0,)),
    case((3, 2, 4, 2), nn.DenseGeneral, 2, axis=-1, batch_dims=(0, 1)),
    case((3, 2, 4, 2), nn.DenseGeneral, 2, axis=-1, batch_dims=(1, 0)),
    case((3, 4, 2), nn.DenseGeneral, 2, batch_dims=(0,), use_bias=False),
    case((1, 4, 2, 1), nn.DenseGeneral, 1, axis=(-2, -1), batch_dims=(0,)),
    case((4, 3), nnx.Linear, 3, 2),
    case((4, 3), nnx.Linear, 3, 2, use_bias=False),
    case((2, 3, 2, 3), nnx.Linear, 3, 2),
    case((3,), nnx.Linear, 3, 2),
    case((4, 3), nnx.LinearGeneral, 3, (2, 3)),
    case((4, 2, 3), nnx.LinearGeneral, (2, 3), 2, axis=(-2, -1)),
    case((4, 2, 3), nnx.LinearGeneral, (2, 3), (2, 2), axis=(1, 2)),
    case((4, 3, 2), nnx.LinearGeneral, 3, 2, axis=1),
    case((2, 4, 3), nnx.LinearGeneral, (2, 3), 2, axis=(0, -1)),
    case((3, 2, 2), nnx.LinearGeneral, 3, 2, axis=0, use_bias=False),
    case((3, 4, 2), nnx.LinearGeneral, 2, 2, batch_axis={0: 3}),
    case(
        (2, 4, 2, 3),
        nnx.LinearGeneral,
        (2, 3),
        (2, 2),
        axis=(-2, -1),
        batch_axis={0: 2},
    ),
    case((3, 2, 4, 2), nnx.LinearGeneral, 2, 2, batch_axis={0: 3, 1: 2}),
]
EINSUM = [
    case((4, 3), nn.Einsum, (3, 2), "bd,de->be"),
    case((4, 3), nn.Einsum, (3, 2), "bd,de->be", use_bias=False),
    case((4, 3), nn.Einsum, (2, 3), "bd,ed->be"),
    case((2, 3, 4), nn.Einsum, (4, 2, 2), "btd,dhk->bthk"),
    case((2, 3, 4), nn.Einsum, (4, 2, 2), "btd,dhk->bhtk"),
    case((2, 3, 4), nn.Einsum, (2, 4, 2), "btd,hdk->bhtk"),
    case((2, 3, 2, 2), nn.Einsum, (2, 2, 3), "bthk,hkd->btd"),
    case((2, 3, 2, 2), nn.Einsum, (3, 2, 2), "bthk,dkh->btd"),
    case((4, 3, 2), nn.Einsum, (3, 2, 2), "bkd,kde->bke"),
    case((4, 3, 2), nn.Einsum, (3, 2, 2), "bkd,kde->bke", use_bias=False),
    case((4, 3, 2), nn.Einsum, (2, 3, 2), "bkd,dke->bek"),
    case((3, 4, 2), nn.Einsum, (2, 2, 3), "kbd,edk->kbe"),
    case((4, 3, 2), nn.Einsum, (3, 2), "bkd,kd->bk"),
    case((4, 3, 2), nn.Einsum, (3, 2), "bkd,kd->b"),
    case((4, 3), nnx.Einsum, "bd,de->be", (3, 2), (2,)),
    case((4, 3), nnx.Einsum, "bd,de->be", (3, 2)),
    case((2, 3, 4), nnx.Einsum, "btd,dhk->bthk", (4, 2, 2), (2, 2)),
    case((2, 3, 4), nnx.Einsum, "btd,dhk->bhtk", (4, 2, 2), (2, 2)),
    case((2, 3, 4), nnx.Einsum, "btd,hdk->bhtk", (2, 4, 2), (2, 2)),
    case((2, 3, 2, 2), nnx.Einsum, "bthk,hkd->btd", (2, 2, 3), (3,)),
    case((4, 3, 2), nnx.Einsum, "bkd,kde->bke", (3, 2, 2), (3, 2)),
    case((4, 3, 2), nnx.Einsum, "bkd,kde->bke", (3, 2, 2)),
    case((4, 3, 2), nnx.Einsum, "bkd,dke->bek", (2, 3, 2), (2, 3)),
    case((3, 4, 2), nnx.Einsum, "kbd,edk->kbe", (2, 2, 3), (3, 2)),
]


@pytest.mark.parametrize(("shape", "cls", "sizes", "options"), DENSE + EINSUM)
def test_dense(shape, cls, sizes, options):
    check(shape, cls, sizes, options)


def both(shape, features, window, **options):
    """Returns the cases of a convolution in both frameworks."""
    return [
        case(shape, nn.Conv, features, window, **options),
        case(shape, nnx.Conv, shape[-1], features, window, **options),
    ]


CONV = [
    *both((2, 5, 2), 2, (3,)),
    *both((2, 5, 2), 2, (3,), use_bias=False),
    *both((2, 4, 5, 2), 2, (2, 3), padding="VALID"),
    *both((2, 4, 5, 2), 2, (2, 3), strides=(1, 2)),
    *both((1, 3, 4, 3, 2), 2, (2, 3, 2)),
    *both((2, 6, 2), 2, (3,), padding="CIRCULAR"),
    *both((2, 7, 2), 2, (3,), padding="CIRCULAR", strides=2, kernel_dilation=2),
    *both((2, 4, 5, 1), 2, (3, 2), padding="REFLECT"),
    *both((2, 6, 2), 2, (3,), padding="CAUSAL", kernel_dilation=2),
    *both((2, 4, 5, 1), 2, (3, 3), padding=((2, 0), (1, 3))),
    *both((2, 5, 2), 2, (3,), padding=((-1, 0),)),
    *both((2, 5, 2), 2, (3,), padding=1, strides=2, input_dilation=2),
    *both((2, 4, 3, 1), 2, (2, 3), padding=2, input_dilation=(2, 3)),
    *both((2, 6, 5, 1), 2, (3, 2), kernel_dilation=(2, 3)),
    *both((2, 5, 4), 4, (3,), feature_group_count=2),
    *both((2, 5, 3), 3, (3,), feature_group_count=3),
    *both((2, 5, 3), 6, (3,), feature_group_count=3, strides=2, use_bias=False),
    *both((5, 2), 2, (3,)),
    *both((2, 2, 5, 2), 2, (3,)),
    *both((2, 4, 3, 2), 3, (1, 1)),
]


def both_transposed(shape, features, window, **options):
    """Returns the cases of a transposed convolution in both frameworks."""
    return [
        case(shape, cls, *sizes, features, window, transpose_kernel=flip, **options)
        for flip in (False, True)
        for cls, sizes in ((nn.ConvTranspose, ()), (nnx.ConvTranspose, shape[-1:]))
    ]


TRANSPOSED = [
    *both_transposed((2, 4, 2), 3, (3,)),
    *both_transposed((2, 4, 2), 3, (3,), strides=(2,), use_bias=False),
    *both_transposed((2, 3, 4, 2), 3, (2, 3), strides=(2, 3), padding="VALID"),
    *both_transposed((2, 4, 2), 3, (3,), padding=((2, 1),), strides=(2,)),
    *both_transposed((2, 4, 2), 3, (3,), kernel_dilation=(2,)),
    *both_transposed((4, 2), 3, (3,), strides=(2,)),
    *both_transposed((2, 2, 4, 2), 3, (2,)),
]
CIRCULAR = [
    *both_transposed((2, 4, 2), 3, (3,), padding="CIRCULAR"),
    *both_transposed((2, 4, 2), 3, (3,), padding="CIRCULAR", strides=(2,)),
]
LOCAL = [
    case((2, 5, 2), nn.ConvLocal, 2, (3,)),
    case((2, 5, 2), nn.ConvLocal, 2, (3,), use_bias=False),
    case((2, 5, 2), nn.ConvLocal, 2, (3,), padding="VALID", strides=2),
    case((2, 3, 4, 1), nn.ConvLocal, 2, (2, 2)),
    case((5, 2), nn.ConvLocal, 2, (3,), kernel_dilation=2),
    case((2, 5, 2), nn.ConvLocal, 2, (3,), padding="CIRCULAR"),
]


@pytest.mark.parametrize(
    ("shape", "cls", "sizes", "options"), CONV + TRANSPOSED + LOCAL
)
def test_convolutions(shape, cls, sizes, options):
    check(shape, cls, sizes, options)


@pytest.mark.parametrize(("shape", "cls", "sizes", "options"), CIRCULAR)
@pytest.mark.xfail(strict=True, reason="engine: its output is folded afterwards")
def test_circular_transposed_convolutions(shape, cls, sizes, options):
    check(shape, cls, sizes, options)


TOKENS = np.array([[0, 1, 1], [4, 0, 1]])


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[0], TOKENS[0, 1]])
def test_embeddings(tokens):
    options = {"param_dtype": jnp.float64}
    check_jacobian(of(nn.Embed(5, 2, **options), tokens))
    check_jacobian(of(nnx.Embed(5, 2, **options, rngs=nnx.Rngs(0)), tokens))


LOOK_UPS = {
    "table[tokens]": lambda table, tokens: table[tokens],
    "take": lambda table, tokens: jnp.take(table, tokens, axis=0),
    "clip": lambda table, tokens: jnp.take(table, tokens, axis=0, mode="clip"),
    "fill": lambda table, tokens: table.at[tokens].get(mode="fill", fill_value=0),
    "vmap": lambda table, tokens: jax.vmap(lambda i: table[i])(tokens),
    "one-hot": lambda table, tokens: jax.nn.one_hot(tokens, 5, dtype="float64") @ table,
    "cast": lambda table, tokens: (table * 1.0)[tokens].astype("float64"),
    "along the last axis": lambda table, tokens: jnp.take(table.T, tokens, axis=1),
    "columns": lambda table, tokens: table.T[:, tokens],
    "transposed": lambda table, tokens: table.T[tokens],
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_that_are_looked_up(name):
    shape = (2, 5) if name == "transposed" else (5, 2)

    def look_up(p, tokens):
        return LOOK_UPS[name](p["table"], tokens)

    check_jacobian(of_function(look_up, {"table": jnp.ones(shape)}, TOKENS))


OUTSIDE = {
    "index": lambda table, tokens: table[tokens],
    "take": lambda table, tokens: jnp.take(table, tokens, axis=0),
    "clip": LOOK_UPS["clip"],
    "wrap": lambda table, tokens: jnp.take(table, tokens, axis=0, mode="wrap"),
    "fill": LOOK_UPS["fill"],
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("tokens", [(0, 7, 4), (-1, 0, 1), (-7, 0, 1)])
def test_tokens_that_are_not_in_the_table(name, tokens):
    """Counted is the row that is read, if any."""

    def look_up(p, tokens):
        return OUTSIDE[name](p["table"], tokens)

    table = {"table": jnp.ones((5, 2))}
    check_jacobian(of_function(look_up, table, np.array(tokens)))


@pytest.mark.parametrize(
    "function",
    [lambda p, x: x @ p, lambda p, x: p[jnp.argmax(x, axis=1)]],
)
def test_parameters_that_are_one_array(function):
    check_jacobian(of_function(function, jnp.ones((3, 2)), normal(0, 4, 3)))


W, B = np.ones((3, 2)), np.ones(2)
PRODUCTS = {
    "w @ x": (lambda p, x: (p[0].T @ x.T).T + p[1], (W, B), (4, 3)),
    "x @ w.T": (lambda p, x: x @ p[0].T + p[1], (W.T, B), (4, 3)),
    "dot": (lambda p, x: jnp.dot(x, p[0]) + p[1][None], (W, B), (4, 3)),
    "dot_general": (
        lambda p, x: (
            jax.lax.dot_general(p[0], x, (((0,), (1,)), ((), ()))) + p[1][:, None]
        ),
        (W, B),
        (4, 3),
    ),
    "kernel first": (
        lambda p, x: jnp.einsum("kde,bkd->bke", p[0], x) + p[1],
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (4, 2, 3),
    ),
    "kernel first, out first": (
        lambda p, x: jnp.einsum("ekd,bkd->ebk", p[0], x) + p[1].T[:, None],
        (np.ones((2, 2, 3)), np.ones((2, 2))),
        (4, 2, 3),
    ),
    "vmap of a sample": (
        lambda p, x: jax.vmap(lambda x: p[0] @ x + p[1])(x),
        (W.T, B),
        (4, 3),
    ),
    "vmap of layers": (
        lambda p, x: jax.vmap(lambda p, x: x @ p[0] + p[1], (0, 1), 1)(p, x),
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (4, 2, 3),
    ),
    "vmap of layers along the last axis": (
        lambda p, x: jax.vmap(lambda p, x: x @ p[0] + p[1], ((2, 1), 1), 1)(p, x),
        (np.ones((3, 2, 2)), np.ones((2, 2))),
        (4, 2, 3),
    ),
    "vmap of layers with one input": (
        lambda p, x: jax.vmap(lambda p: x @ p[0] + p[1])(p),
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (4, 3),
    ),
    "experts": (
        lambda p, x: jnp.einsum("ecd,edf->ecf", x, p[0]),
        (np.ones((2, 3, 2)),),
        (2, 4, 3),
    ),
    "reshaped": (
        lambda p, x: x @ p[0].reshape(3, 4) + p[1].reshape(4),
        (np.ones((3, 2, 2)), np.ones((2, 2))),
        (4, 3),
    ),
    "heads merged": (
        lambda p, x: x @ p[0].transpose(1, 0, 2).reshape(3, 4) + p[1].reshape(4),
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (4, 3),
    ),
    "reversed": (lambda p, x: x @ p[0][::-1, ::-1] + p[1], (W, B), (4, 3)),
    "flipped bias": (lambda p, x: x @ p[0] + p[1][::-1], (W, B), (4, 3)),
    "two halves": (
        lambda p, x: x @ jnp.concatenate(p[:2], axis=1) + jnp.concatenate(p[2:]),
        (W, W, B, B),
        (4, 3),
    ),
    "jit, checkpoint": (
        lambda p, x: jax.checkpoint(jax.jit(lambda p, x: x @ p[0] + p[1]))(p, x),
        (W, B),
        (4, 3),
    ),
    "NCHW, OIHW": (
        lambda p, x: (
            jax.lax.conv_general_dilated(x, p[0], (1, 2), "VALID") + p[1][:, None, None]
        ),
        (np.ones((2, 2, 3, 2)), B),
        (2, 2, 4, 5),
    ),
    "groups, OIHW": (
        lambda p, x: jax.lax.conv_general_dilated(
            x, p[0], (1, 1), "SAME", feature_group_count=2
        ),
        (np.ones((4, 1, 3, 2)),),
        (2, 2, 4, 5),
    ),
    "lax.conv": (
        lambda p, x: jax.lax.conv(x, p[0], (1, 1), "SAME"),
        (np.ones((2, 2, 3, 2)),),
        (2, 2, 4, 3),
    ),
    "CNHW, IHWO": (
        lambda p, x: jax.lax.conv_general_dilated(
            x, p[0], (1, 1), "SAME", dimension_numbers=("CNHW", "IHWO", "HWCN")
        ),
        (np.ones((2, 3, 2, 2)),),
        (2, 2, 4, 3),
    ),
    "scanned": (
        lambda p, x: jax.lax.scan(
            lambda c, each: (c, each[1] @ each[0][0] + each[0][1]), 0, (p, x)
        )[1],
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (2, 4, 3),
    ),
    "scanned along axis 1": (
        lambda p, x: jax.lax.scan(
            lambda c, each: (c, each[2] @ each[0] + each[1]),
            0,
            (jnp.moveaxis(p[0], 1, 0), p[1].T, x),
        )[1],
        (np.ones((3, 2, 2)), np.ones((2, 2))),
        (2, 4, 3),
    ),
    "scanned over time": (
        lambda p, x: jax.lax.scan(lambda c, x: (c, x @ p[0] + p[1]), 0, x)[1],
        (W, B),
        (2, 4, 3),
    ),
    "lax.map": (lambda p, x: jax.lax.map(lambda x: x @ p[0] + p[1], x), (W, B), (4, 3)),
    "scalar of one output": (lambda p, x: x @ p[0], (np.ones(3),), (4, 3)),
    "inner": (lambda p, x: jnp.inner(x, p[0]) + p[1], (W.T, B), (4, 3)),
    "tensordot": (
        lambda p, x: jnp.tensordot(x, p[0], [[2, 1], [1, 0]]) + p[1],
        (np.ones((2, 3, 2)), B),
        (4, 2, 3),
    ),
    "vectorize": (
        lambda p, x: jnp.vectorize(
            lambda w, b, x: x @ w + b, signature="(d,e),(e),(d)->(e)"
        )(*p, x),
        (W, B),
        (4, 3),
    ),
    "layers of one input": (
        lambda p, x: x @ p[0] + p[1][:, None],
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (4, 3),
    ),
    "bias after a reshape": (
        lambda p, x: (x @ p[0]).reshape(4, 2, 2) + p[1],
        (np.ones((3, 4)), np.ones((2, 2))),
        (4, 3),
    ),
    "bias after a transposition": (
        lambda p, x: (x @ p[0]).reshape(4, 2, 2).transpose(2, 0, 1) + p[1][:, None],
        (np.ones((3, 4)), np.ones((2, 2))),
        (4, 3),
    ),
    "bias of swapped axes of one size": (
        lambda p, x: jnp.swapaxes(jnp.einsum("nd,dhk->nhk", x, p[0]), 1, 2) + p[1],
        (np.ones((3, 2, 2)), np.ones((2, 2))),
        (4, 3),
    ),
    "all axes of one size": (
        lambda p, x: jnp.einsum("bkd,ekd->ebk", x, p[0]) + p[1].T[:, None],
        (np.ones((2, 2, 2)), np.ones((2, 2))),
        (2, 2, 2),
    ),
    "all axes of size one": (
        lambda p, x: jnp.einsum("bkd,kde->bke", x, p[0]) + p[1],
        (np.ones((1, 1, 1)), np.ones((1, 1))),
        (1, 1, 1),
    ),
    "one of a stack after the other": (
        lambda p, x: jnp.stack([x[i] @ p[0][i] + p[1][i] for i in range(2)]),
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (2, 4, 3),
    ),
    "halves": (
        lambda p, x: jnp.stack([x @ p[0][:, :1], x @ p[0][:, 1:]]),
        (W,),
        (4, 3),
    ),
    "scan of scan": (
        lambda p, x: jax.lax.scan(
            lambda c, outer: jax.lax.scan(
                lambda c, each: (c, each[2] @ each[0] + each[1]), c, outer
            ),
            0,
            (*p, x),
        )[1],
        (np.ones((2, 2, 3, 2)), np.ones((2, 2, 2))),
        (2, 2, 4, 3),
    ),
    "vmap of scan": (
        lambda p, x: jax.vmap(
            lambda w, b, x: jax.lax.scan(lambda c, x: (c, x @ w + b), 0, x)[1]
        )(*p, x),
        (np.ones((2, 3, 2)), np.ones((2, 2))),
        (2, 4, 3),
    ),
    "scan of several layers": (
        lambda p, x: jax.lax.scan(
            lambda c, each: (c, jnp.einsum("knd,kde->kne", *each)),
            0,
            (x.reshape(2, 2, 4, 3), p[0].reshape(2, 2, 3, 2)),
        )[1],
        (np.ones((4, 3, 2)),),
        (4, 4, 3),
    ),
    "batches of lax.map": (
        lambda p, x: jax.lax.map(lambda x: x @ p[0] + p[1], x, batch_size=3),
        (W, B),
        (4, 3),
    ),
    "convolve": (
        lambda p, x: jax.vmap(lambda x: jnp.convolve(x, p[0], mode="same"))(x),
        (np.ones(3),),
        (2, 6),
    ),
    "convolutions of a stack": (
        lambda p, x: jax.vmap(lambda w, x: jax.lax.conv(x, w, (1, 1), "SAME"))(*p, x),
        (np.ones((2, 3, 2, 2, 2)),),
        (2, 2, 2, 3, 3),
    ),
    "used twice": (
        lambda p, x: jnp.stack([x @ p[0] + p[1], (2 * x + 1) @ p[0] + p[1]]),
        (W, B),
        (4, 3),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_however_they_are_written(name):
    function, params, shape = PRODUCTS[name]
    layers = 2 if name == "two halves" else 1
    check_jacobian(of_function(function, params, normal(0, *shape)), layers=layers)


# What is added is no bias, or not of this product alone: it stays plain.
NO_BIAS = {
    "subtracted": (lambda p, x: x @ p[0] - p[1], (W, B), (4, 3)),
    "one number": (lambda p, x: x @ p[0] + p[1], (W, np.ones(())), (4, 3)),
    "one number of shape 1": (lambda p, x: x @ p[0] + p[1], (W, np.ones(1)), (4, 3)),
    "positions": (lambda p, x: x @ p[0] + p[1], (W, np.ones((2, 2))), (2, 3)),
    "one a sample": (lambda p, x: x @ p[0] + p[1][:, None], (W, B), (2, 3)),
    "one a step": (
        lambda p, x: jax.lax.scan(lambda c, e: (c, e[1] @ p[0] + e[0]), 0, (p[1], x))[
            1
        ],
        (W, np.ones((2, 2))),
        (2, 4, 3),
    ),
    "one of all blocks": (
        lambda p, x: jnp.einsum("bkd,kde->bke", x, p[0]) + p[1],
        (np.ones((2, 2, 2)), B),
        (2, 2, 2),
    ),
    "one a block": (
        lambda p, x: jnp.einsum("bkd,kde->bke", x, p[0]) + p[1][:, None],
        (np.ones((2, 2, 2)), B),
        (2, 2, 2),
    ),
    "repeated": (
        lambda p, x: x @ p[0] + jnp.repeat(p[1], 2),
        (np.ones((3, 4)), B),
        (4, 3),
    ),
    "added twice": (lambda p, x: x @ p[0] + p[1] + p[1], (W, B), (4, 3)),
    "of one use of two": (
        lambda p, x: jnp.stack([x @ p[0] + p[1], (2 * x) @ p[0]]),
        (W, B),
        (4, 3),
    ),
    "a second bias": (lambda p, x: x @ p[0] + p[1] + p[2], (W, B, B), (4, 3)),
    "of the input": (lambda p, x: (x + p[1]) @ p[0], (W, np.ones(3)), (4, 3)),
}


@pytest.mark.parametrize("name", NO_BIAS)
def test_what_is_added_and_is_no_bias(name):
    function, params, shape = NO_BIAS[name]
    problem = of_function(function, params, normal(0, *shape))
    if name == "of the input":  # then the product is not linear in its kernel alone
        assert [plain.path for plain in problem.taps.plain] == ["1"]
    else:
        check_jacobian(problem, plain=1)


# Products with less, or more, than one kernel: plain, whatever the reason.
NO_LAYER = {
    "summed": (lambda p, x: jnp.einsum("bd,de->b", x, p[0]), (W,), (4, 3)),
    "symmetric": (lambda p, x: x @ (p[0] + p[0].T), (np.ones((3, 3)),), (4, 3)),
    "tied": (lambda p, x: (x @ p[0]) @ p[0].T, (W,), (4, 3)),
    "tiled": (lambda p, x: x @ jnp.tile(p[0], (1, 2)), (W,), (4, 3)),
    "repeated": (lambda p, x: x @ jnp.repeat(p[0], 2, axis=1), (W,), (4, 3)),
    "joined where contracted": (
        lambda p, x: x @ jnp.concatenate(p),
        (W, W),
        (4, 6),
    ),
    "experts by index": (
        lambda p, x: jnp.einsum("nd,nde->ne", x, p[0][jnp.argmax(x, axis=1)]),
        (np.ones((3, 3, 2)),),
        (4, 3),
    ),
    "kernel as image": (
        lambda p, x: jax.lax.conv(p[0], x, (1, 1), "SAME"),
        (np.ones((2, 2, 3, 3)),),
        (2, 2, 2, 2),
    ),
    "also element by element": (
        lambda p, x: x @ p[0] + jnp.sum(x[:, :, None] * p[0], axis=1),
        (W,),
        (4, 3),
    ),
    "constant": (lambda p, x: x @ jax.lax.stop_gradient(p[0]), (W,), (4, 3)),
    "rolled": (lambda p, x: x @ jnp.roll(p[0], 1, axis=1), (W,), (4, 3)),
}


@pytest.mark.parametrize("name", NO_LAYER)
def test_products_that_are_no_layers(name):
    function, params, shape = NO_LAYER[name]
    with pytest.raises(ValueError, match="no layer that can be tapped"):
        of_function(function, params, normal(0, *shape))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.xfail(strict=True, reason="engine: a permuted kernel is read as a table")
def test_kernels_whose_rows_or_columns_are_permuted(axis):
    order = np.array([2, 0, 1])

    def function(p, x):
        return x @ jnp.take(p["w"], order, axis=axis)

    check_jacobian(of_function(function, {"w": np.ones((3, 3))}, normal(0, 4, 3)))


class Stacked(nn.Module):
    """Layers in a loop, each with an input of its own: linear in all of them."""

    axis: int

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Step,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
        )
        return layers(name="layers")(None, x)[1]


class Step(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        return carry, nn.Dense(2, param_dtype=jnp.float64)(x)


def linen_experts(axis, shared, module=nn.Dense, *sizes):
    each = nn.vmap(
        module,
        in_axes=None if shared else 0,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        axis_size=2,
    )
    return each(2, *sizes, param_dtype=jnp.float64)


class NNXExperts(nnx.Module):
    def __init__(self, axis, shared, loop):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(out_axes=nnx.StateAxes({nnx.Param: axis, ...: 0}))
        def make(rngs):
            return nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=rngs)

        self.experts = make(nnx.Rngs(0))
        axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
        lift = nnx.scan if loop else nnx.vmap
        self.call = lift(
            lambda layer, x: layer(x),
            in_axes=(axes, None if shared else 0),
            out_axes=0,
        )

    def __call__(self, x):
        return self.call(self.experts, x)


EXPERTS = {
    "Linen, vmap": lambda axis: (linen_experts(axis, False), (2, 4, 3)),
    "Linen, vmap, one input": lambda axis: (linen_experts(axis, True), (4, 3)),
    "Linen, convolutions": lambda axis: (
        linen_experts(axis, False, nn.Conv, (3,)),
        (2, 2, 4, 3),
    ),
    "Linen, scan": lambda axis: (Stacked(axis), (2, 4, 3)),
    "NNX, vmap": lambda axis: (NNXExperts(axis, False, False), (2, 4, 3)),
    "NNX, vmap, one input": lambda axis: (NNXExperts(axis, True, False), (4, 3)),
    "NNX, scan": lambda axis: (NNXExperts(axis, False, True), (2, 4, 3)),
}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_layers_that_are_stacked(name, axis):
    model, shape = EXPERTS[name](axis)
    check_jacobian(of(model, normal(0, *shape)))


def test_ragged_products_of_experts():
    """Each block is of the samples that reach its expert, whatever their number."""
    sizes, x = np.array([1, 0, 3]), normal(0, 4, 3)

    def function(p, x):
        return jax.lax.ragged_dot(x, p["w"], sizes)

    check_jacobian(of_function(function, {"w": np.ones((3, 3, 2))}, x))
