"""How often each layer is used: marks on inputs, counted in a jaxpr.

A statistic that is not additive is refused for a layer that is used more than once.
Two calls, a loop over time and a ``vmap`` with shared weights look nothing alike in
Python; in a jaxpr they all show as more than one mark.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr

from linboost_optax._sharding import replicated

_PREFIX = "linboost_use:"


def mark(key: str, y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``y``, with a mark of one number that depends on ``x``.

    The number is what a ``vmap`` makes more of; the barrier keeps it alive.
    """
    one = replicated(lambda x: x.reshape(-1)[:1], jax.lax.stop_gradient(x))
    y, _ = jax.lax.optimization_barrier((y, checkpoint_name(one, _PREFIX + key)))
    return y


def count(jaxpr: Jaxpr) -> Counter[str]:
    """Returns the number of marks by key, loops unrolled."""
    total: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name = str(eqn.params.get("name", ""))
        if eqn.primitive.name == "name" and name.startswith(_PREFIX):
            shape = eqn.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            total[name.removeprefix(_PREFIX)] += math.prod(shape)
        inner = [count(sub) for sub in _subjaxprs(eqn.params)]
        if eqn.primitive.name == "cond":  # one branch runs
            total += _union(inner)
            continue
        # The trip count of a while loop is unknown: more than once, in general.
        times = {"scan": eqn.params.get("length"), "while": 2}
        for one in inner:
            for key, uses in one.items():
                total[key] += uses * times.get(eqn.primitive.name, 1)
    return total


def _union(counters: list[Counter[str]]) -> Counter[str]:
    result: Counter[str] = Counter()
    for counter in counters:
        result |= counter
    return result


def _subjaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
