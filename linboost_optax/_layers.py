"""The static facts of a layer; its kernel, bias and statistics as blocks.

The convention of the whole library: inputs are ``[group, sample, feature]``,
kernels ``[block, feature, output]``, biases ``[block, output]``. A *block* is one
least-squares problem; blocks are all stacked layers times all groups, in that
order. The constant 1 that multiplies the bias is the last feature wherever it is
written out; most code keeps it apart, as the pair ``Affine(w, b)``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax import _statistics
from linboost_optax._geometry import Conv, Dense, Embed, Geometry
from linboost_optax._statistics import Gram, Inputs, Moments, Sketch, Statistic


class Affine(NamedTuple):
    """The weights of a layer, or anything shaped like them, as matrices.

    Attributes:
      w: shape ``[block, feature, output]``.
      b: shape ``[block, output]``, or None for a layer without bias.
    """

    w: jax.Array
    b: jax.Array | None


@dataclass(frozen=True)
class Layer:
    """The static facts of one tapped layer.

    Attributes:
      path: where its parameters are, below the root of the parameter tree.
      geometry: how its kernel, bias and inputs become matrices.
      statistic: which statistic its tap emits.
      input_shape: shape of the inputs that reach it, without ``stack``.
      dtype: dtype of its statistic.
      kernel: name of the kernel below ``path``.
      bias: name of the bias below ``path``, or None.
      stack: sizes of the leading axes along which layers are stacked.
      max_samples: most rows a Gram matrix or a sketch is made of, or None for all.
      rank: number of probes of a sketch, at most.
      source: path of the layer whose statistic is this one's too, as both have the
        same input; None for a layer with a statistic of its own.
    """

    path: tuple[str, ...]
    geometry: Geometry
    statistic: _statistics.Kind
    input_shape: tuple[int, ...]
    dtype: str = "float32"
    kernel: str = "kernel"
    bias: str | None = "bias"
    stack: tuple[int, ...] = ()
    max_samples: int | None = None
    rank: int = 64
    source: tuple[str, ...] | None = None

    @property
    def key(self) -> str:
        """The layer's name in dictionaries and messages."""
        return "/".join(self.path)

    @property
    def label(self) -> str:
        """The layer's name for people: the root is a dot, as in the table."""
        return self.key or "."

    @property
    def source_key(self) -> str:
        """The key of its statistic: another layer's where the input is shared."""
        return self.key if self.source is None else "/".join(self.source)

    @property
    def features(self) -> int:
        """Width of one least-squares problem, the constant left out."""
        return self.geometry.channels * self.geometry.repeats

    @property
    def probes(self) -> int:
        """Number of probes of its sketch."""
        return min(self.rank, self.features)

    @property
    def blocks(self) -> int:
        """Number of independent least-squares problems."""
        return math.prod(self.stack) * self.geometry.groups


def design_of(layer: Layer) -> tuple[object, ...]:
    """Returns what determines a layer's design matrix, given its input."""
    geometry = layer.geometry
    if isinstance(geometry, Dense):
        facts = (geometry.batch, geometry.inputs, geometry.axis)
    elif isinstance(geometry, Conv):
        facts = (replace(geometry, out_channels=0),)
    else:
        facts = (geometry.vocabulary,)
    sampled = (layer.max_samples, layer.rank)
    return (geometry.name, *facts, layer.statistic, *sampled, layer.dtype, layer.stack)


def automatic(geometry: Geometry, rank: int) -> _statistics.Kind:
    """Returns the cheapest statistic that is as good as the Gram matrix."""
    if isinstance(geometry, Embed):
        return "moments"
    # Up to here d x d numbers are fewer than the sketch, its factor and its moments.
    return "gram" if geometry.channels * geometry.repeats <= 2 * rank else "sketch"


def measure(layer: Layer, x: jax.Array) -> Statistic:
    """Returns the statistic of one use of ``layer`` (no stacked axes)."""
    geometry, dtype = layer.geometry, jnp.dtype(layer.dtype)
    if isinstance(geometry, Embed):
        return _statistics.token_moments(x, geometry.vocabulary, dtype)
    if layer.statistic == "moments":
        return _statistics.moments(geometry.samples(x), dtype)
    if layer.statistic == "gram":
        return _statistics.gram(geometry.design(x, layer.max_samples), dtype)
    if layer.statistic == "sketch":
        design = geometry.design(x, layer.max_samples)
        return _statistics.sketch(design, layer.probes, dtype)
    first = x.reshape(-1)[:1].astype(dtype)
    return Inputs(x.astype(dtype), _statistics.batched_ones(first, dtype))


