"""What is known of an array in a traced function."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from linboost_optax._arrangement import Axes, Axis


@dataclass(frozen=True)
class Piece:
    """A parameter, or a layer's output, that an array is made of, element by element.

    Attributes:
      of: number of the parameter, or of the use whose output it is.
      axes: what each of the array's axes is among those of the parameter (of the
        output: block axes, then output axes).
      stack: axes of the parameter that loops and indices have taken away, the outermost
        first.
      at: the index of each of those; None where it is a loop's.
      part: the axis and the stretch of the array that it fills; None for all of it.
      scaled: whether it is not what it was: an output times a number, a parameter that
        data has changed sample by sample.
      broken: whether it is only some of the elements, or sums of them, along axes that
        are not known.
      spread: whether a broken one was repeated, as what meets samples is.
    """

    of: int
    axes: Axes
    stack: Axes = ()
    at: tuple[int | None, ...] = ()
    part: tuple[int, int, int] | None = None
    scaled: bool = False
    broken: bool = False
    spread: bool = False

    def moved(self, axes: Axes, axis: int | None = None) -> Piece:
        """Returns the piece in an array of other axes.

        Args:
          axes: the new axes.
          axis: where the axis of ``part`` is now, for pieces that have one.
        """
        if self.part is None:
            return replace(self, axes=axes)
        return replace(self, axes=axes, part=(axis, *self.part[1:]))

    def some(self, rank: int) -> Piece:
        """Returns some of the elements, in an array of this many axes."""
        axes, spread = ((),) * rank, self.spread or self.repeats > 1
        return Piece(self.of, axes, broken=True, spread=spread)

    @property
    def repeats(self) -> int:
        """How often the array repeats it."""
        atoms = [atom for axis in self.axes for atom in axis if atom.axis is None]
        count = 1
        for atom in atoms:
            count *= atom.size
        return count


@dataclass(frozen=True)
class Value:
    """What is known of an array.

    Attributes:
      number: two arrays with one number are equal.
      parameters: the parameters that it is made of.
      outputs: the layers' outputs that it is the sum of.
      data: whether it depends on data.
      made: whether it depends on parameters.
      gradient: whether it comes out of the backward pass of a gradient inside the
        function: of the shape of a parameter, and no activation.
      uniform: whether all of its elements are one number.
      uses: the few uses of kernels that it depends on; None for many.
    """

    number: Hashable
    parameters: tuple[Piece, ...] = ()
    outputs: tuple[Piece, ...] = ()
    data: bool = False
    made: bool = False
    gradient: bool = False
    uniform: bool = False
    uses: frozenset[int] | None = frozenset()

    @property
    def is_activation(self) -> bool:
        """Whether it comes from parameters and data, forwards."""
        return self.data and self.made and not self.gradient


_MANY = 8  # uses that one value may depend on and still be followed one by one


def union(uses: Iterable[frozenset[int] | None]) -> frozenset[int] | None:
    """Returns all of several sets of uses; None for many."""
    result: frozenset[int] = frozenset()
    for each in uses:
        if each is None:
            return None
        result |= each
    return result if len(result) <= _MANY else None


def derived(number: Hashable, values: Sequence[Value]) -> Value:
    """Returns what is known of anything that is computed from some values."""
    return Value(
        number,
        data=any(value.data for value in values),
        made=any(value.made for value in values),
        gradient=any(value.gradient for value in values),
        uses=union(value.uses for value in values),
    )


def moved(piece: Piece, axes: Sequence[Axis], source: Sequence[int | None]) -> Piece:
    """Returns a piece after its array's axes were permuted, dropped or inserted.

    Args:
      piece: in the array before.
      axes: what the axes are now.
      source: which axis each of them was.
    """
    axis = None
    if piece.part is not None:
        axis = source.index(piece.part[0])
    return piece.moved(tuple(axes), axis)
