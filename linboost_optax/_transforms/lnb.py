"""Linear Neuron Boosting as an Optax transformation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _checks
from linboost_optax._precondition.preconditioner import (
    Preconditioner,
    init_starts,
    solve,
)
from linboost_optax._solvers import Cholesky, Solver
from linboost_optax._solvers import base as solvers
from linboost_optax._taps import Taps, check_taps
from linboost_optax._transforms import rates, wide
from linboost_optax._transforms.checked import checked
from linboost_optax._transforms.guard import all_finite, keep_if

_DEFAULT = Cholesky()


class ScaleByLNBState(NamedTuple):
    """State of ``scale_by_lnb``.

    Attributes:
      count: number of updates so far, scalar int32; skipped ones do not count.
      momentum: moving average of the gradients, like the parameters; narrow floats in
        float32, as bfloat16 averages nothing with a decay of 0.999.
      metric: each solver's own state, by layer.
      starts: each layer's previous ``H``, for solvers that start from it.
      skipped: number of steps skipped so far as not finite, scalar int32.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: optax.Updates
    metric: dict[str, Any]
    starts: dict[str, Any]
    skipped: jax.Array


def scale_by_lnb(
    taps: Taps,
    solver: Solver = _DEFAULT,
    *,
    b_g: float = 0.9,
    min_norm: float = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    r"""Preconditions every linear layer by the second moment of its own inputs.

    .. math::
      (M_l + \gamma P) H_l = G_l, \qquad
      u = H \,/\, \max\!\big(\text{min\_norm}, \sqrt{\langle H, G \rangle}\big)

    with :math:`M_l = E[\tilde x \tilde x^T]` the second moment of layer ``l``'s
    inputs and :math:`G` the bias-corrected moving average of the gradient.
    Parameters outside tapped layers keep :math:`H = G`. The scale is one for the
    whole network: a trust region in the functional norm.

    ``tx.update(grads, state, params, stats=stats)`` takes the statistics as a
    keyword argument of their own. A step whose gradients or statistics are not
    finite is skipped: zero updates, and a state that changes in nothing but the number
    of skipped steps, ``optax.tree.get(state, "skipped")``. Updates have the dtype of
    ``params``, or of the gradients where there are no ``params``.

    Args:
      taps: the tapped layers, from ``linen.taps``.
      solver: ``Cholesky()``, the default and the measured choice, or with the published
        defaults ``IncompleteCholesky()`` or ``ConjugateGradient()``.
      b_g: decay of the gradient's moving average, in [0, 1); default 0.9.
      min_norm: least norm that updates are divided by, > 0; default 1e-2.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with ``ScaleByLNBState``.

    Raises:
      TypeError: if ``taps`` or ``solver`` is of another type.
      ValueError: if a hyper-parameter is out of range, or the solver cannot solve with
        some layer's statistic; in ``init`` if the taps belong to another model; in
        ``update`` if ``stats`` is missing or does not fit, or under
        ``optax.MultiSteps``.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.arange(12.0).reshape(4, 3)
      >>> params = model.init(jax.random.key(0), x)
      >>> taps = linen.taps(model, x)
      >>> loss_fn = lambda params, x: jnp.mean(model.apply(params, x) ** 2)
      >>> loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x)
      >>> tx = optax.chain(lbo.scale_by_lnb(taps), optax.scale(-0.1))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(grads, state, params, stats=stats)
      >>> jax.tree.map(jnp.shape, updates)
      {'params': {'bias': (2,), 'kernel': (3, 2)}}

    References:
      Munoz (2025), arXiv:2502.01131: the online algorithm.
    """
    check_taps(taps)
    solver = solvers.check(solver)
    for layer in taps.layers:
        solver.bind(layer.as_read())  # refused here rather than in `init`
    # Injected hyper-parameters (`optax.inject_hyperparams`) are traced: no range.
    if not _checks.is_array(b_g):
        _checks.fraction("b_g", b_g)
    if not _checks.is_array(min_norm):
        _checks.positive("min_norm", min_norm)

    def init_fn(params: optax.Params) -> ScaleByLNBState:
        preconditioner = Preconditioner.of(taps, solver.bind, params)
        return ScaleByLNBState(
            count=jnp.zeros((), jnp.int32),
            momentum=wide.zeros_like(params),
            metric=preconditioner.init(params),
            starts=init_starts(preconditioner, params),
            skipped=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        stats: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLNBState]:
        del extra_args
        preconditioner = Preconditioner.of(taps, solver.bind, updates)
        views = preconditioner.read(stats)
        momentum = jax.tree.map(
            lambda g, m: b_g * m + (1 - b_g) * g.astype(m.dtype),
            updates,
            state.momentum,
        )
        gradients, treedef = jax.tree.flatten(momentum)
        leaves = [_bias_correct(m, b_g, state.count + 1) for m in gradients]
        metric = preconditioner.update(state.metric, views, state.count)
        solved, starts = solve(preconditioner, metric, views, state.starts, leaves)

        # One number sees every gradient and, through H, every statistic.
        norm = wide.norm(solved, leaves)
        good = jnp.isfinite(norm) & all_finite(views)
        norm = jnp.maximum(min_norm, norm)
        scaled = [h / norm.astype(h.real.dtype) for h in solved]
        step = jax.tree.unflatten(treedef, scaled)
        step = wide.narrow_like(step, updates, params)
        good &= all_finite(wide.narrow_leaves(step))
        new = ScaleByLNBState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            momentum=momentum,
            metric=metric,
            starts=starts,
            skipped=state.skipped,
        )
        return keep_if(good, step, new, state)

    return checked(init_fn, update_fn)


