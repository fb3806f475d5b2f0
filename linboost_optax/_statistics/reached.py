"""Another statistic, of the rows alone that the loss depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import jax

from linboost_optax._statistics.auto import Auto
from linboost_optax._statistics.base import (
    BlockMoments,
    Rule,
    Statistic,
    rows_taken,
)

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Affine, Layer
    from linboost_optax._statistics.spectrum import Spectrum


@dataclass(frozen=True)
class Reached(Statistic):
    r"""Another statistic, of the rows that a gradient comes from.

    A row whose output has a cotangent of exactly zero in every unit adds nothing to the
    gradient of its layer. It does not count here:

    .. math:: E[x x^T] = \frac{\sum_i m_i x_i x_i^T}{\sum_i m_i}, \qquad
       m_i = [\partial L / \partial y_i \neq 0]

    Padding that a loss and attention mask is left out without anything said, through
    loops over time as well. So is every other row without gradient, such as one whose
    units behind a rectifier are all off: without padding this may be another algorithm
    than the published one, which counts all rows. Layers do not share it where they
    share an input. Where masks are at hand, ``only_rows`` costs less.

    Args:
      of: the statistic, or what chooses it by layer; default ``Auto()``.

    Raises:
      TypeError: if ``of`` is no statistic.
      ValueError: if a statistic counts every row; when measured, by a tap on the input
        alone.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(1), jnp.ones((2, 5, 3))
      >>> mask = jnp.arange(5) < jnp.array([[2], [4]])  # lengths 2 and 4
      >>> def loss_fn(params):
      ...     return jnp.sum(model.apply(params, x)[..., 0] ** 2, where=mask)
      >>> params = model.init(jax.random.key(0), x)
      >>> taps = linen.taps(model, x, statistic=lbo.Reached(lbo.Gram()))
      >>> _, _, stats = linen.value_and_grad(loss_fn, taps)(params)
      >>> stats[""].count
      Array([6.], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131: the statistic of all rows.
    """

    of: Rule = field(default_factory=Auto)

    reads_cotangent: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = True

    def __post_init__(self):
        if isinstance(self.of, type) or not isinstance(self.of, Rule):
            raise TypeError(
                f"`of` must be a statistic, got {self.of!r}. Pass an object, e.g. "
                "lbo.Gram()."
            )

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"reached {getattr(self.of, 'name', self.of)}"

    @property
    def additive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.as_read.additive

    @property
    def is_whole(self) -> bool:
        return self.as_read.is_whole

    @property
    def as_read(self) -> Statistic:
        assert isinstance(self.of, Statistic)  # as `choose` has seen to
        return self.of

    def choose(self, kind: Kind) -> Statistic:
        own = self.of.choose(kind)
        if not own.reads_rows:
            raise ValueError(
                f"`of` must be a statistic that can leave rows out, got {own}, which "
                "counts every row. Teach it: `reads_rows = True`, and "
                "`measure(layer, x, g, rows=None)`."
            )
        return Reached(own)

    def shapes(self, layer: Layer) -> Any:
        return self.as_read.shapes(layer)

    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None,
        rows: jax.Array | None = None,
    ) -> Any:
        if g is None:
            raise ValueError(
                f"layer '{layer}' has `statistic` '{self.name}', which reads the "
                "cotangent of its output, and a tap on its input alone. Tap both: "
                "`lbo.tap(x, t, y)`."
            )
        reached = layer.kind.reached(g)
        rows = reached if rows is None else rows & reached
        return self.as_read.measure(layer, x, g, rows)

    def flops(self, layer: Layer) -> float:
        """Returns a comparison an output, and what the statistic itself takes."""
        outputs = layer.kind.groups * layer.kind.outputs
        return rows_taken(layer, None) * outputs + self.as_read.flops(layer)

    def spectrum(self, layer: Layer, value: Any) -> Spectrum:
        return self.as_read.spectrum(layer, value)

    def mean_square(self, layer: Layer, value: Any, v: Affine) -> jax.Array:
        return self.as_read.mean_square(layer, value, v)

    def moments(self, layer: Layer, value: Any) -> BlockMoments:
        return self.as_read.moments(layer, value)
