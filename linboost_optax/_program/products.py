"""Products of kernels with data, and the biases that are added to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from linboost_optax._arrangement import Arrangement, Axes, Axis, arrange, size_of
from linboost_optax._program import contraction
from linboost_optax._program.contraction import Access, Contraction
from linboost_optax._program.notes import Context, Notes
from linboost_optax._program.uses import Bias, Scope, Use, match_bias
from linboost_optax._program.values import Piece, Value, union


def product(
    notes: Notes,
    scope: Scope,
    i: int,
    eqn: Any,
    row: Sequence[Value],
    result: Value,
    at: Context,
) -> Value:
    """Reads a product; returns what is known of its result.

    Args:
      notes: takes note of uses.
      scope: likewise.
      i: which equation of the scope it is.
      eqn: the equation.
      row: what is known of its operands.
      result: what is known of its result, whatever it is.
      at: where it is.
    """
    which = _kernel_of(notes, row)
    if which is None or at.backward:
        return result
    rank = len(eqn.outvars[0].aval.shape)
    others = [value for k, value in enumerate(row) if k != which]
    if not any(value.data or not value.made for value in others):
        # Of parameters alone: what comes of it is no kernel that is known.
        pieces = [piece for value in row for piece in value.parameters]
        return replace(result, parameters=tuple(piece.some(rank) for piece in pieces))
    outputs: list[Piece] = []
    some: list[Piece] = []
    for piece in row[which].parameters:
        read = _read(notes, eqn, which, piece)
        if eqn.primitive.name == "dynamic_slice" and not any(v.data for v in others):
            read = "it is cut by an index that is no data"
        if isinstance(read, str):
            if any(value.data for value in others):
                notes.outside.setdefault(piece.of, read)
            else:
                some.append(piece.some(rank))
            continue
        use = _use(scope, eqn, row, piece, *read, at)
        index = _note(notes, scope, i, use)
        axes = _in_part(read[0].outputs, use.part)
        outputs.append(Piece(index, axes, part=use.part))
    deps = union((result.uses, frozenset(piece.of for piece in outputs)))
    return replace(
        result,
        parameters=tuple(some),
        outputs=tuple(outputs),
        uses=deps,
        # What a layer makes of constants is an activation, too.
        data=result.data or bool(outputs),
        gradient=False,
    )


def _kernel_of(notes: Notes, row: Sequence[Value]) -> int | None:
    """Returns which operand of a product is the kernel."""
    candidates = []
    for i, value in enumerate(row[:2]):
        kernels = [
            piece
            for piece in value.parameters
            # What was added to activations, or scales them, is not their kernel.
            if not (value.is_activation and len(notes.shapes[piece.of]) < 2)
        ]
        if kernels:
            repeats = min(piece.repeats for piece in kernels)
            candidates.append((value.data, repeats, i))
    return min(candidates)[-1] if candidates else None


def _read(
    notes: Notes, eqn: Any, which: int, piece: Piece
) -> tuple[Contraction, Arrangement] | str:
    """Returns a product as a layer and how a piece is its kernel, or why it is none."""
    if piece.broken:
        return "only a part of it is used at a time"
    read = contraction.read(eqn, which, piece.axes)
    if read is None:
        return f"it is multiplied by `{eqn.primitive.name}`"
    if isinstance(read, str):
        return read
    if piece.part is not None and piece.part[0] not in read.part_axis:
        return "it is put together with others along an axis that is contracted"
    arrangement = _arranged(notes, piece, read)
    return "only a part of it is used" if arrangement is None else (read, arrangement)


def _arranged(notes: Notes, piece: Piece, read: Contraction) -> Arrangement | None:
    """Returns how a parameter becomes a layer's kernels, stack first; None if not."""
    stack = [atom for axis in piece.stack for atom in axis]
    return arrange(notes.shapes[piece.of], [*stack, *read.kernel])


def _use(
    scope: Scope,
    eqn: Any,
    row: Sequence[Value],
    piece: Piece,
    read: Contraction,
    arrangement: Arrangement,
    at: Context,
) -> Use:
    aval = eqn.invars[read.input.operand].aval
    part = piece.part
    return Use(
        parameter=piece.of,
        kind=read.kind,
        arrangement=arrangement,
        stack=tuple(size_of(axis) for axis in piece.stack),
        at=piece.at,
        access=read.input,
        number=read.input.number(row),
        shape=read.input.shape(aval.shape),
        dtype=aval.dtype,
        output=read.output,
        part=None if part is None else (read.part_axis[part[0]], *part[1:]),
        times=at.times,
        scope=scope.number,
        hindrance=at.hindrance,
        forward=at.forward,
        rows=at.rows,
        rows_mapped=at.rows_mapped,
    )


def _note(notes: Notes, scope: Scope, i: int, use: Use) -> int:
    notes.uses.append(use)
    scope.uses.setdefault(i, []).append(use)
    return len(notes.uses) - 1


