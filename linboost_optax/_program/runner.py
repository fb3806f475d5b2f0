"""Running a traced function again, with taps where it multiplies kernels with data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from linboost_optax._layer import Layer
from linboost_optax._program.uses import Scope, Use
from linboost_optax._taps import marks
from linboost_optax._taps.primitive import Tap, attach, emit, once

# Values of statistics by key, and masks by number, as the scope at hand sees them.
Values = Mapping[str, Any]
_MASK = "\0mask "  # no layer has such a name


@dataclass(frozen=True)
class Runner:
    """Runs what was read, with taps.

    Attributes:
      layers: the tapped layers, by number of their kernel.
      slots: tells the number of the mask that counts for a use of a layer.
      mask_numbers: masks that have equal ones are the same array.
      eager: whether operations run at once, outside of any trace.
    """

    layers: Mapping[int, Layer]
    slots: Callable[[Use, Layer], int | None]
    mask_numbers: Mapping[int, Any]
    eager: bool
    _keys: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def tapped(self, use: Use) -> Layer | None:
        """Returns the layer of a use, if it is tapped here."""
        if use.ignored or use.hindrance is not None:
            return None
        return self.layers.get(use.parameter)

    def keys(self, scope: Scope) -> tuple[str, ...]:
        """Returns the keys of the statistics that are measured in a scope."""
        if scope.number not in self._keys:
            layers = [self.tapped(use) for use in scope.all()]
            found = {layer.stats_key for layer in layers if layer is not None}
            self._keys[scope.number] = tuple(sorted(found))
        return self._keys[scope.number]

    def run(
        self, scope: Scope, consts: Sequence[Any], args: Sequence[Any], values: Values
    ) -> list[Any]:
        """Returns the results of a scope."""
        env = dict(zip(scope.jaxpr.constvars, consts))
        env.update(zip(scope.jaxpr.invars, args, strict=True))
        values = dict(values)
        tapping = _Tapping(self, scope, values)

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else env[var]

        for i, eqn in enumerate(scope.jaxpr.eqns):
            row = [read(var) for var in eqn.invars]
            inner = scope.inner.get(i, ())
            keys = sorted({key for each in inner for key in self.keys(each)})
            with _context(eqn):
                if keys:
                    masks = {k: v for k, v in values.items() if k.startswith(_MASK)}
                    own = {**{key: values[key] for key in keys}, **masks}
                    out = self._open(eqn, inner, row, own)
                else:
                    out = bind(eqn, row)
                if eqn.primitive.name == "name":
                    mask = marks.mask_of(str(eqn.params["name"]))
                    if mask is not None:
                        values[f"{_MASK}{mask[1]}"] = out[0]
                for use in scope.uses.get(i, ()):
                    out[0] = tapping.apply(use, out[0], row)
            env.update(zip(eqn.outvars, out))
            for var in scope.last.get(
                i, ()
            ):  # free memory where operations run at once
                del env[var]
        return [read(var) for var in scope.jaxpr.outvars]

    def _open(self, eqn: Any, inner: Sequence[Scope], row: list, own: dict) -> list:
        """Makes a call again, with taps inside."""
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, inner[0], row, own)
        if name == "cond":
            return self._cond(eqn, inner, row, own)
        closed = _callee(eqn)

        def called(args: list, own: dict) -> list:
            return self.run(inner[0], closed.consts, args, own)

        if name.startswith(("remat", "checkpoint")):
            policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
            called = jax.checkpoint(called, policy=policy, prevent_cse=prevent_cse)
        elif name == "shard_map":
            return self._shard_map(eqn, called, row, own)
        else:
            called = _constrained(eqn, called)
            if self.eager:
                return self._compiled(closed, inner[0], called, row, own)
        return list(called(row, own))

    def _compiled(
        self, closed: ClosedJaxpr, scope: Scope, called: Callable, row: list, own: dict
    ) -> list:
        """Calls a compiled function with taps: compiled once for all its calls."""
        slots = [f"{_MASK}{self.slot(use)}" for use in scope.all()]
        # Masks have other numbers at every call: here they are told by their order.
        masks = [key for key in dict.fromkeys(slots) if key in own]

        def by_order(row: list, values: dict, arrays: list) -> list:
            return called(row, {**values, **dict(zip(masks, arrays))})

        signature = (self._signature(scope, masks), len(masks))
        compiled = _kept(_Call(closed, signature, by_order))
        values = {key: x for key, x in own.items() if not key.startswith(_MASK)}
        return list(compiled(row, values, [own[key] for key in masks]))

    def _signature(self, scope: Scope, masks: list[str]) -> Hashable:
        """Returns what tells apart two runs with taps of one traced function."""

        def mask(use: Use) -> Hashable:
            key = f"{_MASK}{self.slot(use)}"
            return masks.index(key) if key in masks else self.slot(use)

        # Inputs that are one array are measured once.
        numbers: dict[Hashable, int] = {}
        return tuple(
            (
                self.tapped(use),
                use.access,
                use.output,
                use.part,
                use.at,
                numbers.setdefault(use.number, len(numbers)),
                mask(use),
            )
            for use in scope.all()
        )

    def slot(self, use: Use) -> int | None:
        """Returns the number of the mask that counts for a use, or None."""
        layer = self.tapped(use)
        return None if layer is None else self.slots(use, layer)

    def _scan(self, eqn: Any, body: Scope, row: list, own: dict) -> list:
        params = eqn.params
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, init = row[:consts], row[consts : consts + carries]
        sliced = {
            layer.stats_key
            for use in body.all()
            if (layer := self.tapped(use)) and use.parameter in body.sliced
        }
        moving = {key: value for key, value in own.items() if key in sliced}
        still = {key: value for key, value in own.items() if key not in sliced}

        def turn(carry: list, slices: tuple[list, dict]) -> tuple[list, list]:
            args = [*fixed, *carry, *slices[0]]
            values = {**still, **slices[1]}
            out = self.run(body, params["jaxpr"].consts, args, values)
            return out[:carries], out[carries:]

        end, stacked = jax.lax.scan(
            turn,
            init,
            (row[consts + carries :], moving),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
            _split_transpose=params.get("_split_transpose", False),
        )
        return [*end, *stacked]

    def _cond(self, eqn: Any, branches: Sequence[Scope], row: list, own: dict) -> list:
        def branch(scope: Scope, closed: ClosedJaxpr) -> Callable[..., list]:
            return lambda args, own: self.run(scope, closed.consts, args, own)

        functions = [
            branch(scope, closed)
            for scope, closed in zip(branches, eqn.params["branches"])
        ]
        index = row[0]
        return list(jax.lax.switch(index, functions, row[1:], own))

    def _shard_map(self, eqn: Any, called: Callable, row: list, own: dict) -> list:
        params = eqn.params
        specs = jax.sharding.PartitionSpec()
        mapped = jax.shard_map(
            lambda own, *args: tuple(called(list(args), own)),
            mesh=params["mesh"],
            in_specs=(specs, *params["in_specs"]),
            out_specs=tuple(params["out_specs"]),
            axis_names=set(_manual_axes(params)),
            check_vma=params["check_vma"],
        )
        return list(mapped(own, *row))


@dataclass
class _Tapping:
    """The taps of one run of a scope: an input of several uses is measured once."""

    runner: Runner
    scope: Scope
    values: Values
    tokens: dict[Any, jax.Array] = field(default_factory=dict)

    def __post_init__(self):
        self.times: dict[Any, int] = {}
        for uses in self.scope.uses.values():
            for use in uses:
                layer = self.runner.tapped(use)
                if layer is not None:
                    key = self.key(layer, use)
                    self.times[key] = self.times.get(key, 0) + 1

    def key(self, layer: Layer, use: Use) -> Any:
        """Returns what uses of one statistic with the same rows have in common."""
        slot = self.runner.slots(use, layer)
        mask = None if slot is None else self.runner.mask_numbers[slot]
        return (layer.stats_key, use.number, use.at, mask)

    def apply(self, use: Use, y: jax.Array, row: Sequence[Any]) -> jax.Array:
        """Returns the result of a use, tapped."""
        layer = self.runner.tapped(use)
        if layer is None:
            return y
        seen = layer.statistic.layer_of(layer, use.kind)
        value = self.values[layer.stats_key]
        index = tuple(i for i in use.at if i is not None)
        if index:
            value = jax.tree.map(lambda leaf: leaf[index], value)
        t = Tap(value, seen)
        x = use.access.apply(row)
        layer.check_input(x)
        mask = self.mask(use, layer)
        if layer.statistic.reads_cotangent:
            return _on_part(use, y, lambda y: _as_output(use, y, t, x, mask))
        key = self.key(layer, use)
        if self.times[key] == 1:
            return emit(t, y, x, mask)
        if key not in self.tokens:
            self.tokens[key] = once(t, x, mask)
        return attach(y, self.tokens[key])

    def mask(self, use: Use, layer: Layer) -> jax.Array | None:
        """Returns which rows of a use count; None for all."""
        slot = self.runner.slots(use, layer)
        if slot is None:
            return None
        if f"{_MASK}{slot}" not in self.values:
            raise ValueError(_LOST.format(layer=layer))
        mask = self.values[f"{_MASK}{slot}"]
        samples = layer.kind.sample_axes(use.shape)
        if use.rows_mapped and mask.ndim != len(samples):
            raise ValueError(
                _MAPPED.format(layer=layer, mask=mask.shape, samples=samples)
            )
        return mask


_MAPPED = (
    "layer '{layer}' is called inside `only_rows` inside of jax.vmap, with samples of "
    "shape {samples} and a `mask` of shape {mask}: which of the axes it is of cannot "
    "be told. Map the mask, too, and give it all axes of the samples; or enter the "
    "context outside of the mapped function."
)
_LOST = (
    "layer '{layer}' is called inside `only_rows`, whose mask JAX has dropped: it was "
    "made inside a function that is rematerialised and differentiated in the loss. "
    "Enter the context outside of `jax.checkpoint`."
)


def _as_output(
    use: Use, y: jax.Array, t: Tap, x: jax.Array, mask: jax.Array | None
) -> jax.Array:
    back = sorted(range(y.ndim), key=use.output.__getitem__)
    return emit(t, y.transpose(use.output), x, mask).transpose(back)


def _on_part(
    use: Use, y: jax.Array, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Returns ``y`` with a function applied to the part that is a kernel's."""
    if use.part is None:
        return function(y)
    axis, start, stop = use.part
    before = jax.lax.slice_in_dim(y, 0, start, axis=axis)
    own = jax.lax.slice_in_dim(y, start, stop, axis=axis)
    after = jax.lax.slice_in_dim(y, stop, y.shape[axis], axis=axis)
    return jax.numpy.concatenate([before, function(own), after], axis=axis)


