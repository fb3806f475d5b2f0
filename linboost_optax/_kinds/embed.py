"""Embeddings: one-hot inputs that are never formed."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from linboost_optax._kinds.base import Kind, some_rows
from linboost_optax._statistics import Counts, Rule, Statistic


@dataclass(frozen=True)
class Embed(Kind):
    """An embedding: a linear layer with one-hot inputs and no bias.

    Attributes:
      vocabulary: number of tokens.
      size: of an embedding.
    """

    vocabulary: int
    size: int

    name: ClassVar[str] = "Embed"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.vocabulary, self.size)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def channels(self) -> int:
        return self.vocabulary

    @property
    def design_key(self) -> Hashable:
        return replace(self, size=0)

    def statistic(self, asked: Rule) -> Statistic:
        """Returns ``Counts``: the matrix of one-hot inputs is diagonal."""
        del asked
        return Counts()

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        rows = some_rows(x.size, limit)
        flat = x.reshape(-1) if rows is None else x.reshape(-1)[rows]
        return jax.nn.one_hot(flat, self.vocabulary, dtype=jnp.float32)[None]
