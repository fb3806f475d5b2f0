"""What has been found out while a traced function is read."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from linboost_optax._arrangement import whole
from linboost_optax._program.uses import Use
from linboost_optax._program.values import Piece, Value
from linboost_optax._taps import marks

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
      rows_mapped: whether that context is inside of ``jax.vmap``.
    """

    times: int = 1
    backward: bool = False
    forward: bool = False
    hindrance: str | None = None
    rows: int | None = None
    rows_mapped: bool = False

    def at(self, stack: str) -> Context:
        """Returns the context of an equation with this name stack."""
        if not stack:
            return self
        rows = marks.rows_context(stack)
        return replace(
            self,
            backward=self.backward or "transpose(jvp(" in stack,
            forward=self.forward or "jvp(" in stack,
            rows=self.rows if rows is None else rows,
            rows_mapped=self.rows_mapped or marks.rows_mapped(stack),
        )

    def hindered(self, why: str) -> Context:
        """Returns this context inside of what hinders taps; the outermost counts."""
        return replace(self, hindrance=self.hindrance or why)


@dataclass
class Notes:
    """What was found out so far.

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

    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
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

    def number(self, *what: Hashable) -> int:
        """Returns the number of the array that is told by this."""
        number = self._numbers.get(what)
        if number is None:
            number = self._numbers[what] = self.fresh()
        return number

    def result(self, eqn: Any, row: Sequence[Value], k: int) -> int:
        """Returns the number of a result of an equation: of equal ones, the same."""
        if eqn.effects:
            return self.fresh()
        try:
            params = tuple(sorted(eqn.params.items(), key=lambda item: item[0]))
            aval = str(eqn.outvars[k].aval)
            numbers = tuple(value.number for value in row)
            return self.number(eqn.primitive.name, params, numbers, aval, k)
        except TypeError:  # not hashable
            return self.fresh()

    def parameter(self, number: int, shape: tuple[int, ...]) -> Value:
        """Returns what is known of a parameter."""
        self.shapes[number] = shape
        return Value(self.fresh(), (Piece(number, whole(shape)),), made=True)

    def data(self) -> Value:
        """Returns what is known of an array of data."""
        return Value(self.fresh(), data=True)

    def mark(self, name: str, value: Value) -> None:
        """Takes note of a mark that the user's function has left."""
        mask = marks.mask_of(name)
        if mask is not None:
            context, slot, layers = mask
            self.masks.setdefault(context, {})[layers] = slot
            if slot is not None:
                self.mask_numbers[slot] = value.number

    def lost(
        self,
        name: str,
        row: Sequence[Value],
        values: Sequence[Value],
        known: set[int],
        one: bool,
    ) -> None:
        """Takes note of the parameters that nothing is known of any more.

        Args:
          name: of the primitive where that is.
          row: its operands.
          values: its results.
          known: parameters whose part in it is understood.
          one: whether its result is one number.
        """
        kept = {piece.of for value in values for piece in value.parameters} | known
        data = any(value.data and not value.gradient for value in values)
        solved = name == "triangular_solve"
        for i, value in enumerate(row):
            others = [other for k, other in enumerate(row) if k != i]
            active = any(other.is_activation for other in others)
            for piece in value.parameters:
                if piece.of in kept or not data:
                    continue
                # Parameters that data has changed (a mask, an anchor) may end in a
                # penalty, and what is made of one (a norm) may scale an output.
                vector = len(self.shapes[piece.of]) < 2
                spread = piece.spread or piece.repeats > 1
                penalty = one or vector or piece.broken
                met = active and (vector or not piece.broken)
                if spread or solved or met or not penalty:
                    self.elsewhere.setdefault(piece.of, name)

    def state(self) -> tuple[Any, ...]:
        """Returns what ``rewind`` needs to forget all that comes after."""
        marks = [(use, use.bias, use.ignored) for use in self.uses]
        return len(self.uses), dict(self.outside), dict(self.elsewhere), marks

    def rewind(self, state: tuple[Any, ...]) -> None:
        """Forgets what was found out since."""
        count, self.outside, self.elsewhere, marks = state
        del self.uses[count:]
        for use, bias, ignored in marks:
            use.bias, use.ignored = bias, ignored