def bind(eqn: Any, row: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation as it is."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Before jax 0.10 functions among the parameters come apart from the rest.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *row, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def _context(eqn: Any):
    """What an equation was traced in: its mesh and precision, and its name."""
    name = str(eqn.source_info.name_stack)
    named = jax.named_scope(name) if name and "(" not in name else None
    with eqn.ctx.manager, named or contextlib.nullcontext():
        yield


def _callee(eqn: Any) -> ClosedJaxpr:
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            return value
        if isinstance(value, Jaxpr):
            return ClosedJaxpr(value, ())
    raise AssertionError(eqn.primitive.name)


@dataclass(frozen=True)
class _Call:
    """A call of a compiled function, with taps: what JAX keeps it by.

    Attributes:
      closed: the function, which JAX has kept since it was first traced.
      signature: what is tapped in it.
      called: runs it.
    """

    closed: ClosedJaxpr
    signature: Hashable
    called: Callable[..., list] = field(compare=False)


# Few: a loss that makes its functions anew is not to be kept for ever.
@functools.lru_cache(maxsize=32)
def _kept(call: _Call) -> Callable[..., list]:
    return jax.jit(call.called)


def _manual_axes(params: dict[str, Any]) -> Any:
    """Returns the axes that ``shard_map`` has by hand, whatever JAX calls them."""
    return params.get("manual_axes", params.get("newly_manual_axes", ()))


def _constrained(eqn: Any, called: Callable[..., list]) -> Callable[..., list]:
    """Returns a call that shards what ``jax.jit`` was told to shard."""
    ins = eqn.params.get("in_shardings", ())
    outs = eqn.params.get("out_shardings", ())

    def constrain(values: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
        return [
            jax.lax.with_sharding_constraint(value, sharding)
            if isinstance(sharding, jax.sharding.Sharding)
            else value
            for value, sharding in zip(values, shardings or [None] * len(values))
        ]

    @functools.wraps(called)
    def constrained(args: list, own: dict) -> list:
        return constrain(called(constrain(args, ins), own), outs)

    return constrained
