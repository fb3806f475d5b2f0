"""What step 2 may scale: a direction of a layer, of a unit, or every parameter.

A new choice is a class like these, in a file of its own, and a line in ``COMBINES``.
"""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from linboost_optax.ills._model.matrices import Forward, Matrices
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._steps.sensitivity import jacobians, propagate

# One list a hidden layer, of directions shaped like the layer's augmented matrix.
Directions = list[Matrices]


@runtime_checkable
class Combine(Protocol):
    """What ILLS asks of a space of steps.

    Attributes:
      takes_directions: whether it combines the directions of step 1 and the previous
        steps. If not, step 1 is left out and of the directions only shapes are used.
    """

    @property
    def takes_directions(self) -> bool: ...

    def count(self, directions: Directions) -> int:
        """Returns the number of coefficients."""
        ...

    def effects(
        self, network: Network, matrices: Matrices, directions: Directions, f: Forward
    ) -> jax.Array:
        """Returns the output's first-order change by each coefficient.

        Shape ``[coefficient, output, sample]``.
        """
        ...

    def expand(self, directions: Directions, coefficients: jax.Array) -> Matrices:
        """Returns the step of every hidden layer that the coefficients stand for."""
        ...


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """One coefficient a direction of a layer: cheapest, and the default.

    Example:
      >>> from linboost_optax.ills import PerLayer
      >>> PerLayer().takes_directions
      True
    """

    takes_directions: ClassVar[bool] = True

    def count(self, directions: Directions) -> int:
        """Returns the number of directions."""
        return sum(len(group) for group in directions)

    def effects(
        self, network: Network, matrices: Matrices, directions: Directions, f: Forward
    ) -> jax.Array:
        """Returns what each direction does to the output."""
        columns = [
            propagate(network, matrices, f, level, direction.T @ f.inputs[level])
            for level, group in enumerate(directions)
            for direction in group
        ]
        return jnp.stack(columns)

    def expand(self, directions: Directions, coefficients: jax.Array) -> Matrices:
        """Returns each layer's directions times their coefficients."""
        return _weighted_sums(directions, coefficients, lambda _: 1)


@dataclasses.dataclass(frozen=True)
class PerUnit:
    """One coefficient a unit and direction: for noise-free or deep problems.

    Example:
      >>> from linboost_optax.ills import PerUnit
      >>> PerUnit().takes_directions
      True
    """

    takes_directions: ClassVar[bool] = True

    def count(self, directions: Directions) -> int:
        """Returns the number of directions times that of units."""
        return sum(d.shape[1] for group in directions for d in group)

    def effects(
        self, network: Network, matrices: Matrices, directions: Directions, f: Forward
    ) -> jax.Array:
        """Returns what each direction of a unit does to the output."""
        blocks = []
        for level, j in enumerate(jacobians(network, matrices, f)):
            x, unit_first = f.inputs[level], j.swapaxes(0, 1)
            blocks += [unit_first * (d.T @ x)[:, None, :] for d in directions[level]]
        return jnp.concatenate(blocks)

    def expand(self, directions: Directions, coefficients: jax.Array) -> Matrices:
        """Returns each unit's directions times their coefficients."""
        return _weighted_sums(directions, coefficients, lambda d: d.shape[1])


@dataclasses.dataclass(frozen=True)
class PerParameter:
    """One coefficient a hidden parameter: Levenberg-Marquardt.

    With the last layer eliminated; costs the cube of the number of hidden parameters.

    Example:
      >>> from linboost_optax.ills import PerParameter
      >>> PerParameter().takes_directions
      False

    References:
      Golub & Pereyra (1973), SIAM J. Numer. Anal. 10: variable projection.
    """

    takes_directions: ClassVar[bool] = False

    def count(self, directions: Directions) -> int:
        """Returns the number of hidden parameters."""
        return sum(group[0].size for group in directions)

    def effects(
        self, network: Network, matrices: Matrices, directions: Directions, f: Forward
    ) -> jax.Array:
        """Returns what each parameter does to the output."""
        del directions
        blocks = []
        for level, j in enumerate(jacobians(network, matrices, f)):
            x = f.inputs[level]
            block = j.swapaxes(0, 1)[None] * x[:, None, None, :]
            blocks.append(block.reshape(-1, *block.shape[2:]))
        return jnp.concatenate(blocks)

    def expand(self, directions: Directions, coefficients: jax.Array) -> Matrices:
        """Returns the coefficients in the shapes of the layers."""
        steps, at = [], 0
        for like, *_ in directions:
            steps.append(coefficients[at : at + like.size].reshape(like.shape))
            at += like.size
        return steps


COMBINES = {"layer": PerLayer, "unit": PerUnit, "parameter": PerParameter}


def _weighted_sums(directions: Directions, coefficients: jax.Array, width) -> Matrices:
    steps, at = [], 0
    for group in directions:
        step = jnp.zeros_like(group[0])
        for direction in group:
            columns = width(direction)
            step = step + coefficients[None, at : at + columns] * direction
            at += columns
        steps.append(step)
    return steps
