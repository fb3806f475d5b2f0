"""Embeddings: one-hot inputs that are never formed."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax

from linboost_optax._kinds.base import Kind, some_rows


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

    @property
    def one_hot(self) -> bool:
        return True

    def sample_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def flops(self, shape: tuple[int, ...]) -> float:
        """Returns one sum an output: looking up is none, its gradient adds rows up."""
        return 1.0 * math.prod(shape) * self.size

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        rows = some_rows(x.size, limit)
        flat = x.reshape(-1) if rows is None else x.reshape(-1)[rows]
        return jax.nn.one_hot(flat, self.vocabulary)[None]
