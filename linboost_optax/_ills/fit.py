"""Run ILLS until something ends it, and say what did."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linboost_optax._ills.checks import check_scale, make_batch
from linboost_optax._ills.chunks import Batch
from linboost_optax._ills.code import IllsCode, explain_stall
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.restart import redraw_units
from linboost_optax._ills.transformation import IllsState, from_config, iterate
from linboost_optax._network import Network, forward, read_layers, write_layers

# Rejections in a row after which a run counts as stalled.
_MAX_REJECTED = 10


class IllsResult(NamedTuple):
    """What :func:`fit_ills` returns."""

    params: Any  # the trained parameters; with validation data the best on them
    code: IllsCode  # what ended the run; `code.message` says it in words
    iterations: int
    objectives: np.ndarray  # [iteration], the best so far; never rises
    validation: np.ndarray  # [iteration], validation losses; empty without such data
    state: IllsState  # of the transformation at the end of the run


class Limits(NamedTuple):
    """Convergence criteria."""

    max_iter: int
    tol: float
    patience: int


class Progress(NamedTuple):
    """Carried from iteration to iteration."""

    iteration: jax.Array  # int32
    params: Any
    state: IllsState
    best: Any
    best_validation: jax.Array
    waited: jax.Array  # iterations without enough gain
    code: jax.Array  # int32, `IllsCode.MAX_ITER` while running
    objectives: jax.Array
    validation: jax.Array


def fit_ills(
    network: Network,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    validation: tuple[Any, Any] | None = None,
    max_iter: int = 300,
    tol: float = 1e-4,
    patience: int = 10,
    restarts: int = 0,
    seed: int = 0,
    polish: int = 0,
    state: IllsState | None = None,
    **options: Any,
) -> IllsResult:
    r"""Train a network by ILLS until it converges.

    It ends when, over the last ``patience`` accepted iterations, none lowered the
    objective by more than ``tol`` of its value; with validation data, when the
    validation loss has not reached a new minimum for ``patience`` iterations; after
    ten rejected iterations in a row; or after ``max_iter`` iterations.

    Args:
        network: the dense layers, from :func:`network`, ``linen.network`` or
            ``nnx.network``.
        params: start values; random, distinct units, e.g. N(0, 1 / fan-in).
        inputs: ``[sample, feature]``, about standardised.
        targets: ``[sample, output]`` or, for one output, ``[sample]``.
        sample_weight: ``[sample]``, default all 1.
        mask: boolean, shaped like ``targets``, true where a target is known.
            Default all.
        validation: ``(inputs, targets)`` for early stopping. Default none.
        max_iter: default 300.
        tol: relative gain that counts, default 1e-4.
        patience: default 10.
        restarts: at most this many times after the run, draw the least useful fifth
            of the hidden units anew, run again, and keep what is better. Default 0.
            A way out of local minima and dead units on clean data.
        seed: of the restarts. Default 0.
        polish: at most this many iterations of Levenberg-Marquardt over all hidden
            parameters after the run has converged. Default 0. It costs the cube of
            their number and pays on small noise-free problems.
        state: of an earlier result, to go on from it. Default a fresh one.
        **options: arguments of :func:`ills`.

    Returns:
        An :class:`IllsResult`.

    Raises:
        ValueError: if the data are empty, not finite, far from standardised, of the
            wrong shape or outside the output activation's range; if hidden units are
            identical; if an argument is out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import linboost_optax as lbo
        >>> x = jax.random.normal(jax.random.key(0), (200, 3))
        >>> y = jnp.sin(x[:, 0]) + x[:, 1] * x[:, 2]
        >>> params = lbo.init_mlp(jax.random.key(1), (3, 20, 1))
        >>> result = lbo.fit_ills(lbo.network(params), params, x, y, max_iter=50)
        >>> bool(result.objectives[-1] < 0.01 * jnp.var(y))
        True
    """
    limits = _check_limits(max_iter, tol, patience)
    for name, value in (("polish", polish), ("restarts", restarts)):
        if not isinstance(value, int) or value < 0:
            raise ValueError(
                f"`{name}` must be an integer >= 0, got {value!r}. 0 leaves it out."
            )
    config = IllsConfig(network, **options)
    fresh = cast(IllsState, from_config(config).init(params))
    state = fresh if state is None else state._replace(rejected=fresh.rejected)
    dtype = read_layers(network, params)[0].dtype
    data = make_batch(network, inputs, targets, sample_weight, mask, dtype, None)
    check_scale(inputs, dtype)
    held_out = _held_out(network, validation, dtype)
    params = jax.tree.map(jnp.asarray, params)

    result = _run(config, limits, params, state, data, held_out)
    for draw in range(restarts):
        if result.code == IllsCode.NOT_FINITE or _is_exact(result, data):
            break
        key = jax.random.fold_in(jax.random.key(seed), draw)
        start = redraw_units(key, network, result.params, data)
        # A robust objective is comparable at one scale of one loss only.
        again = fresh._replace(scale=result.state.scale, settled=result.state.settled)
        again = _run(config, limits, start, again, data, held_out)
        result = _better(result, again)
    if polish and result.code not in (IllsCode.NOT_FINITE, IllsCode.EARLY_STOPPED):
        dense = IllsConfig(network, **{**options, "combine": "parameter"})
        state = result.state._replace(
            damping=jnp.asarray(config.damping, dtype), rejected=jnp.int32(0)
        )
        more = _run(
            dense,
            limits._replace(max_iter=polish),
            result.params,
            state,
            data,
            held_out,
        )
        result = _joined(result, more)
    return result


def _run(
    config: IllsConfig,
    limits: Limits,
    params: Any,
    state: IllsState,
    data: Batch,
    held_out: Batch | None,
) -> IllsResult:
    static, numbers = config.split()
    progress = _loop(static, limits, numbers, params, state, data, held_out)
    ran = int(progress.iteration)
    code = IllsCode(int(progress.code))
    if code == IllsCode.STALLED:
        layers = read_layers(config.network, progress.params)
        code = explain_stall(config, layers, progress.state, data)
    return IllsResult(
        params=progress.params if held_out is None else progress.best,
        code=code,
        iterations=ran,
        objectives=np.asarray(progress.objectives)[:ran],
        validation=np.asarray(progress.validation)[: 0 if held_out is None else ran],
        state=progress.state,
    )


def _better(first: IllsResult, second: IllsResult) -> IllsResult:
    """The run that ended lower, with the history of both."""
    curves = (
        (first.validation, second.validation)
        if len(first.validation)
        else (first.objectives, second.objectives)
    )
    winner = second if np.nanmin(curves[1]) < np.nanmin(curves[0]) else first
    both = _joined(first, second)
    return winner._replace(
        iterations=both.iterations,
        objectives=np.minimum.accumulate(both.objectives),
        validation=both.validation,
    )


def _is_exact(result: IllsResult, data: Batch) -> bool:
    """Whether the error is below a thousandth of the targets' root mean square."""
    weights = jnp.broadcast_to(data.weights, data.targets.shape)
    size = float(jnp.sum(weights * data.targets**2))
    return bool(result.objectives[-1] <= 1e-6 * size)