def _bias_correct(m: jax.Array, decay: float, count: jax.Array) -> jax.Array:
    return m / (1 - decay ** count.astype(m.real.dtype))


def lnb(
    learning_rate: optax.ScalarOrSchedule,
    taps: Taps,
    solver: Solver = _DEFAULT,
    *,
    b_g: float = 0.9,
    min_norm: float = 1e-2,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    r"""Linear Neuron Boosting, the complete optimizer.

    .. math::
      \Delta W = -\eta \Big( \frac{H}{\max(\text{min\_norm}, \sqrt{\langle H, G
      \rangle})} + \lambda W \Big)

    Args:
      learning_rate: :math:`\eta`, a float or a schedule. Steps are normalised, so
        0.1 to 1.0 is a good range for most networks; decay it to converge.
      taps: the tapped layers, from ``linen.taps``.
      solver: see ``scale_by_lnb``; default ``Cholesky()``.
      b_g: decay of the gradient's moving average, in [0, 1); default 0.9.
      min_norm: least norm that updates are divided by, > 0; default 1e-2.
      weight_decay: :math:`\lambda`, decoupled, >= 0; default 1e-4.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; ``update`` needs ``params`` and
      the keyword argument ``stats``.

    Raises:
      TypeError: if ``taps`` or ``solver`` is of another type.
      ValueError: if a hyper-parameter is out of range, or the solver cannot solve with
        some layer's statistic.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(1), jax.random.normal(jax.random.key(0), (64, 3))
      >>> y = x @ jnp.array([[1.0], [2.0], [3.0]])
      >>> taps, params = linen.taps(model, x), model.init(jax.random.key(1), x)
      >>> tx = lbo.lnb(optax.linear_schedule(1.0, 0.0, 100), taps)
      >>> state = tx.init(params)
      >>> loss_fn = lambda p: jnp.mean((model.apply(p, x) - y) ** 2)
      >>> @jax.jit
      ... def step(params, state):
      ...     loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
      ...     updates, state = tx.update(grads, state, params, stats=stats)
      ...     return optax.apply_updates(params, updates), state, loss
      >>> for _ in range(100):
      ...     params, state, loss = step(params, state)
      >>> bool(loss < 1e-2)
      True

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    rates.check(learning_rate, weight_decay, "lnb(0.3, taps)")
    return optax.chain(
        scale_by_lnb(taps, solver, b_g=b_g, min_norm=min_norm),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
