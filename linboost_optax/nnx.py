"""Flax NNX: finds a module's linear layers, taps them, collects their statistics."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

from flax import nnx

from linboost_optax import _statistics
from linboost_optax._adapters.functions import check_call, without_taps
from linboost_optax._adapters.mistakes import explain
from linboost_optax._adapters.nnx import advice, mistakes, nodes
from linboost_optax._adapters.nnx.registry import register
from linboost_optax._program import layers
from linboost_optax._program.differentiate import differentiate
from linboost_optax._program.trace import trace
from linboost_optax._statistics import Rule
from linboost_optax._taps import Taps
from linboost_optax.ills._model.nnx import network

__all__ = ["network", "register", "taps", "value_and_grad", "without_taps"]


def taps(
    model: nnx.Module,
    *args: Any,
    statistic: Rule | Literal["auto", "moments", "gram", "sketch", "inputs"] = "auto",
    exclude: str | Sequence[str] = (),
    method: str | Callable[..., Any] | None = None,
    wrt: Any = nnx.Param,
    **kwargs: Any,
) -> Taps:
    """Finds the linear layers of a module and decides what their taps emit.

    Traces a copy of the module with abstract values: shapes only, nothing is computed
    and the module stays as it is. Print the result for a table of layers; parameters
    that keep their plain gradient are listed with the reason.

    Args:
      model: an NNX module.
      *args: arguments of the module's call, arrays or ``jax.ShapeDtypeStruct``.
      statistic: as for ``linen.taps``; default ``"auto"``.
      exclude: names of layers to leave alone, or of what they are below, as printed in
        the table; ``*`` and ``?`` stand for any characters. Default none.
      method: what is called: a name, or a function of the module and the arguments.
        Default None: the module itself.
      wrt: which variables are parameters, as for ``nnx.Optimizer``; default
        ``nnx.Param``. The same goes to ``value_and_grad``.
      **kwargs: keyword arguments of the module's call.

    Returns:
      The taps, static and hashable.

    Raises:
      ValueError: if ``statistic`` is unknown, ``wrt`` chooses no variable, no layer can
        be tapped, or a statistic that does not add up is asked for a layer that is used
        more than once.
      TypeError: if ``model`` is no NNX module, ``method`` none of its methods, or
        ``statistic`` is no statistic.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import linboost_optax as lbo
      >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> print(lbo.nnx.taps(model, jnp.ones((8, 3)), statistic="gram"))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     gram          52
      statistics: 52 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    mistakes.check_model(model)
    asked = _statistics.resolve(statistic)
    call = mistakes.method_of(model, method)
    with nodes.updating():
        split = nodes.split(model, args, kwargs, wrt)
        mistakes.check_wrt(model, split.params, wrt)

        def function(params: Any, rest: Any, args: tuple, kwargs: dict) -> Any:
            return split.call(call, params, rest, args, kwargs)[0]

        data = (split.rest, split.args, split.kwargs)
        try:
            program = trace(function, split.params, data, {}, states=split.states)
        except Exception as error:
            explain("nnx.taps", model, call, args, kwargs, error)
            raise
    name = f"`model` {type(model).__name__}"
    told = advice.advice(model)
    return layers.taps_of(program, split.params, asked, exclude, name, told)


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
    wrt: Any = nnx.Param,
) -> Callable[_P, tuple[_Loss, Any, _Stats]]: ...


@overload
def value_and_grad(
    loss_fn: Callable[_P, tuple[_Loss, _Aux]],
    taps: Taps,
    has_aux: Literal[True],
    *,
    allow_unconnected: bool = False,
    wrt: Any = nnx.Param,
) -> Callable[_P, tuple[tuple[_Loss, _Aux], Any, _Stats]]: ...


def value_and_grad(
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool = False,
    *,
    allow_unconnected: bool = False,
    wrt: Any = nnx.Param,
    **unknown: Any,
) -> Callable[..., Any]:
    """Differentiates a loss and collects every tapped layer's input statistics.

    Like ``nnx.value_and_grad``, with the statistics as a third result. They come from
    the same backward pass; gradients are those of the untapped loss. What the loss
    changes in modules (averages of BatchNorm, counts of random keys, metrics) is there
    afterwards.

    Args:
      loss_fn: ``loss_fn(model, *args, **kwargs)`` returning a scalar, or
        ``(scalar, aux)`` with ``has_aux``. Split modules do as well:
        ``loss_fn(params, ...)``, or ``loss_fn(graphdef, params, ...)``.
      taps: from ``nnx.taps`` of the same module.
      has_aux: whether ``loss_fn`` returns auxiliary data; default False.
      allow_unconnected: whether the loss may leave tapped layers out; their
        statistics are then zero and their gradients pass through. Default False.
      wrt: which variables of the module to differentiate, as for ``nnx.taps``; default
        ``nnx.Param``.
      **unknown: arguments of ``nnx.value_and_grad`` that this function lacks, to say
        so.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(loss, grads,
      stats)``, or ``((loss, aux), grads, stats)``; ``grads`` are an ``nnx.State``, and
      ``stats`` maps layer to statistic.

    Raises:
      TypeError: if ``taps`` is not a ``Taps``, ``loss_fn`` is not callable, or an
        argument is of ``nnx.value_and_grad`` alone; when called, if the loss
        differentiates the network in forward mode or returns no pair with ``has_aux``.
      ValueError: when called, if ``wrt`` chooses no variable, if the taps belong to
        another model, if a tapped layer did not reach the loss, if its kernel is used
        as another layer, or if a layer with raw inputs is used twice.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> import linboost_optax as lbo
      >>> model, x = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((8, 3))
      >>> taps = lbo.nnx.taps(model, x)
      >>> optimizer = nnx.Optimizer(model, lbo.lnb(0.1, taps), wrt=nnx.Param)
      >>> loss_fn = lambda model, x: jnp.mean(model(x) ** 2)
      >>> loss, grads, stats = lbo.nnx.value_and_grad(loss_fn, taps)(model, x)
      >>> _ = optimizer.update(model, grads, stats=stats)
      >>> stats[""].count
      Array([8.], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    mistakes.check_options(unknown)
    check_call("this `value_and_grad`", loss_fn, taps, unknown)

    @functools.wraps(loss_fn)
    def wrapped(*args, **kwargs):
        if not args:  # the module by its name
            bound = inspect.signature(loss_fn).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        function, (model, *rest) = nodes.functional(loss_fn, args)
        if not nodes.is_node(model):
            mistakes.check_split(model)
            return differentiate(
                function, taps, has_aux, allow_unconnected, model, tuple(rest), kwargs
            )
        with nodes.updating():
            split = nodes.split(model, tuple(rest), kwargs, wrt)
            mistakes.check_wrt(model, split.params, wrt)

            def of_states(params, rest, args, kwargs):
                out, after = split.call(loss_fn, params, rest, args, kwargs)
                if not has_aux:
                    return out, (None, after)
                mistakes.check_pair(out)
                return out[0], (out[1], after)

            (loss, (aux, after)), grads, stats = differentiate(
                of_states,
                taps,
                True,
                allow_unconnected,
                split.params,
                (split.rest, split.args, split.kwargs),
                {},
                states=split.states,
            )
            aux = nodes.restore(aux, after)
        return ((loss, aux) if has_aux else loss), grads, stats

    return wrapped
