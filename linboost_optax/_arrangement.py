"""How a parameter's axes become those of a kernel, whatever a framework does to them.

Equinox keeps ``[out, in]`` and multiplies from the left, NNX stacks layers along any
axis, transposed convolutions flip their window: a kernel in this library's layout is
the parameter, cut into *atoms*, with these in another order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Arrangement:
    """An invertible rearrangement of a parameter into a kernel or bias.

    Attributes:
      shape: of the parameter.
      atoms: sizes of the pieces its axes are cut into, in the parameter's order.
      order: which atom comes where in the result.
      flipped: places, in the result's order, of the atoms that run backwards.
    """

    shape: tuple[int, ...]
    atoms: tuple[int, ...]
    order: tuple[int, ...]
    flipped: tuple[int, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether the result is the parameter, but for its shape."""
        return not self.flipped and self.order == tuple(range(len(self.order)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the atoms in their new order."""
        return tuple(self.atoms[i] for i in self.order)

    def follow(self, axes: Sequence[_Name]) -> list[_Name | None]:
        """Returns what belongs to the parameter's axes by atom, in their new order.

        Of an axis that is cut it belongs to the first of its pieces; of one that is
        flipped to none.
        """
        left, named = list(self.atoms), []
        for size, name in zip(self.shape, axes):
            pieces: list[_Name | None] = [name]
            reached = left.pop(0)
            while reached < size:
                reached *= left.pop(0)
                pieces.append(None)
            named += pieces
        return [
            None if place in self.flipped else named[i]
            for place, i in enumerate(self.order)
        ]

    def apply(self, parameter: jax.Array) -> jax.Array:
        """Returns the atoms of a parameter in their new order, an axis each."""
        x = parameter.reshape(self.atoms).transpose(self.order)
        return jnp.flip(x, self.flipped) if self.flipped else x

    def undo(self, x: jax.Array) -> jax.Array:
        """Returns what ``apply`` was given, from its result in any shape."""
        x = x.reshape([self.atoms[i] for i in self.order])
        x = jnp.flip(x, self.flipped) if self.flipped else x
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return x.transpose(back).reshape(self.shape)


@dataclass(frozen=True)
class Atom:
    """A run of indices along one axis of an array, or along none.

    Attributes:
      axis: of the array; None for an axis that repeats it (a broadcast, samples).
      stride: distance of two neighbours along that axis.
      size: how many there are.
      flipped: whether they run backwards.
    """

    axis: int | None
    stride: int
    size: int
    flipped: bool = False


# What one axis of an array is made of, the slowest first; of size one if empty.
Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def whole(shape: tuple[int, ...]) -> Axes:
    """Returns the axes of an array as they are."""
    return tuple((Atom(i, 1, n),) if n != 1 else () for i, n in enumerate(shape))


def repeated(size: int) -> Axis:
    """Returns an axis along which an array is repeated."""
    return (Atom(None, 1, size),) if size != 1 else ()


def size_of(axis: Axis) -> int:
    """Returns the length of an axis."""
    return math.prod(atom.size for atom in axis)


def reverse(axis: Axis) -> Axis:
    """Returns an axis that is walked backwards."""
    return tuple(Atom(a.axis, a.stride, a.size, not a.flipped) for a in axis)


def reshape(axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Returns the axes after a reshape; None where it cuts across what is known."""
    queue = [atom for axis in axes for atom in axis]
    queue.reverse()
    result: list[Axis] = []
    for size in shape:
        axis: list[Atom] = []
        while size > 1:
            if not queue:
                return None
            atom = queue.pop()
            if size % atom.size == 0:
                size //= atom.size
                axis.append(atom)
            elif atom.size % size == 0:
                inner = atom.size // size
                axis.append(Atom(atom.axis, atom.stride * inner, size, atom.flipped))
                queue.append(Atom(atom.axis, atom.stride, inner, atom.flipped))
                size = 1
            else:
                return None
        result.append(_merged(axis))
    return tuple(result) if not queue else None


def _merged(axis: list[Atom]) -> Axis:
    merged: list[Atom] = []
    for atom in axis:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.axis == atom.axis
            and last.flipped == atom.flipped
            and (atom.axis is None or last.stride == atom.stride * atom.size)
        ):
            stride, size = atom.stride, last.size * atom.size
            merged[-1] = Atom(atom.axis, stride, size, atom.flipped)
        else:
            merged.append(atom)
    return tuple(merged)


def arrange(shape: tuple[int, ...], order: list[Atom]) -> Arrangement | None:
    """Returns the rearrangement of an array of ``shape`` into atoms in this order.

    Returns:
      None unless the atoms are the whole array, each element once.
    """
    by_place = sorted(order, key=lambda a: (a.axis, -a.stride))
    for i, n in enumerate(shape):
        expected = n
        for atom in (a for a in by_place if a.axis == i):
            if atom.stride * atom.size != expected:
                return None
            expected = atom.stride
        if expected != 1:
            return None
    return Arrangement(
        shape=shape,
        atoms=tuple(atom.size for atom in by_place),
        order=tuple(by_place.index(atom) for atom in order),
        flipped=tuple(i for i, atom in enumerate(order) if atom.flipped),
    )
