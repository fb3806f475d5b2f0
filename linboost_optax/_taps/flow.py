"""Where marked arrays go, read off a jaxpr.

Two things are followed. *Kernels* keep their names through whatever leaves their size
alone: casts, masks, noise, averages, transposes, calls and loops. *Data* is what
depends on the inputs or outputs of the model. What does not follow is forgotten, never
guessed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_KERNEL, _USE, _OUTPUT = "linboost_kernel", "linboost_use", "linboost_output"
_INSIDE, _UNTAPPED = "linboost_inside", "linboost_untapped"
# An optimizer's view of a linear map: these contract a kernel with something else.
_CONTRACTIONS = frozenset(
    (
        "dot_general",
        "conv_general_dilated",
        "gather",
        "ragged_dot",
        "ragged_dot_general",
    )
)


@dataclass(frozen=True)
class Tags:
    """What is known of an array.

    Attributes:
      kernels: names of the kernels that it is made of, element by element.
      data: whether it depends on the model's inputs or outputs.
      moved: whether elements are no longer where they were in the kernel.
    """

    kernels: frozenset[str] = frozenset()
    data: bool = False
    moved: bool = False

    def __or__(self, other: "Tags") -> "Tags":
        kernels, data = self.kernels | other.kernels, self.data or other.data
        return Tags(kernels, data, self.moved or other.moved)


_Row: TypeAlias = list[Tags]


@dataclass
class Flow:
    """What was found, by the number of a site: a place that a kernel is used at.

    Attributes:
      kernels: names of the kernels that arrive at each site.
      mixed: sites where other kernels arrive at one time than at another, though they
        are one place in Python: a function that JAX keeps was called with several.
      uses: how often each site is used, loops unrolled.
      hidden: sites inside a function with a derivative of its own.
      entered: sites that such a function uses, whose kernels arrive outside of it.
      nested: sites that are used inside an equation.
      outside: kernels that are contracted with data outside of every site's own call,
        or arrive at a site transposed, and by which primitive.
    """

    kernels: dict[int, frozenset[str]] = field(default_factory=dict)
    mixed: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    entered: set[int] = field(default_factory=set)
    nested: set[int] = field(default_factory=set)
    uses: Counter[int] = field(default_factory=Counter)
    outside: dict[str, str] = field(default_factory=dict)


def mark_kernel(site: int, kernel: jax.Array) -> jax.Array:
    """Returns the kernel, marked as what arrives at a site."""
    return checkpoint_name(kernel, f"{_KERNEL}:{site}")


def mark_use(site: int, y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a layer's output, marked as data and as one use of its site.

    The use is one number that depends on ``x``, which is what a ``vmap`` makes more of;
    the barrier keeps it alive.
    """
    one = jax.numpy.sum(jax.lax.stop_gradient(x))
    one = checkpoint_name(one, f"{_USE}:{site}")
    y, _ = jax.lax.optimization_barrier((checkpoint_name(y, f"{_OUTPUT}:{site}"), one))
    return y


def untapped(x: jax.Array) -> jax.Array:
    """Returns ``x``, which is no longer taken for a kernel."""
    return checkpoint_name(x, _UNTAPPED)


def inside(site: int) -> Any:
    """Returns a context whose operations are a site's own call."""
    return jax.named_scope(f"{_INSIDE}_{site}_")


def follow(closed: ClosedJaxpr, tags: Sequence[Tags]) -> Flow:
    """Returns where marked arrays go.

    Args:
      closed: what was traced.
      tags: of its arguments.
    """
    flow = Flow()
    _follow(flow, closed.jaxpr, list(tags), frozenset())
    flow.uses = count(closed.jaxpr, _USE)
    for eqn in closed.jaxpr.eqns:
        for inner in subjaxprs(eqn.params):
            flow.nested |= count(inner, _USE).keys()
    return flow


def _follow(flow: Flow, jaxpr: Jaxpr, tags: _Row, within: frozenset[int]) -> _Row:
    known: dict[Any, Tags] = dict(zip(jaxpr.invars, tags, strict=True))

    def read(var: Any) -> Tags:
        return Tags() if isinstance(var, Literal) else known.get(var, Tags())

    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        sites = within | {int(n) for n in re.findall(rf"{_INSIDE}_(\d+)_", stack)}
        row = [read(var) for var in eqn.invars]
        known.update(zip(eqn.outvars, _apply(flow, eqn, row, sites)))
    return [read(var) for var in jaxpr.outvars]


def _apply(flow: Flow, eqn: Any, row: _Row, within: frozenset[int]) -> _Row:
    """Returns the tags of an equation's results."""
    name = eqn.primitive.name
    if name == "name":
        return [_marked(flow, str(eqn.params["name"]), row[0])]
    if name == "scan":
        return _scan(flow, eqn, row, within)
    if name == "while":
        return _while(flow, eqn, row, within)
    inner = list(subjaxprs(eqn.params))
    if name == "cond":
        branches = [_follow(flow, each, row[1:], within) for each in inner]
        return [_any(tags) for tags in zip(*branches)]
    if inner:
        if name.startswith(("custom_vjp_call", "custom_jvp_call")):
            for each in inner:
                hidden = count(each, _KERNEL).keys()
                flow.hidden |= hidden
                flow.entered |= count(each, _USE).keys() - hidden
        if len(inner) == 1 and len(inner[0].invars) == len(row):
            return _follow(flow, inner[0], row, within)
        return [Tags(data=_any(row).data)] * len(eqn.outvars)
    if name == "optimization_barrier":
        return row
    if name in _CONTRACTIONS:
        _note_outside(flow, eqn, row, within)
        return [Tags(data=_any(row).data)] * len(eqn.outvars)
    return [_elementwise(eqn, row, out) for out in eqn.outvars]


