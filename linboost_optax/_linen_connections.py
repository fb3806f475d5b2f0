"""Connecting taps to a Flax Linen model while its loss is traced."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze, unfreeze

from linboost_optax import _linen_modules, _taps, _uses
from linboost_optax._geometry import Geometry
from linboost_optax._layers import Layer
from linboost_optax._linen_modules import LEAF, Leaf, descend
from linboost_optax._statistics import Statistic
from linboost_optax._taps import Taps


def insert(params: Any, taps: Taps, zeros: Mapping[str, Statistic]) -> Any:
    """Returns the parameters with a tap beside every tapped kernel."""
    frozen = isinstance(params, FrozenDict)
    tree = _copy_dicts(unfreeze(params) if frozen else params)
    for layer in taps.layers:
        for root in ((), ("params",)):
            try:
                branch = descend(tree, root + layer.path)
            except (KeyError, TypeError):
                continue
            if isinstance(branch, dict) and layer.kernel in branch:
                branch[LEAF] = Leaf(zeros[layer.source_key], layer)
                break
        else:
            raise ValueError(
                f"`taps` has layer '{layer.label}', which the parameters lack: these "
                "taps belong to another model, or `params` is neither the 'params' "
                "collection nor the variables that hold it. Make the taps from the "
                "model whose parameters are passed."
            )
    return freeze(tree) if frozen else tree


def _copy_dicts(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy_dicts(value) for key, value in tree.items()}
    return tree


def _leaf_of(context: nn.module.InterceptorContext) -> Leaf | None:
    """Returns the tap of the layer whose linear map is being called, if any."""
    scope = context.module.scope
    if not isinstance(context.module, _linen_modules.KINDS) or scope is None:
        return None
    if not scope.has_variable("params", LEAF):
        return None
    leaf = scope.get_variable("params", LEAF)
    if context.method_name == "attend":
        raise ValueError(
            f"layer '{leaf.layer.label}' was tapped for its lookups alone and the loss "
            "calls `attend`, which uses its transpose. Make the taps with the method "
            "that the loss calls, so that this layer keeps its plain gradient."
        )
    return leaf if _linen_modules.is_layer_call(context) else None


class Connections:
    """The interceptor that applies taps, and the record of those that were."""

    def __init__(self, taps: Taps):
        self.unseen = {layer.source_key for layer in taps.layers}
        # The inputs of every tap, by identity: a shared one counts once.
        self.inputs: dict[str, list[jax.Array]] = {}
        self.reached: set[str] = set()

    def __call__(self, next_fun, args, kwargs, context):
        y, leaf = next_fun(*args, **kwargs), _leaf_of(context)
        if leaf is None:
            return y
        x = _linen_modules.layer_input(args, kwargs)
        _check_call(leaf.layer, context.module, x)
        key = leaf.layer.source_key
        self.unseen.discard(key)
        seen = self.inputs.setdefault(key, [])
        if any(x is other for other in seen):
            return y
        # Not seen in this very trace: the other layer is in another branch of
        # `nn.cond`, in another `nn.remat`, or left out. Sums of the same rows, or of
        # those of the branch that ran, have the right mean all the same.
        seen.append(x)
        return _taps.emit(leaf.layer, y, x, leaf.statistic)

    def probe(self, key: str, t: Statistic) -> Statistic:
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
        return identity(t)

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


def _check_call(layer: Layer, module: nn.Module, x: jax.Array) -> None:
    """Raises if the module is not used as it was when the taps were made."""
    geometry = _linen_modules.geometry(module, x)
    if geometry != layer.geometry:
        raise ValueError(
            f"layer '{layer.label}' was tapped as a {describe(layer.geometry)} and is "
            f"called as a {describe(geometry)}: these taps belong to another model, or "
            "to inputs of another shape. Make the taps again."
        )
    if layer.statistic == "inputs" and x.shape != layer.input_shape:
        raise ValueError(
            f"layer '{layer.label}' has `statistic` 'inputs' for inputs of shape "
            f"{layer.input_shape}, got {x.shape}. Make the taps again for this shape, "
            "or use 'gram' or 'moments', which take any number of samples."
        )


def describe(geometry: Geometry | str) -> str:
    """Returns a layer's kind and kernel shape in words."""
    if isinstance(geometry, str):
        return f"layer with {geometry}"
    return (
        f"{geometry.name} with a kernel of shape {geometry.kernel_shape} ({geometry})"
    )


def _mark_use(next_fun, args, kwargs, context):
    """The interceptor that marks every use of a tapped layer."""
    y, leaf = next_fun(*args, **kwargs), _leaf_of(context)
    if leaf is None:
        return y
    return _uses.mark(leaf.layer.key, y, _linen_modules.layer_input(args, kwargs))


def refuse_shared(taps: Taps, function: Callable[..., Any], *args: Any) -> None:
    """Raises if ``function(*args)`` uses a layer with raw inputs more than once."""
    raw = [layer for layer in taps.layers if layer.statistic == "inputs"]
    if not raw:
        return
    with _linen_modules.trace_context(object()), nn.intercept_methods(_mark_use):
        uses = _uses.count(jax.make_jaxpr(function)(*args).jaxpr)
    for layer in raw:
        if uses[layer.key] > math.prod(layer.stack):
            raise ValueError(
                f"layer '{layer.label}' is used more than once, and `statistic` "
                "'inputs' cannot be added up (its inputs have shape "
                f"{layer.input_shape}). Use 'gram' or 'moments', which can."
            )


def explain_forward_mode(error: Exception) -> None:
    """Raises what to do if ``error`` is JAX's refusal to push forward through a tap."""
    message = str(error)
    if "custom_lin" in message or "forward-mode" in message:
        raise TypeError(
            "`loss_fn` differentiates the network in forward mode (jax.jvp, "
            "jax.jacfwd, jax.hessian or jax.linearize), which taps do not support: "
            "statistics travel backwards. Use jax.grad, jax.vjp or jax.jacrev inside "
            "the loss, or compute that term from `linen.without_taps(params)`, whose "
            "layers then add nothing to the statistics."
        ) from error
