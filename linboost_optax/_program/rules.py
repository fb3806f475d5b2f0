"""How what is known of arrays passes through equations that only move or cast them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from linboost_optax import _arrangement
from linboost_optax._arrangement import Axis, repeated, reverse
from linboost_optax._program.values import Piece, Value, moved

# Shapes stay, elements do not stay where they are.
_MIXES = frozenset(
    (
        "cumsum",
        "cumprod",
        "cummax",
        "cummin",
        "cumlogsumexp",
        "sort",
        "fft",
        "cholesky",
        "dynamic_update_slice",
        "scatter",
        "scatter-add",
        "scatter_add",
        "all_to_all",
        "ppermute",
    )
)
# Sums of layers' outputs, and the same in another precision or place.
_KEEPS_OUTPUTS = frozenset(
    (
        "add",
        "convert_element_type",
        "copy",
        "copy_p",
        "name",
        "reduce_precision",
        "sharding_constraint",
    )
)


def outputs(eqn: Any, row: Sequence[Value], i: int) -> tuple[Piece, ...]:
    """Returns the layers' outputs that a result of an equation is the sum of.

    Args:
      eqn: an equation without inner functions.
      row: what is known of its operands.
      i: which result.
    """
    name = eqn.primitive.name
    if name in _MOVES:
        found = [_moved(_MOVES[name], eqn, piece) for piece in row[0].outputs]
        return tuple(piece for piece in found if not piece.broken)
    if name == "concatenate":
        found = _concatenated(eqn, [value.outputs for value in row])
        return tuple(piece for piece in found if not piece.broken)
    if name == "optimization_barrier":
        return row[i].outputs
    if name in ("mul", "div"):
        return _scaled(eqn, row)
    return _elementwise(eqn, row, i, "outputs") if name in _KEEPS_OUTPUTS else ()


def parameters(eqn: Any, row: Sequence[Value], i: int) -> tuple[Piece, ...]:
    """Returns the parameters that a result of an equation is made of.

    What cannot be followed, and is not data, is some of the parameter: it may yet be
    multiplied with data. Of one number nothing is remembered: that is a penalty.
    """
    name, aval = eqn.primitive.name, eqn.outvars[i].aval
    rank, one = len(getattr(aval, "shape", ())), getattr(aval, "size", 1) <= 1
    if name == "stop_gradient":
        return ()
    if name in _MOVES:
        found = [_moved(_MOVES[name], eqn, piece) for piece in row[0].parameters]
    elif name == "concatenate":
        found = _concatenated(eqn, [value.parameters for value in row])
    elif name == "optimization_barrier":
        found = list(row[i].parameters)
    elif name in _MIXES:
        found = []
    else:
        found = list(_elementwise(eqn, row, i, "parameters"))
    known = {piece.of for piece in found if not piece.broken}
    if not any(value.data for value in row) and not one:
        pieces = [piece for value in row for piece in value.parameters]
        found += [piece.some(rank) for piece in pieces]
    whole = [piece for piece in found if not piece.broken]
    some = {p.of: p for p in found if p.broken and p.of not in known}
    return (*whole, *(() if one else some.values()))


def _moved(rule: Callable, eqn: Any, piece: Piece) -> Piece:
    """Returns a piece as a rule moves it: some of it where it cannot be followed."""
    found = None if piece.broken else rule(eqn, piece)
    return piece.some(len(eqn.outvars[0].aval.shape)) if found is None else found


def uniform(eqn: Any, row: Sequence[Value]) -> bool:
    """Whether all elements of an equation's result are one number."""
    if eqn.primitive.name == "broadcast_in_dim":
        return row[0].uniform or eqn.invars[0].aval.size == 1
    return eqn.primitive.name == "convert_element_type" and row[0].uniform


def _scaled(eqn: Any, row: Sequence[Value]) -> tuple[Piece, ...]:
    numbers = [
        value.uniform or getattr(var.aval, "size", 0) == 1
        for value, var in zip(row, eqn.invars)
    ]
    for value, other in ((row[0], numbers[1]), (row[1], numbers[0])):
        if other and value.outputs:
            return tuple(replace(piece, scaled=True) for piece in value.outputs)
    return ()


def _elementwise(
    eqn: Any, row: Sequence[Value], i: int, attribute: str
) -> tuple[Piece, ...]:
    shape = getattr(eqn.outvars[i].aval, "shape", ())
    found: list[Piece] = []
    for j, (var, value) in enumerate(zip(eqn.invars, row)):
        if not _fits(getattr(var.aval, "shape", ()), shape):
            continue
        for piece in getattr(value, attribute):
            piece = _stretched(piece, var.aval.shape, shape)
            others = [other for k, other in enumerate(row) if k != j]
            if attribute == "parameters" and _lost(eqn.primitive.name, piece, others):
                continue
            changed = any(other.data and not other.gradient for other in others)
            if attribute == "parameters" and changed and piece.repeats > 1:
                piece = replace(piece, scaled=True)
            if piece not in found:
                found.append(piece)
    return tuple(found)


