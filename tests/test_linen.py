"""``linen.taps``: what is found, what is refused, and what the table says."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from tests.oracle import check, initial, normal

X = normal(0, 5, 3)


class Kinds(nn.Module):
    """Layers that differ from plain ones, and what is not tapped."""

    @nn.compact
    def __call__(self, image, tokens, train: bool):
        mask = jnp.ones((3, 3, 2, 4))
        x = nn.Conv(4, (3, 3), mask=mask, name="masked")(image)
        x = nn.ConvTranspose(4, (3, 3), name="transposed")(x)
        x = nn.LayerNorm(name="norm", use_bias=False)(x) if train else x
        x = nn.WeightNorm(nn.Dense(3, name="normed"), name="weight_norm")(x)
        x = nn.Einsum((3, 2), "...d,de->...e", use_bias=False, name="einsum")(x)
        embed = nn.Embed(7, 2, name="tied")
        x = nn.Dense(2, use_bias=False, name="dense")(x) + embed(tokens)[:, None, None]
        return embed.attend(x)


def test_plain_layers_have_reasons():
    args = (normal(0, 2, 5, 5, 2), jnp.array([1, 2]))
    with jax.numpy_rank_promotion(
        "allow"
    ):  # Flax's ConvTranspose and LayerNorm need it
        taps = linen.taps(Kinds(), *args, True)
        assert linen.taps(Kinds(), *args, train=True) == taps
    kinds = {layer.key: layer.kind.name for layer in taps.layers}
    assert kinds == {
        "dense": "Dense",
        "einsum": "Dense",
        "masked": "Conv",
        "normed": "Dense",
        "tied": "Tied",
        "transposed": "Conv",
    }
    reasons = {p.path: p.reason for p in taps.plain}
    assert reasons.pop("norm/scale").startswith("LayerNorm scales and shifts channels")
    assert reasons == {
        "weight_norm/normed//kernel//scale": (
            "scales or shifts channels one by one; it has no kernel"
        )
    }


def gram_of(x):
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return rows.T @ rows


class Scaled(nn.Dense):
    """A subclass that hands the linear map another input."""

    @nn.compact
    def __call__(self, inputs):
        return super().__call__(inputs=3 * inputs)


class Own(nn.Dense):
    """A subclass with a linear map of its own."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", self.kernel_init, (3, self.features))
        return inputs @ jnp.tanh(kernel)


def square(model):
    return lambda p, *a: jnp.sum(jnp.square(model.apply({"params": p}, *a)))


def test_a_convolution_with_a_kernel_a_place():
    """`ConvLocal` has a block a place, each with the patches there as inputs."""
    model, x = nn.ConvLocal(3, (2,), padding="VALID"), normal(0, 7, 5, 3)
    with jax.numpy_rank_promotion("allow"):
        taps = linen.taps(model, x, statistic="gram")
        params = initial(model, x)["params"]
        _, _, stats = linen.value_and_grad(square(model), taps)(params, x)
    (layer,) = taps.layers
    assert layer.blocks == 4
    for i in range(4):
        # Flax orders a patch by channel, then place.
        patch = np.moveaxis(np.asarray(x[:, i : i + 2]), 1, 2).reshape(7, 6)
        np.testing.assert_allclose(stats[""].outer[i], gram_of(patch), rtol=1e-5)


def test_map_variables_function():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            double = lambda tree: jax.tree.map(lambda p: 2 * p, tree)  # noqa: E731
            layer = nn.map_variables(nn.Dense, "params", double, init=True)
            return nn.Dense(2, name="after")(layer(3, name="mapped")(x))

    model, taps = Model(), linen.taps(Model(), X, statistic="gram")
    assert [layer.key for layer in taps.layers] == ["after", "mapped"]
    params = initial(model, X)["params"]
    _, _, stats = linen.value_and_grad(square(model), taps)(params, X)
    mapped = jax.tree.map(lambda p: 2 * p, params["mapped"])
    hidden = X @ mapped["kernel"] + mapped["bias"][None]
    np.testing.assert_allclose(stats["mapped"].outer[0], gram_of(X), rtol=1e-5)
    np.testing.assert_allclose(stats["after"].outer[0], gram_of(hidden), rtol=1e-5)


def test_subclass_with_a_call_of_its_own():
    model = nn.Sequential([Own(4), nn.Dense(2)])
    taps, params = linen.taps(model, X, statistic="gram"), initial(model, X)["params"]
    assert [layer.biased for layer in taps.layers] == [False, True]
    _, _, stats = linen.value_and_grad(square(model), taps)(params, X)
    np.testing.assert_allclose(stats["layers_0"].outer[0], gram_of(X), rtol=1e-5)


