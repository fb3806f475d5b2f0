"""What every layer was asked for and how well its regression could answer."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._data import read_batch
from linboost_optax.ills._model.matrices import Matrices, read_matrices
from linboost_optax.ills._model.network import DenseLayer, Network
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._numerics.least_squares import (
    add_diagonal,
    relative_ridge,
    solve,
    weighted_gram,
)
from linboost_optax.ills._options import check_undivided, resolve
from linboost_optax.ills._settings import Regression, Settings
from linboost_optax.ills._steps.iteration import IllsState
from linboost_optax.ills._steps.problem import update_scale, working_batch
from linboost_optax.ills._steps.scale import Robust

# Slopes of at most this are those of a saturated unit: of tanh beyond 2.2, of a sigmoid
# beyond 2.9.
_FLAT = 0.05


class LayerDiagnostics(NamedTuple):
    """One hidden layer's regressions, as NumPy arrays.

    Attributes:
      name: path of the layer's kernel.
      pre_activations: z, as they are, ``[sample, unit]``.
      ideal: z, as they should be, ``[sample, unit]``.
      fitted: z, as the regression makes them, ``[sample, unit]``.
      weights: ``c_ij`` of the regression, ``[sample, unit]``.
      r2: share of the weighted ideal change that is explained, ``[unit]``.
      condition: of the weighted, unit-diagonal Gram matrix, ``[unit]``.
      clipped: share of ideal activations outside the range, ``[unit]``; samples
        count as they do in the objective.
      saturated: share of activations with a slope of at most 0.05, where a change of
        the pre-activation is hardly felt, ``[unit]``; samples count as above. Of a
        rectifier it is the share of samples on which the unit is off.
    """

    name: str
    pre_activations: np.ndarray
    ideal: np.ndarray
    fitted: np.ndarray
    weights: np.ndarray
    r2: np.ndarray
    condition: np.ndarray
    clipped: np.ndarray
    saturated: np.ndarray


def ills_diagnostics(
    network: Network,
    params: Any,
    inputs: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    state: IllsState | None = None,
    **options: Any,
) -> list[LayerDiagnostics]:
    r"""Inspects the regressions of the next ILLS iteration.

    For every hidden layer: the ideal pre-activations, the weights :math:`c_{ij}` and
    fit of their regression on the layer's inputs, its :math:`R^2`, its condition
    number, the share of ideal activations that no pre-activation can reach, and the
    share of activations that are saturated. With ``method="weighted"`` ideal
    activations are :math:`a + \varphi'(z) t`, to first order, and nothing is clipped;
    with ``"published"`` they are what is clipped.

    Args:
      network: the dense layers.
      params: weights to inspect.
      inputs: ``[sample, feature]``.
      targets: ``[sample, output]`` or ``[sample]``.
      sample_weight: ``[sample]``; default None is 1 for all.
      mask: boolean, shaped like ``targets``; default None is all true.
      state: of the result that ``params`` are from, whose damping and robust scale the
        next iteration takes; default None is the damping of the options and the scale
        that the residuals have now.
      **options: those of ``ills``.

    Returns:
      One ``LayerDiagnostics`` a hidden layer, first to last. A unit without any
      importance has an R^2 and condition number of NaN.

    Raises:
      ValueError: as ``fit_ills`` does.
      TypeError: as ``ills`` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from linboost_optax import ills
      >>> x = jax.random.normal(jax.random.key(0), (50, 3))
      >>> params = ills.init_mlp(jax.random.key(1), (3, 8, 1))
      >>> network = ills.network(params)
      >>> layer, = ills.ills_diagnostics(network, params, x, x[:, 0] ** 2)
      >>> layer.r2.shape, layer.weights.shape
      ((8,), (50, 8))

    References:
      Khadilkar (2023), arXiv:2307.05189: ideal values of the published method.
    """
    settings = resolve(network, **options)
    check_undivided(settings)
    matrices = read_matrices(network, params)
    # As they were given: samples without weight have pre-activations, too.
    data = read_batch(
        network, inputs, targets, sample_weight, mask, matrices[0].dtype, None
    )
    data = data._replace(targets=settings.method.targets(network, data.targets))
    scale, settled = jnp.asarray(jnp.inf, data.inputs.dtype), jnp.asarray(True)
    if state is not None:
        settings = dataclasses.replace(settings, damping=jnp.asarray(state.damping))
        scale, settled = jnp.asarray(state.scale), jnp.asarray(state.settled)
    answers = _answers(settings, Robust(scale, settled), matrices, data)
    shares = np.asarray(data.shares)
    return [
        _report(layer, answer, shares)
        for layer, answer in zip(network.hidden, answers, strict=True)
    ]


class Answer(NamedTuple):
    """How well one layer's regression can answer, ``[unit, sample]`` unless said.

    Attributes:
      asked: the regression.
      fitted: change of the pre-activations that it can make.
      gram: its Gram matrices, ``[unit, input + 1, input + 1]``.
      r2: share of the weighted change that is explained, ``[unit]``.
    """

    asked: Regression
    fitted: jax.Array
    gram: jax.Array
    r2: jax.Array


@jax.jit
def _answers(
    settings: Settings, robust: Robust, matrices: Matrices, data: Batch
) -> list[Answer]:
    robust = robust._replace(scale=update_scale(settings, matrices, robust.scale, data))
    working = working_batch(settings, matrices, robust, data)
    regressions = settings.method.regressions(settings, matrices, working.T)
    return [
        _answer(settings, matrix, asked)
        for matrix, asked in zip(matrices, regressions, strict=False)
    ]


def _answer(settings: Settings, matrix: jax.Array, asked: Regression) -> Answer:
    x, weights, change = asked.inputs, asked.weights, asked.change
    gram = relative_ridge(weighted_gram(x, weights), settings.ridge)
    gram = add_diagonal(gram, asked.penalty[None, :, 0])
    rhs = x @ (weights * change).T - asked.penalty * matrix
    fitted = solve(gram, rhs).T @ x
    left = jnp.sum(weights * (change - fitted) ** 2, axis=1)
    total = jnp.sum(weights * change**2, axis=1)
    r2 = jnp.where(total > 0, 1 - left / jnp.where(total > 0, total, 1), jnp.nan)
    return Answer(asked, fitted, gram, r2)


def _report(layer: DenseLayer, answer: Answer, shares: np.ndarray) -> LayerDiagnostics:
    z, change = answer.asked.pre_activations, answer.asked.change
    flat = np.abs(np.asarray(layer.activation.slope(z))) <= _FLAT
    return LayerDiagnostics(
        name=layer.kernel,
        pre_activations=np.asarray(z).T,
        ideal=np.asarray(z + change).T,
        fitted=np.asarray(z + answer.fitted).T,
        weights=np.asarray(answer.asked.weights).T,
        r2=np.asarray(answer.r2),
        condition=_condition(np.asarray(answer.gram, np.float64)),
        clipped=np.asarray(answer.asked.outside) @ shares,
        saturated=flat @ shares,
    )


def _condition(gram: np.ndarray) -> np.ndarray:
    """Returns condition numbers at unit diagonal; NaN where a diagonal has a 0."""
    diagonal = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    alive = np.all(diagonal > 0, axis=1)
    scale = np.where(diagonal > 0, diagonal, 1)
    unit = gram / scale[:, :, None] / scale[:, None, :]
    return np.where(alive, np.linalg.cond(unit), np.nan)
