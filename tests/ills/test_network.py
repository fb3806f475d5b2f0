"""Descriptions of networks: plain lists, Linen and NNX models, bad ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linboost_optax import ills, linen
from linboost_optax import nnx as lbo_nnx
from linboost_optax.ills._model.matrices import read_matrices, write_matrices

X = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.float32)
Y = jnp.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:]


class MLP(nn.Module):
    """Compact, two activations, a layer without bias, squeezed output."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(6, name="first")(x))
        x = nn.softplus(nn.Dense(5, use_bias=False)(x))
        return nn.Dense(1)(x).squeeze(-1)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.Dense(4)(x))
        return nn.Dense(1)(h + nn.tanh(nn.Dense(4)(h)))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(3)
        return nn.Dense(1)(nn.tanh(layer(nn.tanh(layer(x)))))


def sequential(*middle):
    return nn.Sequential([nn.Dense(4), *middle, nn.Dense(1)])


def same_function(net, params, apply):
    np.testing.assert_allclose(
        ills.predict(net, params, X).ravel(), apply(X).ravel(), rtol=1e-5, atol=1e-5
    )


def trains(net, params, steps=5):
    """Objective falls and comes back in the model's own parameter structure."""
    tx = ills.ills(net)
    update = jax.jit(lambda s, p: tx.update(None, s, p, inputs=X, targets=Y))
    state, first = tx.init(params), None
    for _ in range(steps):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        first = state.objective if first is None else first
    assert float(state.objective) < float(first)
    return params


def test_linen_compact():
    variables = MLP().init(jax.random.key(0), X)
    net = linen.network(MLP(), X)
    assert str(net).splitlines() == [
        "first/kernel: 3 -> 6, tanh",
        "Dense_0/kernel: 6 -> 5, no bias, softplus",
        "Dense_1/kernel: 5 -> 1, identity",
    ]
    params = trains(net, variables["params"])
    same_function(net, params, lambda x: MLP().apply({"params": params}, x))


@pytest.mark.parametrize(
    "name",
    ["tanh", "sigmoid", "softplus", "elu", "leaky_relu", "relu", "gelu", "silu"],
)
def test_linen_activations_are_recognised(name):
    net = linen.network(sequential(getattr(nn, name)), X)
    assert (
        net.layers[0].activation
        is ills.network([jnp.ones((3, 4)), jnp.ones((4, 1))], activation=name)
        .layers[0]
        .activation
    )


def test_linen_unknown_activation_becomes_its_own():
    model = sequential(lambda z: jnp.sin(z) + 0.1 * z, nn.Dense(4), nn.tanh)
    variables = model.init(jax.random.key(0), X)
    net = linen.network(model, X)
    assert "layers_0/kernel" in net.layers[0].activation.name
    z = jnp.linspace(-1, 1, 8).reshape(2, 4)
    np.testing.assert_allclose(
        net.layers[0].activation.slope(z), jnp.cos(z) + 0.1, rtol=1e-5
    )
    same_function(net, variables["params"], lambda x: model.apply(variables, x))
    with pytest.raises(ValueError, match="has no inverse"):
        ills.ills(net, method="published")


def test_linen_output_activation():
    net = linen.network(
        nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2), nn.sigmoid]), X
    )
    assert net.last.activation.name == "sigmoid"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (sequential(nn.softmax), "must be elementwise"),
        (sequential(lambda z: z - z.mean(0, keepdims=True)), "must be elementwise"),
        (sequential(nn.LayerNorm()), "all weights of the model must be in dense"),
        (Residual(), "depend on that layer alone"),
        (Shared(), "must be called once"),
        (nn.Sequential([nn.tanh, nn.Dense(1)]), "model's input unchanged"),
        (nn.Sequential([nn.tanh]), "at least one dense layer"),
    ],
)
def test_linen_refuses_what_is_no_stack(model, message):
    with pytest.raises(ValueError, match=message):
        linen.network(model, X)


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(3, 6, rngs=rngs)
        self.middle = nnx.List([nnx.Linear(6, 5, use_bias=False, rngs=rngs)])
        self.down = nnx.Linear(5, 1, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.arcsinh(self.middle[0](nnx.tanh(self.up(x)))))


