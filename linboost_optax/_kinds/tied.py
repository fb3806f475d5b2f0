"""Embeddings that are the output layer, too: one matrix with two kinds of inputs."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from linboost_optax._kinds.base import Kind, some_rows
from linboost_optax._kinds.embed import Embed
from linboost_optax._statistics.base import Rule, Statistic
from linboost_optax._statistics.uses import Uses


@dataclass(frozen=True)
class Attend(Kind):
    r"""An embedding as the output layer: :math:`h E^T`, without a bias.

    Attributes:
      vocabulary: number of tokens, the outputs.
      size: of an embedding, and of the input.
    """

    vocabulary: int
    size: int

    name: ClassVar[str] = "Attend"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.vocabulary, self.size)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.vocabulary,)

    @property
    def channels(self) -> int:
        return self.size

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        x = x.reshape(-1, self.size)
        rows = some_rows(x.shape[0], limit)
        return (x if rows is None else x[rows])[None]

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        return kernel.mT[:, None]

    def from_matrix(self, w: jax.Array) -> jax.Array:
        return w[:, 0].mT


@dataclass(frozen=True)
class Tied(Embed):
    """An embedding that is looked up and attended to.

    Its matrix is laid out as the look-up's, ``[token, component]``; its statistic is
    that of both uses, whatever is asked for each.
    """

    name: ClassVar[str] = "Tied"

    @property
    def lookup(self) -> Embed:
        """The kind of the look-ups alone."""
        return Embed(self.vocabulary, self.size)

    @property
    def attend(self) -> Attend:
        """The kind of the output layer alone."""
        return Attend(self.vocabulary, self.size)

    @property
    def design_key(self) -> "Tied":
        return self  # inputs of a use do not tell those of the other

    def statistic(self, asked: Rule) -> Statistic:
        return Uses.of(self, asked)
