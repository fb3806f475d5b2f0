"""The measured choice: a statistic for every layer, by its kind and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from linboost_optax import _checks
from linboost_optax._statistics.base import Statistic
from linboost_optax._statistics.counts import Counts
from linboost_optax._statistics.gram import Gram
from linboost_optax._statistics.sketch import Sketch

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind

_COUNTS = Counts()


@dataclass(frozen=True)
class Auto:
    """The cheapest statistic that trains like the Gram matrix, layer by layer.

    A Gram matrix up to ``2 * rank`` inputs, a sketch above; embeddings are counted.

    Args:
      rank: number of probes of a sketch; default 64.
      max_samples: most rows of a batch that a matrix or a sketch is made of; None
        takes all. Default 128, which was measured to take the same steps.
      embeddings: the statistic of embeddings; default ``Counts()``, with which
        ``whiten`` leaves them in their own coordinates.

    Raises:
      TypeError: if a number is not whole, or ``embeddings`` is no ``Counts``.
      ValueError: if an argument is not positive.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.Auto(max_samples=None)
      Auto(rank=64, max_samples=None, embeddings=Counts(whitened=False))
    """

    rank: int = 64
    max_samples: int | None = 128
    embeddings: Counts = _COUNTS

    name: ClassVar[str] = "auto"

    def __post_init__(self):
        _checks.whole("rank", self.rank, 1)
        _checks.optional_whole("max_samples", self.max_samples, 1)
        if not isinstance(self.embeddings, Counts):
            raise TypeError(
                f"`embeddings` must be lbo.Counts(), got {self.embeddings!r}: tokens "
                "are counted. To leave embeddings out of the taps, name them in "
                "`taps(..., exclude=...)`."
            )

    def choose(self, kind: Kind) -> Statistic:
        """Returns the statistic to take of a layer of this kind."""
        if kind.one_hot:
            return self.embeddings
        # Up to here d x d numbers are fewer than the sketch, its factor and moments.
        if kind.features <= 2 * self.rank:
            return Gram(self.max_samples)
        return Sketch(self.rank, self.max_samples)
