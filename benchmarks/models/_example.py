"""What an example is: a model, what it is called with, and nothing of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

Arrays = tuple[Any, ...] | dict[str, Any]  # by position, or by name


@dataclass(frozen=True)
class Example:
    """A model and its call.

    `sample(key)` makes the arrays that it is called with, as positional arguments or,
    where it returns a dictionary, by name. Traced abstractly nothing of it is
    computed, so that sizes are those that people train.
    """

    title: str
    model: nn.Module | Callable[[nnx.Rngs], nnx.Module]  # NNX: what makes one
    sample: Callable[[jax.Array], Arrays]
    static: dict[str, Any] = field(default_factory=dict)  # arguments without arrays
    rngs: tuple[str, ...] = ()  # random streams of a call, but "params"

    @property
    def framework(self) -> str:
        """The library that the model is written in."""
        return "Linen" if isinstance(self.model, nn.Module) else "NNX"

    def inputs(self, key: jax.Array) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a call."""
        return self._arguments(self.sample(key))

    def abstract(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same with shapes in place of arrays."""
        return self._arguments(jax.eval_shape(self.sample, jax.random.key(0)))

    def keys(self) -> dict[str, jax.Array]:
        """Linen: a key for every random stream of `init`."""
        names = ("params", *self.rngs)
        return dict(zip(names, jax.random.split(jax.random.key(0), len(names))))

    def _arguments(self, arrays: Arrays) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, named = ((), arrays) if isinstance(arrays, dict) else (arrays, {})
        if self.framework == "NNX" and self.rngs:
            # Made anew for each call: it counts what is drawn.
            named = {**named, "rngs": nnx.Rngs(0)}
        return args, {**named, **self.static}


def tokens(
    key: jax.Array, shape: tuple[int, ...], vocabulary: int, low: int = 1
) -> jax.Array:
    """Words drawn at random; 0 is padding."""
    return jax.random.randint(key, shape, low, vocabulary, jnp.int32)
