"""Taps on their way: carried into a model, applied at its layers, reached or not."""

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from linboost_optax._layer import join
from linboost_optax._taps import rows
from linboost_optax._taps.fresh import current_trace
from linboost_optax._taps.identity import Identities
from linboost_optax._taps.plan import Place, Plan
from linboost_optax._taps.primitive import Mark, Tap, attach, emit, once
from linboost_optax._taps.survey import kernels
from linboost_optax._taps.table import Taps


class Nested(BaseException):
    """A model is called inside a function that JAX traces and keeps.

    Not an ``Exception``: a loss must not catch it.
    """


def traces() -> bool:
    """Whether operations are traced rather than run."""
    return isinstance(jnp.zeros(()), Tracer)


class Collector:
    """Carries taps to the calls of tapped layers, and applies them there.

    Args:
      taps: the tapped layers.
      plan: what was found out about the loss; None if it could not be looked at.
      eager: whether operations run at once, outside of any trace.

    Attributes:
      claimed: the places that taps were carried to.
      unseen: keys of the statistics that no call has come to.
      reached: keys of the statistics that a cotangent has reached.
    """

    def __init__(self, taps: Taps, plan: Plan | None, eager: bool):
        self.taps, self.plan, self.eager = taps, plan, eager
        self.claimed: set[Place] = set()
        self.unseen = {layer.stats_key for layer in taps.layers}
        # By statistic, input and mask: one that calls share counts once.
        self.tokens: dict[Any, tuple[Callable[[], jax.Array | None], Any]] = {}
        self.trace: Any = None
        self.identities = Identities()
        self.reached: set[str] = set()
        self.of_layer: dict[str, Tap] = {}
        self.own: list[tuple[Any, str]] = []

    def begin(self, params: Any, zeros: Mapping[str, Tap]) -> None:
        """Takes the arrays of this trace: parameters, and the taps' zero statistics."""
        if self.plan is None:  # then kernels are known by identity alone
            leaves = jax.tree.leaves(params)
            self.own = [(leaves[i], each.key) for each, i in kernels(self.taps, params)]
        probed = {key: self._probe(key, zero) for key, zero in zeros.items()}
        self.of_layer = {
            layer.key: Tap(probed[layer.stats_key].value, layer)
            for layer in self.taps.layers
        }
        self.trace = current_trace()

    def claim(self, place: Place, kernel: Any) -> tuple[Any, tuple[Any, ...]] | None:
        """Gives a kernel that arrives at a model the taps of the layers it is of."""
        if self.plan is not None:
            keys = self.plan.layers.get(place, frozenset())
        else:
            arrays = jax.tree.leaves(kernel)
            keys = {key for leaf, key in self.own if any(a is leaf for a in arrays)}
            if not keys and any(isinstance(a, Tracer) for a in arrays):
                raise ValueError(_UNKNOWN.format(place=join((*place.path, place.name))))
        if not keys:
            return None
        if self.eager and traces():
            raise Nested
        self.claimed.add(place)
        return kernel, tuple(self._carried(self.of_layer[key]) for key in sorted(keys))

    def _carried(self, t: Tap) -> Tap | Mark:
        """Returns a layer's tap, or a mark where calls can close over the tap instead.

        What is carried is seen by a module that walks over its own parameters, or over
        their cotangents (`nn.vjp`): better if there is nothing in it. It has to be
        carried where a lifted transform slices it along with a stack of kernels, where
        JAX keeps what it traces, and where it does not let arrays be closed over.
        """
        if self.plan is None or t.layer.stack:
            return t
        kept = self.plan.nested if self.eager else self.plan.entered
        return t if t.layer.key in kept else Mark(t.layer)

    def visit(
        self, carried: tuple[Any, ...], call: Callable[[], jax.Array], x: jax.Array
    ) -> jax.Array:
        """Returns the output of a layer's call, tapped."""
        y = call()
        for each in carried:
            t = self.of_layer[each.layer.key] if isinstance(each, Mark) else each
            y = self._tapped(t, y, x)
        return y

    def _tapped(self, t: Tap, y: jax.Array, x: jax.Array) -> jax.Array:
        """Returns ``y``, part of what measures its input: once for all its calls."""
        key = t.layer.stats_key
        self.unseen.discard(key)
        mask = None
        if mask is not None and self.eager and traces():
            raise Nested  # what is traced and kept (`nn.jit`) would keep the mask
        if t.layer.statistic.reads_cotangent:  # which differs from call to call
            return emit(t, y, x, mask)
        if self.plan is not None and key not in self.plan.repeated:
            return emit(t, y, x, mask)
        which = 0 if mask is None else self.identities.number(mask)
        # In this very trace alone: from another branch of `nn.cond` or another
        # `nn.remat` nothing can be shared. Sums of the same rows, or of those of the
        # branch that ran, have the right mean all the same.
        state = current_trace()
        seen = (key, self.identities.number(x), which)
        kept, made_in = self.tokens.get(seen, (_nothing, None))
        token = kept() if made_in == state else None
        if token is None:
            token = once(t, x, mask)
            # Kept alive in the loss's own trace alone: what outlives others is a leak.
            own = state == self.trace
            kept = functools.partial(_itself, token) if own else weakref.ref(token)
            self.tokens[seen] = (kept, state)
        return attach(y, token)

    def _probe(self, key: str, t: Tap) -> Tap:
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
        missing = sorted(key or "." for key in self.unseen - self.reached)
        if missing:
            raise ValueError(
                f"layer '{missing[0]}' has a tap but did not reach the loss"
                f"{f' (and so {missing[1:]})' if missing[1:] else ''}. Either the loss "
                "leaves this part of the model out, or calls the model with parameters "
                "that were cut out of or stacked from those it was given. Pass "
                "`allow_unconnected=True` if that is meant (its gradient then passes "
                "through), or make `taps` with the method that the loss calls."
            )


def _itself(token: jax.Array) -> jax.Array:
    return token


def _nothing() -> None:
    return None


def _has_value(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _instantiate(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_symbolic(leaf) else leaf


_UNKNOWN = (
    "`loss_fn` looks at numbers while it runs, so that it cannot be traced beforehand, "
    "and calls a model with a kernel '{place}' that is none of `params` as it is: "
    "whether it comes from them cannot be told. Make the loss traceable (jax.lax.cond "
    "for `if`), or call the model with the parameters themselves."
)
