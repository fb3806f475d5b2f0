"""The uses of kernels that a traced function makes, and the tree of what it traces."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Jaxpr, Literal

from linboost_optax._arrangement import Arrangement, Atom, arrange
from linboost_optax._kinds import Kind
from linboost_optax._program.contraction import Access
from linboost_optax._program.values import Piece


@dataclass(frozen=True)
class Bias:
    """A parameter that is added to a layer's output.

    Attributes:
      parameter: its number.
      arrangement: of it, into the bias of the kind.
    """

    parameter: int
    arrangement: Arrangement


@dataclass(eq=False)
class Use:
    """One place where a kernel is multiplied with data.

    Attributes:
      parameter: number of the kernel.
      kind: of the layer.
      arrangement: of the parameter, into stacked kernels of the kind.
      stack: sizes of the axes that loops and indices have taken away.
      at: the index of each of those; None where it is a loop's.
      access: how an operand becomes the layer's input.
      number: of the input: equal ones are the same array.
      shape: of the input.
      dtype: of the input.
      output: order of the result's axes that makes it the layer's output.
      part: axis of the result and stretch that is this kernel's, or None.
      times: how often it runs.
      scope: number of the scope that it is in.
      hindrance: why it cannot be tapped, or None.
      forward: whether it may be of a derivative in forward mode.
      rows: number of the context of masks that is in force, or None.
      rows_mapped: whether that context is inside of ``jax.vmap``.
      bias: what is added to its result, or None.
      narrow: whether it is a product of 8 bits, which is scaled back afterwards.
      declared: whether the user says so, who then knows all uses of the kernel.
      ignored: whether it is no use as a layer.
    """

    parameter: int
    kind: Kind
    arrangement: Arrangement
    stack: tuple[int, ...]
    at: tuple[int | None, ...]
    access: Access
    number: Hashable
    shape: tuple[int, ...]
    dtype: Any
    output: tuple[int, ...]
    part: tuple[int, int, int] | None
    times: int
    scope: int
    hindrance: str | None = None
    forward: bool = False
    rows: int | None = None
    rows_mapped: bool = False
    bias: Bias | None = None
    narrow: bool = False
    declared: bool = False
    ignored: bool = False

    @property
    def geometry(self) -> Hashable:
        """What all uses of one layer must have in common."""
        return (self.kind, self.arrangement, self.stack)


@dataclass(eq=False)
class Scope:
    """What is traced as one, and what it calls.

    Attributes:
      number: of this scope.
      jaxpr: its equations.
      uses: of kernels, by equation.
      inner: what an equation calls, by equation.
      sliced: parameters of which each turn of a loop gets a slice; for bodies of loops.
    """

    number: int
    jaxpr: Jaxpr
    uses: dict[int, list[Use]] = field(default_factory=dict)
    inner: dict[int, list[Scope]] = field(default_factory=dict)
    sliced: frozenset[int] = frozenset()

    @functools.cached_property
    def last(self) -> dict[int, list[Any]]:
        """The variables that are read for the last time, by equation."""
        ends: dict[Any, int] = {}
        for i, eqn in enumerate(self.jaxpr.eqns):
            ends.update({v: i for v in eqn.invars if not isinstance(v, Literal)})
            ends.update(dict.fromkeys(eqn.outvars, i))
        kept = {v for v in self.jaxpr.outvars if not isinstance(v, Literal)}
        last: dict[int, list[Any]] = {}
        for var, i in ends.items():
            if var not in kept:
                last.setdefault(i, []).append(var)
        return last

    def all(self) -> Iterator[Use]:
        """Returns all uses, those of inner scopes included."""
        for uses in self.uses.values():
            yield from uses
        for scopes in self.inner.values():
            for scope in scopes:
                yield from scope.all()


def match_bias(y: Piece, b: Piece, use: Use, shape: tuple[int, ...]) -> Bias | None:
    """Returns a parameter as the bias of a use, if it is one.

    Args:
      y: the use's output in an array.
      b: a parameter in the array that is added to it.
      use: the use.
      shape: of the parameter.
    """
    if y.broken or b.broken or y.part != b.part or (y.scaled and not use.narrow):
        return None
    if len(y.axes) != len(b.axes) or b.at != use.at or y.stack or b.scaled:
        return None
    order: list[tuple[int, int, tuple[Atom, ...]]] = []
    for of_y, of_b in zip(y.axes, b.axes):
        known_y = [atom for atom in of_y if atom.axis is not None]
        known_b = [atom for atom in of_b if atom.axis is not None]
        if bool(known_y) != bool(known_b):
            return None
        if not known_y:
            continue
        if len(known_y) != len(of_y) or len(known_b) != len(of_b):
            return None
        sizes_y, sizes_b = [a.size for a in known_y], [a.size for a in known_b]
        if sizes_y != sizes_b and len(known_y) > 1:
            return None
        first = known_y[0]
        if any(a.flipped for a in known_y):
            return None
        order.append((first.axis or 0, -first.stride, tuple(known_b)))
    stack = [atom for axis in b.stack for atom in axis]
    if [atom.size for atom in stack] != [n for n in use.stack if n != 1]:
        return None
    atoms = [atom for *_, axis in sorted(order) for atom in axis]
    arrangement = arrange(shape, [*stack, *atoms])
    return None if arrangement is None else Bias(b.of, arrangement)