def _fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an operand has the shape of the result, or is stretched to it."""
    return len(own) == len(shape) and all(n in (1, m) for n, m in zip(own, shape))


def _stretched(piece: Piece, own: tuple[int, ...], shape: tuple[int, ...]) -> Piece:
    # Under `vmap`, operands that are not mapped have an axis of size one for it.
    axes = [
        axis if n == m else repeated(m) for axis, n, m in zip(piece.axes, own, shape)
    ]
    return replace(piece, axes=tuple(axes))


def _lost(name: str, piece: Piece, others: Sequence[Value]) -> bool:
    """Whether a parameter becomes a part of activations: a bias, a scale."""
    activations = any(other.is_activation for other in others)
    sums = name in ("add", "sub")
    return activations and (sums or piece.broken or piece.repeats > 1)


def _transpose(eqn: Any, piece: Piece) -> Piece | None:
    order = eqn.params["permutation"]
    return moved(piece, [piece.axes[i] for i in order], list(order))


def _squeeze(eqn: Any, piece: Piece) -> Piece | None:
    gone = {d % len(piece.axes) for d in eqn.params["dimensions"]}
    kept = [i for i in range(len(piece.axes)) if i not in gone]
    return moved(piece, [piece.axes[i] for i in kept], kept)


def _broadcast(eqn: Any, piece: Piece) -> Piece | None:
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    old = eqn.invars[0].aval.shape
    source: list[int | None] = [None] * len(shape)
    for i, d in enumerate(dims):
        source[int(d)] = i
    axes: list[Axis] = []
    for size, i in zip(shape, source):
        same = i is not None and old[i] == size
        axes.append(piece.axes[i] if same and i is not None else repeated(size))
    return moved(piece, axes, source)


def _reshape(eqn: Any, piece: Piece) -> Piece | None:
    old, new = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    order = eqn.params.get("dimensions")
    if order is not None:  # a transpose comes first
        piece = moved(piece, [piece.axes[i] for i in order], list(order))
        old = [old[i] for i in order]
    if piece.part is None:
        axes = _arrangement.reshape(piece.axes, tuple(new))
        return None if axes is None else piece.moved(axes)
    # An array that is put together of several: only axes of size one come and go.
    kept = [i for i, n in enumerate(old) if n != 1]
    if [old[i] for i in kept] != [n for n in new if n != 1]:
        return None
    queue = iter(kept)
    source = [None if n == 1 else next(queue) for n in new]
    return moved(piece, [() if i is None else piece.axes[i] for i in source], source)


def _slice(eqn: Any, piece: Piece) -> Piece | None:
    """One index of an axis: a layer of those that are stacked along it."""
    params, shape = eqn.params, eqn.invars[0].aval.shape
    start, limit = params["start_indices"], params["limit_indices"]
    cut = [i for i, n in enumerate(shape) if limit[i] - start[i] != n]
    if len(cut) != 1 or limit[cut[0]] - start[cut[0]] != 1 or piece.part is not None:
        return None
    (axis,) = cut
    atoms = piece.axes[axis]
    if any(atom.axis is None or atom.flipped for atom in atoms):
        return None
    axes = (*piece.axes[:axis], (), *piece.axes[axis + 1 :])
    stack, at = (*piece.stack, atoms), (*piece.at, int(start[axis]))
    return replace(piece, axes=axes, stack=stack, at=at)


def _rev(eqn: Any, piece: Piece) -> Piece | None:
    dims = eqn.params["dimensions"]
    if piece.part is not None and piece.part[0] in dims:
        return None
    axes = [reverse(a) if i in dims else a for i, a in enumerate(piece.axes)]
    return moved(piece, axes, list(range(len(axes))))


def _concatenated(eqn: Any, rows: Sequence[tuple[Piece, ...]]) -> list[Piece]:
    axis, start = eqn.params["dimension"], 0
    rank = len(eqn.outvars[0].aval.shape)
    found: list[Piece] = []
    for var, pieces in zip(eqn.invars, rows):
        stop = start + var.aval.shape[axis]
        for piece in pieces:
            cut = piece.part is not None or piece.broken or piece.at
            part = (axis, start, stop)
            found.append(piece.some(rank) if cut else replace(piece, part=part))
        start = stop
    return found


_MOVES: dict[str, Callable[[Any, Piece], Piece | None]] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
}
