"""Flax's lifted transforms: gradients stay, statistics are those of every use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from linboost_optax import linen
from tests.oracle import check, initial, normal, same_tree


def mean_square(model, **kwargs):
    def loss_fn(params, *args):
        y = model.apply({"params": params}, *args, **kwargs)
        return jnp.mean(jnp.square(y))

    return loss_fn


def check_model(model, *args, statistic="auto", **kwargs):
    params = initial(model, *args, **kwargs)["params"]
    taps = linen.taps(model, *args, statistic=statistic, **kwargs)
    _, _, stats = check(taps, mean_square(model, **kwargs), params, *args)
    return taps, stats


class MLP(nn.Module):
    width: int = 4
    layer: type[nn.Module] = nn.Dense

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(self.layer(self.width)(x))
        return self.layer(3)(x)


class Block(nn.Module):
    """A residual layer in the carry form that ``nn.scan`` takes."""

    layer: type[nn.Module] = nn.Dense

    @nn.compact
    def __call__(self, x, _=None):
        return x + jnp.tanh(self.layer(x.shape[-1])(x)), None


class Shared(nn.Module):
    def setup(self):
        self.dense = nn.Dense(3)

    def __call__(self, x):
        return self.dense(jnp.sin(self.dense(x)))

    def once(self, x):
        return self.dense(x)


@pytest.mark.parametrize("statistic", ["moments", "gram"])
@pytest.mark.parametrize("layer", [nn.Dense, nn.remat(nn.Dense), nn.jit(nn.Dense)])
def test_lifted_layer(layer, statistic):
    check_model(MLP(layer=layer), normal(0, 5, 3), statistic=statistic)


@pytest.mark.parametrize("transform", [nn.jit, nn.remat])
def test_lifted_model(transform):
    check_model(transform(MLP)(), normal(0, 5, 3))


def test_jitted_class_that_was_traced_before():
    model, x = nn.jit(MLP)(), normal(0, 5, 3)
    params = initial(model, x)["params"]
    jax.grad(mean_square(model))(params, x)
    taps = linen.taps(model, x)
    assert [layer.key for layer in taps.layers] == ["Dense_0", "Dense_1"]
    check(taps, mean_square(model), params, x)
    assert linen.taps(model, x) == taps


def test_shared_module():
    _, stats = check_model(Shared(), normal(0, 5, 3))
    assert stats["dense"].count == 10


def test_without_jit():
    model, x = MLP(), normal(0, 5, 3)
    params, loss_fn = initial(model, x)["params"], mean_square(model)
    function = linen.value_and_grad(loss_fn, linen.taps(model, x))
    same_tree(function(params, x), jax.jit(function)(params, x))


def test_method():
    _, stats = check_model(Shared(), normal(0, 5, 3), method="once")
    assert stats["dense"].count == 5


def test_two_applies():
    model, x = MLP(), normal(0, 5, 3)
    loss_fn = mean_square(model)
    taps, params = linen.taps(model, x), initial(model, x)["params"]
    check(taps, lambda p, x: loss_fn(p, x) + loss_fn(p, 2 * x[:2]), params, x)


def scanned(layer=Block, **kwargs):
    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    return nn.scan(layer, length=3, **axes, **kwargs)


class Deep(nn.Module):
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        return self.block()(x, None)[0]


@pytest.mark.parametrize("statistic", ["sketch", "gram"])
@pytest.mark.parametrize("block", [scanned(), scanned(nn.remat(Block))])
def test_scan_over_layers(block, statistic):
    taps, _ = check_model(Deep(block), normal(0, 5, 3), statistic=statistic)
    assert taps.layers[0].stack == (3,)


def test_nested_scan_over_layers():
    block = scanned(scanned())
    taps, _ = check_model(Deep(block), normal(0, 5, 3))
    assert taps.layers[0].stack == (3, 3)


class Carry(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Block()(x)[0]


class RematScanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat_scan(Carry, lengths=(2, 3))()(x)


def test_remat_scan():
    taps, _ = check_model(RematScanned(), normal(0, 5, 3))
    assert taps.layers[0].stack == (2, 3)


@pytest.mark.parametrize("statistic", ["sketch", "gram"])
@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.SimpleCell])
def test_scan_over_time(cell, statistic):
    model, x = nn.RNN(cell(features=4)), normal(0, 2, 5, 3)
    taps, stats = check_model(model, x, statistic=statistic)
    assert taps.layers[0].stack == ()
    assert {float(s.count[0]) for s in stats.values()} == {10.0}


def test_the_optimized_lstm_is_the_other_one():
    """Eight kernels that are multiplied in two products, each with its own place."""
    x = normal(0, 2, 5, 3)
    models = [
        nn.Sequential([nn.RNN(cell(4)), nn.Dense(2)])
        for cell in (nn.OptimizedLSTMCell, nn.LSTMCell)
    ]
    params = initial(models[0], x)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(
        initial(models[1], x)["params"]
    )
    taps = [linen.taps(model, x, statistic="gram") for model in models]
    assert [layer.path for layer in taps[0].layers] == [
        layer.path for layer in taps[1].layers
    ]
    assert not taps[0].plain
    results = [
        linen.value_and_grad(mean_square(model), each)(params, x)
        for model, each in zip(models, taps)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class Mapped(nn.Module):
    stacked: bool

    @nn.compact
    def __call__(self, x):
        axis = 0 if self.stacked else None
        layer = nn.vmap(
            MLP, variable_axes={"params": axis}, split_rngs={"params": self.stacked}
        )
        return layer()(x)


@pytest.mark.parametrize("statistic", ["sketch", "gram"])
@pytest.mark.parametrize("stacked", [True, False])
def test_vmap(stacked, statistic):
    taps, stats = check_model(Mapped(stacked), normal(0, 2, 5, 3), statistic=statistic)
    assert taps.layers[0].blocks == (2 if stacked else 1)
    (key, *_) = stats
    assert stats[key].count.tolist() == ([5] if stacked else [10])


class Branching(nn.Module):
    switch: bool = False

    @nn.compact
    def __call__(self, which, x):
        layers = [nn.Dense(3), nn.Dense(3)]
        if self.is_initializing():
            for layer in layers:
                layer(x)
        branches = [lambda _, x, f=f: f(x) for f in layers]
        if self.switch:
            return nn.switch(which, branches, self, x)
        return nn.cond(which > 0, branches[1], branches[0], self, x)


@pytest.mark.parametrize("switch", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_branches(which, switch):
    _, stats = check_model(Branching(switch), jnp.asarray(which), normal(0, 5, 3))
    assert stats[f"Dense_{which}"].count == 5
    assert stats[f"Dense_{1 - which}"].count == 0


def boxed(init, names):
    return nn.with_partitioning(init, names)


class BoxedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        kernel = boxed(nn.initializers.lecun_normal(), (None, "model"))
        bias = boxed(nn.initializers.zeros_init(), ("model",))
        y = nn.Dense(x.shape[-1], kernel_init=kernel, bias_init=bias)(x)
        return x + jnp.tanh(y), None


@pytest.mark.parametrize("scan", [False, True])
def test_boxed_parameters(scan):
    metadata = {"metadata_params": {nn.PARTITION_NAME: "layers"}}
    block = scanned(BoxedBlock, **metadata) if scan else BoxedBlock
    model, x = Deep(block), normal(0, 5, 3)
    params = initial(model, x)["params"]
    assert isinstance(jax.tree.leaves(params, is_leaf=_boxed)[0], nn.Partitioned)
    check(linen.taps(model, x), mean_square(model), params, x)


def _boxed(leaf):
    return isinstance(leaf, nn.Partitioned)


def test_frozen_parameters():
    model, x = MLP(), normal(0, 5, 3)
    params = freeze(initial(model, x)["params"])
    check(linen.taps(model, x), mean_square(model), params, x)


@pytest.mark.parametrize("outer", [jax.checkpoint, jax.jit])
def test_apply_inside_jax_transform(outer):
    model, x = MLP(), normal(0, 5, 3)
    apply = outer(lambda params, x: model.apply({"params": params}, x))
    taps, params = linen.taps(model, x), initial(model, x)["params"]
    check(taps, lambda p, x: jnp.sum(jnp.square(apply(p, x))), params, x)


def test_apply_inside_vmap_and_scan():
    model, x = MLP(), normal(0, 4, 5, 3)
    taps, params = linen.taps(model, x[0]), initial(model, x[0])["params"]
    loss_fn = mean_square(model)

    def mapped(params, x):
        return jnp.sum(jax.vmap(loss_fn, in_axes=(None, 0))(params, x))

    def looped(params, x):
        return jax.lax.scan(lambda c, x: (c + loss_fn(params, x), None), 0.0, x)[0]

    for outer in (mapped, looped):
        _, _, stats = check(taps, outer, params, x)
        assert stats["Dense_0"].count == 20


@pytest.mark.parametrize("statistic", ["moments", "gram"])
def test_ensemble(statistic):
    model, x = MLP(), normal(0, 2, 5, 3)
    taps = linen.taps(model, x[0], statistic=statistic)
    members = [initial(model, x[0], key=k)["params"] for k in (0, 7)]
    params = jax.tree.map(lambda *p: jnp.stack(p), *members)
    function = linen.value_and_grad(mean_square(model), taps)
    value, grads, stats = jax.vmap(function)(params, x)
    for i, member in enumerate(members):
        want = check(taps, mean_square(model), member, x[i])
        got = jax.tree.map(lambda a, i=i: a[i], (value, grads, stats))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert jnp.allclose(a, b, atol=1e-5)
