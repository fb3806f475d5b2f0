"""Carrying taps into a Flax Linen model, and reaching its layers' calls.

When a model is called, what was claimed for a layer is put beside its kernel in the
scope's ``params``, for as long as the call lasts. Lifted transforms (``nn.scan``,
``nn.vmap``, ``nn.remat``, ...) therefore treat it exactly as they treat the kernel, and
nothing else has to know about it: not the loss, nor what it returns.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from linboost_optax._adapters.linen import registry
from linboost_optax._kinds import Kind
from linboost_optax._layer import Layer, Path, join
from linboost_optax._taps.plan import Place
from linboost_optax._taps.survey import Claim, Visit

LEAF = "linboost_tap"
# A gradient inside a loss may have taps of its own: a leaf each.
_depth: ContextVar[int] = ContextVar("depth", default=0)


@contextmanager
def intercept(layers: Iterable[Layer], claim: Claim, visit: Visit) -> Iterator[None]:
    """Carries what is claimed into every call of a model while the context lasts."""
    depth = _depth.get()
    calls = _Calls(layers, claim, f"{LEAF}_{depth}" if depth else LEAF)

    def interceptor(next_fun, args, kwargs, context):
        with calls.carried(context.module.scope):
            entry, payload = calls.found(context)
            if entry is None:
                return next_fun(*args, **kwargs)
            around = partial(_visited, entry, payload, visit)
            return innermost(next_fun, args, kwargs, context, around)

    token = _depth.set(depth + 1)
    try:
        with nn.intercept_methods(interceptor):
            yield
    finally:
        _depth.reset(token)


def _visited(entry, payload, visit, context, method, args, kwargs):
    x = entry.input(args, kwargs)
    for each in payload if isinstance(payload, tuple) else ():
        _check_call(each.layer, entry.describe(context.module, x), x)
    return visit(payload, lambda: method(*args, **kwargs), x)


class _Calls:
    """The calls of models while a context lasts: which there were, what they carry."""

    def __init__(self, layers: Iterable[Layer], claim: Claim, leaf: str):
        self.claim, self.leaf = claim, leaf
        self.shapes: defaultdict[str, list[list[tuple[int, ...]]]] = defaultdict(list)
        for layer in layers:
            self.shapes[layer.kernel].append([layer.shapes[layer.kernel]])
        self.count = 0

    @contextmanager
    def carried(self, scope: Any) -> Iterator[None]:
        """Puts what was claimed into the scope of a model that is called."""
        if scope is None:
            yield
            return
        # Flags are what all scopes of one call inherit: children, those that a lifted
        # transform makes, and those that a bound model goes on with.
        root = scope.root
        known = root.flags.get(self.leaf)
        if known is None or known.calls is not self:  # or of another context
            self._enter(root)
        carry: _Carry = root.flags[self.leaf]
        if carry.active:
            yield
            return
        with carry.put(self.leaf):
            yield

    def _enter(self, root: Any) -> None:
        ours = any(str(flag).startswith(LEAF) for flag in root.flags)
        params = root._variables.get("params")
        claimed = self._claimed(params) if isinstance(params, Mapping) else []
        carry = _Carry(self, claimed)
        if claimed:
            carry.tree = params if ours else _copy_dicts(params)
            root._variables["params"] = carry.tree
        root.flags = freeze({**root.flags, self.leaf: carry})

    def _claimed(self, params: Mapping) -> list[tuple[Path, str, Any, Any]]:
        kernels = [
            (path, name, kernel)
            for path, branch in _branches(params)
            for name, kernel in branch.items()
            # Not `meta.unbox`: it constrains the sharding of what is in the box.
            if [jnp.shape(leaf) for leaf in jax.tree.leaves(kernel)]
            in self.shapes.get(name, ())
        ]
        if not kernels:
            return []
        call, self.count = self.count, self.count + 1
        claimed = []
        for path, name, kernel in kernels:
            result = self.claim(Place(call, path, name), kernel)
            if result is not None:
                claimed.append((path, name, *result))
        return claimed

    def found(self, context: Any) -> tuple[registry.Entry | None, Any]:
        """Returns the entry of the layer that is called, and what it carries."""
        scope = context.module.scope
        if scope is None or not scope.has_variable("params", self.leaf):
            return None, None
        payload = scope.get_variable("params", self.leaf)
        reason = registry.reason_elsewhere(context)
        if reason is not None and not isinstance(payload, tuple):
            return None, None  # nothing is measured, a loss is looked at
        if reason is not None and payload:
            where = join(context.module.path) or "."
            raise ValueError(
                f"layer '{where}' was tapped for its own call alone, and the loss "
                f"calls `{context.method_name}`: {reason}. Make the taps with the "
                "method that the loss calls, so that this layer keeps its plain "
                "gradient."
            )
        return registry.entry_of(context), payload


class _Carry:
    """What one call of a model carries, beside its kernels."""

    def __init__(self, calls: _Calls, payloads: list[tuple[Path, str, Any, Any]]):
        self.calls, self.payloads = calls, payloads
        self.tree: Any = {}
        self.active = False

    # `nn.jit` compares flags to find what it has compiled: payloads are its arguments.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Carry)

    def __hash__(self) -> int:
        return hash(_Carry)

    @contextmanager
    def put(self, leaf: str) -> Iterator[None]:
        """Has the payloads in the tree while the context lasts, and not after.

        The dictionaries stay the same: scopes of submodules hold references to them.
        """
        self.active = True
        before = []
        for path, name, kernel, payload in self.payloads:
            branch = descend(self.tree, path)
            before.append(branch[name])
            branch |= {name: kernel, leaf: payload}
        try:
            yield
        finally:
            self.active = False
            for (path, name, kernel, _), old in zip(self.payloads, before):
                branch = descend(self.tree, path)
                branch.pop(leaf, None)
                if branch.get(name) is kernel:  # and not what the model made of it
                    branch[name] = old


def innermost(next_fun, args, kwargs, context, around: Callable[..., Any]) -> Any:
    """Runs a call with ``around`` inside of every interceptor, next to the method.

    Interceptors entered later, by the loss or by a module itself, may change arguments
    on their way. ``around(context, method, args, kwargs)`` sees what arrives.
    """
    bound = context.orig_method
    if not isinstance(bound, partial):  # Flax's way of binding; else as seen from here
        return around(context, next_fun, args, kwargs)
    function = bound.func

    @wraps(function)
    def method(module, *args, **kwargs):
        return around(context, partial(function, module), args, kwargs)

    # `next_fun` ends in this very object, whatever comes between.
    state = (bound.args, bound.keywords, vars(bound))
    bound.__setstate__((method, *state))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return next_fun(*args, **kwargs)
    finally:
        bound.__setstate__((function, *state))  # pyright: ignore[reportAttributeAccessIssue]


def _check_call(layer: Layer, kind: Kind | str, x: jax.Array) -> None:
    """Raises if the module is not used as it was when the taps were made."""
    if kind != layer.kind:
        got = f"a {kind}" if isinstance(kind, Kind) else f"a layer with {kind}"
        raise ValueError(
            f"layer '{layer}' was tapped as a {layer.kind} and is "
            f"called as {got}: these taps belong to another model, or "
            "to inputs of another shape. Make the taps again."
        )
    layer.check_input(x)


def _branches(tree: Mapping, path: Path = ()) -> Iterator[tuple[Path, Mapping]]:
    """Returns all dictionaries of a tree, with their paths."""
    yield path, tree
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _branches(value, (*path, name))


def _copy_dicts(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy_dicts(value) for key, value in tree.items()}
    return tree


def descend(tree: Mapping, path: Path) -> Any:
    """Returns the branch of ``tree`` at ``path``."""
    for name in path:
        tree = tree[name]
    return tree


def without_leaves(tree: Any) -> Any:
    """Returns ``tree`` without the taps' leaves."""
    if not isinstance(tree, Mapping):
        return tree
    return {k: without_leaves(v) for k, v in tree.items() if k != LEAF}
