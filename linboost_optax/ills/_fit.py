"""Run ILLS until something ends it, and say what did."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._codes import IllsCode
from linboost_optax.ills._data import (
    Rows,
    check_distinct_units,
    check_scale,
    concatenate,
    make_batch,
)
from linboost_optax.ills._loop import Patience
from linboost_optax.ills._model.matrices import read_matrices
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._options import check_undivided, resolve
from linboost_optax.ills._runs import (
    IllsResult,
    Task,
    lowered,
    polished,
    refitted,
    restarted,
    run,
)
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.iteration import IllsState, start_state
from linboost_optax.ills._steps.path import starts

# A new minimum on held-out data may be long in coming.
_PATIENCE, _HELD_OUT_PATIENCE = 10, 30


def fit_ills(
    network: Network,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    validation: tuple[Any, ...] | None = None,
    max_iter: int = 300,
    tol: float = 1e-4,
    patience: int | None = None,
    restarts: int = 0,
    seed: int = 0,
    polish: int = 0,
    refit: int = 0,
    state: IllsState | None = None,
    **options: Any,
) -> IllsResult:
    r"""Trains a network by ILLS until it converges.

    It ends when, over the last ``patience`` accepted iterations, none lowered the
    objective by more than ``tol`` of its value; with validation data, when the
    validation loss has not reached a new minimum for ``patience`` iterations; after
    ten rejected iterations in a row; or after ``max_iter`` iterations. The validation
    loss is the weighted mean squared error, or absolute one where the loss is robust.

    With validation data there are three runs from the same start values, and the one
    that reaches the least validation loss is the result. They differ in the path of the
    ridges that ``ills`` describes: with :math:`\rho_0` as there and
    :math:`\rho_h = \kappa v \delta^{3/2}`, they start at :math:`\rho_0` with
    :math:`\kappa = 1` or 0.1, or at :math:`\rho_0 / 100` with :math:`\kappa = 300`.
    There is one run where there is no path (``output_ridge=0``, a ``hidden_ridge``, the
    published method), or where a ``state`` says how to go on.

    Args:
      network: the dense layers, from ``network``, ``linen.network`` or
        ``nnx.network``.
      params: start values; random, distinct units, e.g. from ``init_mlp``.
      inputs: ``[sample, feature]``, about standardised.
      targets: ``[sample, output]`` or, for one output, ``[sample]``.
      sample_weight: ``[sample]``, >= 0; default None is 1 for all.
      mask: boolean, shaped like ``targets``, true where a target is known; default
        None is all.
      validation: ``(inputs, targets)`` for early stopping and the choice of a path,
        or ``(inputs, targets, sample_weight)``, or with a ``mask`` as fourth; default
        None.
      max_iter: most iterations of a run, >= 1; default 300.
      tol: relative gain that counts, in [0, 1); default 1e-4.
      patience: iterations without such a gain that end a run, >= 1; default None is
        30 with validation data, on which a new minimum may be long in coming, else 10.
      restarts: at most this many times after the run, draw the least useful fifth
        of the hidden units anew, run again, and keep what is better; default 0.
        A way out of local minima and dead units on clean data.
      seed: of the restarts; default 0.
      polish: at most this many iterations of Levenberg-Marquardt over all hidden
        parameters after the run has converged, unless validation data ended it;
        default 0. It costs the cube of their number and pays on small noise-free
        problems.
      refit: this many iterations at the end of all, from the best weights and with the
        ridges of their path, see the validation data as training data: no sample is
        lost to early stopping. Two or so; more fit noise again. Default 0.
      state: of an earlier result, to go on from it with its damping; default None, a
        fresh one.
      **options: those of ``ills``.

    Returns:
      An ``IllsResult``.

    Raises:
      ValueError: if the data are empty, not finite, far from standardised, of the
        wrong shape or outside the output activation's range; if hidden units are
        identical; if an argument is out of its range.
      TypeError: as ``ills`` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from linboost_optax import ills
      >>> x = jax.random.normal(jax.random.key(0), (200, 3))
      >>> y = jnp.sin(x[:, 0]) + x[:, 1] * x[:, 2]
      >>> params = ills.init_mlp(jax.random.key(1), (3, 20, 1))
      >>> result = ills.fit_ills(ills.network(params), params, x, y, max_iter=50)
      >>> bool(result.objectives[-1] < 0.01 * jnp.var(y))
      True

    References:
      Khadilkar (2023), arXiv:2307.05189; see ``ills``.
    """
    _check_limits(max_iter, tol, patience, polish, restarts, refit)
    if refit and validation is None:
        raise ValueError(
            f"`refit` must be 0 without `validation`, got {refit}. It trains on what "
            "was held out, and nothing is."
        )
    settings = resolve(network, **options)
    check_undivided(settings)
    params = jax.tree.map(jnp.asarray, params)
    matrices = read_matrices(network, jax.tree.map(np.asarray, params))
    check_distinct_units(network, matrices)
    dtype = matrices[0].dtype
    fresh = _fresh_state(jax.tree.map(float, settings), params)
    begin = fresh if state is None else _going_on(state, fresh)
    rows = Rows(inputs, targets, sample_weight, mask)
    data = make_batch(network, *rows, dtype, None)
    check_scale(inputs, data)
    others = _others(validation)
    held_out = others and make_batch(network, *others, dtype, None).padded()
    room = len(others.inputs) if refit and others else 0
    data = data.padded(len(inputs) + room)
    if patience is None:
        patience = _PATIENCE if held_out is None else _HELD_OUT_PATIENCE
    task = Task(Patience(1.0 - tol, patience), data, held_out, max_iter)

    choose = held_out is not None and state is None
    runs = [
        run(settings, task, params, start)
        for start in (starts(settings, begin) if choose else [begin])
    ]
    result = min(runs, key=lambda each: np.nanmin(lowered(each)))
    result = restarted(settings, task, fresh, result, restarts, seed)
    if result.code == IllsCode.NOT_FINITE:
        return result
    if polish and result.code != IllsCode.EARLY_STOPPED:
        result = polished(settings, task, result, polish)
    if refit and others is not None:
        every = make_batch(network, *concatenate(rows, others), dtype, None).padded()
        result = refitted(settings, task._replace(data=every), result, refit)
    return result


@jax.jit
def _fresh_state(settings: Settings, params: Any) -> IllsState:
    dtype = read_matrices(settings.network, params)[0].dtype
    return start_state(settings, params, dtype)


def _going_on(state: IllsState, fresh: IllsState) -> IllsState:
    """Returns the earlier state, its rejections forgotten, if it fits the network."""
    if _layout(state) != _layout(fresh):
        previous = getattr(state, "previous", state)
        raise ValueError(
            "`state` must be of a run of this network with parameters of this dtype, "
            f"{_layout(fresh.previous)}, got {_layout(previous)}. Leave it out to "
            "begin anew."
        )
    return state._replace(rejected=fresh.rejected)


def _layout(tree: Any) -> list[str]:
    return [
        f"{jax.tree_util.keystr(path)}: {jnp.asarray(leaf).dtype}{jnp.shape(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _others(validation: Any) -> Rows | None:
    """Returns the validation data as the training data are given."""
    if validation is None:
        return None
    if not isinstance(validation, tuple) or not 2 <= len(validation) <= 4:
        size = f" of {len(validation)}" if isinstance(validation, tuple) else ""
        raise ValueError(
            "`validation` must be a pair (inputs, targets), a sample_weight and a mask "
            f"after them if there are any, got {type(validation).__name__}{size}. "
            "Give e.g. `validation=(x, y, weights)`."
        )
    return Rows(*validation)


def _check_limits(
    max_iter: Any, tol: Any, patience: Any, polish: Any, restarts: Any, refit: Any
) -> None:
    at_least_1 = {"max_iter": max_iter}
    if patience is not None:
        at_least_1["patience"] = patience
    for name, value in at_least_1.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be an integer >= 1, got {value!r}. Use e.g. 100."
            )
    if not 0 <= tol < 1:
        raise ValueError(f"`tol` must be in [0, 1), got {tol}. Use e.g. 1e-4.")
    may_be_0 = {"polish": polish, "restarts": restarts, "refit": refit}
    for name, value in may_be_0.items():
        if not isinstance(value, int) or value < 0:
            raise ValueError(
                f"`{name}` must be an integer >= 0, got {value!r}. 0 leaves it out."
            )