def statistic_shapes(layer: Layer) -> Statistic:
    """Returns the layer's statistic as ``ShapeDtypeStruct`` leaves, stack included."""
    group, channels = layer.geometry.groups, layer.geometry.channels

    def struct(*shape: int) -> Any:  # stands for an array of this shape
        return jax.ShapeDtypeStruct(layer.stack + shape, jnp.dtype(layer.dtype))

    if layer.statistic == "moments":
        return Moments(struct(1), struct(group, channels), struct(group, channels))
    if layer.statistic == "gram":
        d = layer.features
        return Gram(struct(1), struct(group, d), struct(group, d, d))
    if layer.statistic == "sketch":
        each, outer = struct(group, layer.features), (layer.features, layer.probes)
        return Sketch(struct(1), each, each, struct(group, *outer))
    return Inputs(struct(*layer.input_shape), struct(1))


def to_affine(
    layer: Layer, kernel: jax.Array, bias: jax.Array | None, dtype: jnp.dtype
) -> Affine:
    """Returns kernel and bias as matrices of ``dtype``."""
    kernel = kernel.reshape(-1, *layer.geometry.kernel_shape)
    w = layer.geometry.to_matrix(kernel.astype(dtype))
    w = w.reshape(-1, *w.shape[2:])
    if bias is None:
        return Affine(w, None)
    return Affine(w, bias.astype(dtype).reshape(w.shape[0], w.shape[2]))


def from_affine(layer: Layer, affine: Affine) -> tuple[jax.Array, jax.Array | None]:
    """Undoes ``to_affine``."""
    stack, geometry = math.prod(layer.stack), layer.geometry
    w = affine.w.reshape(stack, geometry.groups, *affine.w.shape[1:])
    kernel = geometry.from_matrix(w).reshape(layer.stack + geometry.kernel_shape)
    if affine.b is None:
        return kernel, None
    return kernel, affine.b.reshape(layer.stack + geometry.bias_shape)


class BlockMoments(NamedTuple):
    """What every solver reads: the moments of each block's features.

    Attributes:
      count: number of samples, ``[block]``; zero where the block saw none.
      mean: ``[block, feature]``, finite also where ``count`` is zero.
      mean_sq: ``[block, feature]``, likewise.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: jax.Array
    mean_sq: jax.Array


def _per_block(layer: Layer, count: jax.Array) -> jax.Array:
    groups = layer.geometry.groups
    return jnp.repeat(count.reshape(-1), groups, total_repeat_length=layer.blocks)


def block_moments(layer: Layer, statistic: Statistic) -> BlockMoments:
    """Returns the moments of each feature, from any statistic."""
    if isinstance(statistic, Inputs):
        x, count = block_inputs(layer, statistic)
        return BlockMoments(count, jnp.mean(x, axis=1), jnp.mean(x * x, axis=1))
    count = _per_block(layer, statistic.count)
    scale = 1.0 / jnp.maximum(count, 1)[:, None]
    if isinstance(statistic, Gram):
        square = jnp.diagonal(statistic.outer, axis1=-2, axis2=-1)
        repeats = 1
    elif isinstance(statistic, Sketch):
        square, repeats = statistic.sum_sq, 1
    else:
        square, repeats = statistic.sum_sq, layer.geometry.repeats

    def per_feature(total: jax.Array) -> jax.Array:
        # The window comes before the channel in a kernel, so channels are tiled.
        return jnp.tile(total.reshape(layer.blocks, -1) * scale, (1, repeats))

    return BlockMoments(count, per_feature(statistic.sum), per_feature(square))


def block_outer(layer: Layer, statistic: Gram | Sketch) -> tuple[jax.Array, jax.Array]:
    """Returns the mean outer product, or its sketch, and the counts.

    ``[block, feature, feature]``, or ``[block, feature, rank]``.
    """
    count = _per_block(layer, statistic.count)
    outer = statistic.outer.reshape(layer.blocks, layer.features, -1)
    return outer / jnp.maximum(count, 1)[:, None, None], count


def block_inputs(layer: Layer, statistic: Inputs) -> tuple[jax.Array, jax.Array]:
    """Returns the design matrix ``[block, sample, feature]`` and the counts."""
    x = statistic.x.reshape(-1, *layer.input_shape)
    design = jax.vmap(layer.geometry.design)(x)  # pyright: ignore[reportAttributeAccessIssue]
    design = design.reshape(layer.blocks, -1, layer.features)
    once = _per_block(layer, statistic.uses) == 1
    return design, jnp.where(once, design.shape[1], 0).astype(design.dtype)


def check_statistic(layer: Layer, statistic: Statistic) -> None:
    """Raises if ``statistic`` is not the one that ``layer``'s tap emits."""
    expected = statistic_shapes(layer)
    if type(statistic) is not type(expected):
        raise ValueError(
            f"`stats['{layer.source_key}']` must be {type(expected).__name__}, got "
            f"{type(statistic).__name__}. Pass the stats that `value_and_grad` "
            "returned for the very taps this optimizer was made with."
        )
    got = [jnp.shape(leaf) for leaf in statistic]
    want = [leaf.shape for leaf in expected]
    if got != want:
        raise ValueError(
            f"`stats['{layer.source_key}']` must have shapes {want}, got {got}. Pass "
            "the stats that `value_and_grad` returned for the very taps this optimizer "
            "was made with, summed (not stacked) over micro-batches."
        )
