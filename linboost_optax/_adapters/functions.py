"""Functions of a tree of parameters, whatever they are written in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import jax

from linboost_optax import _statistics
from linboost_optax._program import layers
from linboost_optax._program.differentiate import differentiate
from linboost_optax._program.trace import is_array, trace
from linboost_optax._statistics import Rule
from linboost_optax._taps import Taps, check_taps, marks

_P = ParamSpec("_P")
_Loss = TypeVar("_Loss")
_Aux = TypeVar("_Aux")
_Stats: TypeAlias = dict[str, Any]


def taps(
    function: Callable[..., Any],
    params: Any,
    *args: Any,
    statistic: Rule | Literal["auto", "moments", "gram", "sketch", "inputs"] = "auto",
    exclude: str | Sequence[str] = (),
    **kwargs: Any,
) -> Taps:
    """Finds the linear layers of a function and decides what their taps emit.

    Traces ``function(params, *args)`` with abstract values: shapes only, nothing is
    computed. A layer is a parameter that is multiplied with data: by ``@``, ``einsum``
    and all that ends in ``dot_general``, by a convolution, or by looking up its rows.
    It may be transposed, cast, masked or averaged first, and used inside ``jit``,
    ``vmap``, ``scan``, ``cond`` or ``checkpoint``; what is added to its product is its
    bias. Print the result for a table.

    Args:
      function: ``function(params, *args, **kwargs)``: the model, or the loss.
      params: a tree of arrays, or of ``jax.ShapeDtypeStruct``.
      *args: what else the function takes; leaves that are no arrays are static.
      statistic: as for ``linen.taps``; default ``"auto"``.
      exclude: names of layers to leave alone, or of what they are below, as printed in
        the table; ``*`` and ``?`` stand for any characters. Default none.
      **kwargs: keyword arguments of the function.

    Returns:
      The taps, static and hashable.

    Raises:
      ValueError: if ``statistic`` is unknown, no layer can be tapped, or a statistic
        that does not add up is asked for a layer that is used more than once.
      TypeError: if ``function`` is not callable, ``params`` has leaves that are no
        arrays, or ``statistic`` is no statistic.

    Example:
      >>> import jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> def model(params, x):
      ...     for w, b in params:
      ...         x = jnp.tanh(w @ x + b)
      ...     return x
      >>> params = [(jnp.ones((4, 3)), jnp.ones(4)), (jnp.ones((2, 4)), jnp.ones(2))]
      >>> batched = jax.vmap(model, in_axes=(None, 0))
      >>> print(lbo.taps(batched, params, jnp.ones((8, 3)), statistic="gram"))
      path  kind          kernel  inputs  statistic  bytes
      0     Dense + bias  4x3     8x3     gram          52
      1     Dense + bias  2x4     8x4     gram          84
      statistics: 136 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    check_function(function)
    check_params(params)
    asked = _statistics.resolve(statistic)
    program = trace(function, params, args, kwargs)
    return layers.taps_of(program, params, asked, exclude, "`function`")


def check_function(function: Any) -> None:
    """Raises unless this is a function of parameters, and no framework's module."""
    modules = {base.__module__.split(".")[0] for base in type(function).__mro__}
    name = type(function).__name__
    if "equinox" in modules:
        raise TypeError(
            f"`function` must take the parameters first, got the Equinox module {name} "
            "that holds them. Split it: `params, static = eqx.partition(model, "
            "eqx.is_inexact_array)`, and pass `lambda params, x: eqx.combine(params, "
            "static)(x)`."
        )
    if "flax" in modules:
        raise TypeError(
            f"`function` must take the parameters first, got the Flax module {name}. "
            "Use `linen.taps(model, x)` or `lbo.nnx.taps(model, x)`; or pass a "
            "function, as Linen's `model.apply` is."
        )
    if not callable(function):
        raise TypeError(
            f"`function` must be callable, got {name}. Pass the model as a function of "
            "its parameters: `lbo.taps(model, params, x)`; of Haiku's `hk.transform`, "
            "its `.apply`."
        )


def check_params(params: Any) -> None:
    """Raises unless a tree is one of arrays."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not is_array(leaf):
            raise TypeError(
                "`params` must be a tree of arrays, got "
                f"{type(leaf).__name__} at {jax.tree_util.keystr(path)}. Split what is "
                "static off first: `eqx.partition(model, eqx.is_inexact_array)`, "
                "`nnx.split(model, nnx.Param, ...)`."
            )


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
        ``(scalar, aux)`` with ``has_aux``.
      taps: from ``lbo.taps`` of the same parameters.
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
        differentiates the network in forward mode.
      ValueError: when called, if the taps belong to another model, if a tapped layer
        did not reach the loss, if its kernel is used as another layer, or if a layer
        with raw inputs is used twice.

    Example:
      >>> import jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((8, 3))
      >>> taps = lbo.taps(lambda params, x: x @ params["w"], params, x)
      >>> def loss_fn(params, x):
      ...     return jnp.mean((x @ params["w"]) ** 2)
      >>> loss, grads, stats = lbo.value_and_grad(loss_fn, taps)(params, x)
      >>> {name: stat.count for name, stat in stats.items()}
      {'': Array([8.], dtype=float32)}

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    check_call("`lbo.value_and_grad`", loss_fn, taps, unknown)

    @functools.wraps(loss_fn)
    def wrapped(params, *args, **kwargs):
        check_params(params)
        return differentiate(
            loss_fn, taps, has_aux, allow_unconnected, params, args, kwargs
        )

    return wrapped


def check_call(called: str, loss_fn: Any, taps: Any, unknown: dict[str, Any]) -> None:
    """Raises unless a loss can be differentiated with these taps and arguments.

    Args:
      called: the function that was called, for errors.
      loss_fn: the loss.
      taps: the taps.
      unknown: arguments that the function lacks.
    """
    check_taps(taps)
    if not callable(loss_fn):
        raise TypeError(
            f"`loss_fn` must be callable, got {type(loss_fn).__name__}. Pass the "
            "function, and call the result: `value_and_grad(loss_fn, taps)(params, x)`."
        )
    if unknown:
        name = next(iter(unknown))
        raise TypeError(
            f"`{name}` is no argument of {called}, which differentiates "
            "with respect to the first argument of `loss_fn` and to nothing else. Put "
            "the parameters first; `functools.partial` or a lambda reorders the rest."
        )


def without_taps(params: Any) -> Any:
    """Returns the parameters for uses that are not to be measured, inside a loss.

    What a loss computes from the result keeps its gradient and adds nothing to the
    statistics: a term in forward mode, which taps do not support, or one on inputs that
    should not count.

    Args:
      params: what the loss got as its first argument, or a part of it.

    Returns:
      The same tree, of the same values.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> params, x = {"w": jnp.ones((3, 1)), "b": jnp.ones(1)}, jnp.ones((8, 3))
      >>> model = lambda params, x: x @ params["w"] + params["b"]
      >>> taps = lbo.taps(model, params, x)
      >>> def loss_fn(params):
      ...     f = lambda x: model(lbo.without_taps(params), x)
      ...     slope = jax.jvp(f, (x,), (x,))[1]
      ...     return jnp.mean(model(params, x) ** 2) + jnp.mean(slope**2)
      >>> loss, grads, stats = lbo.value_and_grad(loss_fn, taps)(params)
      >>> stats[""].count
      Array([8.], dtype=float32)
    """
    return jax.tree.map(marks.untapped, params)
