"""What ``model(key)`` may return: each kind as parameters, a state and a pure loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from linboost_optax._adapters.functions import check_params


class Framework(Protocol):
    """How a model of one framework is split into what is trained and the rest."""

    @property
    def change(self) -> str:
        """The lines of a training step that change, with ``{tx}`` for the optimizer."""
        ...

    def split(self, made: Any) -> tuple[Any, Any]:
        """Returns parameters and state of a model."""
        ...

    def call(
        self,
        loss: Callable[..., Any],
        params: Any,
        state: Any,
        args: tuple,
        train: bool,
    ) -> tuple[jax.Array, Any]:
        """Returns the loss and the state after it."""
        ...


@dataclass(frozen=True)
class Variables:
    """Linen: a dictionary of collections, of which ``params`` is trained."""

    change: str = """\
+taps = linen.taps(model, x)
+tx = {tx}
-loss, grads = jax.value_and_grad(loss_fn)(params, batch)
+loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, batch)
-updates, state = tx.update(grads, state, params)
+updates, state = tx.update(grads, state, params, stats=stats)"""

    def split(self, made: Any) -> tuple[Any, Any]:
        rest = {name: value for name, value in made.items() if name != "params"}
        return made["params"], rest

    def call(
        self,
        loss: Callable[..., Any],
        params: Any,
        state: Any,
        args: tuple,
        train: bool,
    ) -> tuple[jax.Array, Any]:
        out = loss({"params": params, **state}, *args)
        value, changed = out if isinstance(out, tuple) else (out, {})
        return value, {**state, **changed} if train else state


@dataclass(frozen=True)
class Module:
    """NNX: a module whose ``Param`` are trained; the rest is carried along.

    Attributes:
      graphdef: what is static of the module.
    """

    graphdef: Any
    change: str = """\
+taps = lbo.nnx.taps(model, x)
+optimizer = nnx.Optimizer(model, {tx}, wrt=nnx.Param)
-loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
+loss, grads, stats = lbo.nnx.value_and_grad(loss_fn, taps)(model, batch)
-optimizer.update(model, grads)
+optimizer.update(model, grads, stats=stats)"""

    def split(self, made: Any) -> tuple[Any, Any]:
        _, params, rest = nnx.split(made, nnx.Param, ...)
        return params, rest

    def call(
        self,
        loss: Callable[..., Any],
        params: Any,
        state: Any,
        args: tuple,
        train: bool,
    ) -> tuple[jax.Array, Any]:
        module = nnx.merge(self.graphdef, params, state, copy=True)
        module.train() if train else module.eval()
        value = loss(module, *args)
        return value, nnx.split(module, nnx.Param, ...)[2] if train else state


@dataclass(frozen=True)
class Tree:
    """Anything else: a tree of arrays, all of it trained."""

    change: str = """\
+taps = lbo.taps(model, params, x)
+tx = {tx}
-loss, grads = jax.value_and_grad(loss_fn)(params, batch)
+loss, grads, stats = lbo.value_and_grad(loss_fn, taps)(params, batch)
-updates, state = tx.update(grads, state, params)
+updates, state = tx.update(grads, state, params, stats=stats)"""

    def split(self, made: Any) -> tuple[Any, Any]:
        return made, ()

    def call(
        self,
        loss: Callable[..., Any],
        params: Any,
        state: Any,
        args: tuple,
        train: bool,
    ) -> tuple[jax.Array, Any]:
        return loss(params, *args), state


def recognise(made: Any) -> Framework:
    """Returns the framework of what ``model(key)`` returned.

    Raises:
      TypeError: if it has leaves that are no arrays, or is a Linen module.
    """
    if isinstance(made, nnx.Module):
        return Module(nnx.split(made, nnx.Param, ...)[0])
    if isinstance(made, Mapping) and "params" in made:
        check_params(dict(made))
        return Variables()
    check_params(made)
    return Tree()


def scalar(value: Any) -> jax.Array:
    """Returns a loss; raises unless it is a scalar."""
    if jnp.shape(value) != ():
        raise TypeError(
            f"`loss` must return a scalar, got an array of shape {jnp.shape(value)}. "
            "Return the mean over the batch."
        )
    return jnp.asarray(value)
