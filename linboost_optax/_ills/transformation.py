"""Iterative linear least squares as an Optax transformation."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from linboost_optax._ills.checks import check_distinct_units, is_known, make_batch
from linboost_optax._ills.chunks import Batch
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.problem import (
    objective,
    refit_output,
    update_scale,
    working_batch,
)
from linboost_optax._ills.published import invert_targets, sweep
from linboost_optax._ills.robust import Robust
from linboost_optax._ills.subspace import combine
from linboost_optax._ills.weighted import directions
from linboost_optax._network import Layers, Network, read_layers, write_layers

_MIN_DAMPING = 1e-6
_MAX_DAMPING = 1e12
# The ridge on the last layer starts at most this far above its final value, and never
# above the second number: it keeps the units from cancelling each other early on.
_RIDGE_SHARE, _MAX_START_RIDGE = 1e4, 1e-2
# While an accepted step lowers the objective by this share, training is under way and
# the ridge falls slowly; after that fast, and Tukey's loss takes over from Huber's.
_GAIN = 0.05
_SLOW, _FAST = 0.93, 0.5


class IllsState(NamedTuple):
    """State of :func:`ills`; scalars are in the parameters' dtype unless said."""

    count: jax.Array  # pyright: ignore  # iterations so far, int32
    damping: jax.Array  # mu: a third after a step, four times after a rejection
    previous: Any  # last accepted step, like the parameters
    objective: jax.Array  # at the current weights; infinite before the first iteration
    accepted: jax.Array  # whether the last iteration took its step, bool
    rejected: jax.Array  # rejections in a row, int32
    output_ridge: jax.Array  # rho of the next iteration, falling to the argument
    scale: jax.Array  # of the residuals, for a robust loss; infinite before it is known
    settled: jax.Array  # whether Tukey's loss has taken over from Huber's, bool


