"""Parameters without a tap, and those that are alike as one line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from linboost_optax._layer import join, split

# Up to so many arrays are listed one by one.
FEW = 3


@dataclass(frozen=True)
class Plain:
    """A parameter array without a tap, and why it keeps its plain gradient."""

    path: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class PlainGroup:
    """Parameter arrays without a tap that are alike but for numbers in their names.

    Attributes:
      pattern: of their names: ``*`` where numbers differ, last names in braces.
      arrays: how many there are.
      parameters: how many numbers they hold.
      kernel_parameters: of these, the numbers in arrays with two axes or more.
      reason: why they keep their plain gradient.
    """

    pattern: str
    arrays: int
    parameters: int
    kernel_parameters: int
    reason: str

    @property
    def advice(self) -> str:
        """What to do about them."""
        if not self.kernel_parameters:
            return "nothing: without a kernel they have no inputs to whiten"
        return (
            "what the reason says; else declare a layer (linen.register), or give the "
            "kernel an optimizer of its own (optax.partition)"
        )


def grouped(plain: Iterable[Plain]) -> list[PlainGroup]:
    """Returns all arrays as groups, in the order of each one's first array."""
    return [_group(alike) for alike in _alike(plain).values()]


def listed(plain: Iterable[Plain]) -> Iterator[tuple[str, str, str]]:
    """Yields name, shape and reason, one by one or for a group of more than ``FEW``."""
    groups = _alike(plain)
    for p in plain:
        alike = groups[_key(p)]
        if len(alike) <= FEW:
            yield p.path, shape_text(p.shape), p.reason
        elif p is alike[0]:
            group = _group(alike)
            yield group.pattern, f"{group.arrays} arrays", group.reason


def shape_text(shape: Iterable[int]) -> str:
    """Returns a shape as people read it."""
    return "x".join(str(n) for n in shape) or "scalar"


def _key(p: Plain) -> tuple[str, str]:
    return p.reason, re.sub(r"\d+", "*", join(split(p.path)[:-1]))


def _alike(plain: Iterable[Plain]) -> dict[tuple[str, str], list[Plain]]:
    groups: dict[tuple[str, str], list[Plain]] = {}
    for p in plain:
        groups.setdefault(_key(p), []).append(p)
    return groups


def _group(alike: list[Plain]) -> PlainGroup:
    paths = [split(p.path) for p in alike]
    last: dict[str, list[str]] = {}
    for path in paths:
        last.setdefault(re.sub(r"\d+", "*", path[-1]), []).append(path[-1])
    names = [_pattern(each) for each in last.values()]
    name = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
    above = _pattern([join(path[:-1]) for path in paths])
    sizes = [(math.prod(p.shape), len(p.shape)) for p in alike]
    return PlainGroup(
        pattern=f"{above}/{name}" if above else name,
        arrays=len(alike),
        parameters=sum(size for size, _ in sizes),
        kernel_parameters=sum(size for size, axes in sizes if axes >= 2),
        reason=alike[0].reason,
    )


def _pattern(names: list[str]) -> str:
    """Returns names that differ in numbers as one, with stars where they do."""
    parts = zip(*(re.split(r"(\d+)", name) for name in names))
    return "".join(each[0] if len(set(each)) == 1 else "*" for each in parts)
