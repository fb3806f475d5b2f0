r"""The weighted method: regress ideal changes, combine the directions (steps 1 and 2).

With :math:`J_{ikj} = \partial \mathrm{out}_{ik} / \partial z_{ij}`, residual ``R`` and
weights :math:`\omega`, unit ``j`` regresses its ideal change
:math:`t_{ij} = (J^\top \omega R)_{ij} / c_{ij}` on the layer's inputs with weights
:math:`c_{ij} = \sum_k \omega_{ik} |J_{ikj}| \sum_{j'} |J_{ikj'}|`. The product
:math:`c_{ij} t_{ij}` in its normal equations is the back-propagated residual, so that
nothing is divided by :math:`c`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._model.activations import Activation
from linboost_optax.ills._model.matrices import Matrices, forward, kernel_mask
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._numerics.chunks import Batch, sum_over_chunks
from linboost_optax.ills._numerics.least_squares import (
    add_diagonal,
    relative_ridge,
    solve,
    weighted_gram,
)
from linboost_optax.ills._settings import Method, Regression, Settings
from linboost_optax.ills._steps.combine import Combine, PerParameter
from linboost_optax.ills._steps.importance import Importance
from linboost_optax.ills._steps.sensitivity import back_propagate, importances
from linboost_optax.ills._steps.subspace import best_steps

# The ridge on the last layer starts at most this far above its final value, and never
# above the second number: it keeps the units from cancelling each other early on.
_RIDGE_SHARE, _MAX_START_RIDGE = 1e5, 1e-1


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Regresses every unit's ideal change, weighted by what the output owes to it.

    Args:
      combine: what step 2 may scale.
      importance: whose weights a unit's regression has.

    Example:
      >>> from linboost_optax.ills import PerUnit, UnitImportance, Weighted
      >>> Weighted(PerUnit(), UnitImportance())
      Weighted(combine=PerUnit(), importance=UnitImportance())
    """

    combine: Combine
    importance: Importance

    def check(self, network: Network) -> None:
        """Accepts any network."""

    def output(self, network: Network) -> Activation:
        """Returns the network's own: it is linearised in every iteration."""
        return network.last.activation

    def targets(self, network: Network, targets: jax.Array) -> jax.Array:
        """Returns the targets as they are."""
        del network
        return targets

    def start_ridge(self, output_ridge: Any) -> Any:
        """Returns a larger ridge than the final one."""
        start = jnp.minimum(_RIDGE_SHARE * output_ridge, _MAX_START_RIDGE)
        return jnp.maximum(start, output_ridge)

    def propose(
        self,
        settings: Settings,
        matrices: Matrices,
        previous: Matrices,
        damping: jax.Array,
        working: Batch,
    ) -> Matrices:
        """Returns the hidden layers after steps 1 and 2."""
        if self.combine.takes_directions:
            new = directions(settings, self.importance, matrices, working)
            groups = [list(pair) for pair in zip(new, previous, strict=False)]
        else:
            groups = [[w] for w in matrices[:-1]]
        steps = best_steps(settings, self.combine, matrices, groups, damping, working)
        return [w + step for w, step in zip(matrices, steps, strict=False)]

    def is_stationary(
        self, settings: Settings, matrices: Matrices, objective: float, batch: Batch
    ) -> bool:
        """Returns whether no coordinate alone could lower the objective."""
        equations = _normal_equations(settings, matrices, batch, self.importance)
        # Cauchy-Schwarz on every diagonal entry: what one coordinate alone could gain.
        gain = 0.0
        for w, (gram, rhs, _) in zip(matrices, equations, strict=False):
            diagonal = np.diagonal(np.asarray(gram), axis1=1, axis2=2).T
            pull = np.asarray(rhs) - settings.hidden_penalty * np.asarray(w)
            pull_gain = pull**2 / np.where(diagonal > 0, diagonal, 1)
            gain = max(gain, float(np.max(pull_gain)))
        epsilon = float(jnp.finfo(batch.targets.dtype).eps)
        return gain <= np.sqrt(epsilon) * 1e-2 * objective

    def regressions(
        self, settings: Settings, matrices: Matrices, working: Batch
    ) -> Iterator[Regression]:
        """Yields each hidden layer's regression; nothing is clipped, only counted."""
        network = settings.network
        f = forward(network, matrices, working.inputs)
        weights = jnp.broadcast_to(working.weights, working.targets.shape)
        importance = importances(network, matrices, f, weights)
        residual = weights * (working.targets - f.out)
        pulls = back_propagate(network, matrices, f, residual)
        for level, (c, pull) in enumerate(zip(importance, pulls, strict=True)):
            layer = network.layers[level]
            activation = layer.activation
            z = matrices[level].T @ f.inputs[level]
            # Right-hand sides are linear in the pull: what scales them scales it.
            pull = self.importance.scale_rhs(pull.T, jnp.sum(c, axis=1)).T
            c = jnp.broadcast_to(self.importance.gram_weights(c), z.shape)
            change = jnp.where(c > 0, pull / jnp.where(c > 0, c, 1), 0)
            penalty = settings.hidden_penalty * kernel_mask(layer, z.dtype)
            wanted = activation.fn(z) + f.slopes[level] * change
            outside = (wanted < activation.low) | (wanted > activation.high)
            outside = outside.astype(z.dtype)
            yield Regression(f.inputs[level], z, change, c, outside, penalty)

    def polishing(self) -> Method:
        """Returns Levenberg-Marquardt over all hidden parameters."""
        return dataclasses.replace(self, combine=PerParameter())


def normal_equations(
    settings: Settings, importance: Importance, matrices: Matrices, working: Batch
) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """Returns Gram matrices, right-hand sides and units' total importance by layer."""

    def chunk(part: Batch):
        f = forward(settings.network, matrices, part.inputs)
        weights = jnp.broadcast_to(part.weights, part.targets.shape)
        c = importances(settings.network, matrices, f, weights)
        delta = back_propagate(
            settings.network, matrices, f, weights * (part.targets - f.out)
        )
        return [
            (
                weighted_gram(x, importance.gram_weights(ci)),
                x @ di.T,
                jnp.sum(ci, axis=1),
            )
            for x, ci, di in zip(f.inputs, c, delta, strict=False)
        ]

    return sum_over_chunks(chunk, working, settings.chunk_size, settings.axis_name)


@functools.partial(jax.jit, static_argnums=3)
def _normal_equations(
    settings: Settings, matrices: Matrices, batch: Batch, importance: Importance
) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    return normal_equations(settings, importance, matrices, batch)


def directions(
    settings: Settings, importance: Importance, matrices: Matrices, working: Batch
) -> Matrices:
    """Returns the regression of the ideal changes for every hidden layer (step 1)."""
    result = []
    ridge = settings.hidden_penalty
    equations = normal_equations(settings, importance, matrices, working)
    for layer, w, (gram, rhs, total) in zip(
        settings.network.hidden, matrices[:-1], equations, strict=True
    ):
        rhs = importance.scale_rhs(rhs, total)
        mask = kernel_mask(layer, w.dtype)
        rhs = rhs - ridge * mask * w
        gram = add_diagonal(
            relative_ridge(gram, settings.ridge), (ridge * mask[:, 0])[None]
        )
        result.append(solve(gram, rhs))
    return result
