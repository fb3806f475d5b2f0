"""Experts: each sample goes through the one of several dense layers that it names."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from linboost_optax._kinds.base import Kind, some_rows


@dataclass(frozen=True)
class Experts(Kind):
    """Dense layers that share their samples out: ``kernel`` is ``[expert, in, out]``.

    The last column of the input is no channel: it says which expert a sample goes to.
    To all others that sample is zero, which adds nothing to their second moment: a
    block is that of the samples that reach its expert.

    Attributes:
      experts: how many there are.
      inputs: channels of a sample.
      out: outputs of an expert.
    """

    experts: int
    inputs: int
    out: int

    name: ClassVar[str] = "Experts"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.experts, self.inputs, self.out)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.experts, self.out)

    @property
    def groups(self) -> int:
        return self.experts

    @property
    def channels(self) -> int:
        return self.inputs

    @property
    def design_key(self) -> Hashable:
        return replace(self, out=0)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[-1:] == (self.inputs + 1,)

    def reached(self, g: jax.Array) -> jax.Array:
        return jnp.any(g.reshape(-1, self.out) != 0, axis=1)

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        x = x.reshape(-1, self.inputs + 1)
        rows = some_rows(x.shape[0], limit)
        x = x if rows is None else x[rows]
        mine = x[:, -1] == jnp.arange(self.experts, dtype=x.dtype)[:, None]
        return jnp.where(mine[:, :, None], x[:, :-1], jnp.zeros((), x.dtype))

    def flops(self, shape: tuple[int, ...]) -> float:
        """Returns three products a sample: each goes through one expert."""
        return 6.0 * math.prod(shape[:-1]) * self.inputs * self.out


def numbered(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns samples that are sorted by expert, with their expert as last column.

    Args:
      x: samples ``[sample, channel]``.
      sizes: how many go to each expert, ``[expert]``; what is left goes to none.
    """
    ends = jnp.cumsum(sizes)
    expert = jnp.searchsorted(ends, jnp.arange(x.shape[0]), side="right")
    if sizes.shape[0] > 256:  # as far as bfloat16 counts
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.concatenate([x, expert.astype(x.dtype)[:, None]], axis=1)
