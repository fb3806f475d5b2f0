"""Differentiating a loss and collecting statistics, whatever the framework."""

import functools
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from linboost_optax._layer import join
from linboost_optax._taps import rows
from linboost_optax._taps.fresh import current_trace, fresh_trace
from linboost_optax._taps.identity import Identities
from linboost_optax._taps.primitive import Mark, Tap, attach, emit, once
from linboost_optax._taps.survey import Adapter, Place, Plan, kernels, survey
from linboost_optax._taps.table import Taps


def value_and_grad(
    adapter: Adapter,
    loss_fn: Callable[..., Any],
    taps: Taps,
    has_aux: bool,
    allow_unconnected: bool,
) -> Callable[..., Any]:
    """Returns what differentiates ``loss_fn`` and collects the statistics.

    The loss sees its parameters as they are. Taps reach the model from the side, when
    it is called.

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
        if rows.active():
            raise ValueError(rows.OUTSIDE)

        def loss(params):
            return loss_fn(params, *args, **kwargs)

        plan = _plan(adapter, taps, loss_fn, params, args, kwargs)
        if plan is not None:
            refuse_repeated(taps, plan)
            _refuse(plan)
        collect = functools.partial(
            _collect, adapter, taps, plan, loss, params, has_aux, allow_unconnected
        )
        if not _traces():
            try:
                return collect(True)
            except _Nested:
                pass
        # Functions that JAX has traced before do not call Python again, so that no tap
        # would reach a model inside; and they must not be served ours later.
        with fresh_trace():
            return collect(False)

    return wrapped


def _plan(
    adapter: Adapter, taps: Taps, loss_fn: Callable, params: Any, args: Any, kwargs: Any
) -> Plan | None:
    kernels(taps, params)  # raises if one is missing
    flat, treedef = jax.tree.flatten((args, kwargs))
    where = [i for i, leaf in enumerate(flat) if isinstance(leaf, jax.Array)]

    def loss(params: Any, arrays: list[jax.Array]) -> Any:
        leaves = list(flat)
        for i, array in zip(where, arrays):
            leaves[i] = array
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        return loss_fn(params, *args, **kwargs)

    try:
        return survey(adapter, taps, loss, params, [flat[i] for i in where])
    except Exception:
        # A loss that looks at numbers, or is wrong: what comes next says which.
        return None


def _collect(
    adapter: Adapter,
    taps: Taps,
    plan: Plan | None,
    loss: Callable[[Any], Any],
    params: Any,
    has_aux: bool,
    allow_unconnected: bool,
    eager: bool,
) -> Any:
    collector = Collector(taps, eager, None if plan is None else plan.repeated)
    claims_made: set[Place] = set()

    def tapped(params, zeros):
        probed = {key: collector.probe(key, zero) for key, zero in zeros.items()}
        of_layer = by_layer(taps, probed)
        claims = _Claims(taps, plan, params, of_layer, eager, claims_made)
        collector.of_layer, collector.trace = of_layer, current_trace()
        with adapter.intercept(taps.layers, claims, collector):
            return loss(params)

    function = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=has_aux)
    try:
        value, (grads, stats) = function(params, taps.zeros())
        if eager and plan is not None and claims_made != set(plan.layers):
            raise _Nested
    except (TypeError, NotImplementedError) as error:
        if _is_forward(adapter, taps, plan, loss, params, has_aux):
            raise TypeError(_FORWARD) from error
        raise
    if not allow_unconnected:
        collector.check()
    return value, grads, {key: stat.value for key, stat in stats.items()}


def by_layer(taps: Taps, zeros: Mapping[str, Tap]) -> dict[str, Tap]:
    """Returns every layer's tap by its name, shared ones under each name."""
    return {
        layer.key: Tap(zeros[layer.stats_key].value, layer) for layer in taps.layers
    }


class _Nested(BaseException):
    """A model is called inside a function that JAX traces and keeps.

    Not an ``Exception``: a loss must not catch it.
    """


def _traces() -> bool:
    """Whether operations are traced rather than run."""
    return isinstance(jnp.zeros(()), Tracer)


class _Claims:
    """Gives every kernel that arrives at a model the taps of the layers it is of.

    Attributes:
      eager: whether operations run at once, outside of any trace.
    """

    def __init__(
        self,
        taps: Taps,
        plan: Plan | None,
        params: Any,
        by_layer: Mapping[str, Tap],
        eager: bool,
        made: set[Place],
    ):
        leaves = jax.tree.leaves(params)
        self.own = [(leaves[i], each.key) for each, i in kernels(taps, params)]
        self.plan, self.by_layer, self.eager = plan, by_layer, eager
        self.made = made

    def __call__(self, place: Place, kernel: Any) -> tuple[Any, tuple[Any, ...]] | None:
        if self.plan is not None:
            keys = self.plan.layers.get(place, frozenset())
        else:
            arrays = jax.tree.leaves(kernel)
            keys = {key for leaf, key in self.own if any(a is leaf for a in arrays)}
            if not keys and any(isinstance(a, Tracer) for a in arrays):
                raise ValueError(_UNKNOWN.format(place=join((*place.path, place.name))))
        if not keys:
            return None
        if self.eager and _traces():
            raise _Nested
        self.made.add(place)
        return kernel, tuple(self._carried(self.by_layer[key]) for key in sorted(keys))

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


