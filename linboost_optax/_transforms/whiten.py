"""Any Optax optimizer in whitened coordinates."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax._layer import Affine
from linboost_optax._precondition.preconditioner import Preconditioner
from linboost_optax._solvers import Cholesky, Solver
from linboost_optax._solvers import base as solvers
from linboost_optax._solvers.base import Whitens
from linboost_optax._taps import Taps, check_taps
from linboost_optax._transforms import wide
from linboost_optax._transforms.checked import checked
from linboost_optax._transforms.guard import all_finite, keep_if, squares_finite

_DEFAULT = Cholesky()


class WhitenState(NamedTuple):
    """State of ``whiten``.

    Attributes:
      count: number of updates so far, scalar int32; skipped ones do not count.
      metric: each solver's own state, by layer.
      inner: the inner optimizer's state, in whitened coordinates.
      skipped: number of steps skipped so far as not finite, scalar int32.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: dict[str, Any]
    inner: optax.OptState
    skipped: jax.Array


def whiten(
    inner: optax.GradientTransformation,
    taps: Taps,
    solver: Solver = _DEFAULT,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs an optimizer in coordinates that whiten every layer's inputs.

    .. math::
      M + \gamma P = C C^T, \qquad V = C^T W, \qquad
      \Delta W = C^{-T} \, \mathrm{inner}\big(C^{-1} G,\; V\big)

    ``inner`` sees gradients and parameters of a network whose every linear layer
    has centred, uncorrelated inputs of unit variance; the network itself stays as
    it is. Parameters outside tapped layers pass through unchanged, and so do
    embeddings, see ``Counts``. Around ``scale_by_polar`` it is ``polar``, the
    recommended recipe. Linear Neuron Boosting is the case of normalised gradient
    descent, on averaged gradients: ``optax.chain(optax.ema(0.9), whiten(optax.chain(
    optax.normalize_by_update_norm(), optax.sgd(lr)), taps))``.

    What ``inner`` sees as ``params`` are the whitened parameters :math:`V`, so that
    decoupled weight decay decays the real weights: :math:`C^{-T} \lambda C^T W =
    \lambda W`. Under ``jit``
    they cost nothing unless ``inner`` reads them. Its state is left as it is when
    :math:`C` is refreshed: Adam with its first moment carried over to the new
    coordinates took the same steps to the same losses.

    Narrow floats reach ``inner`` in float32, and its state is in float32: a whitened
    gradient is as large as its layer's inputs are small, squares of it overflow float16
    early, and Adam's ``eps`` is 0 there. Updates have the dtype of ``params``, or of
    the gradients where there are no ``params``.

    A step whose gradients or statistics are not finite is skipped: zero updates, and a
    state that changes in nothing but the number of skipped steps,
    ``optax.tree.get(state, "skipped")``.

    Args:
      inner: any transformation of gradients: Adam, AdamW, SGD with momentum, Lion,
        Muon, a chain of them. It includes the learning rate.
      taps: the tapped layers, from ``linen.taps``.
      solver: ``Cholesky()``, the default and the measured choice, or
        ``IncompleteCholesky()``: the solvers that have a factor :math:`C`.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with ``WhitenState``; ``update``
      needs ``params`` if ``inner`` does, and the keyword argument ``stats``.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if the solver has no factor for some layer; in ``init`` if the taps
        belong to another model; in ``update`` if ``stats`` is missing or does not
        fit, or under ``optax.MultiSteps``.

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
    check_taps(taps)
    solver = solvers.check(solver)
    bind = functools.partial(solvers.bind_factor, solver)
    for layer in taps.layers:
        bind(layer)  # refused here rather than in `init`
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WhitenState:
        preconditioner = Preconditioner.of(taps, bind, params)
        # The first coordinates are the weights themselves: nothing was seen yet.
        return WhitenState(
            count=jnp.zeros((), jnp.int32),
            metric=preconditioner.init(params),
            inner=inner.init(wide.widen(params)),
            skipped=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        stats: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WhitenState]:
        preconditioner: Preconditioner[Whitens] = Preconditioner.of(taps, bind, updates)
        views = preconditioner.read(stats)
        metric = preconditioner.update(state.metric, views, state.count)
        v = None
        if params is not None:
            v = preconditioner.map(_coordinates, metric, wide.widen(params))
        whitened = preconditioner.map(_whiten, metric, wide.widen(updates))
        step, inner_state = inner.update(whitened, state.inner, v, **extra_args)
        step = preconditioner.map(_unwhiten, metric, step)
        new = WhitenState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            metric=metric,
            inner=inner_state,
            skipped=state.skipped,
        )
        step = wide.narrow_like(step, updates, params)
        # The inner optimizer may turn finite numbers into others, and hide them: an
        # infinite second moment makes a step of zero, for ever. Looking at its state
        # and its step was measured to cost 15 % of ours, squares cost nothing.
        good = all_finite((views, wide.narrow_leaves(step))) & squares_finite(whitened)
        return keep_if(good, step, new, state)

    return checked(init_fn, update_fn)


def _whiten(metric: Whitens, state: Any, g: Affine) -> Affine:
    return metric.whiten(state, g)


def _unwhiten(metric: Whitens, state: Any, u: Affine) -> Affine:
    return metric.unwhiten(state, u)


def _coordinates(metric: Whitens, state: Any, w: Affine) -> Affine:
    return metric.coordinates(state, w)
