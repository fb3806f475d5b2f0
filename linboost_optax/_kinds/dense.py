"""Dense layers, with any number of batch, input and output axes."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from linboost_optax._kinds.base import Kind, some_rows


@dataclass(frozen=True)
class Dense(Kind):
    """A dense layer: ``kernel`` is ``[*batch, *in, *out]``.

    Attributes:
      batch: sizes of the leading axes that inputs and kernel share.
      inputs: sizes of the contracted axes.
      out: sizes of the output axes.
      axis: the contracted axes of the input, negative; ``batch`` axes lead it.
    """

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    out: tuple[int, ...]
    axis: tuple[int, ...] = (-1,)

    name: ClassVar[str] = "Dense"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.batch + self.inputs + self.out

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return self.batch + self.out

    @property
    def groups(self) -> int:
        return math.prod(self.batch)

    @property
    def channels(self) -> int:
        return math.prod(self.inputs)

    @property
    def design_key(self) -> Hashable:
        return replace(self, out=())

    def fits(self, shape: tuple[int, ...]) -> bool:
        deep = len(shape) >= max(-axis for axis in self.axis)
        return deep and tuple(shape[axis] for axis in self.axis) == self.inputs

    def sample_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        contracted = {axis % len(shape) for axis in self.axis}
        left = [size for i, size in enumerate(shape) if i not in contracted]
        return tuple(left[len(self.batch) :])

    def reached(self, g: jax.Array) -> jax.Array:
        g = g.reshape(self.groups, -1, math.prod(self.out))
        return jnp.any(g != 0, axis=(0, 2))

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        x = jnp.moveaxis(x, self.axis, range(-len(self.axis), 0))
        x = x.reshape(self.groups, -1, self.channels)
        rows = some_rows(x.shape[1], limit)
        return x if rows is None else x[:, rows]
