"""Convolutions, over patches of their input."""

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax._kinds.base import Kind, some_rows


@dataclass(frozen=True)
class Conv(Kind):
    """A convolution: ``kernel`` is ``[*window, channel, output]``, channels last.

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

    name: ClassVar[str] = "Conv"

    def __post_init__(self):
        if self.pad_mode != "constant" and isinstance(self.padding, str):
            raise ValueError(
                f"`padding` must be (low, high) a spatial axis with `pad_mode` "
                f"{self.pad_mode!r}, got {self.padding!r}. Work out what it stands for."
            )

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

    @property
    def is_in_order(self) -> bool:
        return self.groups == 1

    @property
    def design_key(self) -> Hashable:
        return replace(self, out_channels=0)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[-1:] == (self.in_channels,)

    def per_feature(self, channels: jax.Array) -> jax.Array:
        # The window comes before the channel in a kernel, so channels are tiled.
        return jnp.tile(channels, (1, self.repeats))

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        """Returns the patches ``[group, sample, feature]``, ``limit`` at most."""
        spatial = len(self.window)
        x = self._pad(x.reshape(-1, *x.shape[x.ndim - spatial - 1 :]))
        reach, places = self._reach(x.shape)
        rows = some_rows(x.shape[0] * math.prod(places), limit)
        if rows is None:
            patches = self._all_patches(x, reach)
        else:
            patches = self._patches_at(x, np.unravel_index(rows, (len(x), *places)))
        patches = patches.reshape(-1, self.repeats, self.groups, self.channels)
        patches = jnp.moveaxis(patches, 2, 0)
        return patches.reshape(self.groups, -1, self.repeats * self.channels)

    def _reach(self, padded: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Returns how far windows move over padded images, and to how many places."""
        extent = [(k - 1) * d + 1 for k, d in zip(self.window, self.kernel_dilation)]
        reach = [size - e for size, e in zip(padded[1:-1], extent)]
        return reach, [r // stride + 1 for r, stride in zip(reach, self.strides)]

    def sample_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes of the output's places, behind those of the batch."""
        spatial = len(self.window)
        one = jax.ShapeDtypeStruct((1, *shape[len(shape) - spatial - 1 :]), jnp.float32)
        _, places = self._reach(jax.eval_shape(self._pad, one).shape)
        return (*shape[: len(shape) - spatial - 1], *places)

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
        if not isinstance(padding, str) and self.pad_mode != "constant":
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

    def read_by(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns which pixels count: those with an output of their own that does.

        Where outputs and pixels do not correspond, by strides or missing padding, those
        that an output reads which counts.
        """
        if self.sample_axes(shape) == shape[:-1]:
            return rows
        one = replace(self, in_channels=1, out_channels=1, feature_groups=1)
        pixels = jnp.zeros((*shape[:-1], 1), jnp.float32)
        # A patch is linear in the image: its transpose goes from places to pixels.
        patches, transpose = jax.vjp(one.design, pixels)
        chosen = rows.astype(patches.dtype)[None, :, None]
        (times,) = transpose(jnp.broadcast_to(chosen, patches.shape))
        return times.reshape(-1) > 0

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        """Maps ``[stack, *kernel_shape]`` to ``[stack, group, feature, output]``."""
        shape = (kernel.shape[0], self.repeats * self.channels, self.groups, -1)
        return jnp.moveaxis(kernel.reshape(shape), 2, 1)

    def from_matrix(self, w: jax.Array) -> jax.Array:
        """Undoes ``to_matrix``."""
        return jnp.moveaxis(w, 1, 2).reshape(w.shape[0], *self.kernel_shape)
