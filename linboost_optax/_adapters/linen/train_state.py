"""Flax's train state, for optimizers that read statistics."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import optax
from flax import struct
from flax.training import train_state

from linboost_optax._taps import Taps, check_taps


class TrainState(train_state.TrainState, kw_only=True):
    r"""Flax's ``TrainState`` with the taps of its model and statistics to update with.

    .. math::
      (\Delta W, s') = \text{tx.update}(G, s, W, \text{stats}), \qquad
      W' = W + \Delta W

    for parameters :math:`W` with gradients :math:`G` and the optimizer's state
    :math:`s`. All else is Flax's: gradients that overwrite their parameters (fp8),
    ``replace``, fields that a subclass adds, such as ``batch_stats``. Checkpoints hold
    ``step``, ``params`` and ``opt_state``; the taps are static, like ``tx``.

    An optimizer that takes no statistics gets none, so that another ``tx`` is all that
    a comparison changes.

    Attributes:
      taps: the tapped layers, from ``linen.taps``; for
        ``linen.value_and_grad(loss_fn, state.taps)``.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.ones((8, 3))
      >>> taps = linen.taps(model, x)
      >>> state = linen.TrainState.create(
      ...     apply_fn=model.apply,
      ...     params=model.init(jax.random.key(0), x)["params"],
      ...     tx=lbo.lnb(0.1, taps),
      ...     taps=taps,
      ... )
      >>> @jax.jit
      ... def train_step(state, x):
      ...     def loss_fn(params):
      ...         return jnp.mean(state.apply_fn({"params": params}, x) ** 2)
      ...     grad_fn = linen.value_and_grad(loss_fn, state.taps)
      ...     loss, grads, stats = grad_fn(state.params)
      ...     return state.apply_gradients(grads=grads, stats=stats), loss
      >>> state, loss = train_step(state, x)
      >>> int(state.step)
      1

    References:
      Munoz (2025), arXiv:2502.01131.
    """

    taps: Taps = struct.field(pytree_node=False)

    @classmethod
    def create(cls, *, apply_fn, params, tx, taps, **kwargs):
        """Returns a state at step zero, with what ``tx.init`` makes of the parameters.

        Args:
          apply_fn: as a rule ``model.apply``.
          params: the parameters, as the loss takes them.
          tx: an Optax transformation, with or without statistics.
          taps: the tapped layers, from ``linen.taps``.
          **kwargs: fields that a subclass adds.

        Returns:
          The state.

        Raises:
          TypeError: if ``taps`` is not a ``Taps``.
          ValueError: if the taps of ``tx`` belong to another model.
        """
        check_taps(taps)
        return super().create(
            apply_fn=apply_fn, params=params, tx=tx, taps=taps, **kwargs
        )

    def apply_gradients(
        self,
        *,
        grads: Any,
        stats: Mapping[str, Any] | None = None,
        extra_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Returns the state after one update.

        Args:
          grads: the gradients, a tree like ``params``.
          stats: the statistics, from ``linen.value_and_grad``. Default None: the
            optimizer takes none.
          extra_args: other keyword arguments of ``tx.update``, such as
            ``{"value": loss}``; left out where ``tx`` takes none. Default None.
          **kwargs: fields to replace beside, such as ``batch_stats``.

        Returns:
          The state with ``step`` one higher, and new ``params`` and ``opt_state``.

        Raises:
          TypeError: if a keyword argument is no field of the state.
          ValueError: if ``tx`` needs statistics that are missing, or do not fit.
        """
        known = [field.name for field in fields(self)]
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"`{name}` must be a field of {type(self).__name__}, which has "
                    f"{known}. Pass what the optimizer takes as `extra_args="
                    f'{{"{name}": ...}}`.'
                )
        extra = dict(extra_args or {})
        if stats is not None:
            extra["stats"] = stats
        tx = optax.with_extra_args_support(self.tx)
        # For this one update Flax's own method sees an optimizer whose extra arguments
        # are bound: what else it does, in whichever version, stays its affair.
        bound = optax.GradientTransformation(
            tx.init, functools.partial(tx.update, **extra)
        )
        new = train_state.TrainState.apply_gradients(
            self.replace(tx=bound), grads=grads
        )
        return new.replace(**{"tx": self.tx, **kwargs})
