"""What one ILLS optimizer is made of: a network, a method, a loss and some numbers."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from linboost_optax.ills._model.activations import Activation
from linboost_optax.ills._model.matrices import Matrices
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._steps.losses import Loss

# Where a number was taken out.
_NUMBER = ...


class Regression(NamedTuple):
    """The regression that a method sets up for one hidden layer.

    Attributes:
      inputs: of the layer, augmented, ``[input + 1, sample]``.
      pre_activations: as they are, ``[unit, sample]``.
      change: of the pre-activations that would be ideal, ``[unit, sample]``.
      weights: of the regression, ``[unit, sample]``.
      outside: 1 where no pre-activation gives the ideal activation, else 0.
      penalty: ridge on each new weight, ``[input + 1, 1]``.
    """

    inputs: jax.Array
    pre_activations: jax.Array
    change: jax.Array
    weights: jax.Array
    outside: jax.Array
    penalty: jax.Array


@runtime_checkable
class Method(Protocol):
    """What ILLS asks of a method: a frozen dataclass with these methods."""

    def check(self, network: Network) -> None:
        """Raises unless the method can train the network."""
        ...

    def output(self, network: Network) -> Activation:
        """Returns the output activation that is left for the objective."""
        ...

    def targets(self, network: Network, targets: jax.Array) -> jax.Array:
        """Returns the targets that this output is compared with."""
        ...

    def start_ridge(self, output_ridge: Any) -> Any:
        """Returns the ridge on the last layer in the first iteration."""
        ...

    def propose(
        self,
        settings: "Settings",
        matrices: Matrices,
        previous: Matrices,
        damping: jax.Array,
        working: Batch,
    ) -> Matrices:
        """Returns new hidden layers; ``previous`` are the last accepted steps."""
        ...

    def is_stationary(
        self, settings: "Settings", matrices: Matrices, objective: float, batch: Batch
    ) -> bool:
        """Returns whether the objective's gradient is down to rounding."""
        ...

    def regressions(
        self, settings: "Settings", matrices: Matrices, working: Batch
    ) -> Iterable[Regression]:
        """Returns each hidden layer's regression; ``working`` has samples last."""
        ...

    def polishing(self) -> "Method":
        """Returns the method that ends a converged run."""
        ...


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of ``ills``, checked, with objects for the choices.

    A pytree whose leaves are the floats and arrays, those of method and loss included:
    they are arguments of compiled code, so that a grid search over them compiles once.
    Everything else is static.

    Attributes:
      network: the dense layers.
      method: how hidden layers are changed.
      loss: of a residual.
      damping: start value.
      ridge: of the hidden regressions, relative.
      output_ridge: final ridge on the last layer.
      hidden_ridge: ridge on the hidden layers; None for 0, which saves work.
      chunk_size: samples at a time, or None.
      axis_name: mapped axis over which samples are spread, or None.
    """

    network: Network
    method: Method
    loss: Loss
    damping: Any
    ridge: Any
    output_ridge: Any
    hidden_ridge: Any
    chunk_size: int | None
    axis_name: Any

    def tree_flatten(self) -> tuple[list[Any], "Settings"]:
        """Returns the numbers, and the settings without them."""
        numbers: list[Any] = []
        return numbers, _take_numbers(self, numbers)

    @classmethod
    def tree_unflatten(cls, rest: "Settings", numbers: Iterable[Any]) -> "Settings":
        """Returns the settings that ``tree_flatten`` took apart."""
        return _put_numbers(rest, iter(numbers))

    @property
    def hidden_penalty(self) -> Any:
        """The ridge on the hidden layers as a number."""
        return 0.0 if self.hidden_ridge is None else self.hidden_ridge

    @property
    def output(self) -> Activation:
        """The output activation that the objective sees."""
        return self.method.output(self.network)


# Choices are not registered as pytrees themselves: for JAX 0.10 the structures of two
# registered dataclasses with equal fields are equal, and a loop that was compiled for
# one loss would run for another. Dataclasses know their class when compared.


def _take_numbers(node: Any, numbers: list[Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, float | jax.Array | np.ndarray | np.generic):
            numbers.append(value)
            changes[field.name] = _NUMBER
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _take_numbers(value, numbers)
    return _changed(node, changes)


def _put_numbers(node: Any, numbers: Iterator[Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if value is _NUMBER:
            changes[field.name] = next(numbers)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _put_numbers(value, numbers)
    return _changed(node, changes)


def _changed(node: Any, changes: dict[str, Any]) -> Any:
    same = all(getattr(node, name) is value for name, value in changes.items())
    return node if same else dataclasses.replace(node, **changes)
