"""Flax Linen adapter: finds a model's linear layers and taps them.

The tap of a layer is an extra leaf beside its kernel inside the ``params`` that
reach ``model.apply``; an interceptor reads it from the module's scope. Lifted
transforms (``nn.scan``, ``nn.vmap``, ``nn.remat``, ...) therefore treat it exactly as
they treat the kernel, and nothing else has to know about it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
from flax.core import FrozenDict, freeze

from linboost_optax import _checks, _linen_connections, _linen_discovery
from linboost_optax._linen_connections import Connections
from linboost_optax._linen_modules import without_leaves
from linboost_optax._statistics import KINDS
from linboost_optax._taps import Taps
from linboost_optax.ills._model.linen import network

__all__ = ["network", "taps", "value_and_grad", "without_taps"]


def taps(
    model: nn.Module,
    *args: Any,
    statistic: Literal["auto", "moments", "gram", "sketch", "inputs"] = "auto",
    max_samples: int | None = 128,
    rank: int = 64,
    **kwargs: Any,
) -> Taps:
    """Finds the linear layers of a model and decides what their taps emit.

    Traces ``model.init`` with abstract values: shapes only, nothing is computed.
    Print the result for a table of layers; parameters that keep their plain gradient
    are listed with the reason.

    Args:
      model: a Linen module.
      *args: arguments of the model's call, arrays or ``jax.ShapeDtypeStruct``.
      statistic: ``"moments"`` (O(d) memory a layer of width d), ``"gram"`` (O(d^2)),
        ``"sketch"`` (O(d rank), the Gram matrix times a few fixed probes),
        ``"inputs"`` (the inputs themselves) or ``"auto"``: moments for embeddings,
        Gram for layers up to ``2 * rank`` inputs wide, a sketch for wider ones.
        Default ``"auto"``.
      max_samples: most rows of a batch that a Gram matrix or a sketch is made of, a
        fixed random choice; its moving average over steps sees many more. None takes
        all. Default 128.
      rank: number of probes of a sketch; default 64.
      **kwargs: keyword arguments of the model's call; ``method`` and ``rngs`` go to
        ``model.init``.

    Returns:
      The taps, static and hashable.

    Raises:
      ValueError: if ``statistic`` is unknown, ``max_samples`` or ``rank`` is not
        positive, no layer can be tapped, layers are stacked along another axis than
        the first, or ``"inputs"`` is asked for a layer that is used more than once.
      TypeError: if ``model`` is no Linen module, or a kernel is not real and floating.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> print(linen.taps(nn.Dense(2), jnp.ones((8, 3))))
      path  kind          kernel  inputs  statistic  bytes
      .     Dense + bias  3x2     8x3     gram          52
      statistics: 52 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a flax.linen.Module, got {type(model).__name__}. Call "
            "`linen.taps(model, x)` with the arguments of the model's own call."
        )
    if statistic not in ("auto", *KINDS):
        raise ValueError(
            f"`statistic` must be one of 'auto', {', '.join(map(repr, KINDS))}, got "
            f"{statistic!r}."
        )
    if max_samples is not None:
        _checks.at_least("max_samples", max_samples, 1)
    _checks.whole("rank", rank, 1)
    rngs = kwargs.pop("rngs", None)
    rngs = jax.random.key(0) if rngs is None else rngs
    found = _linen_discovery.Discovery(statistic, max_samples, rank)
    variables = _linen_discovery.trace_init(model, found, rngs, args, kwargs)
    params = variables.get("params", {})
    layers = tuple(
        _linen_discovery.with_stack(layer, params)
        for path, layer in sorted(found.layers.items())
        if path not in found.reasons
    )
    if not layers:
        raise ValueError(
            f"`model` {type(model).__name__} has no layer that can be tapped: "
            f"{found.reasons or 'no Dense, DenseGeneral, Conv or Embed was called'}. "
            "Use a plain optimizer."
        )
    streams = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
    apply = functools.partial(model.apply, rngs=streams, mutable=True)
    apply, arrays = _linen_discovery.abstract(apply, args, kwargs)
    bare = {**variables, "params": without_leaves(params)}
    layers = _linen_discovery.keep_shared(layers, apply, bare, arrays)
    result = Taps(layers, _linen_discovery.plain(params, layers, found.reasons))

    tree = _linen_connections.insert(bare["params"], result, result.zeros())
    _linen_connections.refuse_shared(
        result, apply, {**variables, "params": tree}, arrays
    )
    return result