def _in_part(axes: Axes, part: tuple[int, int, int] | None) -> Axes:
    """Returns the axes of a result of which a kernel fills a part."""
    if part is None:
        return axes
    axis, start, stop = part
    own: Axis = tuple(replace(atom, size=stop - start) for atom in axes[axis])
    return (*axes[:axis], own, *axes[axis + 1 :])


def declaration(
    notes: Notes, scope: Scope, i: int, eqn: Any, row: Sequence[Value], at: Context
) -> Value:
    """Reads what a user has declared to be a layer; returns what its output is."""
    y, _, kernel, *bias = row
    kind = eqn.params["kind"]
    offsets = [piece for value in bias for piece in value.parameters]
    for piece in kernel.parameters if not at.backward else ():
        if isinstance(kind, str):
            also = [offset.of for offset in offsets]
            notes.left.update(dict.fromkeys((piece.of, *also), kind))
            continue
        x, rank = eqn.invars[1].aval, len(eqn.outvars[0].aval.shape)
        atoms = tuple(atom for axis in piece.axes for atom in axis)
        order, whole = tuple(range(len(x.shape))), tuple(range(rank))
        read = Contraction(kind, atoms, Access(1, order), whole, ((),) * rank, {})
        arrangement = None if piece.broken else _arranged(notes, piece, read)
        if arrangement is None:
            continue
        use = _use(scope, eqn, row, piece, read, arrangement, at)
        use.declared = True
        for offset in offsets:
            axes = (*offset.stack, *offset.axes)
            own = [atom for axis in axes for atom in axis]
            arranged = arrange(notes.shapes[offset.of], own)
            if arranged is not None:
                use.bias = Bias(offset.of, arranged)
        _note(notes, scope, i, use)
    return replace(y, outputs=())


def biases(notes: Notes, row: Sequence[Value]) -> set[int]:
    """Finds out which parameters are biases in a sum of two; returns these."""
    found: set[int] = set()
    for sums, added in ((row[0], row[1]), (row[1], row[0])):
        if added.outputs:
            continue
        taken: set[int] = set()
        # The last product: what came before it is what it was added to, a residual.
        for y in sorted(sums.outputs, key=lambda piece: -piece.of):
            use = notes.uses[y.of]
            free = use.bias is None and not use.kind.one_hot
            for b in reversed(added.parameters) if free else ():
                if b.of in taken or b.of == use.parameter:
                    continue
                use.bias = match_bias(y, b, use, notes.shapes[b.of])
                if use.bias is not None:
                    taken.add(b.of)
                    break
        found |= taken
    return found


def forget_norms(notes: Notes, value: Value, row: Sequence[Value]) -> None:
    """What a kernel is scaled by is made of it, and no use of it as a layer."""
    kernels = {piece.of for piece in value.parameters}
    if not kernels:
        return
    # Not a gradient that is taken off it: where that comes from, it is a layer.
    norms = [other.uses for other in row if not other.gradient]
    for number in union(norms) or ():
        use = notes.uses[number]
        one = math.prod(use.kind.sample_axes(use.shape)) == 1  # a power iteration's
        if use.parameter in kernels and one:
            use.ignored = True


def lift(
    notes: Notes,
    scope: Scope,
    i: int,
    eqn: Any,
    row: Sequence[Value],
    within: Scope,
    results: list[Value],
) -> list[Value]:
    """Takes a function with a derivative of its own for the product inside of it.

    Products of 8 bits are such functions. Their input is what was narrowed.
    """
    if len(within.uses) != 1 or within.inner:
        return results
    ((where, uses),) = within.uses.items()
    own = results[0].outputs
    if len(uses) != 1 or len(own) != 1 or notes.uses[own[0].of] is not uses[0]:
        return results
    use, y = uses[0], own[0]
    read = within.jaxpr.eqns[where].invars[use.access.operand].aval
    narrow = _bytes(read) == 1
    for k, var in enumerate(eqn.invars):
        same = replace(use.access, operand=k).number(row) == use.number
        wide = _shape(var.aval) == _shape(read) and _is_wide(var.aval)
        if (same and not narrow and not y.scaled) or (narrow and wide):
            use.access = replace(use.access, operand=k)
            use.number = use.access.number(row)
            use.dtype, use.hindrance = getattr(var.aval, "dtype", None), None
            use.scope, use.narrow = scope.number, narrow
            scope.uses.setdefault(i, []).append(use)
            within.uses.clear()
            lifted = replace(y, scaled=False)
            return [replace(results[0], outputs=(lifted,)), *results[1:]]
    return results


def _shape(aval: Any) -> Any:
    return getattr(aval, "shape", None)


def _bytes(aval: Any) -> int:
    return getattr(getattr(aval, "dtype", None), "itemsize", 0)


def _is_wide(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return floating and _bytes(aval) > 1
