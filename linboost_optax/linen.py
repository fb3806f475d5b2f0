"""Flax Linen: finds a model's linear layers, taps them, collects their statistics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import flax.linen as nn
import jax

from linboost_optax import _statistics
from linboost_optax._adapters.functions import check_call, without_taps
from linboost_optax._adapters.linen import discovery, mistakes
from linboost_optax._adapters.linen.observer import Observer
from linboost_optax._adapters.linen.registry import register
from linboost_optax._adapters.linen.train_state import TrainState
from linboost_optax._program import layers
from linboost_optax._program.differentiate import differentiate
from linboost_optax._statistics import Rule
from linboost_optax._taps import Taps
from linboost_optax.ills._model.linen import network

__all__ = [
    "TrainState",
    "network",
    "register",
    "taps",
    "value_and_grad",
    "without_taps",
]


def taps(
    model: nn.Module,
    *args: Any,
    statistic: Rule | Literal["auto", "moments", "gram", "sketch", "inputs"] = "auto",
    exclude: str | Sequence[str] = (),
    **kwargs: Any,
) -> Taps:
    """Finds the linear layers of a model and decides what their taps emit.

    Traces the model's call with abstract values: shapes only, nothing is computed.
    Print the result for a table of layers; parameters that keep their plain gradient
    are listed with the reason.

    Args:
      model: a Linen module.
      *args: arguments of the model's call, arrays or ``jax.ShapeDtypeStruct``.
      statistic: ``lbo.Moments()`` (O(d) memory a layer of width d), ``lbo.Gram()``
        (O(d^2)), ``lbo.Sketch()`` (O(rank d), the Gram matrix times a few fixed
        probes), ``lbo.Inputs()`` (the inputs themselves), or ``lbo.Auto()``: Gram for
        layers up to 128 inputs wide, a sketch for wider ones, of 128 rows of a batch.
        Each has a name for its defaults, ``"moments"`` and so on. Embeddings are
        counted whatever is asked. Default ``"auto"``.
      exclude: names of layers to leave alone, or of what they are below, as printed in
        the table; ``*`` and ``?`` stand for any characters. Default none.
      **kwargs: keyword arguments of the model's call; ``method`` and ``rngs`` as for
        ``model.init`` and ``model.apply``.

    Returns:
      The taps, static and hashable.

    Raises:
      ValueError: if ``statistic`` is unknown, no layer can be tapped, or a statistic
        that does not add up is asked for a layer that is used more than once.
      TypeError: if ``model`` is no Linen module, ``statistic`` is no statistic, or the
        model looks at numbers while it runs.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Dense(2), jnp.ones((8, 3)), statistic="gram"))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     gram          52
      statistics: 52 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    mistakes.check_model(model)
    asked = _statistics.resolve(statistic)
    rngs = kwargs.pop("rngs", None)
    rngs = jax.random.key(0) if rngs is None else rngs
    seen = Observer()
    try:
        params, program = discovery.trace_model(model, seen, rngs, args, kwargs)
    except Exception as error:
        mistakes.explain(model, args, kwargs, error)
        raise
    advice = functools.partial(discovery.advice, seen)
    name = f"`model` {type(model).__name__}"
    found = layers.taps_of(program, params, asked, exclude, name, advice)
    mistakes.check_inputs(found, args, kwargs)
    return found


_P = ParamSpec("_P")
_Loss = TypeVar("_Loss")
_Aux = TypeVar("_Aux")
_Stats: TypeAlias = dict[str, Any]


@overload
def value_and_grad(
    loss_fn: Callable[_P, _Loss],
    taps: Taps,
    has_aux: Literal[False] = False,
    *,
    allow_unconnected: bool = False,
) -> Callable[_P, tuple[_Loss, Any, _Stats]]: ...


@overload
def value_and_grad(
    loss_fn: Callable[_P, tuple[_Loss, _Aux]],
    taps: Taps,
    has_aux: Literal[True],
    *,
    allow_unconnected: bool = False,
) -> Callable[_P, tuple[tuple[_Loss, _Aux], Any, _Stats]]: ...


def value_and_grad(
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool = False,
    *,
    allow_unconnected: bool = False,
    **unknown: Any,
) -> Callable[..., Any]:
    """Differentiates a loss and collects every tapped layer's input statistics.

    Like ``jax.value_and_grad``, with the statistics as a third result. They come from
    the same backward pass; gradients are those of the untapped loss.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)`` returning a scalar, or
        ``(scalar, aux)`` with ``has_aux``. ``params`` is the ``params`` collection or
        the variables that hold it, as the loss likes; cast, masked or averaged ones
        count as what they are made of.
      taps: from ``linen.taps`` of the same model.
      has_aux: whether ``loss_fn`` returns auxiliary data; default False.
      allow_unconnected: whether the loss may leave tapped layers out; their
        statistics are then zero and their gradients pass through. Default False.
      **unknown: arguments of ``jax.value_and_grad`` that this function lacks, to say
        so.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(loss, grads,
      stats)``, or ``((loss, aux), grads, stats)``; ``stats`` maps layer to statistic.

    Raises:
      TypeError: if ``taps`` is not a ``Taps``, ``loss_fn`` is not callable, or an
        argument is of ``jax.value_and_grad`` alone; when called, if the loss
        differentiates the network in forward mode, or looks at numbers while it runs.
      ValueError: when called, if the taps belong to another model, if a tapped layer
        did not reach the loss, if its kernel is used as another layer, or if a layer
        with raw inputs is used twice.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.ones((8, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> loss_fn = lambda variables, x: jnp.mean(model.apply(variables, x) ** 2)
      >>> taps = linen.taps(model, x)
      >>> loss, grads, stats = linen.value_and_grad(loss_fn, taps)(variables, x)
      >>> stats[""].count
      Array([8.], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    check_call("`linen.value_and_grad`", loss_fn, taps, unknown)

    @functools.wraps(loss_fn)
    def wrapped(params, *args, **kwargs):
        @functools.wraps(loss_fn)
        def loss(params, *args, **kwargs):
            with nn.intercept_methods(Observer()):
                return loss_fn(params, *args, **kwargs)

        return differentiate(
            loss, taps, has_aux, allow_unconnected, params, args, kwargs
        )

    return wrapped