def test_subclass_that_calls_its_parent():
    model, params = Scaled(2), initial(Scaled(2), X)["params"]
    function = linen.value_and_grad(square(model), linen.taps(model, X))
    _, grads, stats = function(params, X)
    assert stats[""].count.tolist() == [5]
    assert jnp.allclose(stats[""].sum[0], 3 * X.sum(0), atol=1e-5)
    want = jax.grad(square(model))(params, X)
    assert jnp.allclose(grads["kernel"], want["kernel"], atol=1e-5)


def test_attention():
    model, x = nn.MultiHeadDotProductAttention(num_heads=2), normal(0, 3, 5, 4)
    params = initial(model, x)["params"]
    taps = linen.taps(model, x)
    assert [layer.key for layer in taps.layers] == ["key", "out", "query", "value"]
    check(taps, square(model), params, x)


def test_convolutional_network():
    model = nn.Sequential([nn.Conv(4, (3, 3), strides=2), nn.relu, nn.Conv(6, (2, 2))])
    x = normal(0, 2, 6, 6, 3)
    taps = linen.taps(model, x, statistic="moments")
    check(taps, square(model), initial(model, x)["params"], x)


def test_embedding():
    model = nn.Sequential([nn.Embed(7, 3), nn.Dense(2)])
    tokens = jnp.array([[1, 1, 6], [0, 1, 2]])
    taps = linen.taps(model, tokens)
    check(taps, square(model), initial(model, tokens)["params"], tokens)


def test_inputs_by_keyword_and_shapes_alone():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, scale):
            return nn.Dense(2)(inputs=scale * x)

    shapes = linen.taps(Model(), jax.ShapeDtypeStruct((5, 3), jnp.float32), scale=2.0)
    assert shapes == linen.taps(Model(), X, scale=2.0)
    model = Model()
    loss = lambda p, x: jnp.sum(model.apply({"params": p}, x, scale=2.0))  # noqa: E731
    params = model.init(jax.random.key(0), X, scale=2.0)["params"]
    check(shapes, loss, params, X)


class TransformerBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attend")(y)
        return x + nn.Dense(8, name="mlp")(nn.gelu(x)), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8, name="embed")(tokens)
        block = nn.scan(
            TransformerBlock, {"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(2000, use_bias=False, name="head")(
            block(name="blocks")(x, None)[0]
        )


@pytest.mark.parametrize("statistic", ["auto", "gram", "moments"])
def test_table_of_a_transformer(statistic):
    with jax.numpy_rank_promotion("allow"):  # LayerNorm and the attention mask
        taps = linen.taps(
            Transformer(), jnp.zeros((2, 5), jnp.int32), statistic=statistic
        )
    lines = str(taps).split("\n")
    # The default has the moments of all rows beside a matrix of some.
    name = {"auto": "gram"}.get(statistic, statistic)
    sizes = {"auto": (1080, 360), "gram": (876, 292), "moments": (204, 68)}[statistic]
    cost, head = ((name, f"{size:,}") for size in sizes)
    rows = [line.split() for line in lines]
    assert rows[0] == ["path", "kind", "kernel", "inputs", "statistic", "bytes"]
    shape = ["Dense", "+", "bias", "3x8x2x4", "2x5x8"]
    assert ["blocks/attend/query", *shape, *cost] in rows
    assert ["blocks/attend/key", *shape, "of", "blocks/attend/query", "0"] in rows
    assert rows[6] == ["embed", "Embed", "11x8", "2x5", "counts", "48"]
    assert rows[7] == ["head", "Dense", "8x2000", "2x5x8", *head]
    assert lines[8].endswith(
        "(LayerNorm scales and shifts channels one by one; it has no kernel)"
    )
    assert rows[9][:6] == ["blocks/norm/scale", "-", "3x8", "-", "plain", "0"]
    total = 3 * sizes[0] + 48 + sizes[1]
    assert lines[10] == f"statistics: {total:,} bytes"


class Twice(nn.Module):
    def setup(self):
        self.shared = nn.Dense(3)

    def __call__(self, x):
        return self.shared(self.shared(x))


class Loop(nn.Module):
    transform: str

    @nn.compact
    def __call__(self, x):
        if self.transform == "rnn":
            return nn.RNN(nn.SimpleCell(3))(x[None])
        if self.transform == "remat rnn":
            return nn.RNN(nn.remat(nn.SimpleCell)(3))(x[None])
        if self.transform == "scan":
            body = lambda m, c, _: (m(c), None)  # noqa: E731
            scan = nn.scan(
                body,
                variable_broadcast="params",
                split_rngs={"params": False},
                length=4,
            )
            return scan(nn.Dense(3, name="shared"), x, None)[0]
        return nn.vmap(nn.Dense, {"params": None}, {"params": False})(3)(x)


@pytest.mark.parametrize(
    "model",
    [Twice(), *(Loop(name) for name in ("rnn", "remat rnn", "scan"))],
    ids=lambda model: getattr(model, "transform", "calls"),
)
def test_raw_inputs_of_a_shared_layer_are_refused(model):
    with pytest.raises(ValueError, match=r"layer '.+' is used more than once.*'gram'"):
        linen.taps(model, X, statistic="inputs")


def test_raw_inputs_of_a_layer_that_is_mapped():
    """Mapped over data alone it is one product, with one array of inputs."""
    model = Loop("vmap")
    taps, params = linen.taps(model, X, statistic="inputs"), initial(model, X)["params"]
    _, _, stats = linen.value_and_grad(square(model), taps)(params, X)
    (layer,) = taps.layers
    assert (stats[layer.key].x == X).all()
    assert stats[layer.key].uses.tolist() == [1]


def test_raw_inputs_of_a_loss_that_uses_the_model_twice():
    model, params = nn.Dense(2), initial(nn.Dense(2), X)["params"]
    taps, once = linen.taps(model, X, statistic="inputs"), square(model)
    two = lambda p, x: once(p, x) + once(p, 2 * x)  # noqa: E731
    many = lambda p, x: jnp.sum(jax.vmap(once, (None, 0))(p, x))  # noqa: E731
    cases = [
        (two, X, "is used more than once"),
        (many, jnp.stack([X, X]), r"inputs of shape \(5, 3\), got \(2, 5, 3\)"),
    ]
    for loss, x, match in cases:
        with pytest.raises(ValueError, match=match):
            linen.value_and_grad(loss, taps)(params, x)
    _, _, stats = linen.value_and_grad(once, taps)(params, X)
    assert (stats[""].x == X).all()
    assert stats[""].uses.tolist() == [1]


@pytest.mark.parametrize("transform", ["scan", "vmap"])
def test_raw_inputs_of_stacked_layers(transform):
    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x):
            if transform == "vmap":
                return nn.vmap(
                    nn.Dense, {"params": 0}, {"params": True}, None, axis_size=2
                )(3)(x)
            body = lambda m, c, _: (jnp.sin(m(c)), None)  # noqa: E731
            scan = nn.scan(body, {"params": 0}, split_rngs={"params": True}, length=2)
            return scan(nn.Dense(3, name="layer"), x, None)[0]

    taps = linen.taps(Stacked(), X, statistic="inputs")
    (layer,), params = taps.layers, initial(Stacked(), X)["params"]
    _, _, stats = linen.value_and_grad(square(Stacked()), taps)(params, X)
    if transform == "vmap":  # of one input: its outputs are those of one layer
        assert (layer.stack, layer.kind.out) == ((), (2, 3))
        assert stats[layer.key].uses.tolist() == [1]
        assert (stats[layer.key].x == X).all()
        return
    assert layer.stack == (2,)
    assert stats[layer.key].uses.tolist() == [[1], [1]]
    assert (stats[layer.key].x[0] == X).all()


def test_raw_inputs_of_another_shape():
    taps = linen.taps(nn.Dense(2), X, statistic="inputs")
    params = initial(nn.Dense(2), X)["params"]
    with pytest.raises(ValueError, match=r"inputs of shape \(5, 3\), got \(4, 3\)"):
        linen.value_and_grad(square(nn.Dense(2)), taps)(params, X[:4])


@pytest.mark.parametrize("axis", [0, 1])
def test_stacking_along_any_axis(axis):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": axis}
            return nn.vmap(nn.Dense, axes, {"params": True}, axis_size=2)(3)(x)

    model, x = Model(), normal(1, 2, 5, 3)
    taps, params = linen.taps(model, x, statistic="gram"), initial(model, x)["params"]
    _, grads, stats = linen.value_and_grad(square(model), taps)(params, x)
    (layer,) = taps.layers
    assert layer.biased
    assert layer.blocks == 2
    for i in range(2):
        got = stats[layer.key].outer[i]
        np.testing.assert_allclose(got, gram_of(x[i]), rtol=1e-5)
    updates, _ = lbo.lnb(0.1, taps).update(
        grads, lbo.lnb(0.1, taps).init(params), params, stats=stats
    )
    # Each block is solved on its own inputs, and put back where it was.
    moved = jnp.moveaxis(updates[layer.path[0]]["kernel"], axis, 0)
    plain = jnp.moveaxis(grads[layer.path[0]]["kernel"], axis, 0)
    assert all(float(jnp.sum(moved[i] * plain[i])) < 0 for i in range(2))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_kernel_that_is_not_real(dtype):
    frozen = nn.Dense(2, param_dtype=dtype, kernel_init=nn.initializers.ones)
    match = f"is {jnp.dtype(dtype)}; only real, floating kernels have a metric"
    # Flax itself promotes the inputs to such a kernel's dtype.
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(ValueError, match=match):
            linen.taps(frozen, X)
        model = nn.Sequential([nn.Dense(3), frozen])
        taps = linen.taps(model, X)
    assert [layer.key for layer in taps.layers] == ["layers_0"]
    assert {p.reason for p in taps.plain} == {match}


