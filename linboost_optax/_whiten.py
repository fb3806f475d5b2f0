"""Any Optax optimizer in whitened coordinates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _metric, _solvers
from linboost_optax._solvers import Solver
from linboost_optax._taps import Taps


class WhitenState(NamedTuple):
    """State of ``whiten``.

    Attributes:
      count: number of updates so far, scalar int32; skipped ones do not count.
      metric: each solver's own state, by layer.
      inner: the inner optimizer's state, in whitened coordinates.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: dict[str, Any]
    inner: optax.OptState


def whiten(
    inner: optax.GradientTransformation,
    taps: Taps,
    solver: Solver | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs an optimizer in coordinates that whiten every layer's inputs.

    .. math::
      M + \gamma P = C C^T, \qquad V = C^T W, \qquad
      \Delta W = C^{-T} \, \mathrm{inner}\big(C^{-1} G,\; V\big)

    ``inner`` sees gradients and parameters of a network whose every linear layer
    has centred, uncorrelated inputs of unit variance; the network itself stays as
    it is. Parameters outside tapped layers pass through unchanged. Linear Neuron
    Boosting is the case of normalised gradient descent, on averaged gradients:
    ``optax.chain(optax.ema(0.9), whiten(optax.chain(
    optax.normalize_by_update_norm(), optax.sgd(lr)), taps))``.

    What ``inner`` sees as ``params`` are the whitened parameters :math:`V`, so that
    decoupled weight decay decays the real weights: :math:`C^{-T} \lambda C^T W =
    \lambda W`. Under ``jit``
    they cost nothing unless ``inner`` reads them. Its state is left as it is when
    :math:`C` is refreshed: Adam with its first moment carried over to the new
    coordinates took the same steps to the same losses.

    A step whose gradients or statistics are not finite is skipped: zero updates,
    state unchanged.

    Args:
      inner: any transformation of gradients: Adam, AdamW, SGD with momentum, Lion,
        Muon, a chain of them. It includes the learning rate.
      taps: the tapped layers, from ``linen.taps``.
      solver: ``IncompleteCholesky()`` or ``Cholesky()``, the solvers that have a
        factor :math:`C`; default None is the measured choice, ``Cholesky(ridge=0.03)``
        if any layer has more than moments, else
        ``IncompleteCholesky(b_mu=0.95, b_nu=0.95)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with ``WhitenState``; ``update``
      needs ``params`` if ``inner`` does, and the keyword argument ``stats``.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if the solver has no factor for some layer; in ``init`` if the taps
        belong to another model; in ``update`` if ``stats`` is missing or does not
        fit.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.arange(12.0).reshape(4, 3)
      >>> params = model.init(jax.random.key(0), x)
      >>> taps = linen.taps(model, x)
      >>> tx = lbo.whiten(optax.adam(1e-2), taps)
      >>> state = tx.init(params)
      >>> loss_fn = lambda params, x: jnp.mean(model.apply(params, x) ** 2)
      >>> loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x)
      >>> updates, state = tx.update(grads, state, params, stats=stats)
      >>> jax.tree.map(jnp.shape, updates)
      {'params': {'bias': (2,), 'kernel': (3, 2)}}

    References:
      Munoz (2025), arXiv:2502.01131: boosting as whitening.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"`inner` must be an optax.GradientTransformation, got "
            f"{type(inner).__name__}. Pass e.g. optax.adam(1e-2)."
        )
    solver = _metric.resolve(taps, solver)
    _check_factors(taps, solver)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WhitenState:
        bound = _metric.bind(taps, solver, params)
        # The first coordinates are the weights themselves: nothing was seen yet.
        return WhitenState(
            jnp.zeros((), jnp.int32), _metric.init(bound), inner.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        stats: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WhitenState]:
        bound = _metric.bind(taps, solver, updates)
        _metric.check_stats(stats, bound)
        assert stats is not None
        metric = _metric.advance(bound, stats, state.metric, state.count, factored=True)

        def transform(name, tree):
            leaves, treedef = jax.tree.flatten(tree)
            mapped = _metric.transform(bound, metric, name, leaves)
            return jax.tree.unflatten(treedef, mapped)

        v = None if params is None else transform("coordinates", params)
        whitened = transform("whiten", updates)
        step, inner_state = inner.update(whitened, state.inner, v, **extra_args)
        step = transform("unwhiten", step)
        new = WhitenState(state.count + 1, metric, inner_state)
        good = _metric.all_finite((whitened, stats))
        return _metric.keep_if(good, step, new, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_factors(taps: Taps, solver: Solver) -> None:
    for layer in taps.layers:
        if not _solvers.for_layer(solver, layer).has_factor:
            raise ValueError(
                f"`solver` {solver} has no factor for layer '{layer.label}' with "
                f"statistic '{layer.statistic}', and whitening needs one. Use "
                "IncompleteCholesky(), or Cholesky() with statistic 'gram'."
            )
