r"""Condition numbers of every layer's inputs, as they are and whitened.

Of the second moment :math:`M = E[\tilde x \tilde x^T]`, and of :math:`C^{-1} M C^{-T}`
with the factor that the optimizer ended with: what gradient descent suffers from, and
what whitening leaves of it. Directions that rounding errors of :math:`M` hide count in
neither.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linboost_optax._adapters.functions import value_and_grad
from linboost_optax._layer import Affine, Layer
from linboost_optax._precondition.preconditioner import Member, Preconditioner
from linboost_optax._solvers import Cholesky
from linboost_optax._solvers.base import Whitens, bind_factor
from linboost_optax._statistics import Gram
from linboost_optax._trial.task import TRAIN
from linboost_optax._trial.training import Carry, Setup

WIDEST = 1024  # features of a layer whose eigenvalues are computed
SHOWN = 16  # layers, at most: spread over the network
_GRAM = Gram()


def before_and_after(setup: Setup, carry: Carry) -> dict[str, tuple[float, float]]:
    """Both condition numbers by layer, of what a whitening optimizer ended with.

    Of stacked layers the first block is meant. Layers that whitening leaves as they
    are, and layers wider than ``WIDEST``, are left out.
    """
    metric = optax.tree.get(carry.opt_state, "metric")
    bind = functools.partial(bind_factor, Cholesky())
    bound = Preconditioner.of(setup.taps, bind, carry.params)
    chosen = [each for each in bound.members if _is_shown(each.layer)]
    places = np.linspace(0, len(chosen) - 1, min(len(chosen), SHOWN)).astype(int)
    grams = _grams(setup, carry)
    found = {}
    for each in (chosen[place] for place in places):
        root = _root(each.layer, grams[each.layer.stats_key])
        after = _whitened(each, metric[each.state_key], root)
        found[str(each.layer)] = (_condition(root), _condition(after))
    return found


def _is_shown(layer: Layer) -> bool:
    measured = isinstance(_GRAM.choose(layer.kind), Gram) and layer.statistic.whitens
    return measured and layer.features <= WIDEST


def _grams(setup: Setup, carry: Carry) -> Any:
    """The Gram matrix of every layer, over the batches that losses are evaluated on."""
    layers = tuple(
        replace(each, statistic=_GRAM) if _is_shown(each) else each
        for each in setup.taps.layers
    )
    taps = replace(setup.taps, layers=layers)
    collect = jax.jit(value_and_grad(setup.loss, taps, has_aux=True))
    key = jax.random.key(0)
    each = (
        collect(carry.params, carry.state, batch, key)[2]
        for batch in setup.splits[TRAIN]
    )
    total = next(each)
    for stats in each:
        total = jax.tree.map(jnp.add, total, stats)
    return total


def _root(layer: Layer, value: Any) -> np.ndarray:
    """A root ``[feature, direction]`` of the second moment of the first block.

    The constant of a bias is the last feature.
    """
    moment = _GRAM.second_moment(layer, value)
    mean, outer = np.asarray(moment.mean[0]), np.asarray(moment.outer[0], np.float64)
    if layer.biased:
        outer = np.block([[outer, mean[:, None]], [mean[None], np.ones((1, 1))]])
    values, vectors = np.linalg.eigh(outer)
    rounding = len(values) * np.finfo(np.float32).eps * values[-1]
    live = values > rounding
    return vectors[:, live] * np.sqrt(values[live])


def _whitened(member: Member[Whitens], state: Any, root: np.ndarray) -> np.ndarray:
    """The root in the coordinates that whiten the layer's inputs."""
    layer = member.layer
    columns = jnp.broadcast_to(jnp.asarray(root), (layer.blocks, *root.shape))
    columns = columns.astype(layer.dtype)
    w, b = columns[:, : layer.features], columns[:, layer.features :]
    white = member.metric.whiten(state, Affine(w, b[:, 0] if layer.biased else None))
    parts = [white.w[0], *([white.b[:1]] if white.b is not None else [])]
    return np.concatenate([np.asarray(part) for part in parts])


def _condition(root: np.ndarray) -> float:
    """The condition number of ``root @ root.T`` on the span of its columns."""
    singular = np.linalg.svd(np.asarray(root, np.float64), compute_uv=False)
    return float((singular[0] / singular[-1]) ** 2)
