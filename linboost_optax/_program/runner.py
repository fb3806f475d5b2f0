"""Running a traced function again, with taps where it multiplies kernels with data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal

from linboost_optax._program import calls
from linboost_optax._program.calls import Call
from linboost_optax._program.tapping import MASK, Tapped, Tapping, Values
from linboost_optax._program.uses import Scope, Use
from linboost_optax._sharding import here
from linboost_optax._taps import marks


@dataclass(frozen=True)
class Runner:
    """Runs what was read, with taps.

    Attributes:
      tapped: the tapped uses.
      eager: whether operations run at once, outside of any trace.
    """

    tapped: Tapped
    eager: bool
    _keys: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def keys(self, scope: Scope) -> tuple[str, ...]:
        """Returns the keys of the statistics that are measured in a scope."""
        if scope.number not in self._keys:
            layers = [self.tapped.layer(use) for use in scope.all()]
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
        tapping = Tapping(self.tapped, scope, values)

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else env[var]

        for i, eqn in enumerate(scope.jaxpr.eqns):
            row = [read(var) for var in eqn.invars]
            inner = scope.inner.get(i, ())
            keys = sorted({key for each in inner for key in self.keys(each)})
            with calls.context(eqn):
                if keys:
                    masks = {k: v for k, v in values.items() if k.startswith(MASK)}
                    # What a loop closes over must be of its own mesh, see `here`.
                    own = here({**{key: values[key] for key in keys}, **masks})
                    out = self._open(eqn, inner, row, own)
                else:
                    out = calls.bind(eqn, row)
                if eqn.primitive.name == "name":
                    mask = marks.mask_of(str(eqn.params["name"]))
                    if mask is not None:
                        values[f"{MASK}{mask[1]}"] = out[0]
                for use in scope.uses.get(i, ()):
                    out[0] = tapping.apply(use, out[0], row)
            env.update(zip(eqn.outvars, out))
            # Frees memory where operations run at once.
            for var in scope.last.get(i, ()):
                del env[var]
        return [read(var) for var in scope.jaxpr.outvars]

    def _open(self, eqn: Any, inner: Sequence[Scope], row: list, own: dict) -> list:
        """Makes a call again, with taps inside."""
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, inner[0], row, own)
        if name == "cond":
            return self._cond(eqn, inner, row, own)
        closed = calls.callee(eqn)

        def called(args: list, own: dict) -> list:
            return self.run(inner[0], closed.consts, args, own)

        if name.startswith(("remat", "checkpoint")):
            policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
            called = jax.checkpoint(called, policy=policy, prevent_cse=prevent_cse)
        elif name == "shard_map":
            return self._shard_map(eqn, called, row, own)
        else:
            called = calls.as_sharded(eqn, called)
            if self.eager:
                return self._compiled(closed, inner[0], called, row, own)
        return list(called(row, own))

    def _compiled(
        self, closed: ClosedJaxpr, scope: Scope, called: Callable, row: list, own: dict
    ) -> list:
        """Calls a compiled function with taps: compiled once for all its calls."""
        slots = [f"{MASK}{self.tapped.slot(use)}" for use in scope.all()]
        # Masks have other numbers at every call: here they are told by their order.
        masks = [key for key in dict.fromkeys(slots) if key in own]

        def by_order(row: list, values: dict, arrays: list) -> list:
            return called(row, {**values, **dict(zip(masks, arrays))})

        signature = (self._signature(scope, masks), len(masks))
        compiled = calls.kept(Call(closed, signature, by_order))
        values = {key: x for key, x in own.items() if not key.startswith(MASK)}
        return list(compiled(row, values, [own[key] for key in masks]))

    def _signature(self, scope: Scope, masks: list[str]) -> Hashable:
        """Returns what tells apart two runs with taps of one traced function."""

        def mask(use: Use) -> Hashable:
            key = f"{MASK}{self.tapped.slot(use)}"
            return masks.index(key) if key in masks else self.tapped.slot(use)

        # Inputs that are one array are measured once.
        numbers: dict[Hashable, int] = {}
        return tuple(
            (
                self.tapped.layer(use),
                use.access,
                use.output,
                use.part,
                use.at,
                numbers.setdefault(use.number, len(numbers)),
                mask(use),
            )
            for use in scope.all()
        )

    def _scan(self, eqn: Any, body: Scope, row: list, own: dict) -> list:
        params = eqn.params
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, init = row[:consts], row[consts : consts + carries]
        sliced = {
            layer.stats_key
            for use in body.all()
            if (layer := self.tapped.layer(use)) and use.parameter in body.sliced
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
            axis_names=set(calls.manual_axes(params)),
            check_vma=params["check_vma"],
        )
        return list(mapped(own, *row))
