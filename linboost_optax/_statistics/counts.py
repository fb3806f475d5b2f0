"""How often each input is the one that is 1: one-hot inputs, never formed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine
from linboost_optax._statistics.base import (
    BlockMoments,
    Statistic,
    mean_of,
    ones_of,
    per_block,
    struct,
    with_constant,
)
from linboost_optax._statistics.spectrum import Spectrum, of_frequencies

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer


class CountSums(NamedTuple):
    """How often each token was looked up.

    Attributes:
      count: number of look-ups, shape ``[*stack, 1]``.
      sum: of each token, shape ``[*stack, 1, token]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array


class Frequencies(NamedTuple):
    """The second moment of one-hot inputs: a diagonal matrix.

    Attributes:
      count: number of samples, ``[block]``.
      share: of each token, ``[block, feature]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    share: jax.Array

    def product(self, v: Affine) -> Affine:
        return with_constant(self.share, self.share[:, :, None] * v.w, v)


@dataclass(frozen=True)
class Counts(Statistic):
    """How often each token is looked up: all there is to know of one-hot inputs.

    Sum, sum of squares and Gram matrix of one-hot inputs are these counts, so every
    embedding takes this statistic, whatever is asked for the model.

    ``lnb`` divides the gradient of every token's row by its frequency. ``whiten``
    leaves embeddings as they are: their metric is diagonal, and optimizers such as Adam
    do not see a diagonal change of coordinates but in the length of steps, which it
    makes longest for the tokens that are least known.

    Args:
      whitened: whether ``whiten`` changes the coordinates of embeddings, too; default
        False. It is asked for by ``Auto(embeddings=Counts(whitened=True))``.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Embed(5, 2), jnp.array([1, 4]), statistic="gram"))
      path  kind   kernel  inputs  statistic  bytes
      .     Embed  5x2     2       counts        24
      statistics: 24 bytes
    """

    whitened: bool = False

    name: ClassVar[str] = "counts"
    reads_rows: ClassVar[bool] = True

    @property
    def whitens(self) -> bool:
        return self.whitened

    def choose(self, kind: Kind) -> Statistic:
        if not kind.one_hot:
            raise ValueError(
                f"`statistic` must fit the layer's kind, got Counts() for {kind}: only "
                "one-hot inputs are counted. Use 'auto', which counts embeddings."
            )
        return self

    def shapes(self, layer: Layer) -> CountSums:
        return CountSums(struct(layer, 1), struct(layer, 1, layer.kind.channels))

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> CountSums:
        del g
        flat = x.reshape(-1)
        ones = ones_of(flat, jnp.dtype(layer.dtype), rows)
        zeros = jnp.zeros((layer.kind.channels,), ones.dtype)
        return CountSums(jnp.sum(ones, keepdims=True), zeros.at[flat].add(ones)[None])

    def flops(self, layer: Layer) -> float:
        """Returns a sum a token."""
        return 1.0 * math.prod(layer.input_shape)

    def spectrum(self, layer: Layer, value: CountSums) -> Spectrum:
        return of_frequencies(*self.second_moment(layer, value), biased=layer.biased)

    def moments(self, layer: Layer, value: CountSums) -> BlockMoments:
        count, share = self.second_moment(layer, value)
        return BlockMoments(count, share, share)

    def second_moment(self, layer: Layer, value: CountSums) -> Frequencies:
        """Returns products with the diagonal matrix of the tokens' frequencies."""
        count = per_block(layer, value.count)
        return Frequencies(count, mean_of(layer, value.sum, count))


def or_counts(statistic: Statistic, kind: Kind) -> Statistic:
    """Returns ``statistic``, or ``Counts()`` where it would hold nothing else."""
    return Counts() if kind.one_hot else statistic
