"""Small networks of every kind of layer, and how their parameters may be sharded."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
_64 = {"dtype": DTYPE, "param_dtype": DTYPE}
Dense = functools.partial(nn.Dense, **_64)
General = functools.partial(nn.DenseGeneral, **_64)
Conv = functools.partial(nn.Conv, **_64)
Embed = functools.partial(nn.Embed, **_64)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Dense(4)(jnp.tanh(Dense(8)(x)))


class SeveralAxes(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(General((4, 2))(x))
        return General((2, 2), axis=(-1, -2))(x)


class BatchAxes(nn.Module):
    """The first layer has a kernel of its own for every row of the batch."""

    @nn.compact
    def __call__(self, x):
        return Dense(4)(jnp.tanh(General(8, axis=-1, batch_dims=(0,))(x)))


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = {"strides": 2, "padding": "CIRCULAR"}
        return Conv(4, (2, 3))(jnp.tanh(Conv(8, (3, 3), **first)(x)))


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Conv(4, (3, 3), feature_group_count=2)(x)


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Dense(4)(jnp.tanh(Embed(16, 4)(x)))


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(Dense(4)(x)), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(_Block, length=4, **over)()(x, None)[0]


class Boxed(nn.Module):
    """Parameters in boxes that name the mesh axes they are sharded over."""

    @nn.compact
    def __call__(self, x):
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        bias = nn.with_partitioning(nn.initializers.zeros, ("model",))
        x = Dense(8, kernel_init=kernel, bias_init=bias)(x)
        return Dense(4)(jnp.tanh(x))


MODELS = {
    "dense": (MLP(), (8, 6)),
    "dense 3-d": (MLP(), (8, 4, 6)),
    "several axes": (SeveralAxes(), (8, 4, 6)),
    "batch axes": (BatchAxes(), (8, 4, 6)),
    "conv": (Convolutions(), (8, 4, 6, 4)),
    "grouped conv": (Grouped(), (8, 4, 4, 4)),
    "embed": (Tokens(), (8, 6)),
    "stack": (Stacked(), (8, 4)),
    "boxed": (Boxed(), (8, 6)),
}


@functools.cache
def start(name):
    """Returns a model, its first parameters and a batch."""
    model, shape = MODELS[name]
    key = jax.random.key(1)
    tokens = isinstance(model, Tokens)
    x = (
        jax.random.randint(key, shape, 0, 16)
        if tokens
        else jax.random.normal(key, shape, DTYPE) + 0.5
    )
    return model, model.init(jax.random.key(0), x)["params"], x


def _kernel(feature, output):
    """Returns a layout of kernels: the mesh axes of a feature axis and the outputs."""

    def layout(shape):
        if len(shape) == 1:
            return P(output)
        # A convolution's window is not sharded, nor is an axis of the batch.
        return P(*[None] * (len(shape) - 2), feature, output)

    return layout


# Each maps a parameter's shape to its sharding.
LAYOUTS = {
    "replicated": lambda shape: P(),
    "fsdp": _kernel("data", None),
    "input": _kernel("model", None),
    "output": _kernel(None, "model"),
    "both": _kernel("data", "model"),
    "bias": lambda shape: P("model") if len(shape) == 1 else P(),
    "stack": lambda shape: P("model"),
}
