r"""Newton-Muon: Muon on gradients that the inputs' second moment has divided.

Du and Su (2026), arXiv:2604.01472. With kernels `[in, out]` and a layer's inputs `x`,

.. math::
  K = E[x x^T], \quad
  G' = \Big(K + 0.2\, \tfrac{\operatorname{tr} K}{d} I\Big)^{-1} G,

and Muon, momentum and orthogonalisation, takes :math:`G'` for the gradient. The paper
refreshes every 32 steps of long runs; here, as for all others, it is every 10, and the
moving average sees every step.

As :func:`linboost_optax.whiten` hands an optimizer what a metric makes of gradients,
this is a metric whose way in is the inverse and whose way out is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import linboost_optax as lbo
from linboost_optax.extend import Affine, Layer, Whitens, where_seen


@dataclass(frozen=True)
class InputInverse:
    """The solver: the ridge in units of the mean square, decay and refresh of `K`."""

    ridge: float = 0.2
    decay: float = 0.95
    every: int = 10

    def bind(self, layer: Layer) -> Any:
        raise ValueError(f"Newton-Muon only whitens; layer '{layer}' asks for a solve.")

    def bind_factor(self, layer: Layer) -> Whitens:
        """The inverse; the identity for embeddings, on which Muon runs its Adam."""
        if layer.kind.one_hot:
            return Identity(layer)
        if not isinstance(layer.statistic, lbo.Gram):
            raise ValueError(
                f"Newton-Muon needs statistic 'gram', and layer '{layer}' has "
                f"'{layer.statistic.name}'. Make the taps with statistic=lbo.Gram()."
            )
        return Inverse(self, layer, layer.statistic)


class InverseState(NamedTuple):
    """Moving average of the second moment, and its inverse, `[block, in, in]`."""

    average: jax.Array
    inverse: jax.Array


class _Out:
    """No change on the way out: the step is taken as the inner optimizer made it."""

    def unwhiten(self, state: Any, u: Affine) -> Affine:
        del state
        return u

    def coordinates(self, state: Any, w: Affine) -> Affine:
        del state
        return w


@dataclass(frozen=True)
class Identity(_Out):
    """A metric that changes nothing."""

    layer: Layer

    def init(self) -> tuple[()]:
        return ()

    def read(self, value: Any) -> Any:
        return self.layer.statistic.moments(self.layer, value)

    def update(self, state: Any, view: Any, step: jax.Array) -> Any:
        del view, step
        return state

    def whiten(self, state: Any, g: Affine) -> Affine:
        del state
        return g


@dataclass(frozen=True)
class Inverse(_Out):
    """A metric whose way in is the inverse of the inputs' second moment."""

    options: InputInverse
    layer: Layer
    statistic: lbo.Gram

    def init(self) -> InverseState:
        d = self.layer.features
        # Muon orthogonalises: it makes no difference that averages start from zero.
        return InverseState(self.layer.zeros(d, d), self.layer.zeros(d, d))

    def read(self, value: Any) -> Any:
        return self.statistic.second_moment(self.layer, value)

    def update(self, state: InverseState, view: Any, step: jax.Array) -> InverseState:
        decay = self.options.decay
        average = decay * state.average + (1 - decay) * view.outer
        average = where_seen(view.count > 0, average, state.average)
        inverse = jax.lax.cond(
            step % self.options.every == 0,
            lambda: inverse_of(average, self.options.ridge),
            lambda: state.inverse,
        )
        return InverseState(average, inverse)

    def whiten(self, state: InverseState, g: Affine) -> Affine:
        return Affine(jnp.einsum("kde,keo->kdo", state.inverse, g.w), g.b)


def inverse_of(moment: jax.Array, ridge: float) -> jax.Array:
    """Inverses `[block, in, in]` with a ridge in units of the mean diagonal."""
    mean = jnp.mean(jnp.diagonal(moment, axis1=1, axis2=2), axis=1)
    mean = jnp.where(mean > 0, mean, 1)[:, None, None]
    eye = jnp.eye(moment.shape[-1], dtype=moment.dtype)[None]
    return jnp.linalg.inv(moment + ridge * mean * eye)
