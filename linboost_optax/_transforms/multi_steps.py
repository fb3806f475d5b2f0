"""Micro-batches: the mean of their gradients, the sum of their statistics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _checks
from linboost_optax._precondition import stats as statistics
from linboost_optax._sharding import everywhere
from linboost_optax._taps import Taps, check_taps
from linboost_optax._transforms import wide
from linboost_optax._transforms.checked import checked
from linboost_optax._transforms.guard import all_finite, count_unless


class MultiStepsState(NamedTuple):
    """State of ``multi_steps``.

    Attributes:
      mini_step: number of micro-batches accumulated since the last step, scalar int32.
      gradient_step: number of steps so far, scalar int32.
      inner_opt_state: state of the wrapped optimizer.
      acc_grads: mean of the micro-batches' gradients, narrow floats in float32.
      acc_stats: sum of their statistics, by layer.
      skipped_mini_steps: number of micro-batches skipped so far as not finite, scalar
        int32.
    """

    mini_step: jax.Array
    gradient_step: jax.Array
    inner_opt_state: optax.OptState
    acc_grads: optax.Updates
    acc_stats: dict[str, Any]
    skipped_mini_steps: jax.Array


def multi_steps(
    inner: optax.GradientTransformation,
    taps: Taps,
    every_k_schedule: int | Callable[[jax.Array], jax.typing.ArrayLike],
) -> optax.GradientTransformationExtraArgs:
    r"""Takes one step every k micro-batches: that of one large batch.

    .. math::
      \bar G = \frac1k \sum_i G_i, \qquad S = \sum_i S_i

    What ``optax.MultiSteps`` is to other optimizers. That one averages gradients and
    hands on the statistics of the last micro-batch alone, whose metric is noisier than
    the gradient is; it is refused around optimizers that read statistics.

    Updates are zero until the k-th micro-batch, where ``inner`` gets the mean of the
    gradients and the sum of the statistics, and is not run before. The step is that of
    one batch of all samples if micro-batches are of one size and the loss is a mean
    over samples, and if the statistics are of all rows: ``Auto()`` takes up to 128 rows
    of every micro-batch, not of all together. Of micro-batches of unequal size the
    statistics still are those of all samples, the gradient is the mean of the means.

    A micro-batch whose gradients or statistics are not finite is left out, as if it had
    never been: the step waits for another one. They are counted:
    ``optax.tree.get(state, "skipped_mini_steps")``.

    Args:
      inner: the optimizer, e.g. ``lnb(...)`` or a chain that holds it. Further extra
        arguments of ``update`` reach it as they are for the k-th micro-batch.
      taps: the taps that ``inner`` was made with.
      every_k_schedule: k, >= 1, or a function from the number of steps so far to it.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with ``MultiStepsState``, whose
      ``update`` needs what that of ``inner`` does.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if k is not positive, or a layer's statistic is not a sum; in
        ``update`` if ``stats`` is missing or does not fit.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.arange(12.0).reshape(4, 3)
      >>> params = model.init(jax.random.key(0), x)
      >>> taps = linen.taps(model, x)
      >>> tx = lbo.multi_steps(lbo.lnb(0.1, taps), taps, 2)
      >>> state = tx.init(params)
      >>> loss_fn = lambda params, x: jnp.mean(model.apply(params, x) ** 2)
      >>> for part in jnp.split(x, 2):
      ...     loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, part)
      ...     updates, state = tx.update(grads, state, params, stats=stats)
      ...     print(bool(jnp.any(updates["params"]["kernel"] != 0)))
      False
      True

    References:
      Munoz (2025), arXiv:2502.01131, section 4: statistics are sums over samples.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"`inner` must be an optax.GradientTransformation, got "
            f"{type(inner).__name__}. Pass e.g. lbo.lnb(0.1, taps)."
        )
    check_taps(taps)
    for layer in taps.layers:
        if not layer.statistic.additive:
            raise ValueError(
                f"`taps` has layer '{layer}' with statistic "
                f"'{layer.statistic.name}', which does not add up over micro-batches. "
                "Make the taps with statistic='gram' or 'sketch'."
            )
    if not callable(every_k_schedule):
        _checks.whole("every_k_schedule", every_k_schedule, 1)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> MultiStepsState:
        nothing = {key: tap.value for key, tap in taps.zeros().items()}
        return MultiStepsState(
            mini_step=jnp.zeros((), jnp.int32),
            gradient_step=jnp.zeros((), jnp.int32),
            inner_opt_state=inner.init(params),
            acc_grads=wide.zeros_like(params),
            acc_stats=everywhere(nothing, params),
            skipped_mini_steps=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        stats: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MultiStepsState]:
        stats = statistics.check(stats, taps.layers)
        count = state.mini_step + 1
        grads = jax.tree.map(
            lambda g, mean: (
                mean + (g.astype(mean.dtype) - mean) / count.astype(mean.dtype)
            ),
            updates,
            state.acc_grads,
        )
        total = jax.tree.map(jnp.add, state.acc_stats, stats)
        # Differences and sums of what is finite may overflow.
        good = all_finite((updates, stats, grads, total))

        def step() -> tuple[optax.Updates, MultiStepsState]:
            mean = wide.narrow_like(grads, updates, None)
            new, inner_state = inner.update(
                mean, state.inner_opt_state, params, stats=total, **extra_args
            )
            return new, MultiStepsState(
                mini_step=jnp.zeros_like(state.mini_step),
                gradient_step=jnp.asarray(optax.safe_increment(state.gradient_step)),
                inner_opt_state=inner_state,
                acc_grads=jax.tree.map(_nothing_like, grads),
                acc_stats=jax.tree.map(_nothing_like, total),
                skipped_mini_steps=state.skipped_mini_steps,
            )

        # Also tells the dtypes that the inner optimizer makes of its updates.
        like, _ = jax.eval_shape(step)

        def wait() -> tuple[optax.Updates, MultiStepsState]:
            nothing = jax.tree.map(
                lambda leaf, g: _nothing_like(g).astype(leaf.dtype), like, updates
            )
            keep = jax.tree.map(
                lambda new, old: jnp.where(good, new, old),
                (count, grads, total),
                (state.mini_step, state.acc_grads, state.acc_stats),
            )
            return nothing, state._replace(
                mini_step=keep[0],
                acc_grads=keep[1],
                acc_stats=keep[2],
                skipped_mini_steps=count_unless(good, state.skipped_mini_steps),
            )

        k = every_k_schedule
        k = k(state.gradient_step) if callable(k) else k
        return jax.lax.cond(good & (count >= k), step, wait)

    return checked(init_fn, update_fn)


def _nothing_like(x: jax.Array) -> jax.Array:
    """Returns zeros of the type of ``x``: as sharded, and as different by device."""
    zeros = jnp.zeros_like(x)
    return jnp.where(x == x, zeros, zeros)
