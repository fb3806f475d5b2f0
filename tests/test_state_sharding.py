"""Where states lie: read from shapes and shardings, with no device but one."""

import math
import re
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP

pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")

DEVICES = 8
MESH = AbstractMesh((DEVICES,), ("model",), axis_types=(AxisType.Auto,))
ADAM = {
    "lnb": lambda taps: lbo.lnb(0.1, taps),
    "whiten": lambda taps: lbo.whiten(optax.adam(1e-3), taps),
    "polar": lambda taps: lbo.polar(1e-2, taps),
}


def sharded(params, layout):
    """Returns shapes of parameters with the shardings that a layout gives them."""

    def stand_in(leaf):
        spec = layout(leaf.shape)
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(MESH, spec)
        )

    return jax.tree.map(stand_in, params)


def rows(shape):
    return P("model") if len(shape) == 2 else P()


def columns(shape):
    return P(*[None] * (len(shape) - 1), "model")


def shapes_of(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def state_of(tx, params):
    """Returns the state's leaves by name: shape, and the shape on each device."""
    shardings = lbo.state_sharding(tx, params)
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    named = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): (leaf, sharding)
        for (path, leaf), sharding in zip(named, jax.tree.leaves(shardings))
    }


def share_of_bytes(tx, params, name=""):
    """Returns the bytes on a device as a share of all, of leaves with this name."""
    own = total = 0
    for path, (leaf, sharding) in state_of(tx, params).items():
        if name in path:
            total += math.prod(leaf.shape) * leaf.dtype.itemsize
            own += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return own / total


def specs(tx, params, name):
    return {
        path: (leaf.shape, tuple(sharding.spec))
        for path, (leaf, sharding) in state_of(tx, params).items()
        if name in path
    }


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _):
        h = jnp.tanh(nn.Dense(2 * self.width)(x))
        return x + nn.Dense(self.width)(h), None


class Stacked(nn.Module):
    width: int = 128

    @nn.compact
    def __call__(self, x):
        over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(Block, length=DEVICES, **over)(self.width)(x, None)[0]


@pytest.mark.parametrize("name", ADAM)
@pytest.mark.parametrize("statistic", ["auto", "gram", "moments"])
def test_states_of_stacked_layers_fall_with_the_devices(name, statistic):
    model, x = Stacked(), jnp.ones((4, 128))
    taps = linen.taps(model, x, statistic=statistic)
    params = sharded(shapes_of(model, x), lambda shape: P("model"))
    share = share_of_bytes(ADAM[name](taps), params)
    assert 1 / DEVICES <= share < 1.1 / DEVICES


@pytest.mark.parametrize("name", ADAM)
def test_states_of_sharded_rows_fall_with_the_devices(name):
    model, x = MLP((512, 512, 512)), jnp.ones((4, 512))
    taps = linen.taps(model, x)

    share = share_of_bytes(ADAM[name](taps), sharded(shapes_of(model, x), rows))
    assert 1 / DEVICES <= share < 1.1 / DEVICES


@pytest.mark.parametrize("name", ADAM)
def test_states_of_stacks_whose_rows_are_sharded_fall_with_the_devices(name):
    """Matrices that are factorised as a whole are shared out, a layer to a device."""
    model, x = Stacked(64), jnp.ones((4, 64))
    taps = linen.taps(model, x, statistic="gram")
    tx = ADAM[name](taps)
    params = sharded(
        shapes_of(model, x), lambda shape: P(None, "model") if len(shape) == 3 else P()
    )
    assert 1 / DEVICES <= share_of_bytes(tx, params) < 1.1 / DEVICES
    found = dict(specs(tx, params, ".metric").values())
    assert found[DEVICES, 64, 64] == ("model", None, None)
    assert found[DEVICES, 128] == (None, "model")


def test_matrices_of_stacks_that_the_devices_do_not_divide_are_everywhere():
    over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    model = nn.scan(Block, length=DEVICES - 1, **over)(16)
    x = jnp.ones((4, 16))
    taps = linen.taps(model, x, None, statistic="gram")
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, None)["params"]
    params = sharded(shapes, lambda shape: P(None, "model") if len(shape) == 3 else P())
    found = specs(lbo.whiten(optax.sgd(0.1), taps), params, ".metric")
    assert dict(found.values())[DEVICES - 1, 16, 16] == (None, None, None)


