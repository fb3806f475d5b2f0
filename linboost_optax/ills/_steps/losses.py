r"""Losses of a residual :math:`r`, and the weights that make them least squares.

With a scale :math:`s` and :math:`u = r / s`, a robust loss is
:math:`2 s^2 \rho(u)`, about :math:`r^2` where :math:`r` is small. Reweighted least
squares with weights :math:`\rho'(u) / u` lowers it. All losses here grow with
:math:`s`, so a scale that only shrinks never raises them.

A new loss is a class like these, in a file of its own, and a line in ``LOSSES``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from linboost_optax.ills._steps.scale import Robust


@runtime_checkable
class Loss(Protocol):
    """What ILLS asks of a loss: a frozen dataclass with these methods.

    Its floats become arguments of compiled code: they may be traced arrays.

    Attributes:
      needs_scale: whether it depends on the residuals' scale. If not, it is the
        squared loss: residuals are not reweighted.
    """

    @property
    def needs_scale(self) -> bool: ...

    def value(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns the loss of each residual; ``r**2`` while the scale is infinite."""
        ...

    def weight(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns each residual's weight in the least squares, in [0, 1]."""
        ...

    def error(self, r: jax.Array) -> jax.Array:
        """Returns what early stopping averages, without a scale."""
        ...


@dataclasses.dataclass(frozen=True)
class Squared:
    """The squared loss ``r**2``.

    Example:
      >>> from linboost_optax.ills import Squared
      >>> Squared().error(-2.0)
      4.0
    """

    needs_scale: ClassVar[bool] = False

    def value(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns ``r**2``."""
        del robust
        return r**2

    def weight(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns ones."""
        del robust
        return jnp.ones_like(r)

    def error(self, r: jax.Array) -> jax.Array:
        """Returns ``r**2``."""
        return r**2


@dataclasses.dataclass(frozen=True)
class Huber:
    r"""Huber's loss, which grows linearly beyond ``tuning`` standard deviations.

    .. math::
      \rho(u) = \tfrac12 u^2 \;\text{if}\; |u| \le c,
        \;\text{else}\; c |u| - \tfrac12 c^2

    Args:
      tuning: :math:`c` > 0, in robust standard deviations of the residual; default
        1. The usual 1.345 lets 10 % of gross outliers pull too hard on a network; 1
        costs some efficiency (about 90 %) and was measured to be better.

    Raises:
      ValueError: if ``tuning`` is not positive.

    Example:
      >>> from linboost_optax.ills import Huber
      >>> Huber()
      Huber(tuning=1.0)

    References:
      Huber (1964), Annals of Mathematical Statistics 35.
    """

    tuning: Any = 1.0

    needs_scale: ClassVar[bool] = True

    def __post_init__(self):
        _check_tuning(self.tuning)

    def value(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns the loss of each residual."""
        return scaled_loss(lambda u: _huber_rho(u, self.tuning), r, robust)

    def weight(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns the weight of each residual."""
        return _huber_weight(r / robust.scale, self.tuning)

    def error(self, r: jax.Array) -> jax.Array:
        """Returns the absolute residual."""
        return jnp.abs(r)


@dataclasses.dataclass(frozen=True)
class Tukey:
    r"""Tukey's biweight, constant beyond ``tuning`` standard deviations.

    .. math:: \rho(u) = \tfrac{c^2}{6} \big(1 - \max(0, 1 - (u/c)^2)^3\big)

    It is not convex: from a poor start it takes for outliers what the network has not
    learnt yet. It starts as the Huber loss that lies just above it everywhere, so
    that taking over from it lowers the objective too.

    Args:
      tuning: :math:`c` > 0, in robust standard deviations of the residual; default
        4.685, for 95 % efficiency on normal errors.

    Raises:
      ValueError: if ``tuning`` is not positive.

    Example:
      >>> from linboost_optax.ills import Tukey
      >>> Tukey()
      Tukey(tuning=4.685)

    References:
      Beaton & Tukey (1974), Technometrics 16.
    """

    tuning: Any = 4.685

    needs_scale: ClassVar[bool] = True

    def __post_init__(self):
        _check_tuning(self.tuning)

    def value(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns the loss of each residual, Huber's before it has settled."""

        def rho(u):
            start = _huber_rho(u, _HUBER_SHARE * self.tuning)
            return jnp.where(robust.settled, _tukey_rho(u, self.tuning), start)

        return scaled_loss(rho, r, robust)

    def weight(self, r: jax.Array, robust: Robust) -> jax.Array:
        """Returns the weight of each residual, Huber's before it has settled."""
        u = r / robust.scale
        start = _huber_weight(u, _HUBER_SHARE * self.tuning)
        return jnp.where(robust.settled, _tukey_weight(u, self.tuning), start)

    def error(self, r: jax.Array) -> jax.Array:
        """Returns the absolute residual."""
        return jnp.abs(r)


LOSSES = {"squared": Squared, "huber": Huber, "tukey": Tukey}

# The Huber loss with this share of Tukey's constant (1.345 for 4.685, the usual pair)
# is nowhere below Tukey's loss.
_HUBER_SHARE = 1.345 / 4.685


def scaled_loss(
    rho: Callable[[jax.Array], jax.Array], r: jax.Array, robust: Robust
) -> jax.Array:
    r"""Returns :math:`2 s^2 \rho(r / s)`, and ``r**2`` while the scale is infinite."""
    known = jnp.isfinite(robust.scale)
    s = jnp.where(known, robust.scale, 1)
    return jnp.where(known, 2 * s**2 * rho(r / s), r**2)


def _check_tuning(tuning: Any) -> None:
    # Traced values (`optax.inject_hyperparams`) are compared by nobody.
    if isinstance(tuning, int | float) and not tuning > 0:
        raise ValueError(
            f"`tuning` must be > 0, got {tuning}. Leave it out for the usual constant."
        )


def _huber_rho(u, c):
    small = jnp.abs(u) <= c
    return jnp.where(small, 0.5 * u**2, c * jnp.abs(u) - 0.5 * c**2)


def _huber_weight(u, c):
    return c / jnp.maximum(jnp.abs(u), c)


def _tukey_rho(u, c):
    inside = jnp.clip(1 - (u / c) ** 2, 0, 1)
    return c**2 / 6 * (1 - inside**3)


def _tukey_weight(u, c):
    return jnp.clip(1 - (u / c) ** 2, 0, 1) ** 2
