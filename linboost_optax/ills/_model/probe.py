"""Reads a description off a model, whatever library made it, by probing it.

The model is run with every dense layer replaced by a value of our choice, so that
what stands between two layers can be probed as a function of the layer below: it
must be elementwise, and depend on nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._model.activations import TABLE, Activation, Elementwise
from linboost_optax.ills._model.network import DenseLayer, Network

_SAMPLES = 5
_WAY_OUT = (
    "ILLS trains stacks of dense layers with elementwise activations between them; "
    "describe the part that is one with `network(params)`."
)


class Seen(NamedTuple):
    """A dense layer as it was called.

    Attributes:
      kernel: path of the kernel.
      bias: path of the bias, or None.
      features_in: number of inputs.
      features_out: number of units.
    """

    kernel: str
    bias: str | None
    features_in: int
    features_out: int


class Trace(NamedTuple):
    """One run of the model with every dense layer's output replaced.

    Attributes:
      seen: the dense layers, in the order of their calls.
      inputs: that each layer was given.
      outputs: that replaced its own.
      out: of the model.
    """

    seen: list[Seen]
    inputs: list[jax.Array]
    outputs: list[jax.Array]
    out: jax.Array


# Maps (model input, replacement outputs or None for zeros) to a trace.
Run = Callable[[jax.Array, list[jax.Array] | None], Trace]


def describe(run: Run, x: Any) -> Network:
    """Describes the network behind ``run``, called on inputs like ``x``.

    Args:
      run: runs the model with given outputs of its dense layers.
      x: model input ``[sample, feature]``; only shape and dtype matter.

    Raises:
      ValueError: if the model is not a stack of dense layers with elementwise
        activations.
    """
    rng = np.random.default_rng(0)
    dtype = jnp.asarray(x).dtype

    def draw(width):
        return jnp.asarray(rng.normal(size=(_SAMPLES, width)), dtype)

    probe = draw(jnp.shape(x)[-1])
    seen = run(probe, None).seen
    _check_seen(seen)
    base = run(probe, [draw(layer.features_out) for layer in seen])
    if not np.array_equal(base.inputs[0], probe):
        raise ValueError(
            f"`{seen[0].kernel}` must be given the model's input unchanged. {_WAY_OUT}"
        )
    layers = []
    for level, layer in enumerate(seen):
        follows = _follower(run, seen, level, probe.shape[1])
        _check_elementwise(layer, follows, base, level)
        layers.append(DenseLayer(*layer, _recognise(follows, layer, dtype)))
    return Network(tuple(layers))


def _follower(run: Run, seen: list[Seen], level: int, width: int) -> Elementwise:
    """Returns what the next layer receives as a function of this one's output."""

    def follows(z: jax.Array) -> jax.Array:
        outputs = [jnp.zeros((len(z), s.features_out), z.dtype) for s in seen]
        outputs[level] = z
        trace = run(jnp.zeros((len(z), width), z.dtype), outputs)
        return [*trace.inputs[1:], trace.out][level].reshape(z.shape)

    return follows


def _check_seen(seen: list[Seen]) -> None:
    if not seen:
        raise ValueError(f"the model must call at least one dense layer. {_WAY_OUT}")
    names = [layer.kernel for layer in seen]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(
            f"every dense layer must be called once, but {sorted(repeated)} is called "
            f"several times. {_WAY_OUT}"
        )


def _check_elementwise(
    layer: Seen, follows: Elementwise, base: Trace, level: int
) -> None:
    """Raises unless the same values in other company give the same results."""
    z = base.outputs[level]
    actual = [*base.inputs[1:], base.out][level]
    good = actual.size == z.size
    if good:
        order = np.random.default_rng(1).permutation(z.size)
        got = follows(z)
        shuffled = follows(z.ravel()[order].reshape(z.shape))
        moved = follows(z.at[0, 0].add(1.0))
        # In `base` all other layers were random, in `follows` they are 0.
        good = (
            _same(got, actual.reshape(z.shape))
            and _same(got.ravel()[order], shuffled.ravel())
            and _same(moved.ravel()[1:], got.ravel()[1:])
        )
    if not good:
        raise ValueError(
            f"what follows `{layer.kernel}` must be elementwise and depend on that "
            f"layer alone. {_WAY_OUT}"
        )


def _same(a: jax.Array, b: jax.Array) -> bool:
    return np.allclose(a, b, rtol=1e-5, atol=1e-6)


def _recognise(follows: Elementwise, layer: Seen, dtype: Any) -> Activation:
    """Returns the activation of the table with the same values, or one of its own."""
    z = jnp.linspace(-3, 3, 61, dtype=dtype)[:, None]
    got = follows(jnp.broadcast_to(z, (61, layer.features_out)))
    for known in TABLE.values():
        if _same(got, jnp.broadcast_to(known.fn(z), got.shape)):
            return known
    return Activation(f"the function after {layer.kernel}", follows)