def test_metrics_of_sharded_outputs_are_on_every_device():
    """So that nothing is said between devices where each has columns of its own."""
    model, x = nn.Dense(1024), jnp.ones((4, 256))
    tx = lbo.whiten(optax.adam(1e-3), linen.taps(model, x))
    params = sharded(shapes_of(model, x), columns)
    assert share_of_bytes(tx, params, ".metric") == 1
    moments = share_of_bytes(tx, params, ".mu"), share_of_bytes(tx, params, ".nu")
    assert moments == (1 / DEVICES, 1 / DEVICES)


def test_arrays_as_long_as_a_layer_is_wide_are_sharded_as_its_rows():
    model, x = nn.Dense(64), jnp.ones((4, 256))
    params = sharded(shapes_of(model, x), rows)
    sketch = lbo.whiten(optax.sgd(0.1), linen.taps(model, x, statistic=lbo.Sketch(16)))
    assert set(specs(sketch, params, ".metric").values()) == {
        ((1,), (None,)),  # weights, and whether there is a factor
        ((1, 256), (None, "model")),  # means and scales
        ((1, 256, 16), (None, "model", None)),  # the sketch, and the basis
        ((1, 16), (None, None)),  # how far it stretches
    }
    matrix = lbo.whiten(optax.sgd(0.1), linen.taps(model, x, statistic="gram"))
    shapes = dict(specs(matrix, params, ".metric").values())
    assert shapes[1, 256, 256] == (None, None, None)  # factorised as a whole


def test_conjugate_gradients_start_from_where_the_kernel_is():
    model, x = nn.Dense(64), jnp.ones((4, 256))
    params = sharded(shapes_of(model, x), columns)
    taps = linen.taps(model, x, statistic="gram")
    found = specs(lbo.lnb(0.1, taps, lbo.ConjugateGradient()), params, ".starts")
    assert dict(found.values()) == {
        (1, 256, 64): (None, None, "model"),
        (1, 64): (None, "model"),
    }


def test_experts_are_sharded_as_their_kernels_are():
    model = nn.DenseGeneral(32, axis=-1, batch_dims=(0,))
    x = jnp.ones((DEVICES, 4, 16))
    taps = linen.taps(model, x)
    params = sharded(shapes_of(model, x), lambda shape: P("model"))
    share = share_of_bytes(lbo.whiten(optax.adam(1e-3), taps), params)
    assert 1 / DEVICES <= share < 1.1 / DEVICES


def test_counts_of_tokens_are_sharded_as_the_vocabulary():
    model, x = nn.Embed(4096, 16), jnp.zeros((4, 8), jnp.int32)
    embeddings = lbo.Auto(embeddings=lbo.Counts(whitened=True))
    tx = lbo.whiten(optax.adam(1e-3), linen.taps(model, x, statistic=embeddings))
    params = sharded(shapes_of(model, x), lambda shape: P("model", None))
    share = share_of_bytes(tx, params)
    assert 1 / DEVICES <= share < 1.1 / DEVICES


@pytest.mark.parametrize(
    ("shape", "spec", "want"),
    [
        ((256, 128), P(None, "model"), (None, "model", None)),
        ((128, 256), P("model", None), (None, "model", None)),
        # Rows are sharded for the sake of memory: so is the root of the other side,
        ((256, 128), P("model", None), (None, "model", None)),
        # if it can be.
        ((256, 124), P("model", None), (None, None, None)),
        # Columns have a root of their own each, as they have their metric.
        ((128, 256), P(None, "model"), (None, None, None)),
    ],
)
def test_roots_lie_along_the_shorter_side(shape, spec, want):
    model, x = nn.Dense(shape[1], use_bias=False), jnp.ones((4, shape[0]))
    tx = lbo.scale_by_polar(linen.taps(model, x))
    params = sharded(shapes_of(model, x), lambda shape: spec)
    found = dict(specs(tx, params, ".factors").values())
    assert found[1, min(shape), 64] == want


def test_kernels_that_are_held_transposed():
    """Rows of what is held are columns of the kernel."""

    def loss(params, x):
        return jnp.mean((x @ params["w"].T) ** 2)

    params, x = {"w": jnp.ones((32, 256))}, jnp.ones((4, 256))
    tx = lbo.whiten(optax.sgd(0.1), lbo.taps(loss, params, x))
    for spec, want in ((P(None, "model"), "model"), (P("model"), None)):
        found = specs(tx, sharded(params, lambda shape, spec=spec: spec), ".metric")
        assert dict(found.values())[1, 256, 64] == (None, want, None)


