"""Reading a traced function: which kernels it multiplies with data, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from linboost_optax._jaxprs import subjaxprs
from linboost_optax._program import contraction, loops, products, rules
from linboost_optax._program.notes import IN_CUSTOM, IN_UNKNOWN, Context, Notes
from linboost_optax._program.uses import Scope
from linboost_optax._program.values import Value, derived
from linboost_optax._taps import declared, marks

# Calls that can be made again with taps.
OPENED = frozenset(
    (
        "checkpoint",
        "closed_call",
        "core_call",
        "jit",
        "pjit",
        "remat",
        "remat2",
        "shard_map",
    )
)


@dataclass
class Reader:
    """Reads a traced function.

    Attributes:
      notes: what was found out.
    """

    notes: Notes = field(default_factory=Notes)

    def read(
        self, jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value], at: Context
    ) -> tuple[Scope, list[Value]]:
        """Returns what a jaxpr does, and what is known of its results."""
        scope = Scope(self.notes.fresh(), jaxpr)
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, consts))
        known.update(zip(jaxpr.invars, args, strict=True))

        def value(var: Any) -> Value:
            if isinstance(var, Literal):
                number = self.notes.number("literal", str(var.aval), repr(var.val))
                return Value(number)
            return known[var]

        for i, eqn in enumerate(jaxpr.eqns):
            row = [value(var) for var in eqn.invars]
            here = at.at(str(eqn.source_info.name_stack))
            values = self._equation(scope, i, eqn, row, here)
            if here.backward:
                values = [replace(value, gradient=True) for value in values]
            known.update(zip(eqn.outvars, values))
        return scope, [value(var) for var in jaxpr.outvars]

    def _closed(
        self, closed: ClosedJaxpr, args: Sequence[Value], at: Context
    ) -> tuple[Scope, list[Value]]:
        consts = [self.notes.data() for _ in closed.jaxpr.constvars]
        return self.read(closed.jaxpr, consts, args, at)

    def _equation(
        self, scope: Scope, i: int, eqn: Any, row: list[Value], at: Context
    ) -> list[Value]:
        """Returns what is known of an equation's results."""
        notes, name = self.notes, eqn.primitive.name
        if name in ("scan", "cond"):
            read = loops.scan if name == "scan" else loops.cond
            scope.inner[i], values = read(self._closed, notes, eqn, row, at)
            return values
        if name == "while":
            return loops.while_loop(self._closed, notes, eqn, row, at)
        inner = list(subjaxprs(eqn.params))
        if inner:
            return self._call(scope, i, eqn, row, at, inner[0])
        base = [
            derived(notes.result(eqn, row, k), row) for k, _ in enumerate(eqn.outvars)
        ]
        if name == "name":
            mark = str(eqn.params["name"])
            if marks.is_untapped(mark):
                return base
            notes.mark(mark, row[0])
        if eqn.primitive is declared.layer_p:
            return [products.declaration(notes, scope, i, eqn, row, at)]
        if name in contraction.PRIMITIVES:
            first = products.product(notes, scope, i, eqn, row, base[0], at)
            return [first, *base[1:]]
        biases = products.biases(notes, row) if name == "add" else set()
        values = [
            replace(
                value,
                parameters=rules.parameters(eqn, row, k),
                outputs=rules.outputs(eqn, row, k),
                uniform=rules.uniform(eqn, row),
            )
            for k, value in enumerate(base)
        ]
        for value in values:
            products.forget_norms(notes, value, row)
        sizes = [getattr(var.aval, "size", 1) for var in eqn.outvars]
        notes.lost(name, row, values, biases, max(sizes, default=0) <= 1)
        return values

    def _call(
        self,
        scope: Scope,
        i: int,
        eqn: Any,
        row: list[Value],
        at: Context,
        callee: Jaxpr,
    ) -> list[Value]:
        """Reads a function that is called once."""
        notes, name = self.notes, eqn.primitive.name
        custom = name.startswith(("custom_vjp_call", "custom_jvp_call"))
        if custom:
            at = at.hindered(IN_CUSTOM)
        known = custom or name in OPENED
        if not known or len(callee.invars) != len(row):
            # It calls its function in its own way, or not at all on whole arrays.
            pieces = [piece for value in row for piece in value.parameters]
            kernels = [piece for piece in pieces if len(notes.shapes[piece.of]) > 1]
            if any(value.data for value in row):
                why = IN_UNKNOWN.format(name)
                notes.outside.update({p.of: why for p in kernels})
            values = [derived(notes.fresh(), row) for _ in eqn.outvars]
            return [
                replace(v, parameters=tuple(p.some(len(o.aval.shape)) for p in kernels))
                for v, o in zip(values, eqn.outvars)
            ]
        by_hand = name == "shard_map"
        if by_hand:
            pairs = zip(row, eqn.invars, callee.invars)
            row = [_whole_only(value, var.aval, own.aval) for value, var, own in pairs]
        consts = [notes.data() for _ in callee.constvars]
        within, results = self.read(callee, consts, row, at)
        scope.inner[i] = [within]
        if custom and at.hindrance == IN_CUSTOM:
            results = products.lift(notes, scope, i, eqn, row, within, results)
        if not by_hand:
            return results
        ranks = [len(var.aval.shape) for var in eqn.outvars]
        return [
            replace(v, parameters=tuple(p.some(n) for p in v.parameters), outputs=())
            for v, n in zip(results, ranks)
        ]


def _whole_only(value: Value, outside: Any, inside: Any) -> Value:
    """Returns what is known of an array in ``shard_map``, where it may be in parts."""
    if outside.shape == inside.shape:
        return value
    some = tuple(piece.some(len(inside.shape)) for piece in value.parameters)
    return replace(value, parameters=some, outputs=())
