"""Differentiating a loss and collecting statistics, whatever the framework."""

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._taps import uses
from linboost_optax._taps.fresh import fresh_trace
from linboost_optax._taps.primitive import Tap, emit
from linboost_optax._taps.table import Taps

# What is done at a tapped layer's call: maps (tap, output, input) to the output.
Visit: TypeAlias = Callable[[Tap, jax.Array, jax.Array], jax.Array]


class Adapter(Protocol):
    """What a framework has to offer, besides finding the layers of a model."""

    def insert(self, params: Any, taps: Taps, by_layer: Mapping[str, Tap]) -> Any:
        """Returns parameters that carry every layer's tap into the model.

        Raises:
          ValueError: if a tapped layer's parameters are not there.
        """
        ...

    def intercept(self, visit: Visit) -> AbstractContextManager[Any]:
        """Calls ``visit`` at every call of a tapped layer while the context lasts."""
        ...


def value_and_grad(
    adapter: Adapter,
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool,
    allow_unconnected: bool,
) -> Callable[..., Any]:
    """Returns what differentiates ``loss_fn`` and collects the statistics.

    Args:
      adapter: of the framework that the model is written in.
      loss_fn: ``loss_fn(params, *args, **kwargs)``.
      taps: the tapped layers.
      has_aux: whether ``loss_fn`` returns auxiliary data.
      allow_unconnected: whether the loss may leave tapped layers out.

    Returns:
      A function with the arguments of ``loss_fn`` that returns ``(value, grads,
      stats)``.
    """

    @functools.wraps(loss_fn)
    def wrapped(params, *args, **kwargs):
        collector = Collector(taps)

        def loss_with(params, zeros):
            inserted = adapter.insert(params, taps, by_layer(taps, zeros))
            return loss_fn(inserted, *args, **kwargs)

        def tapped(params, zeros):
            probed = {key: collector.probe(key, zero) for key, zero in zeros.items()}
            with adapter.intercept(collector):
                return loss_with(params, probed)

        def alone(params):
            value = loss_with(params, taps.zeros())
            return value[0] if has_aux else value

        refuse_shared(adapter, taps, alone, params)
        function = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=has_aux)
        try:
            value, (grads, stats) = function(params, taps.zeros())
        except (TypeError, NotImplementedError) as error:

            def blank(params):
                with adapter.intercept(blank_visit):
                    return alone(params)

            if _differentiates(alone, params) and not _differentiates(blank, params):
                raise TypeError(_FORWARD) from error
            raise
        if not allow_unconnected:
            collector.check()
        return value, grads, {key: stat.value for key, stat in stats.items()}

    return wrapped


def by_layer(taps: Taps, zeros: Mapping[str, Tap]) -> dict[str, Tap]:
    """Returns every layer's tap by its name, shared ones under each name."""
    return {
        layer.key: Tap(zeros[layer.stats_key].value, layer) for layer in taps.layers
    }


class Collector:
    """Applies taps at the calls of tapped layers, and remembers which were reached."""

    def __init__(self, taps: Taps):
        self.unseen = {layer.stats_key for layer in taps.layers}
        # The inputs of every tap, by identity: a shared one counts once.
        self.inputs: dict[str, list[jax.Array]] = {}
        self.reached: set[str] = set()

    def __call__(self, t: Tap, y: jax.Array, x: jax.Array) -> jax.Array:
        """Returns ``y``, tapped unless this input was seen by the same tap."""
        key = t.layer.stats_key
        self.unseen.discard(key)
        if t.layer.statistic.reads_cotangent:  # which differs from call to call
            return emit(t, y, x)
        seen = self.inputs.setdefault(key, [])
        if any(x is other for other in seen):
            return y
        # Not seen in this very trace: the other layer is in another branch of
        # `nn.cond`, in another `nn.remat`, or left out. Sums of the same rows, or of
        # those of the branch that ran, have the right mean all the same.
        seen.append(x)
        return emit(t, y, x)

    def probe(self, key: str, t: Tap) -> Tap:
        """Returns ``t``; notes whether anything at all reaches its cotangent."""

        @jax.custom_vjp
        def identity(t):
            return t

        def forward(t):
            return jax.tree.map(lambda leaf: leaf.value, t, is_leaf=_has_value), None

        def backward(_, cotangent):
            # JAX skips this function where it knows every cotangent to be zero.
            leaves = jax.tree.leaves(cotangent, is_leaf=_is_symbolic)
            if not all(_is_symbolic(leaf) for leaf in leaves):
                self.reached.add(key)
            return (jax.tree.map(_instantiate, cotangent, is_leaf=_is_symbolic),)

        identity.defvjp(forward, backward, symbolic_zeros=True)
        return Tap(identity(t.value), t.layer)

    def check(self) -> None:
        """Raises if a tapped layer never reached the loss."""
        # A layer inside a function that JAX had traced before is not intercepted
        # again, but its cotangent is there: both signs must be missing.
        missing = sorted(self.unseen - self.reached)
        if missing:
            raise ValueError(
                f"layer '{missing[0]}' has a tap but did not reach the loss"
                f"{f' (and so {missing[1:]})' if missing[1:] else ''}. Either the loss "
                "leaves this part of the model out, or its parameters were rebuilt "
                "without the tap, or a transformation hid it. Pass "
                "`allow_unconnected=True` if that is meant (its gradient then passes "
                "through), or make `taps` with the method that the loss calls."
            )


def _has_value(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _instantiate(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_symbolic(leaf) else leaf


def refuse_shared(
    adapter: Adapter, taps: Taps, function: Callable[..., Any], *args: Any
) -> None:
    """Raises if a layer is used more than once whose statistic does not add up."""
    once: list[Layer] = [each for each in taps.layers if not each.statistic.additive]
    if not once:
        return

    def mark(t: Tap, y: jax.Array, x: jax.Array) -> jax.Array:
        return uses.mark(t.layer.key, y, x)

    with fresh_trace(), adapter.intercept(mark):
        counted = uses.count(jax.make_jaxpr(function)(*args).jaxpr)
    for layer in once:
        if counted[layer.key] > math.prod(layer.stack):
            raise ValueError(
                f"layer '{layer}' is used more than once, and `statistic` "
                f"'{layer.statistic.name}' cannot be added up (its inputs have shape "
                f"{layer.input_shape}). Use 'gram' or 'moments', which can."
            )


@jax.custom_vjp
def _blank(y: jax.Array) -> jax.Array:
    return y


_blank.defvjp(lambda y: (_blank(y), None), lambda _, g: (g,))  # alive as `emit`


def blank_visit(t: Tap, y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``y`` by a rule for reverse mode alone, and measures nothing.

    A loss that differentiates without taps and not with this is in forward mode; one
    that differentiates with this has met an error in what a tap measures.
    """
    del t, x
    return _blank(y)


def _differentiates(function: Callable[..., Any], params: Any) -> bool:
    """Whether a loss can be differentiated at all."""
    try:
        with fresh_trace():
            jax.eval_shape(jax.grad(function), params)
    except Exception:
        return False
    return True


_FORWARD = (
    "`loss_fn` differentiates the network in forward mode (jax.jvp, jax.jacfwd, "
    "jax.hessian or jax.linearize), which taps do not support: statistics travel "
    "backwards. Use jax.grad, jax.vjp or jax.jacrev inside the loss, or compute that "
    "term from `linen.without_taps(params)`, whose layers then add nothing to the "
    "statistics."
)