def test_stacks_along_another_axis():
    """The second axis holds the layers: blocks lie along it, rows along the first."""

    def loss(params, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jnp.mean(jax.lax.scan(layer, x, params["w"].swapaxes(0, 1))[0] ** 2)

    params, x = {"w": jnp.ones((16, DEVICES, 16))}, jnp.ones((4, 16))
    tx = lbo.whiten(optax.sgd(0.1), lbo.taps(loss, params, x))
    for spec, want in (
        (P(None, "model"), ("model", None)),
        (P("model"), (None, "model")),
        (P(None, None, "model"), (None, None)),
    ):
        found = specs(tx, sharded(params, lambda shape, spec=spec: spec), ".metric")
        assert dict(found.values())[DEVICES, 16] == want


def test_stacks_that_the_devices_do_not_divide():
    """The parameter is divided, and the layers that it is cut into are not."""
    layers = DEVICES - 2

    def loss(params, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        stacked = params["w"].reshape(layers, 16, 16)
        return jnp.mean(jax.lax.scan(layer, x, stacked)[0] ** 2)

    params, x = {"w": jnp.ones((layers * 16, 16))}, jnp.ones((4, 16))
    tx = lbo.polar(1e-2, lbo.taps(loss, params, x))
    found = specs(tx, sharded(params, lambda shape: P("model")), ".metric")
    assert dict(found.values())[layers, 16] == (None, None)


@dataclass(frozen=True)
class Flat(lbo.extend.Kind):
    """A layer of one's own, whose kernel is held as a vector."""

    inputs: int
    out: int

    @property
    def kernel_shape(self):
        return (self.inputs * self.out,)

    @property
    def bias_shape(self):
        return (self.out,)

    @property
    def channels(self):
        return self.inputs

    def design(self, x, limit=None):
        return x[None]


def test_kernels_whose_axes_are_not_those_of_matrices_are_everywhere():
    made = lbo.dense_taps({"layer": (256, 32)}, "sketch")
    (layer,) = made.layers
    taps = replace(made, layers=(replace(layer, kind=Flat(256, 32), bias=None),))
    tx = lbo.polar(1e-2, taps)
    params = {"layer": {"kernel": jnp.ones(256 * 32)}}
    found = specs(tx, sharded(params, lambda shape: P("model")), ".metric")
    assert dict(found.values())[1, 256, 64] == (None, None, None)


def test_grouped_kernels_are_cut_across_their_outputs():
    model, x = nn.Conv(32, (3, 3), feature_group_count=4), jnp.ones((2, 8, 8, 16))
    tx = lbo.whiten(optax.sgd(0.1), linen.taps(model, x))
    params = sharded(shapes_of(model, x), columns)
    assert share_of_bytes(tx, params, ".metric") == 1


def test_optimizers_of_optax_have_theirs():
    params = sharded(
        {"w": jnp.ones((16, 4)), "b": jnp.ones(4)},
        rows,
    )
    state = lbo.state_sharding(optax.adam(1e-3), params)[0]
    assert state.mu == {
        "w": NamedSharding(MESH, P("model", None)),
        "b": NamedSharding(MESH, P(None)),
    }
    assert state.count == NamedSharding(MESH, P())


def test_parameters_on_no_mesh_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("sharded over one mesh, got arrays over none")
    ):
        lbo.state_sharding(optax.adam(1e-3), {"w": jnp.ones(3)})


def test_parameters_on_two_meshes_are_refused():
    other = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    a, b = (
        jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, P()))
        for mesh in (MESH, other)
    )
    with pytest.raises(ValueError, match="sharded over one mesh"):
        lbo.state_sharding(optax.adam(1e-3), {"a": a, "b": b})


def test_one_device_without_a_mesh_has_the_state_that_it_had():
    model, x = MLP((8, 3)), jnp.ones((4, 6))
    params = model.init(jax.random.key(0), x)["params"]
    state = lbo.polar(1e-2, linen.taps(model, x)).init(params)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding == jnp.zeros(()).sharding