def test_nnx():
    model = NnxMLP(nnx.Rngs(0))
    call = nnx.Linear.__call__
    net = lbo_nnx.network(model, X)
    assert nnx.Linear.__call__ is call
    assert str(net).splitlines() == [
        "up/kernel: 3 -> 6, tanh",
        "middle/0/kernel: 6 -> 5, no bias, asinh",
        "down/kernel: 5 -> 1, identity",
    ]
    params = trains(net, nnx.state(model, nnx.Param))
    nnx.update(model, params)
    same_function(net, params, model)


def test_nnx_refuses_other_weights():
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    )
    with pytest.raises(ValueError, match=r"nnx\.Linear"):
        lbo_nnx.network(model, X)


@pytest.mark.parametrize("kind", ["pair", "mapping", "kernel"])
def test_plain_lists(kind):
    w, b, v = jnp.ones((3, 4)), jnp.arange(4.0), jnp.ones((4, 1))
    first = {"pair": (w, b), "mapping": {"kernel": w, "bias": b}, "kernel": w}[kind]
    params = [first, v]
    net = ills.network(params, activation="arctan", output_activation="sigmoid")
    layers = read_matrices(net, params)
    assert layers[0].shape == ((3 if kind == "kernel" else 4), 4)
    back = write_matrices(net, params, layers)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_other_parameters_get_zero_updates():
    params = {"net": ills.init_mlp(jax.random.key(0), (3, 4, 1)), "other": jnp.ones(2)}
    net = ills.network(params["net"])
    layers = [
        ills.DenseLayer(
            f"net/{d.kernel}",
            f"net/{d.bias}",
            *(d.features_in,),
            d.features_out,
            d.activation,
        )
        for d in net.layers
    ]
    new = trains(ills.Network(tuple(layers)), params)
    np.testing.assert_array_equal(new["other"], params["other"])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"w": jnp.ones((2, 2))}, TypeError, "`params` must be a list of layers"),
        (["w"], TypeError, r"`params\[0\]` must be a kernel"),
        ([], ValueError, "`layers` must hold at least one dense layer"),
        ([jnp.ones(3)], ValueError, "must be a kernel \\[input, unit\\]"),
        ([(jnp.ones((3, 2)), jnp.ones(3))], ValueError, "the bias of `0/0` must have"),
        ([jnp.ones((3, 2)), jnp.ones((3, 1))], ValueError, "must take the 2 outputs"),
    ],
)
def test_bad_lists(params, error, message):
    with pytest.raises(error, match=message):
        ills.network(params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:1], "`params` must hold `1/0`"),
        (lambda p: [p[0], (jnp.ones((4, 2)), jnp.ones(2))], "must have shape"),
        (
            lambda p: jax.tree.map(lambda a: a.astype(jnp.bfloat16), p),
            "must be float32 or float64",
        ),
    ],
)
def test_parameters_that_do_not_fit(change, message):
    params = ills.init_mlp(jax.random.key(0), (3, 4, 1))
    with pytest.raises(ValueError, match=message):
        ills.ills(ills.network(params)).init(change(params))


def test_mixed_dtypes_are_refused():
    with jax.enable_x64(True):
        params = [jnp.ones((3, 4), jnp.float32), jnp.ones((4, 1), jnp.float64)]
        with pytest.raises(ValueError, match="must be float32 like the first layer"):
            read_matrices(ills.network(params), params)


def test_init_mlp():
    params = ills.init_mlp(jax.random.key(0), (400, 300, 1))
    assert abs(float(params[0][0].std()) * 20 - 1) < 0.02
    with pytest.raises(ValueError, match="at least two positive numbers"):
        ills.init_mlp(jax.random.key(0), (3,))
