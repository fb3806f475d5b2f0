"""Reading a traced function: which kernels it multiplies with data, and where."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from linboost_optax._arrangement import Axes, Axis, arrange, whole
from linboost_optax._jaxprs import subjaxprs
from linboost_optax._program import contraction, rules
from linboost_optax._program.contraction import OPAQUE, Contraction
from linboost_optax._program.uses import Bias, Scope, Use, match_bias
from linboost_optax._program.values import Piece, Value, derived, union
from linboost_optax._taps import declared, marks

IN_CUSTOM = (
    "it is used inside a function with a derivative of its own (jax.custom_vjp, "
    "jax.custom_jvp)"
)
IN_WHILE = "it is used inside a loop that cannot be differentiated (jax.lax.while_loop)"
IN_UNKNOWN = "it is used inside `{}`, which taps cannot enter"


@dataclass(frozen=True)
class Context:
    """Where equations are.

    Attributes:
      times: how often they run.
      backward: whether they are the backward pass of a gradient inside the function.
      forward: whether they may be of a derivative in forward mode.
      hindrance: why a kernel cannot be tapped here, or None.
      rows: number of the context of masks that is in force, or None.
    """

    times: int = 1
    backward: bool = False
    forward: bool = False
    hindrance: str | None = None
    rows: int | None = None

    def at(self, stack: str) -> Context:
        """Returns the context of an equation with this name stack."""
        if not stack:
            return self
        rows = marks.rows_context(stack)
        return replace(
            self,
            backward=self.backward or "transpose(" in stack,
            forward=self.forward or "jvp(" in stack,
            rows=self.rows if rows is None else rows,
        )


@dataclass
class Reader:
    """What was read so far.

    Attributes:
      shapes: of the parameters, by number.
      uses: of kernels, in the order in which they run.
      outside: parameters that are multiplied with data by what is not read as a layer,
        and why.
      elsewhere: parameters that meet data element by element, and are no bias there,
        and by which primitive.
      left: parameters that the user leaves alone, and why.
      masks: by context, the numbers of masks by the names of layers.
      mask_numbers: masks that have equal ones are the same array.
    """

    shapes: dict[int, tuple[int, ...]]
    uses: list[Use] = field(default_factory=list)
    outside: dict[int, str] = field(default_factory=dict)
    elsewhere: dict[int, str] = field(default_factory=dict)
    left: dict[int, str] = field(default_factory=dict)
    masks: dict[int, dict[str, int | None]] = field(default_factory=dict)
    mask_numbers: dict[int, Hashable] = field(default_factory=dict)
    _numbers: dict[Hashable, int] = field(default_factory=dict)
    _fresh: Iterator[int] = field(default_factory=itertools.count)

    def fresh(self) -> int:
        """Returns a number that no array has."""
        return next(self._fresh)

    def read(
        self, jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value], at: Context
    ) -> tuple[Scope, list[Value]]:
        """Returns what a jaxpr does, and what is known of its results."""
        scope = Scope(self.fresh(), jaxpr)
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, consts))
        known.update(zip(jaxpr.invars, args, strict=True))

        def value(var: Any) -> Value:
            if isinstance(var, Literal):
                return Value(self._number("literal", str(var.aval), repr(var.val)))
            return known[var]

        for i, eqn in enumerate(jaxpr.eqns):
            row = [value(var) for var in eqn.invars]
            here = at.at(str(eqn.source_info.name_stack))
            values = self._equation(scope, i, eqn, row, here)
            if here.backward:
                values = [replace(value, gradient=True) for value in values]
            known.update(zip(eqn.outvars, values))
        return scope, [value(var) for var in jaxpr.outvars]

    def parameter(self, number: int, shape: tuple[int, ...]) -> Value:
        """Returns what is known of a parameter."""
        self.shapes[number] = shape
        return Value(self.fresh(), (Piece(number, whole(shape)),), made=True)

    def data(self) -> Value:
        """Returns what is known of an array of data."""
        return Value(self.fresh(), data=True)

    def _equation(
        self, scope: Scope, i: int, eqn: Any, row: list[Value], at: Context
    ) -> list[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(scope, i, eqn, row, at)
        if name == "while":
            return self._while(scope, i, eqn, row, at)
        inner = list(subjaxprs(eqn.params))
        if name == "cond":
            return self._cond(scope, i, eqn, row, at)
        if inner:
            return self._call(scope, i, eqn, row, at, inner)
        base = [derived(self._result(eqn, row, k), row) for k in range(_count(eqn))]
        if name == "name":
            mark = str(eqn.params["name"])
            if marks.is_untapped(mark):
                return base
            mask = marks.mask_of(mark)
            if mask is not None:
                context, slot, layers = mask
                self.masks.setdefault(context, {})[layers] = slot
                if slot is not None:
                    self.mask_numbers[slot] = row[0].number
        if eqn.primitive is declared.layer_p:
            return [self._declared(scope, i, eqn, row, at)]
        if name in contraction.PRIMITIVES or name in OPAQUE:
            return [self._contraction(scope, i, eqn, row, base[0], at), *base[1:]]
        matched = self._match_biases(row) if name == "add" else set()
        values = [
            replace(
                value,
                parameters=rules.pieces(eqn, row, k, "parameters"),
                outputs=rules.pieces(eqn, row, k, "outputs"),
                uniform=rules.uniform(eqn, row),
            )
            for k, value in enumerate(base)
        ]
        for value in values:
            self._forget_norms(value, row)
        self._note_lost(eqn, row, values, matched)
        return values

    def _note_lost(
        self,
        eqn: Any,
        row: Sequence[Value],
        values: Sequence[Value],
        matched: set[int],
    ) -> None:
        """Takes note of the parameters that nothing is known of any more."""
        kept = {piece.of for value in values for piece in value.parameters} | matched
        data = any(value.data and not value.gradient for value in values)
        for piece in (piece for value in row for piece in value.parameters):
            if piece.of in kept:
                continue
            # A whole kernel that data has changed (a mask) may end in a penalty.
            if data and (len(self.shapes[piece.of]) < 2 or piece.repeats > 1):
                self.elsewhere.setdefault(piece.of, eqn.primitive.name)

    def _result(self, eqn: Any, row: Sequence[Value], k: int) -> int:
        if eqn.effects:
            return self.fresh()
        try:
            params = tuple(sorted(eqn.params.items(), key=lambda item: item[0]))
            aval = str(eqn.outvars[k].aval)
            numbers = tuple(value.number for value in row)
            return self._number(eqn.primitive.name, params, numbers, aval, k)
        except TypeError:  # not hashable
            return self.fresh()

    def _number(self, *what: Hashable) -> int:
        number = self._numbers.get(what)
        if number is None:
            number = self._numbers[what] = self.fresh()
        return number

    def _forget_norms(self, value: Value, row: Sequence[Value]) -> None:
        """What a kernel is scaled by is made of it, and no use of it as a layer."""
        kernels = {piece.of for piece in value.parameters}
        if not kernels:
            return
        # Not a gradient that is taken off it: where that comes from, it is a layer.
        norms = [other.uses for other in row if not other.gradient]
        for number in union(norms) or ():
            use = self.uses[number]
            if use.parameter in kernels:
                use.ignored = True

    def _match_biases(self, row: Sequence[Value]) -> set[int]:
        """Finds out which parameters are biases in a sum; returns these."""
        found: set[int] = set()
        for sums, added in ((row[0], row[1]), (row[1], row[0])):
            if added.outputs:
                continue
            taken: set[int] = set()
            for y in sums.outputs:
                use = self.uses[y.of]
                for b in added.parameters if use.bias is None else ():
                    if b.of in taken or b.of == use.parameter:
                        continue
                    use.bias = match_bias(y, b, use, self.shapes[b.of])
                    if use.bias is not None:
                        taken.add(b.of)
                        break
            found |= taken
        return found

    def _contraction(
        self, scope: Scope, i: int, eqn: Any, row: list[Value], result: Value, at: Any
    ) -> Value:
        which = self._kernel_of(row)
        if which is None or at.backward:
            return result
        others = [value for k, value in enumerate(row) if k != which]
        if not any(v.data or not v.made for v in others):
            return result  # a product of parameters alone
        rank = len(eqn.outvars[0].aval.shape)
        outputs: list[Piece] = []
        some: list[Piece] = []
        indices: set[int] = set()
        for piece in row[which].parameters:
            use = self._use(eqn, which, piece, row, at, scope)
            if isinstance(use, str):
                if any(v.data for v in others):
                    self.outside.setdefault(piece.of, use)
                elif eqn.primitive.name == "gather":
                    some.append(piece.some(rank))
                continue
            use, read = use
            index = len(self.uses)
            self.uses.append(use)
            scope.uses.setdefault(i, []).append(use)
            indices.add(index)
            axes = _in_part(read.outputs, use.part)
            outputs.append(Piece(index, axes, part=use.part))
        deps = union((result.uses, frozenset(indices)))
        # What a layer makes of constants is an activation, too.
        data = result.data or bool(indices)
        return replace(
            result,
            parameters=tuple(some),
            outputs=tuple(outputs),
            uses=deps,
            data=data,
            gradient=False,
        )

    def _declared(
        self, scope: Scope, i: int, eqn: Any, row: list[Value], at: Context
    ) -> Value:
        """Reads what a user has declared to be a layer."""
        y, _, kernel, *bias = row
        kind = eqn.params["kind"]
        for piece in kernel.parameters if not at.backward else ():
            if isinstance(kind, str):
                also = [b.of for value in bias for b in value.parameters]
                self.left.update(dict.fromkeys((piece.of, *also), kind))
                continue
            stack = [atom for axis in piece.stack for atom in axis]
            own = [atom for axis in piece.axes for atom in axis]
            shape = self.shapes[piece.of]
            arrangement = arrange(shape, [*stack, *own])
            if arrangement is None:
                continue
            aval = eqn.invars[1].aval
            access = contraction.Access(1, tuple(range(len(aval.shape))))
            use = Use(
                parameter=piece.of,
                kind=kind,
                arrangement=arrangement,
                stack=tuple(_size(axis) for axis in piece.stack),
                at=piece.at,
                access=access,
                number=access.number(row),
                shape=aval.shape,
                dtype=aval.dtype,
                output=tuple(range(len(eqn.outvars[0].aval.shape))),
                part=None,
                times=at.times,
                scope=scope.number,
                hindrance=at.hindrance,
                rows=at.rows,
                declared=True,
            )
            for b in bias[0].parameters if bias else ():
                axes = [*b.stack, *b.axes]
                own = [atom for axis in axes for atom in axis]
                arranged = arrange(self.shapes[b.of], own)
                if arranged is not None:
                    use.bias = Bias(b.of, arranged)
            self.uses.append(use)
            scope.uses.setdefault(i, []).append(use)
        return replace(y, outputs=())

    def _kernel_of(self, row: Sequence[Value]) -> int | None:
        """Returns which operand of a product is the kernel."""
        candidates = []
        for i, value in enumerate(row[:2]):
            kernels = [
                piece
                for piece in value.parameters
                # What was added to activations, or scales them, is not their kernel.
                if not (value.is_activation and len(self.shapes[piece.of]) < 2)
            ]
            if kernels:
                repeats = min(piece.repeats for piece in kernels)
                candidates.append((value.data, repeats, i))
        return min(candidates)[-1] if candidates else None

    def _use(
        self, eqn: Any, which: int, piece: Piece, row: list[Value], at: Context, scope
    ) -> tuple[Use, Contraction] | str:
        if piece.broken:
            return "only a part of it is used at a time"
        read = contraction.read(eqn, which, piece.axes)
        if read is None:
            return f"it is multiplied by `{eqn.primitive.name}`"
        if isinstance(read, str):
            return read
        part = None
        if piece.part is not None:
            axis, start, stop = piece.part
            if axis not in read.part_axis:
                return "it is put together with others along an axis that is contracted"
            part = (read.part_axis[axis], start, stop)
        shape = self.shapes[piece.of]
        stack = [atom for axis in piece.stack for atom in axis]
        arrangement = arrange(shape, [*stack, *read.kernel])
        if arrangement is None:
            return "only a part of it is used"
        aval = eqn.invars[read.input.operand].aval
        return Use(
            parameter=piece.of,
            kind=read.kind,
            arrangement=arrangement,
            stack=tuple(_size(axis) for axis in piece.stack),
            at=piece.at,
            access=read.input,
            number=read.input.number(row),
            shape=read.input.shape(aval.shape),
            dtype=aval.dtype,
            output=read.output,
            part=part,
            times=at.times,
            scope=scope.number,
            hindrance=at.hindrance,
            forward=at.forward,
            rows=at.rows,
        ), read

    def _call(
        self,
        scope: Scope,
        i: int,
        eqn: Any,
        row: list[Value],
        at: Context,
        inner: list[Jaxpr],
    ) -> list[Value]:
        """Reads a function that is called once."""
        name = eqn.primitive.name
        if name.startswith(("custom_vjp_call", "custom_jvp_call")):
            at = replace(at, hindrance=at.hindrance or IN_CUSTOM)
        elif name not in OPENED:
            at = replace(at, hindrance=at.hindrance or IN_UNKNOWN.format(name))
        first = inner[0]
        if len(first.invars) != len(row):
            fresh = [derived(self.fresh(), row) for _ in eqn.outvars]
            if name not in OPENED:
                for value in row:
                    for piece in value.parameters:
                        if len(self.shapes[piece.of]) > 1:
                            self.outside.setdefault(piece.of, at.hindrance or "")
            return fresh
        if name == "shard_map":
            row = [
                value if var.aval.shape == own.aval.shape else value.without_pieces()
                for value, var, own in zip(row, eqn.invars, first.invars)
            ]
        consts = [self.data() for _ in first.constvars]
        within, results = self.read(first, consts, row, at)
        scope.inner[i] = [within]
        if at.hindrance == IN_CUSTOM:
            results = self._lift(scope, i, eqn, row, within, results)
        if name == "shard_map":
            results = [value.without_pieces() for value in results]
        return results

    def _lift(
        self,
        scope: Scope,
        i: int,
        eqn: Any,
        row: list[Value],
        within: Scope,
        results: list[Value],
    ) -> list[Value]:
        """Takes a function with a derivative of its own for the product inside of it.

        Products of 8 bits are such functions. Their input is what was narrowed.
        """
        if len(within.uses) != 1 or within.inner:
            return results
        ((where, uses),) = within.uses.items()
        (y,) = set(results[0].outputs) or (None,)
        if len(uses) != 1 or y is None or self.uses[y.of] is not uses[0]:
            return results
        use = uses[0]
        read = within.jaxpr.eqns[where].invars[use.access.operand].aval
        narrow = read.dtype.itemsize == 1
        for k, var in enumerate(eqn.invars):
            same = replace(use.access, operand=k).number(row) == use.number
            wide = getattr(var.aval, "shape", None) == read.shape and (
                jax.numpy.issubdtype(var.aval.dtype, jax.numpy.floating)
                and var.aval.dtype.itemsize > 1
            )
            if (same and not narrow and not y.scaled) or (narrow and wide):
                use.access = replace(use.access, operand=k)
                use.number = use.access.number(row)
                use.dtype, use.hindrance, use.scope = var.aval.dtype, None, scope.number
                use.narrow = narrow
                scope.uses.setdefault(i, []).append(use)
                within.uses.clear()
                lifted = replace(y, scaled=False)
                return [replace(results[0], outputs=(lifted,)), *results[1:]]
        return results

    def _cond(self, scope, i, eqn, row, at) -> list[Value]:
        branches = []
        for closed in eqn.params["branches"]:
            # Of which one runs: what two branches compute alike is not shared.
            args = [replace(value, number=self.fresh()) for value in row[1:]]
            within, results = self._closed(closed, args, at)
            scope.inner.setdefault(i, []).append(within)
            branches.append(results)
        joined = []
        for values in zip(*branches):
            same = values[0].parameters
            if any(value.parameters != same for value in values):
                same = _all(value.parameters for value in values)
            value = derived(self.fresh(), [row[0], *values])
            joined.append(replace(value, parameters=same))
        return joined

    def _scan(self, scope, i, eqn, row, at) -> list[Value]:
        consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
        length, closed = eqn.params["length"], eqn.params["jaxpr"]
        at = replace(at, times=at.times * max(length, 1))
        slices, sliced = [], set()
        for value in row[consts + carries :]:
            found = [_slice(piece) for piece in value.parameters]
            slices.append(
                replace(
                    value.without_pieces(),
                    number=self.fresh(),
                    parameters=tuple(piece for piece in found if piece is not None),
                )
            )
            sliced |= {p.of for p in slices[-1].parameters if p.stack}
        carry = list(row[consts : consts + carries])
        for _ in range(3):
            before = self._state()
            start = [
                replace(value, number=self.fresh(), outputs=(), uses=None)
                for value in carry
            ]
            args = [*row[:consts], *start, *slices]
            within, results = self._closed(closed, args, at)
            joined = [
                replace(derived(0, (a, b)), parameters=_common(a, b), outputs=())
                for a, b in zip(carry, results)
            ]
            settled = all(
                (a.parameters, a.data, a.made) == (b.parameters, b.data, b.made)
                for a, b in zip(carry, joined)
            )
            if settled:
                break
            carry = joined
            self._rewind(before)
        else:
            carry = [replace(value, parameters=(), uses=None) for value in carry]
            start = [replace(value, number=self.fresh()) for value in carry]
            within, results = self._closed(closed, [*row[:consts], *start, *slices], at)
        within.sliced = frozenset(sliced)
        scope.inner[i] = [within]
        ends = [replace(value, number=self.fresh()) for value in carry]
        return ends + [
            replace(value.without_pieces(), number=self.fresh())
            for value in results[carries:]
        ]

    def _while(self, scope, i, eqn, row, at) -> list[Value]:
        at = replace(at, hindrance=at.hindrance or IN_WHILE)
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        consts, carry = row[first : first + second], row[first + second :]
        # It cannot be differentiated: nothing in it is to be measured.
        start = [replace(v.without_pieces(), number=self.fresh()) for v in carry]
        within, results = self._closed(eqn.params["body_jaxpr"], [*consts, *start], at)
        del within
        return [derived(self.fresh(), (a, b)) for a, b in zip(carry, results)]

    def _closed(self, closed: ClosedJaxpr, args: list[Value], at: Context):
        consts = [self.data() for _ in closed.jaxpr.constvars]
        return self.read(closed.jaxpr, consts, args, at)

    def _state(self) -> tuple[Any, ...]:
        marks = [(use, use.bias, use.ignored) for use in self.uses]
        notes = dict(self.outside), dict(self.elsewhere)
        return len(self.uses), notes, marks

    def _rewind(self, state: tuple[Any, ...]) -> None:
        count, notes, marks = state
        del self.uses[count:]
        self.outside, self.elsewhere = notes
        for use, bias, ignored in marks:
            use.bias, use.ignored = bias, ignored


# Calls that can be made again with taps.
OPENED = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
) | {"shard_map"}


def _slice(piece: Piece) -> Piece | None:
    """Returns a piece as each turn of a loop gets it."""
    if piece.part is not None and piece.part[0] == 0:
        return None
    first, rest = piece.axes[0], piece.axes[1:]
    part = piece.part and (piece.part[0] - 1, *piece.part[1:])
    if all(atom.axis is None for atom in first):
        return replace(piece, axes=rest, part=part)
    if any(atom.axis is None or atom.flipped for atom in first):
        return None
    if any(index is not None for index in piece.at):
        return None  # a loop over what an index was taken of
    stack, at = (*piece.stack, first), (*piece.at, None)
    return replace(piece, axes=rest, stack=stack, at=at, part=part)


def _common(a: Value, b: Value) -> tuple[Piece, ...]:
    return tuple(piece for piece in a.parameters if piece in b.parameters)


def _all(rows: Any) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for row in rows:
        found += [piece for piece in row if piece not in found]
    return tuple(found)


def _in_part(axes: Axes, part: tuple[int, int, int] | None) -> Axes:
    """Returns the axes of a result of which a kernel fills a part."""
    if part is None:
        return axes
    axis, start, stop = part
    own: Axis = tuple(replace(atom, size=stop - start) for atom in axes[axis])
    return (*axes[:axis], own, *axes[axis + 1 :])


def _size(axis: Axis) -> int:
    size = 1
    for atom in axis:
        size *= atom.size
    return size


def _count(eqn: Any) -> int:
    return len(eqn.outvars)