class Collector:
    """Applies taps at the calls of tapped layers, and remembers which were reached.

    Args:
      taps: the tapped layers.
      eager: whether operations run at once, outside of any trace.
      repeated: keys of the statistics that are measured of one array more than once;
        None if that is not known.
    """

    def __init__(
        self, taps: Taps, eager: bool = False, repeated: frozenset[str] | None = None
    ):
        self.taps, self.eager, self.repeated = taps, eager, repeated
        self.unseen = {layer.stats_key for layer in taps.layers}
        # By statistic, input and mask: one that calls share counts once.
        self.tokens: dict[Any, tuple[Callable[[], jax.Array | None], Any]] = {}
        self.trace: Any = None
        self.identities = Identities()
        self.reached: set[str] = set()
        self.of_layer: Mapping[str, Tap] = {}  # to close over

    def __call__(
        self, carried: tuple[Any, ...], call: Callable[[], jax.Array], x: jax.Array
    ) -> jax.Array:
        y = call()
        for each in carried:
            t = self.of_layer[each.layer.key] if isinstance(each, Mark) else each
            y = self._tapped(t, y, x)
        return y

    def _tapped(self, t: Tap, y: jax.Array, x: jax.Array) -> jax.Array:
        """Returns ``y``, part of what measures its input: once for all its calls."""
        key = t.layer.stats_key
        self.unseen.discard(key)
        mask = rows.mask_of(t.layer, self.taps)
        if mask is not None and self.eager and _traces():
            raise _Nested  # what is traced and kept (`nn.jit`) would keep the mask
        if t.layer.statistic.reads_cotangent:  # which differs from call to call
            return emit(t, y, x, mask)
        if self.repeated is not None and key not in self.repeated:
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


def refuse_repeated(taps: Taps, plan: Plan) -> None:
    """Raises if a layer is used more than once whose statistic does not add up."""
    for layer in taps.layers:
        uses = plan.uses.get(layer.key, 0)
        if not layer.statistic.additive and uses > math.prod(layer.stack):
            raise ValueError(
                f"layer '{layer}' is used more than once, and `statistic` "
                f"'{layer.statistic.name}' cannot be added up (its inputs have shape "
                f"{layer.input_shape}). Use 'gram' or 'moments', which can."
            )


def _refuse(plan: Plan) -> None:
    """Raises if a layer's statistic would not be what its metric needs."""
    for key in sorted(plan.hidden):
        raise ValueError(
            f"layer '{key or '.'}': the loss calls the model inside a function with a "
            "derivative of its own (jax.custom_vjp, jax.custom_jvp), which taps cannot "
            "enter. Wrap less than the model in it, or take its parameters from "
            "`linen.without_taps(params)` and leave the layer out of the taps."
        )
    for key in sorted(plan.mixed):
        raise ValueError(
            f"layer '{key or '.'}': the loss calls one transformed function (jax.jit, "
            "jax.checkpoint) with this layer's kernel and with another one, and JAX "
            "serves the second call from the first, tap and all. Call the model itself "
            "inside the loss and jit the whole step, or transform a function of its "
            "own for each: `jax.jit(lambda params, x: model.apply(params, x))`."
        )
    for key, primitive in sorted(plan.outside.items()):
        raise ValueError(
            f"layer '{key or '.'}': the loss multiplies its kernel with activations "
            f"outside of the layer's own call (by `{primitive}`), which the layer's "
            "statistic does not see. Leave the layer out, make optimizer and gradients "
            f"with `taps.filter(exclude={key!r})`; or take the kernel of that product "
            "from `linen.without_taps(params)` if the metric of its own call will do."
        )


@jax.custom_vjp
def _reverse(y: jax.Array) -> jax.Array:
    """Returns ``y`` by a rule for reverse mode alone, and measures nothing."""
    return y


_reverse.defvjp(lambda y: (_reverse(y), None), lambda _, g: (g,))  # alive as `emit`


def _is_forward(
    adapter: Adapter,
    taps: Taps,
    plan: Plan | None,
    loss: Callable,
    params: Any,
    has_aux: bool,
) -> bool:
    """Whether a loss that cannot be differentiated fails for being in forward mode.

    One that differentiates without taps and not with a rule for reverse mode in their
    places is; one that differentiates with it has met an error in what a tap measures.
    """

    def alone(params):
        value = loss(params)
        return value[0] if has_aux else value

    def claim(place: Place, kernel: Any) -> tuple[Any, None] | None:
        return (kernel, None) if plan is None or place in plan.layers else None

    def visit(_: None, call: Callable[[], jax.Array], x: jax.Array) -> jax.Array:
        del x
        return _reverse(call())

    def blank(params):
        with adapter.intercept(taps.layers, claim, visit):
            return alone(params)

    return _differentiates(alone, params) and not _differentiates(blank, params)


def _differentiates(function: Callable[..., Any], params: Any) -> bool:
    """Whether a loss can be differentiated at all."""
    try:
        with fresh_trace():
            jax.eval_shape(jax.grad(function), params)
    except Exception:
        return False
    return True


_UNKNOWN = (
    "`loss_fn` looks at numbers while it runs, so that it cannot be traced beforehand, "
    "and calls a model with a kernel '{place}' that is none of `params` as it is: "
    "whether it comes from them cannot be told. Make the loss traceable (jax.lax.cond "
    "for `if`), or call the model with the parameters themselves."
)

_FORWARD = (
    "`loss_fn` differentiates the network in forward mode (jax.jvp, jax.jacfwd, "
    "jax.hessian or jax.linearize), which taps do not support: statistics travel "
    "backwards. Use jax.grad, jax.vjp or jax.jacrev inside the loss, or compute that "
    "term from `linen.without_taps(params)`, whose layers then add nothing to the "
    "statistics."
)