def ills(
    network: Network,
    *,
    method: str = "weighted",
    combine: str = "layer",
    importance: str = "unit",
    damping: Any = 1e-2,
    ridge: Any = 1e-5,
    output_ridge: Any = 1e-6,
    hidden_ridge: Any = 0.0,
    loss: str = "squared",
    tuning: Any = None,
    relaxation: Any = 1.0,
    margin: Any = 1e-3,
    chunk_size: int | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Train a small network by linear regression, without a learning rate.

    The objective is the weighted mean loss plus ridge penalties,

    .. math:: F(W) = \sum_{ik} w_{ik} \, \ell(y_{ik} - g(z_{ik}))
        + \rho \|W_L\|^2 + \rho_h \sum_{l < L} \|W_l\|^2,
        \qquad \sum_{ik} w_{ik} = 1,

    and it never rises: an iteration that would raise it changes nothing but the
    damping. Every iteration is linear regression on layer inputs:

    1. per hidden layer, regress every unit's ideal change of its pre-activation on the
       layer's inputs, weighted by how much the output depends on it;
    2. regress the residual on the effects of these directions and of the previous
       steps, with the last layer eliminated and damping :math:`\mu`;
    3. refit the last layer exactly; accept if :math:`F` falls.

    The first iteration is step 3 alone. :math:`\rho` starts larger than
    ``output_ridge`` (by 1e4, but not above 1e-2) and falls to it, slowly while steps
    lower :math:`F` by 5 % or more, then by half an iteration; the published method
    keeps it fixed.

    ``method="published"`` instead inverts the activations (see References). With an
    output activation :math:`g` it measures its loss on
    :math:`g^{-1}(y)`, the ideal pre-activations of the output.

    ``update`` takes the whole training set, not a mini-batch, and ignores the
    gradients it is given, so that they may be ``None``. It can be jitted, scanned,
    chained (``optax.scale(0.5)`` after it relaxes its steps) and masked.

    Args:
        network: the dense layers, from :func:`network`, ``linen.network`` or
            ``nnx.network``.
        method: ``"weighted"`` (default) or ``"published"``.
        combine: what step 2 may scale: each direction of a ``"layer"`` (default), each
            ``"unit"`` of it (dearer, for noise-free or deep problems), or every
            ``"parameter"``, which is Levenberg-Marquardt with the last layer
            eliminated and costs the cube of the number of hidden parameters.
        importance: ``"unit"`` (default) weights every unit's regression on its own;
            ``"shared"`` lets a layer's units share one Gram matrix: cheaper for wide
            inputs, slower to converge.
        damping: start value of :math:`\mu` >= 0, relative to a unit diagonal.
            Default 1e-2; for the published method of the minimum-norm change.
        ridge: of the hidden regressions, relative to the mean diagonal. Default 1e-5.
        output_ridge: final :math:`\rho` >= 0, default 1e-6; 0 leaves the last layer
            free from the start.
        hidden_ridge: :math:`\rho_h` >= 0, default 0.
        loss: ``"squared"`` (default), ``"huber"`` or ``"tukey"``, for outliers.
            Tukey's starts as the Huber loss that lies just above it, until a step
            gains less than 5 %.
        tuning: constant of a robust loss, in robust standard deviations of the
            residual; default 1 for Huber and 4.685 for Tukey.
        relaxation: published method only, share in (0, 1] of the regression's
            solution that is taken. Default 1.
        margin: published method only, distance kept from the ends of an activation's
            range. Default 1e-3.
        chunk_size: samples taken at a time; memory beyond the data grows with it and
            no longer with their number. Default all.
        axis_name: axis of ``shard_map`` or ``pmap`` over which samples are spread.

    Returns:
        A transformation whose ``update`` needs ``params`` and the keyword arguments
        ``inputs`` ``[sample, feature]`` and ``targets`` ``[sample, output]`` (or
        ``[sample]``), and takes ``sample_weight`` ``[sample]`` and a boolean ``mask``
        shaped like the targets, true where a target is known. Its state is an
        :class:`IllsState`.

    Raises:
        TypeError: if ``network`` is not a :class:`Network`.
        ValueError: if an argument is out of its range, or the published method meets
            an activation without inverse.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import linboost_optax as lbo
        >>> x = jnp.linspace(-2, 2, 50)[:, None]
        >>> keys = jax.random.split(jax.random.key(0))
        >>> params = [
        ...     (jax.random.normal(keys[0], (1, 8)), jax.random.normal(keys[1], 8)),
        ...     (jnp.zeros((8, 1)), jnp.zeros(1)),
        ... ]
        >>> tx = lbo.ills(lbo.network(params))
        >>> state = tx.init(params)
        >>> data = {"inputs": x, "targets": jnp.sin(2 * x)}
        >>> update = jax.jit(lambda *args: tx.update(None, *args, **data))
        >>> for _ in range(40):
        ...     updates, state = update(state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(state.objective < 1e-3)
        True

    References:
        Khadilkar 2023, `arXiv:2307.05189 <https://arxiv.org/abs/2307.05189>`_, for the
        published method. Golub & Pereyra 1973 for variable projection.
    """
    return from_config(
        IllsConfig(
            network=network,
            method=method,
            combine=combine,
            importance=importance,
            damping=damping,
            ridge=ridge,
            output_ridge=output_ridge,
            hidden_ridge=hidden_ridge,
            loss=loss,
            tuning=tuning,
            relaxation=relaxation,
            margin=margin,
            chunk_size=chunk_size,
            axis_name=axis_name,
        )
    )


def from_config(config: IllsConfig) -> optax.GradientTransformationExtraArgs:
    """The transformation of a checked configuration."""

    def init(params):
        layers = read_layers(config.network, params)
        if is_known(*layers):
            check_distinct_units(config.network, layers)
        dtype = layers[0].dtype
        return IllsState(
            count=jnp.zeros((), jnp.int32),
            damping=jnp.asarray(config.damping, dtype),
            previous=jax.tree.map(jnp.zeros_like, params),
            objective=jnp.asarray(jnp.inf, dtype),
            accepted=jnp.zeros((), bool),
            rejected=jnp.zeros((), jnp.int32),
            output_ridge=jnp.asarray(_start_ridge(config), dtype),
            scale=jnp.asarray(jnp.inf, dtype),
            settled=jnp.zeros((), bool),
        )

    def update(
        updates,
        state,
        params=None,
        *,
        inputs,
        targets,
        sample_weight=None,
        mask=None,
        **extra_args,
    ):
        del updates, extra_args
        if params is None:
            raise ValueError(
                "`params` must be given to `update`, got None. Call "
                "`tx.update(None, state, params, inputs=x, targets=y)`."
            )
        layers = read_layers(config.network, params)
        batch = make_batch(
            config.network,
            inputs,
            targets,
            sample_weight,
            mask,
            layers[0].dtype,
            config.axis_name,
        )
        steps, state = iterate(config, params, layers, state, batch)
        return write_layers(config.network, params, steps), state

    # Optax types `updates` as never None; here nothing reads them.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _start_ridge(config: IllsConfig) -> Any:
    if config.method == "published" or not config.network.hidden:
        return config.output_ridge
    start = jnp.minimum(_RIDGE_SHARE * config.output_ridge, _MAX_START_RIDGE)
    return jnp.maximum(start, config.output_ridge)


def iterate(
    config: IllsConfig, params: Any, layers: Layers, state: IllsState, batch: Batch
) -> tuple[Layers, IllsState]:
    """One iteration: the change of every layer, and the state after it."""
    if config.method == "published":
        batch = batch._replace(targets=invert_targets(config, batch.targets))
    # It only falls, and the objective with it: as with the scale, no rise comes of it.
    ridge = jnp.maximum(state.output_ridge, config.output_ridge)
    state = state._replace(output_ridge=ridge.astype(state.output_ridge.dtype))
    config = dataclasses.replace(config, output_ridge=state.output_ridge)
    # Accumulating Gram matrices in reduced precision would cost the small directions.
    with jax.default_matmul_precision("highest"):
        scale = jnp.where(
            state.count == 0,
            state.scale,
            update_scale(config, layers, state.scale, batch),
        )
        robust = Robust(scale, state.settled)
        before = objective(config, layers, robust, batch)
        working = working_batch(config, layers, robust, batch)
        hidden = _propose(config, layers, state, working)
        last = refit_output(config, [*hidden, layers[-1]], state.damping, working)
        # Weights as they will be once the update is added, rounding included.
        steps = [v - w for v, w in zip([*hidden, last], layers, strict=True)]
        candidate = [w + step for w, step in zip(layers, steps, strict=True)]
        after = objective(config, candidate, robust, batch)
    accepted = after < before
    previous = write_layers(config.network, params, steps)
    steps = [jnp.where(accepted, step, 0) for step in steps]
    return steps, _advance(state, accepted, before, after, previous, scale)


def _propose(
    config: IllsConfig, layers: Layers, state: IllsState, working: Batch
) -> Layers:
    """New hidden layers by the chosen method; at first the ones there are.

    The first iteration only refits the last layer: directions through an arbitrary
    last layer are worth nothing.
    """
    if len(layers) == 1:
        return []
    if config.method == "published":
        new = sweep(config, layers, state.damping, working)
    else:
        new = _weighted(config, layers, state, working)
    first = state.count == 0
    return [jnp.where(first, w, v) for v, w in zip(new, layers, strict=False)]


def _weighted(
    config: IllsConfig, layers: Layers, state: IllsState, working: Batch
) -> Layers:
    previous = read_layers(config.network, state.previous)
    if config.combine == "parameter":
        groups = [[w] for w in layers[:-1]]  # Only their shapes are used.
    else:
        new = directions(config, layers, working)
        groups = [list(pair) for pair in zip(new, previous, strict=False)]
    steps = combine(config, layers, groups, state.damping, working)
    return [w + step for w, step in zip(layers, steps, strict=False)]


def _advance(
    state: IllsState,
    accepted: jax.Array,
    before: jax.Array,
    after: jax.Array,
    step: Any,
    scale: jax.Array,
) -> IllsState:
    """The next state; left as it is where the data make the objective not finite."""
    damping = jnp.where(accepted, state.damping / 3, state.damping * 4)
    slow = accepted & (before - after < _GAIN * before)
    shrink = jnp.where(slow, _FAST, _SLOW).astype(state.output_ridge.dtype)
    advanced = IllsState(
        count=state.count + 1,
        damping=jnp.clip(damping, _MIN_DAMPING, _MAX_DAMPING),
        previous=jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), step, state.previous
        ),
        objective=jnp.where(accepted, after, before),
        accepted=accepted,
        rejected=jnp.where(accepted, 0, state.rejected + 1),
        output_ridge=state.output_ridge * shrink,
        scale=scale,
        settled=state.settled | (slow & jnp.isfinite(scale)),
    )
    sound = jnp.isfinite(before)
    frozen = state._replace(accepted=jnp.zeros((), bool), rejected=state.rejected + 1)
    return jax.tree.map(lambda a, b: jnp.where(sound, a, b), advanced, frozen)