def test_complex_inputs_are_plain():
    model = nn.Sequential([nn.Dense(2), jnp.abs, nn.Dense(2)])
    with jax.numpy_dtype_promotion("standard"):  # complex inputs on real kernels
        taps = linen.taps(model, X.astype(jnp.complex64))
    assert [layer.key for layer in taps.layers] == ["layers_2"]
    assert taps.plain[0].reason.startswith("complex inputs; ")


def test_different_geometries_are_plain():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, name="once")
            kernel = self.param("twice", nn.initializers.lecun_normal(), (3, 3))
            return layer(x) + x @ kernel + x @ kernel.T

    taps = linen.taps(Model(), X)
    assert [layer.key for layer in taps.layers] == ["once"]
    reason = "used with different geometries; make a layer for each to tap it"
    assert {p.path: p.reason for p in taps.plain} == {"twice": reason}


def test_one_kernel_on_inputs_of_other_axes():
    """What is contracted is the same, wherever the samples are."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.DenseGeneral(3, axis=0)
            return layer(x[:3]) + jnp.sum(layer(x[:3, :, None]), axis=1)

    model, taps = Model(), linen.taps(Model(), X, statistic="gram")
    params = initial(model, X)["params"]
    _, _, stats = linen.value_and_grad(square(model), taps)(params, X)
    (stat,) = stats.values()
    np.testing.assert_allclose(stat.outer[0], 2 * gram_of(X[:3].T), rtol=1e-5)


def test_unknown_statistic():
    with pytest.raises(ValueError, match="`statistic` must be one of 'auto'"):
        linen.taps(nn.Dense(2), X, statistic="grams")  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"max_samples": None}, {"rank": 16}])
def test_options_of_a_statistic_are_not_those_of_the_call(option):
    ((name, value),) = option.items()
    match = rf"`{name}` is an option of the statistic.*lbo\.Auto\({name}={value}\)"
    for model in (nn.Dense(2), nn.Sequential([nn.Dense(2)])):
        with pytest.raises(TypeError, match=match):
            linen.taps(model, X, **option)


def test_a_model_may_have_an_argument_of_the_same_name():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, rank):
            return nn.Dense(rank)(x)

    (layer,) = linen.taps(Model(), X, rank=4).layers
    assert layer.kind.out == (4,)


def test_model_without_layers():
    with pytest.raises(ValueError, match="`model` LayerNorm has no layer that can be"):
        linen.taps(nn.LayerNorm(), X)


def test_wide_layers_take_a_sketch():
    def chosen(d, **options):
        x = jax.ShapeDtypeStruct((5, d), jnp.float32)
        return linen.taps(nn.Dense(2), x, **options).layers[0].statistic

    assert [chosen(128), chosen(129)] == [lbo.Gram(128), lbo.Sketch(64, 128)]
    auto = lbo.Auto(rank=10, max_samples=None)
    assert chosen(20, statistic=auto) == lbo.Gram()
    assert chosen(21, statistic=auto) == lbo.Sketch(10)


@pytest.mark.parametrize("model", [{"params": {}}, nn.Dense, None])
def test_model_must_be_a_module(model):
    with pytest.raises(TypeError, match=r"`model` must be a flax\.linen\.Module, got"):
        linen.taps(model, X)


def test_root_layer_has_a_name_in_errors():
    taps = linen.taps(nn.Dense(2), X)
    other = nn.Dense(3)
    with pytest.raises(
        ValueError, match=r"layer '\.' with a kernel of shape \(3, 2\), the para"
    ):
        linen.value_and_grad(lambda p: other.apply(p, X).sum(), taps)(
            other.init(jax.random.key(0), X)
        )


def test_parameters_of_a_module_of_the_users_name_it():
    class Gain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gain", nn.initializers.ones, (1, 2))

    taps = linen.taps(nn.Sequential([nn.Dense(2), Gain()]), X)
    want = "is not multiplied with data as a kernel; if it is one, see `register`"
    assert {p.path: p.reason for p in taps.plain} == {"layers_1/gain": want}
