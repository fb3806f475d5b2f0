"""Kernel, bias and inputs of a layer <-> matrices.

The convention of the whole library: inputs are ``[group, sample, feature]``,
kernels ``[block, feature, output]``, biases ``[block, output]``. A *block* is one
least-squares problem; blocks are all stacked layers times all groups, in that
order. The constant 1 that multiplies the bias is the last feature wherever it is
written out; most code keeps it apart, as the pair ``Affine(w, b)``.

A new layer kind is a frozen dataclass here with the members of ``Dense``, and one
branch in each adapter.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax import _statistics
from linboost_optax._statistics import Gram, Inputs, Moments, Statistic


class Affine(NamedTuple):
    """The weights of a layer, or anything shaped like them, as matrices.

    Attributes:
      w: shape ``[block, feature, output]``.
      b: shape ``[block, output]``, or None for a layer without bias.
    """

    w: jax.Array
    b: jax.Array | None


@dataclass(frozen=True)
class Dense:
    """``nn.Dense`` and ``nn.DenseGeneral``: ``kernel`` is ``[*batch, *in, *out]``.

    Attributes:
      batch: sizes of the leading axes that inputs and kernel share.
      inputs: sizes of the contracted axes.
      outputs: sizes of the output axes.
      axis: the contracted axes of the input, negative; ``batch`` axes lead it.
    """

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axis: tuple[int, ...] = (-1,)

    name = "Dense"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.batch + self.inputs + self.outputs

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return self.batch + self.outputs

    @property
    def groups(self) -> int:
        return math.prod(self.batch)

    @property
    def channels(self) -> int:
        return math.prod(self.inputs)

    @property
    def repeats(self) -> int:
        return 1

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        """Returns ``[group, sample, feature]``, of ``limit`` samples at most."""
        x = jnp.moveaxis(x, self.axis, range(-len(self.axis), 0))
        x = x.reshape(self.groups, -1, self.channels)
        rows = some_rows(x.shape[1], limit)
        return x if rows is None else x[:, rows]

    def samples(self, x: jax.Array) -> jax.Array:
        """Returns ``[sample, group, channel]``."""
        return jnp.moveaxis(self.design(x), 0, 1)

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        """Maps ``[stack, *kernel_shape]`` to ``[stack, group, feature, output]``."""
        return kernel.reshape(
            kernel.shape[0], self.groups, self.channels, math.prod(self.outputs)
        )

    def from_matrix(self, w: jax.Array) -> jax.Array:
        """Undoes ``to_matrix``."""
        return w.reshape(w.shape[0], *self.kernel_shape)


@dataclass(frozen=True)
class Conv:
    """``nn.Conv``: ``kernel`` is ``[*window, channel, output]``, channels last.

    Attributes:
      window: the kernel's spatial sizes.
      in_channels: channels of the input, all groups together.
      out_channels: channels of the output, all groups together.
      strides: one a spatial axis.
      padding: ``(low, high)`` a spatial axis, or ``"SAME"`` or ``"VALID"``.
      pad_mode: ``"constant"``, ``"wrap"`` or ``"reflect"``.
      input_dilation: one a spatial axis.
      kernel_dilation: one a spatial axis.
      feature_groups: number of groups the channels fall into.
    """

    window: tuple[int, ...]
    in_channels: int
    out_channels: int
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    pad_mode: str
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    feature_groups: int

    name = "Conv"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (*self.window, self.channels, self.out_channels)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.out_channels,)

    @property
    def groups(self) -> int:
        return self.feature_groups

    @property
    def channels(self) -> int:
        return self.in_channels // self.feature_groups

    @property
    def repeats(self) -> int:
        return math.prod(self.window)

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        """Returns the patches ``[group, sample, feature]``, ``limit`` at most."""
        spatial = len(self.window)
        x = self._pad(x.reshape(-1, *x.shape[x.ndim - spatial - 1 :]))
        extent = [(k - 1) * d + 1 for k, d in zip(self.window, self.kernel_dilation)]
        reach = [size - e for size, e in zip(x.shape[1:-1], extent)]
        places = [r // stride + 1 for r, stride in zip(reach, self.strides)]
        rows = some_rows(x.shape[0] * math.prod(places), limit)
        if rows is None:
            patches = self._all_patches(x, reach)
        else:
            patches = self._patches_at(x, np.unravel_index(rows, (len(x), *places)))
        patches = patches.reshape(-1, self.repeats, self.groups, self.channels)
        patches = jnp.moveaxis(patches, 2, 0)
        return patches.reshape(self.groups, -1, self.repeats * self.channels)

    def _all_patches(self, x: jax.Array, reach: Sequence[int]) -> jax.Array:
        """Returns ``[image, *place, window, channel]`` of padded images."""

        def shifted(offset: tuple[int, ...]) -> jax.Array:
            start = [o * d for o, d in zip(offset, self.kernel_dilation)]
            stop = [s + r + 1 for s, r in zip(start, reach)]
            return jax.lax.slice(
                x, [0, *start, 0], [len(x), *stop, x.shape[-1]], [1, *self.strides, 1]
            )

        # Slices, not `conv_general_dilated_patches`: a depthwise convolution with
        # an identity kernel is slow on CPU, and orders a patch channel first.
        offsets = itertools.product(*(range(k) for k in self.window))
        return jnp.stack([shifted(offset) for offset in offsets], axis=-2)

    def _patches_at(self, x: jax.Array, where: tuple[np.ndarray, ...]) -> jax.Array:
        """Returns ``[row, *window, channel]``: the patches at some places."""
        spatial = len(self.window)
        index = [where[0].reshape(-1, *[1] * spatial)]
        for i, place in enumerate(where[1:]):
            offsets = np.arange(self.window[i]) * self.kernel_dilation[i]
            axis = place[:, None] * self.strides[i] + offsets
            shape = [1] * spatial
            shape[i] = self.window[i]
            index.append(axis.reshape(-1, *shape))
        return x[tuple(index)]

    def _pad(self, x: jax.Array) -> jax.Array:
        """Returns images padded and dilated, ready for windows without padding."""
        padding = self.padding
        if self.pad_mode != "constant":
            assert not isinstance(padding, str)
            x = jnp.pad(x, ((0, 0), *padding, (0, 0)), mode=self.pad_mode)
            padding = "VALID"
        if isinstance(padding, str):
            sizes = [(s - 1) * d + 1 for s, d in zip(x.shape[1:], self.input_dilation)]
            extent = [
                (k - 1) * d + 1 for k, d in zip(self.window, self.kernel_dilation)
            ]
            padding = jax.lax.padtype_to_pads(sizes, extent, self.strides, padding)
        edges = [(*p, d - 1) for p, d in zip(padding, self.input_dilation)]
        return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def samples(self, x: jax.Array) -> jax.Array:
        """Returns ``[sample, group, channel]``: channels, whatever the window."""
        return x.reshape(-1, self.groups, self.channels)

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        """Maps ``[stack, *kernel_shape]`` to ``[stack, group, feature, output]``."""
        shape = (kernel.shape[0], self.repeats * self.channels, self.groups, -1)
        return jnp.moveaxis(kernel.reshape(shape), 2, 1)

    def from_matrix(self, w: jax.Array) -> jax.Array:
        """Undoes ``to_matrix``."""
        return jnp.moveaxis(w, 1, 2).reshape(w.shape[0], *self.kernel_shape)


@dataclass(frozen=True)
class Embed:
    """``nn.Embed``: a linear layer with one-hot inputs and no bias.

    Attributes:
      vocabulary: number of tokens.
      outputs: size of an embedding.
    """

    vocabulary: int
    outputs: int

    name = "Embed"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.vocabulary, self.outputs)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.outputs,)

    @property
    def groups(self) -> int:
        return 1

    @property
    def channels(self) -> int:
        return self.vocabulary

    @property
    def repeats(self) -> int:
        return 1

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        """Maps ``[stack, *kernel_shape]`` to ``[stack, group, feature, output]``."""
        return kernel[:, None]

    def from_matrix(self, w: jax.Array) -> jax.Array:
        """Undoes ``to_matrix``."""
        return w[:, 0]


Geometry: TypeAlias = Dense | Conv | Embed


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
      max_samples: most rows a Gram matrix is made of, or None for all.
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
    return (geometry.name, *facts, layer.statistic, layer.dtype, layer.stack)


def measure(layer: Layer, x: jax.Array) -> Statistic:
    """Returns the statistic of one use of ``layer`` (no stacked axes)."""
    geometry, dtype = layer.geometry, jnp.dtype(layer.dtype)
    if isinstance(geometry, Embed):
        return _statistics.token_moments(x, geometry.vocabulary, dtype)
    if layer.statistic == "moments":
        return _statistics.moments(geometry.samples(x), dtype)
    if layer.statistic == "gram":
        return _statistics.gram(geometry.design(x, layer.max_samples), dtype)
    first = x.reshape(-1)[:1].astype(dtype)
    return Inputs(x.astype(dtype), _statistics.batched_ones(first, dtype))


def some_rows(count: int, limit: int | None) -> np.ndarray | None:
    """Returns ``limit`` of ``count`` row numbers, always the same; None for all.

    At random, because rows are flattened from several axes: a stride that divides the
    sequence length would only ever see a few positions.
    """
    if limit is None or count <= limit:
        return None
    chosen = np.random.default_rng(0).choice(count, limit, replace=False)
    return np.sort(chosen)


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
    else:
        square, repeats = statistic.sum_sq, layer.geometry.repeats

    def per_feature(total: jax.Array) -> jax.Array:
        # The window comes before the channel in a kernel, so channels are tiled.
        return jnp.tile(total.reshape(layer.blocks, -1) * scale, (1, repeats))

    return BlockMoments(count, per_feature(statistic.sum), per_feature(square))


def block_gram(layer: Layer, statistic: Gram) -> tuple[jax.Array, jax.Array]:
    """Returns the mean outer product ``[block, feature, feature]`` and the counts."""
    count = _per_block(layer, statistic.count)
    outer = statistic.outer.reshape(layer.blocks, layer.features, layer.features)
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


def normalize_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns ``axes`` counted from the end."""
    return tuple(axis - ndim if axis >= 0 else axis for axis in axes)
