"""What the two uses of a tied embedding see: its look-ups, and its output layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine
from linboost_optax._statistics.base import (
    BlockMoments,
    HasSecondMoment,
    Rule,
    SecondMoment,
    Statistic,
)
from linboost_optax._statistics.gram import Gram
from linboost_optax._statistics.reached import Reached

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._kinds.tied import Tied
    from linboost_optax._layer import Layer


class UseSums(NamedTuple):
    """The statistics of both uses, each a sum over that use's own samples.

    Attributes:
      lookup: of the look-ups, how often each token occurs.
      attend: of the inputs of the output layer.
    """

    lookup: Any
    attend: Any

    @property
    def count(self) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Number of samples of both uses."""
        return self.lookup.count + self.attend.count


class BlockUses(NamedTuple):
    r"""The second moment of a tied embedding, over the samples of both uses.

    Attributes:
      count: number of samples of both uses, ``[block]``.
      share: how many of them are look-ups, between 0 and 1, ``[block]``.
      lookup: :math:`D`, diagonal, acts on the tokens.
      attend: :math:`S`, acts on an embedding's components.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    share: jax.Array
    lookup: SecondMoment
    attend: SecondMoment

    def product(self, v: Affine) -> Affine:
        """Returns ``share * D v + (1 - share) * v S``."""
        rows = self.lookup.product(v).w
        components = self.attend.product(Affine(v.w.mT, None)).w.mT
        share = self.share[:, None, None]
        return Affine(share * rows + (1 - share) * components, None)


@dataclass(frozen=True)
class Uses(Statistic):
    r"""Both uses of an embedding that is the output layer, too, each by its statistic.

    The embedding :math:`E` is read by tokens, one-hot inputs with the second moment
    :math:`D`, a diagonal matrix of their frequencies, and multiplies hidden states
    :math:`h`, as :math:`h E^T`. As for every layer that is used more than once, the
    metric is the mean over the samples of all uses, :math:`n` look-ups and :math:`m`
    hidden states:

    .. math::
      M(E) = \frac{n}{n + m}\, D E + \frac{m}{n + m}\, E S, \qquad
      D = \mathrm{diag}(\text{counts}) / n, \quad S = \frac{1}{m} \sum h h^T.

    A statistic of some of the rows stands for all of them.

    Args:
      lookup: statistic of the look-ups: ``Counts()``, or ``Reached`` of it.
      attend: statistic of the hidden states, one that adds up.

    Example:
      >>> import jax.numpy as jnp, linboost_optax as lbo
      >>> from linboost_optax._kinds import Tied
      >>> from linboost_optax._layer import Layer
      >>> kind = Tied(vocabulary=5, size=2)
      >>> statistic = kind.statistic(lbo.Gram())
      >>> statistic.name
      'counts + gram'
      >>> layer = Layer(("embed",), kind, statistic, (3,), bias=None)
      >>> value = statistic.measure(layer, jnp.array([1, 1, 4]))
      >>> value.lookup.sum
      Array([[0., 2., 0., 0., 1.]], dtype=float32)
      >>> value.attend.outer
      Array([[[0., 0.],
              [0., 0.]]], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131: the metric of one use.
    """

    lookup: Statistic
    attend: Statistic

    reads_rows: ClassVar[bool] = True

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.lookup.name} + {self.attend.name}"

    @classmethod
    def of(cls, kind: Tied, asked: Rule) -> Uses:
        """Returns the statistic of a tied embedding where the user asked for ``asked``.

        Values of the two uses are added up, which raw inputs are not made for: hidden
        states then have a Gram matrix, which is the same second moment.
        """
        lookup, attend = (use.statistic(asked) for use in (kind.lookup, kind.attend))
        return cls(lookup, _additive(attend))

    @property
    def reads_cotangent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.lookup.reads_cotangent or self.attend.reads_cotangent

    @property
    def is_whole(self) -> bool:
        # Without products with both there is no second moment of the whole batch.
        each = (self.lookup, self.attend)
        return all(use.is_whole and isinstance(use, HasSecondMoment) for use in each)

    @property
    def as_read(self) -> Statistic:
        return Uses(self.lookup.as_read, self.attend.as_read)

    def layer_of(self, layer: Layer, kind: Kind) -> Layer:
        """Returns the layer as a tap on one of its uses takes it.

        That tap measures its own use, with zeros for the other: what both emit is added
        up.

        Args:
          layer: the tied embedding.
          kind: of the use, ``layer.kind.lookup`` or ``layer.kind.attend``.
        """
        tied: Any = layer.kind
        which = "lookup" if kind == tied.lookup else "attend"
        return replace(layer, kind=kind, statistic=Use(self, tied, which))

    def parts(self, layer: Layer) -> tuple[Layer, Layer]:
        """Returns look-ups and output layer as layers with statistics of their own."""
        tied: Any = layer.kind
        return (
            replace(layer, kind=tied.lookup, statistic=self.lookup),
            replace(layer, kind=tied.attend, statistic=self.attend),
        )

    def flops(self, layer: Layer) -> float:
        lookup, attend = self.parts(layer)
        tied: Any = layer.kind
        attend = replace(attend, input_shape=(*layer.input_shape, tied.size))
        return lookup.statistic.flops(lookup) + attend.statistic.flops(attend)

    def shapes(self, layer: Layer) -> UseSums:
        return UseSums(*(part.statistic.shapes(part) for part in self.parts(layer)))

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> UseSums:
        """Returns the value of one use: tokens are integers, hidden states are not."""
        tied: Any = layer.kind
        tokens = jnp.issubdtype(x.dtype, jnp.integer)
        use = self.layer_of(layer, tied.lookup if tokens else tied.attend)
        return use.statistic.measure(use, x, g, rows)

    def moments(self, layer: Layer, value: UseSums) -> BlockMoments:
        """Returns the moments of the look-ups: the features are the tokens."""
        lookup, _ = self.parts(layer)
        return lookup.statistic.moments(lookup, value.lookup)

    def numbers(self, layer: Layer, value: UseSums) -> tuple[jax.Array, jax.Array]:
        """Returns the number of samples, and the share of look-ups, each ``[block]``.

        Moments count all samples, also where a matrix is of some of them.
        """
        n, m = (
            part.statistic.moments(part, own).count
            for part, own in zip(self.parts(layer), value)
        )
        return n + m, n / jnp.maximum(n + m, 1)

    def second_moment(self, layer: Layer, value: UseSums) -> BlockUses:
        """Returns products with the second moment of both uses."""
        lookup, attend = self.parts(layer)
        assert isinstance(lookup.statistic, HasSecondMoment)
        assert isinstance(attend.statistic, HasSecondMoment)
        return BlockUses(
            *self.numbers(layer, value),
            lookup.statistic.second_moment(lookup, value.lookup),
            attend.statistic.second_moment(attend, value.attend),
        )


@dataclass(frozen=True)
class Use(Statistic):
    """One of the uses: measures its own part of ``Uses``, zeros elsewhere.

    Attributes:
      uses: both.
      tied: the kind of the layer.
      which: the one that is measured.
    """

    uses: Uses
    tied: Tied
    which: Literal["lookup", "attend"]

    reads_rows: ClassVar[bool] = True

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.uses.name

    @property
    def own(self) -> Statistic:
        """The statistic of this use alone."""
        return getattr(self.uses, self.which)

    @property
    def reads_cotangent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.own.reads_cotangent

    def shapes(self, layer: Layer) -> UseSums:
        return self.uses.shapes(replace(layer, kind=self.tied, statistic=self.uses))

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> UseSums:
        own = replace(layer, statistic=self.own)
        measured = self.own.measure(own, x, g, rows)
        # Zeros that JAX knows to depend on the input: inside `shard_map` constants are
        # of another type than what differs from device to device.
        some = jax.tree.leaves(measured)[0].reshape(-1)[0]

        def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            zero = jnp.zeros(leaf.shape, leaf.dtype)
            return jnp.where(some == some, zero, zero)

        nothing = jax.tree.map(zeros, self.shapes(layer))
        return nothing._replace(**{self.which: measured})

    def moments(self, layer: Layer, value: UseSums) -> BlockMoments:
        own = replace(layer, statistic=self.own)
        return self.own.moments(own, getattr(value, self.which))


def _additive(statistic: Statistic) -> Statistic:
    if statistic.additive:
        return statistic
    return Reached(Gram()) if isinstance(statistic, Reached) else Gram()
