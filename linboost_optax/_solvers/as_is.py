"""The metric of layers that are left in their own coordinates."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax

from linboost_optax._layer import Affine, Layer


class Seen(NamedTuple):
    """Number of samples, ``[block]``: all that is read."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True)
class AsIs:
    """The identity, of a layer whose statistic is not whitened by."""

    layer: Layer

    nameless: ClassVar[bool] = True

    def init(self) -> tuple[()]:
        return ()

    def read(self, value: Any) -> Seen:
        return Seen(self.layer.statistic.moments(self.layer, value).count)

    def update(self, state: tuple[()], view: Seen, step: jax.Array) -> tuple[()]:
        del view, step
        return state

    def whiten(self, state: tuple[()], g: Affine) -> Affine:
        del state
        return g

    def unwhiten(self, state: tuple[()], u: Affine) -> Affine:
        del state
        return u

    def coordinates(self, state: tuple[()], w: Affine) -> Affine:
        del state
        return w
