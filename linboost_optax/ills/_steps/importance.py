r"""How much a sample counts in a unit's regression: importances :math:`c_{ij}`.

A new choice is a class like these, in a file of its own, and a line in
``IMPORTANCES``.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp


@runtime_checkable
class Importance(Protocol):
    """What ILLS asks of a choice of importances."""

    def gram_weights(self, c: jax.Array) -> jax.Array:
        """Returns the weights of a layer's Gram matrices, ``[group, sample]``."""
        ...

    def scale_rhs(self, rhs: jax.Array, total: jax.Array) -> jax.Array:
        """Returns right-hand sides that fit these Gram matrices.

        Args:
          rhs: back-propagated residuals times inputs, ``[input + 1, unit]``.
          total: sums of ``c`` over the samples, ``[unit]``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class UnitImportance:
    """Weights every unit's regression on its own: one Gram matrix a unit.

    Example:
      >>> from linboost_optax.ills import UnitImportance
      >>> UnitImportance()
      UnitImportance()
    """

    def gram_weights(self, c: jax.Array) -> jax.Array:
        """Returns ``c`` ``[unit, sample]``."""
        return c

    def scale_rhs(self, rhs: jax.Array, total: jax.Array) -> jax.Array:
        """Returns ``rhs``."""
        del total
        return rhs


@dataclasses.dataclass(frozen=True)
class SharedImportance:
    r"""Lets a layer's units share one Gram matrix, weighted by their mean importance.

    :math:`c_{ij}` is replaced by its mean over units times the share of the unit.

    Example:
      >>> from linboost_optax.ills import SharedImportance
      >>> SharedImportance()
      SharedImportance()
    """

    def gram_weights(self, c: jax.Array) -> jax.Array:
        """Returns the mean over units, ``[1, sample]``."""
        return jnp.mean(c, axis=0, keepdims=True)

    def scale_rhs(self, rhs: jax.Array, total: jax.Array) -> jax.Array:
        """Returns ``rhs`` divided by each unit's share of the importance."""
        share = total / jnp.where(jnp.mean(total) > 0, jnp.mean(total), 1)
        return rhs / jnp.where(share > 0, share, 1)[None, :]


IMPORTANCES = {"unit": UnitImportance, "shared": SharedImportance}