def _joined(first: IllsResult, second: IllsResult) -> IllsResult:
    return second._replace(
        iterations=first.iterations + second.iterations,
        objectives=np.concatenate([first.objectives, second.objectives]),
        validation=np.concatenate([first.validation, second.validation]),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loop(
    static: IllsConfig,
    limits: Limits,
    numbers: dict[str, Any],
    params: Any,
    state: IllsState,
    data: Batch,
    held_out: Batch | None,
) -> Progress:
    # Numbers are arguments, so that a grid search over them compiles once.
    config = static.with_numbers(numbers)

    def body(progress: Progress) -> Progress:
        layers = read_layers(config.network, progress.params)
        steps, new = iterate(config, progress.params, layers, progress.state, data)
        updates = write_layers(config.network, progress.params, steps)
        params = optax.apply_updates(progress.params, updates)
        waited = _waited(limits, progress, new)
        best, least = progress.best, progress.best_validation
        validation = progress.validation
        if held_out is not None:
            layers = [w + step for w, step in zip(layers, steps, strict=True)]
            value = _validation_loss(config, layers, held_out)
            better = value < least
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
            least = jnp.where(better, value, least)
            waited = jnp.where(better, 0, progress.waited + 1)
            validation = validation.at[progress.iteration].set(value)
        return Progress(
            iteration=progress.iteration + 1,
            params=params,
            state=new,
            best=best,
            best_validation=least,
            waited=waited,
            code=_code(limits, new, waited, held_out is not None),
            objectives=progress.objectives.at[progress.iteration].set(new.objective),
            validation=validation,
        )

    def running(progress: Progress) -> jax.Array:
        return (progress.iteration < limits.max_iter) & (
            progress.code == IllsCode.MAX_ITER
        )

    nothing = jnp.full((limits.max_iter,), jnp.nan, data.inputs.dtype)
    start = Progress(
        iteration=jnp.int32(0),
        params=params,
        state=state,
        best=params,
        best_validation=jnp.asarray(jnp.inf, data.inputs.dtype),
        waited=jnp.int32(0),
        code=jnp.int32(IllsCode.MAX_ITER),
        objectives=nothing,
        validation=nothing if held_out is not None else nothing[:0],
    )
    return jax.lax.while_loop(running, body, start)


def _waited(limits: Limits, progress: Progress, new: IllsState) -> jax.Array:
    """Accepted iterations in a row without enough gain; a rejection is not one."""
    gained = new.objective < (1 - limits.tol) * progress.state.objective
    waited = jnp.where(gained, 0, progress.waited + 1)
    return jnp.where(new.accepted, waited, progress.waited)


def _code(
    limits: Limits, new: IllsState, waited: jax.Array, validated: bool
) -> jax.Array:
    patient = IllsCode.EARLY_STOPPED if validated else IllsCode.TOLERANCE
    code = jnp.where(new.rejected >= _MAX_REJECTED, IllsCode.STALLED, IllsCode.MAX_ITER)
    code = jnp.where(waited >= limits.patience, patient, code)
    # Only an objective that was never finite stays infinite.
    code = jnp.where(jnp.isfinite(new.objective), code, IllsCode.NOT_FINITE)
    return code.astype(jnp.int32)


def _validation_loss(config: IllsConfig, layers: Any, held_out: Batch) -> jax.Array:
    """Mean squared error, or mean absolute error where the loss is robust."""
    held_out = held_out.T
    z = forward(config.network, layers, held_out.inputs).out
    residual = held_out.targets - config.network.last.activation.fn(z)
    error = residual**2 if config.loss == "squared" else jnp.abs(residual)
    value = jnp.sum(held_out.weights * error)
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def _held_out(network: Network, validation: Any, dtype: Any) -> Batch | None:
    if validation is None:
        return None
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise ValueError(
            "`validation` must be a pair (inputs, targets), got "
            f"{type(validation).__name__}."
        )
    return make_batch(network, *validation, None, None, dtype, None)


def _check_limits(max_iter: Any, tol: Any, patience: Any) -> Limits:
    for name, value in (("max_iter", max_iter), ("patience", patience)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be an integer >= 1, got {value!r}. Use e.g. 100."
            )
    if not 0 <= tol < 1:
        raise ValueError(f"`tol` must be in [0, 1), got {tol}. Use e.g. 1e-4.")
    return Limits(max_iter, float(tol), patience)
