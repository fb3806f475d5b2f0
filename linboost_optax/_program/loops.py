"""Loops and branches of a traced function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from linboost_optax._program.notes import IN_WHILE, Context, Notes
from linboost_optax._program.uses import Scope
from linboost_optax._program.values import Piece, Value, derived

# Reads a jaxpr with constants: returns what it does, and what its results are.
Read: TypeAlias = Callable[[Any, Sequence[Value], Context], tuple[Scope, list[Value]]]


def cond(
    read: Read, notes: Notes, eqn: Any, row: Sequence[Value], at: Context
) -> tuple[list[Scope], list[Value]]:
    """Reads branches of which one runs."""
    scopes, branches = [], []
    for closed in eqn.params["branches"]:
        # Of which one runs: what two branches compute alike is not shared.
        args = [replace(value, number=notes.fresh()) for value in row[1:]]
        scope, results = read(closed, args, at)
        scopes.append(scope)
        branches.append(results)
    joined = []
    for values in zip(*branches):
        value = derived(notes.fresh(), [row[0], *values])
        joined.append(replace(value, parameters=_all(v.parameters for v in values)))
    return scopes, joined


def scan(
    read: Read, notes: Notes, eqn: Any, row: Sequence[Value], at: Context
) -> tuple[list[Scope], list[Value]]:
    """Reads a loop with a known number of turns."""
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    length, closed = eqn.params["length"], eqn.params["jaxpr"]
    at = replace(at, times=at.times * max(length, 1))
    slices, sliced = [], set()
    for value in row[consts + carries :]:
        pieces = tuple(_slice(piece) for piece in value.parameters)
        value = replace(value, number=notes.fresh(), parameters=pieces, outputs=())
        slices.append(value)
        sliced |= {p.of for p in pieces if p.stack and not p.broken}
    carry = [replace(v, outputs=(), uses=None) for v in row[consts : consts + carries]]
    while True:
        # What comes back may be less than what goes in: until nothing is lost.
        before = notes.state()
        start = [replace(value, number=notes.fresh()) for value in carry]
        scope, results = read(closed, [*row[:consts], *start, *slices], at)
        ranks = [len(var.aval.shape) for var in closed.jaxpr.outvars[:carries]]
        joined = [_joined(a, b, n) for a, b, n in zip(carry, results, ranks)]
        if joined == carry:
            break
        carry = joined
        notes.rewind(before)
    scope.sliced = frozenset(sliced)
    ends = [replace(value, number=notes.fresh()) for value in carry]
    stacked = [
        _some(replace(value, number=notes.fresh()), len(var.aval.shape))
        for value, var in zip(results[carries:], eqn.outvars[carries:])
    ]
    return [scope], ends + stacked


def while_loop(
    read: Read, notes: Notes, eqn: Any, row: Sequence[Value], at: Context
) -> list[Value]:
    """Reads a loop that cannot be differentiated: nothing in it is to be measured."""
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = row[first : first + second], row[first + second :]
    ranks = [len(var.aval.shape) for var in eqn.outvars]
    start = [
        _some(replace(value, number=notes.fresh()), n) for value, n in zip(carry, ranks)
    ]
    _, results = read(
        eqn.params["body_jaxpr"], [*consts, *start], at.hindered(IN_WHILE)
    )
    ends = [derived(notes.fresh(), (a, b)) for a, b in zip(carry, results)]
    return [
        replace(end, parameters=_all((a.parameters, b.parameters)))
        for end, a, b in zip(ends, start, (_some(b, n) for b, n in zip(results, ranks)))
    ]


def _slice(piece: Piece) -> Piece:
    """Returns a piece as each turn of a loop gets it."""
    first, rest = piece.axes[0], piece.axes[1:]
    cut = piece.part is not None and piece.part[0] == 0
    mixed = any(atom.axis is None or atom.flipped for atom in first)
    repeated = all(atom.axis is None for atom in first)
    indexed = any(index is not None for index in piece.at)
    if piece.broken or cut or (mixed and not repeated) or (indexed and not repeated):
        return piece.some(len(rest))
    part = piece.part and (piece.part[0] - 1, *piece.part[1:])
    if repeated:
        return replace(piece, axes=rest, part=part)
    stack, at = (*piece.stack, first), (*piece.at, None)
    return replace(piece, axes=rest, stack=stack, at=at, part=part)


def _joined(a: Value, b: Value, rank: int) -> Value:
    """Returns what is known of what is carried on, at every turn."""
    kept = [piece for piece in a.parameters if piece in b.parameters]
    known = {piece.of for piece in kept}
    for piece in (*a.parameters, *b.parameters):
        if piece.of not in known:
            known.add(piece.of)
            kept.append(piece.some(rank))
    value = derived(a.number, (a, b))
    return replace(value, parameters=tuple(kept), uses=None)


def _some(value: Value, rank: int) -> Value:
    """Returns what is known of some of the elements of an array."""
    pieces = tuple(piece.some(rank) for piece in value.parameters)
    return replace(value, parameters=pieces, outputs=())


def _all(rows: Iterable[Iterable[Piece]]) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for row in rows:
        found += [piece for piece in row if piece not in found]
    return tuple(found)
