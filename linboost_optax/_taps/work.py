"""Floating-point operations of a function of arrays, counted in its jaxpr.

A solver says what it does by doing it: nothing here knows one from another. What is
counted, with n numbers in an output:

- a product of k terms each: 2 k n, sums included;
- a Cholesky factorisation of width d: d^3 / 3, a triangular solve with m columns:
  d^2 m, a symmetric eigendecomposition with vectors: 9 d^3 (Golub and Van Loan, Matrix
  Computations, section 8.3);
- a sum or another reduction: one operation a number that goes in;
- all else on floats: one a number that comes out; moving numbers is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from linboost_optax._jaxprs import subjaxprs

_FREE = frozenset(
    (
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "dynamic_slice",
        "gather",
        "iota",
        "pad",
        "reshape",
        "rev",
        "select_n",
        "slice",
        "squeeze",
        "stop_gradient",
        "transpose",
    )
)


class Work(NamedTuple):
    """Floating-point operations.

    Attributes:
      always: in every call.
      branched: more in calls that take the costliest branch of every ``lax.cond``.
    """

    always: float = 0.0
    branched: float = 0.0

    def times(self, n: int) -> Work:
        """Returns the operations of ``n`` calls."""
        return Work(n * self.always, n * self.branched)


def count(function: Callable[..., Any], *args: Any) -> Work:
    """Returns the operations of ``function(*args)``, given arrays or their shapes."""
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> Work:
    each = [_of_equation(eqn) for eqn in jaxpr.eqns]
    return Work(sum(w.always for w in each), sum(w.branched for w in each))


def _of_equation(eqn: Any) -> Work:
    inner = [_of_jaxpr(jaxpr) for jaxpr in subjaxprs(eqn.params)]
    if eqn.primitive.name == "cond":
        return Work(0.0, max(sum(work) for work in inner))
    if inner:
        work = Work(sum(w.always for w in inner), sum(w.branched for w in inner))
        return work.times(eqn.params.get("length", 1))  # of a scan
    return Work(_operations(eqn))


def _operations(eqn: Any) -> float:
    name = eqn.primitive.name
    inputs = [var.aval for var in eqn.invars]
    out = eqn.outvars[0].aval
    if name in _FREE or not jnp.issubdtype(out.dtype, jnp.floating):
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * out.size * math.prod(inputs[0].shape[i] for i in contracted)
    # Matrices, as factorisations take them: the last two axes.
    width = inputs[0].shape[-1] if inputs[0].ndim else 1
    if name == "cholesky":
        return inputs[0].size * width / 3
    if name == "triangular_solve":
        return 1.0 * inputs[1].size * width
    if name == "eigh":
        return 9.0 * inputs[0].size * width
    if name.startswith("reduce_"):
        return 1.0 * inputs[0].size
    return 1.0 * out.size
