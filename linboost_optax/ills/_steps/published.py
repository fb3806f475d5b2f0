r"""The published method: ideal activations, inverted, regressed, layer by layer.

From the last layer down: the minimum-norm change of the activations that removes the
residual, :math:`A^* = A + R (W^\top W + \delta I)^{-1} W^\top`, is clipped into the
range of :math:`\varphi`, inverted, and the layer below is regressed on
:math:`Z^* = \varphi^{-1}(A^*)`. What that layer leaves unexplained is the residual of
the next one down.

References:
  Khadilkar (2023), arXiv:2307.05189.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.activations import INVERTIBLE, TABLE, Activation
from linboost_optax.ills._model.matrices import Forward, Matrices, forward
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._numerics.chunks import Batch, sum_over_chunks
from linboost_optax.ills._numerics.least_squares import (
    relative_ridge,
    solve,
    weighted_gram,
)
from linboost_optax.ills._settings import Method, Regression, Settings


@dataclasses.dataclass(frozen=True)
class Published:
    """Inverts the activations and regresses each layer on its ideal pre-activations.

    Args:
      relaxation: share in (0, 1] of the regression's solution that is taken.
      margin: distance in (0, 0.5) kept from the ends of an activation's range.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> from linboost_optax.ills import Published
      >>> Published(relaxation=0.5, margin=1e-3)
      Published(relaxation=0.5, margin=0.001)

    References:
      Khadilkar (2023), arXiv:2307.05189.
    """

    relaxation: Any
    margin: Any

    def __post_init__(self):
        # Traced values (`optax.inject_hyperparams`) are compared by nobody.
        relaxation, margin = self.relaxation, self.margin
        if isinstance(relaxation, int | float) and not 0 < relaxation <= 1:
            raise ValueError(
                f"`relaxation` must be in (0, 1], got {relaxation}. "
                "1 takes the regression's solution."
            )
        if isinstance(margin, int | float) and not 0 < margin < 0.5:
            raise ValueError(
                f"`margin` must be in (0, 0.5), got {margin}. "
                "Use a small value, e.g. 1e-3."
            )

    def check(self, network: Network) -> None:
        """Raises where an activation has no inverse."""
        for layer in network.layers:
            if layer.activation.inverse is None:
                raise ValueError(
                    "`method='published'` must invert every activation, but "
                    f"`{layer.kernel}` is followed by {layer.activation.name!r}, "
                    f"which has no inverse. Use one of {list(INVERTIBLE)}, an "
                    "`Activation` with an `inverse`, or `method='weighted'`."
                )

    def output(self, network: Network) -> Activation:
        """Returns the identity: the targets are inverted once and for all."""
        del network
        return TABLE["identity"]

    def targets(self, network: Network, targets: jax.Array) -> jax.Array:
        """Returns ideal pre-activations of the output layer."""
        last = network.last.activation
        return last.invert(last.clip(targets, self.margin))

    def start_ridge(self, output_ridge: Any) -> Any:
        """Returns the final ridge: it is fixed."""
        return output_ridge

    def propose(
        self,
        settings: Settings,
        matrices: Matrices,
        previous: Matrices,
        damping: jax.Array,
        working: Batch,
    ) -> Matrices:
        """Returns the hidden layers, fitted from the last one down."""
        del previous
        new = list(matrices)
        for level in reversed(range(len(matrices) - 1)):
            fitted = self._fit(settings, matrices, new, level, damping, working)
            step = self.relaxation * (fitted - matrices[level])
            new[level] = matrices[level] + step
        return new[:-1]

    def is_stationary(
        self, settings: Settings, matrices: Matrices, objective: float, batch: Batch
    ) -> bool:
        """Returns False: this method does not follow the objective's gradient."""
        del settings, matrices, objective, batch
        return False

    def regressions(
        self, settings: Settings, matrices: Matrices, working: Batch
    ) -> Iterator[Regression]:
        """Yields each hidden layer's regression, the layers above as they are."""
        damping = jnp.asarray(settings.damping, matrices[0].dtype)
        for level in range(len(matrices) - 1):
            x, ideal = self._ideal(
                settings.network, matrices, matrices, level, damping, working
            )
            z = matrices[level].T @ x
            sample = jnp.mean(working.weights, axis=0, keepdims=True)
            outside = (ideal.unclipped != ideal.activations).astype(z.dtype)
            weights = jnp.broadcast_to(sample, z.shape)
            change = ideal.pre_activations - z
            penalty = jnp.zeros((len(x), 1), x.dtype)
            yield Regression(x, z, change, weights, outside, penalty)

    def polishing(self) -> Method:
        """Returns the method itself: it has no other step."""
        return self

    def _fit(
        self,
        settings: Settings,
        matrices: Matrices,
        new: Matrices,
        level: int,
        damping: jax.Array,
        working: Batch,
    ) -> jax.Array:
        def chunk(part: Batch):
            x, ideal = self._ideal(
                settings.network, matrices, new, level, damping, part
            )
            # A hidden unit serves all outputs: a sample counts with its mean weight.
            weights = jnp.mean(part.weights, axis=0, keepdims=True)
            return weighted_gram(x, weights), x @ (weights * ideal.pre_activations).T

        gram, rhs = sum_over_chunks(
            chunk, working, settings.chunk_size, settings.axis_name
        )
        return solve(relative_ridge(gram, settings.ridge), rhs)

    def _ideal(
        self,
        network: Network,
        matrices: Matrices,
        new: Matrices,
        level: int,
        damping: jax.Array,
        part: Batch,
    ) -> tuple[jax.Array, "Ideal"]:
        """Returns the augmented inputs and the ideal values of hidden layer ``level``.

        ``matrices`` are the weights at the start of the sweep; in ``new`` the layers
        above ``level`` are fitted already.
        """
        f = forward(network, matrices, part.inputs)
        residual = part.targets - f.out
        for at in reversed(range(level + 1, len(matrices) - 1)):
            ideal = self._pull_back(network, f, new, at, damping, residual)
            residual = ideal.pre_activations - new[at].T @ f.inputs[at]
        ideal = self._pull_back(network, f, new, level, damping, residual)
        return f.inputs[level], ideal

    def _pull_back(
        self,
        network: Network,
        f: Forward,
        new: Matrices,
        level: int,
        damping: jax.Array,
        residual: jax.Array,
    ) -> "Ideal":
        """Returns what would remove the residual of the layer above ``level``."""
        layer = network.layers[level]
        kernel = new[level + 1][: layer.features_out]
        gram = relative_ridge((kernel.T @ kernel)[None], damping)
        change = kernel @ solve(gram, residual)
        unclipped = f.inputs[level + 1][: layer.features_out] + change
        activations = layer.activation.clip(unclipped, self.margin)
        return Ideal(unclipped, activations, layer.activation.invert(activations))


class Ideal(NamedTuple):
    """Ideal values of one hidden layer, ``[unit, sample]``.

    Attributes:
      unclipped: ideal activations before clipping.
      activations: and after.
      pre_activations: that give them.
    """

    unclipped: jax.Array
    activations: jax.Array
    pre_activations: jax.Array
