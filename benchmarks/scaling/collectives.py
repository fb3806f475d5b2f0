"""What devices say to each other in a compiled step, read from the text of its HLO.

A loop says what is in its body as often as it turns, and a branch what is in it only
when it is taken: both are followed from the entry, for the text has either once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
)

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[\w\-]+)"
    r"\((?P<operands>.*?)\)(?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?P<how>to_apply|calls|body|condition|branch_computations|true_computation"
    r"|false_computation|called_computations)=(?P<names>\{.*?\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


@dataclass(frozen=True)
class Collective:
    """One thing that devices say to each other.

    Attributes:
      kind: one of `KINDS`.
      numbers: how many it carries: of what goes in on a device and what comes out
        there the larger, so the whole of what is gathered or scattered.
      size: their bytes.
      times: how often it is said where it is said: more than once in a loop.
      branch: whether it is in a branch, which not every step need take.
    """

    kind: str
    numbers: int
    size: int
    times: int = 1
    branch: bool = False


class _Instruction(NamedTuple):
    name: str
    type: str
    op: str
    operands: str
    rest: str


def read(text: str) -> list[Collective]:
    """Every collective that the entry of a compiled program comes to.

    Args:
      text: of the compiled program, as `compiled.as_text()` has it.

    Returns:
      The collectives, in the order of the text from the entry on.

    Raises:
      ValueError: if the text has no entry, a collective is asynchronous, or one is in
        a loop of unknown length.
    """
    computations, entry = _computations(text)
    return list(_follow(computations, entry))


def summary(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Count, numbers and bytes of each kind that occurs, loops told out."""
    result: dict[str, dict[str, int]] = {}
    for each in collectives:
        sums = result.setdefault(each.kind, {"count": 0, "numbers": 0, "bytes": 0})
        sums["count"] += each.times
        sums["numbers"] += each.times * each.numbers
        sums["bytes"] += each.times * each.size
    return result


def total(summed: dict[str, dict[str, int]], what: str) -> int:
    """Count, numbers or bytes of all kinds in a summary."""
    return sum(kind[what] for kind in summed.values())


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of every computation by its name, and the entry's name."""
    found: dict[str, list[_Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None:
            instruction = _INSTRUCTION.match(_COMMENT.sub("", line))
            if instruction is not None:
                current.append(_Instruction(**instruction.groupdict()))
    if entry is None:
        raise ValueError(
            "`text` must be the HLO of a program with an ENTRY, got "
            f"{text[:40]!r}. Pass compiled.as_text()."
        )
    return found, entry


def _follow(
    computations: dict[str, list[_Instruction]], name: str, branch: bool = False
) -> Iterator[Collective]:
    types = {each.name: each.type for each in computations[name]}
    for each in computations[name]:
        if each.op.removesuffix("-start") in KINDS:
            yield _collective(each, types, branch)
            continue
        for called in _CALLED.finditer(each.rest):
            taken_at_times = branch or called["how"] in _BRANCHES
            for callee in _NAME.findall(called["names"]):
                inner = list(_follow(computations, callee, taken_at_times))
                # How often a loop turns need not be known where it says nothing.
                turns = _trips(each) if inner and each.op == "while" else 1
                yield from (replace(one, times=turns * one.times) for one in inner)


def _collective(each: _Instruction, types: dict[str, str], branch: bool) -> Collective:
    if each.op not in KINDS:
        raise ValueError(
            f"`text` must have collectives that wait for their end, got {each.op} as "
            f"%{each.name}, whose type holds what goes in, too. Compile for CPUs."
        )
    operands = [types[name] for name in _NAME.findall(each.operands) if name in types]
    numbers, size = max(_sizes(" ".join(operands)), _sizes(each.type))
    return Collective(each.op, numbers, size, branch=branch)


def _trips(loop: _Instruction) -> int:
    known = _TRIPS.search(loop.rest)
    if known is None:
        raise ValueError(
            "`text` must say how often a loop with collectives turns, got no "
            f"known_trip_count of %{loop.name}. Compile a step whose loops have a "
            "fixed length."
        )
    return int(known[1])


def _sizes(types: str) -> tuple[int, int]:
    """How many numbers the arrays of a type have, and how many bytes."""
    numbers = size = 0
    for dtype, shape in _ARRAY.findall(types):
        count = math.prod(int(axis) for axis in shape.split(",") if axis)
        numbers += count
        size += math.ceil(count * _bits(dtype) / 8)
    return numbers, size


def _bits(dtype: str) -> int:
    """Of one number: `pred` takes a byte, all others have their bits in the name."""
    digits = re.search(r"\d+", dtype)
    return 8 if digits is None else int(digits[0])