def value_and_grad(
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool = False,
    *,
    allow_unconnected: bool = False,
) -> Callable[..., Any]:
    """Differentiates a loss and collects every tapped layer's input statistics.

    Like ``jax.value_and_grad``, with the statistics as a third result. They come from
    the same backward pass; gradients are those of the untapped loss.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)`` returning a scalar, or
        ``(scalar, aux)`` with ``has_aux``. ``params`` is the ``params`` collection or
        the variables that hold it, as the loss likes. A loss that walks over the
        leaves of ``params`` itself may want ``without_taps``.
      taps: from ``linen.taps`` of the same model.
      has_aux: whether ``loss_fn`` returns auxiliary data; default False.
      allow_unconnected: whether the loss may leave tapped layers out; their
        statistics are then zero and their gradients pass through. Default False.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(loss, grads,
      stats)``, or ``((loss, aux), grads, stats)``; ``stats`` maps layer to statistic.

    Raises:
      TypeError: if ``taps`` is not a ``Taps``; when called, if the loss
        differentiates the network in forward mode.
      ValueError: when called, if the taps belong to another model, if a tapped
        layer did not reach the loss, or if a layer with raw inputs is used twice.

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
    if not isinstance(taps, Taps):
        raise TypeError(
            f"`taps` must be a Taps, got {type(taps).__name__}. Make it with "
            "`linen.taps(model, x)`."
        )

    @functools.wraps(loss_fn)
    def wrapped(params, *args, **kwargs):
        connections = Connections(taps)

        def loss_with(zeros, params):
            return loss_fn(
                _linen_connections.insert(params, taps, zeros), *args, **kwargs
            )

        def tapped(params, zeros):
            zeros = {key: connections.probe(key, t) for key, t in zeros.items()}
            with nn.intercept_methods(connections):
                return loss_with(zeros, params)

        def loss_alone(params):
            value = loss_with(taps.zeros(), params)
            return value[0] if has_aux else value

        _linen_connections.refuse_shared(taps, loss_alone, params)
        function = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=has_aux)
        try:
            value, (grads, stats) = function(params, taps.zeros())
        except (TypeError, NotImplementedError) as error:
            _linen_connections.explain_forward_mode(error)
            raise
        if not allow_unconnected:
            connections.check()
        return value, grads, stats

    return wrapped


def without_taps(params: Any) -> Any:
    """Returns the parameters as the caller passed them, for use inside a loss.

    Within ``value_and_grad`` the loss sees ``params`` with one more leaf, all zeros,
    beside every tapped kernel. Sums of squares do not notice; a loss that compares
    ``params`` with another tree, or adds up a function of every leaf whose slope at
    zero is not zero (a norm per leaf, a plain sum), takes them from here.

    Args:
      params: what the loss got as its first argument: dictionaries of arrays.

    Returns:
      The same tree without taps; any other tree unchanged.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from linboost_optax import linen
      >>> def distance(params, anchor):
      ...     moved = jax.tree.map(jnp.subtract, linen.without_taps(params), anchor)
      ...     return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(moved))
      >>> distance({"kernel": jnp.ones(2)}, {"kernel": jnp.zeros(2)})
      Array(2., dtype=float32)
    """
    plain = without_leaves(params)
    return freeze(plain) if isinstance(params, FrozenDict) else plain