def _marked(flow: Flow, name: str, tags: Tags) -> Tags:
    kind, _, site = name.partition(":")
    if kind == _KERNEL:
        if tags.moved:
            flow.outside.update(dict.fromkeys(tags.kernels, "transpose"))
            tags = Tags(data=tags.data)
        before = flow.kernels.setdefault(int(site), tags.kernels)
        if before != tags.kernels:
            flow.mixed.add(int(site))
            flow.kernels[int(site)] = before | tags.kernels
    if kind == _UNTAPPED:
        return Tags(data=tags.data)
    return Tags(tags.kernels, True) if kind == _OUTPUT else tags


def _elementwise(eqn: Any, row: _Row, out: Any) -> Tags:
    same = [
        tags
        for var, tags in zip(eqn.invars, row)
        if tags.kernels and _covers(var.aval, out.aval)
    ]
    moved = eqn.primitive.name in ("transpose", "rev") or _any(same).moved
    kernels = _any(same).kernels
    return Tags(kernels, _any(row).data, moved and bool(kernels))


def _covers(array: Any, out: Any) -> bool:
    """Whether an array has the size of a result, or lies along its last axes.

    The latter under ``vmap``, where what is not mapped over meets what is.
    """
    if getattr(out, "size", None) == array.size:
        return True
    shape = list(array.shape)
    while shape and shape[0] == 1:
        del shape[0]
    return bool(shape) and list(getattr(out, "shape", ()))[-len(shape) :] == shape


def _note_outside(flow: Flow, eqn: Any, row: _Row, within: frozenset[int]) -> None:
    own = frozenset().union(*(flow.kernels.get(site, frozenset()) for site in within))
    for i, tags in enumerate(row):
        others = _any([other for j, other in enumerate(row) if j != i])
        if others.data and not _contracts_all(eqn, i):
            for kernel in tags.kernels - own:
                flow.outside.setdefault(kernel, eqn.primitive.name)


def _contracts_all(eqn: Any, operand: int) -> bool:
    """Whether nothing is left of an operand: an inner product, as in a penalty."""
    if eqn.primitive.name != "dot_general":
        return False
    contracted, batch = eqn.params["dimension_numbers"]
    used = len(contracted[operand]) + len(batch[operand])
    return used == eqn.invars[operand].aval.ndim


def _scan(flow: Flow, eqn: Any, row: _Row, within: frozenset[int]) -> _Row:
    body = eqn.params["jaxpr"].jaxpr
    first = eqn.params["num_consts"]
    last = first + eqn.params["num_carry"]

    def step(flow: Flow, carry: _Row) -> _Row:
        return _follow(flow, body, row[:first] + carry + row[last:], within)

    carry = _settled(step, row[first:last])
    return carry + step(flow, carry)[last - first :]


def _while(flow: Flow, eqn: Any, row: _Row, within: frozenset[int]) -> _Row:
    body = eqn.params["body_jaxpr"].jaxpr
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]

    def step(flow: Flow, carry: _Row) -> _Row:
        return _follow(flow, body, row[first:last] + carry, within)

    carry = _settled(step, row[last:])
    step(flow, carry)
    return carry


def _settled(step: Callable[[Flow, _Row], _Row], carry: _Row) -> _Row:
    """Returns what is carried from turn to turn once it no longer changes."""
    while True:
        new = [old | tags for old, tags in zip(carry, step(Flow(), carry))]
        if new == carry:
            return carry
        carry = new


def _any(row: Sequence[Tags]) -> Tags:
    result = Tags()
    for tags in row:
        result |= tags
    return result


def count(jaxpr: Jaxpr, mark: str) -> Counter[int]:
    """Returns how many numbers have a kind of mark, by site, loops unrolled.

    A use has one. Two calls, a loop over time and a ``vmap`` with shared weights look
    nothing alike in Python; in a jaxpr they all show as more than one mark.
    """
    total: Counter[int] = Counter()
    for eqn in jaxpr.eqns:
        kind, _, site = str(eqn.params.get("name", "")).partition(":")
        if eqn.primitive.name == "name" and kind == mark:
            total[int(site)] += eqn.outvars[0].aval.size  # pyright: ignore[reportAttributeAccessIssue]
        inner = [count(sub, mark) for sub in subjaxprs(eqn.params)]
        if eqn.primitive.name == "cond":  # one branch runs
            total += _union(inner)
            continue
        # The trip count of a while loop is unknown: more than once, in general.
        times = {"scan": eqn.params.get("length"), "while": 2}
        for one in inner:
            for key, uses in one.items():
                total[key] += uses * times.get(eqn.primitive.name, 1)
    return total


def _union(counters: list[Counter[int]]) -> Counter[int]:
    result: Counter[int] = Counter()
    for counter in counters:
        result |= counter
    return result


def subjaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Returns the jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
