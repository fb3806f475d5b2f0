"""Tracing a function of parameters, and reading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from linboost_optax._program.notes import Context
from linboost_optax._program.reader import Reader
from linboost_optax._program.uses import Scope, Use
from linboost_optax._program.values import Value
from linboost_optax._taps import rows
from linboost_optax._taps.arguments import of_arrays
from linboost_optax._taps.declared import tracing


@dataclass(frozen=True)
class Program:
    """A traced function, read.

    Attributes:
      closed: what was traced: of the leaves of the parameters, then arrays of data.
      scope: what it does.
      uses: of kernels, in the order in which they run.
      outside: parameters that are multiplied with data by what is no layer, and why.
      elsewhere: parameters that meet data element by element, and by which primitive.
      left: parameters that the user leaves alone, and why.
      shapes: of the parameters, by number.
      seen: numbers of the parameters that anything is computed from.
      masks: of the contexts of ``only_rows``, by number.
      mask_numbers: of masks; those that have equal ones are the same array.
      arrays: the data.
      rebuild: makes what the function returned of the results.
    """

    closed: ClosedJaxpr
    scope: Scope
    uses: Sequence[Use]
    outside: Mapping[int, str]
    elsewhere: Mapping[int, str]
    left: Mapping[int, str]
    shapes: Mapping[int, tuple[int, ...]]
    seen: frozenset[int]
    masks: Mapping[int, rows.Masks]
    mask_numbers: Mapping[int, Any]
    arrays: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]


def trace(
    function: Callable[..., Any],
    params: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    known: frozenset[int] | None = None,
    states: int = 0,
) -> Program:
    """Traces ``function(params, *args, **kwargs)`` and reads it.

    Args:
      function: of parameters and data.
      params: a tree of arrays.
      args: what else it is called with; leaves that are no arrays are static.
      kwargs: likewise.
      known: numbers of the leaves of ``params`` to follow; None for all.
      states: how many arrays, the first of ``args``, are no data but what a model keeps
        beside its parameters.
    """
    leaves, treedef = jax.tree.flatten(params)
    called, arrays = of_arrays(function, args, kwargs, is_array)
    static: dict[int, Any] = {}
    structure: list[Any] = []

    def flat(leaves: list[Any], arrays: list[Any]) -> list[Any]:
        out = called(jax.tree.unflatten(treedef, leaves), arrays)
        results, tree = jax.tree.flatten(out)
        structure.append(tree)
        static.clear()
        static.update(
            {i: x for i, x in enumerate(results) if not isinstance(x, jax.Array)}
        )
        return [x for i, x in enumerate(results) if i not in static]

    with rows.hidden(), tracing():
        try:
            closed = jax.make_jaxpr(flat)(leaves, arrays)
        except _LOOKS as error:
            raise TypeError(_NUMBERS.format(name=_name(function))) from error
    reader = Reader()
    notes = reader.notes
    values = [
        notes.parameter(i, tuple(jax.numpy.shape(leaf)))
        if known is None or i in known
        else Value(notes.fresh(), made=True)
        for i, leaf in enumerate(leaves)
    ]
    numbers: dict[int, int] = {}  # one array may be several arguments
    for i, array in enumerate(arrays):
        number = numbers.setdefault(id(array), notes.fresh())
        values.append(Value(number, data=i >= states, made=i < states))
    consts = [notes.data() for _ in closed.jaxpr.constvars]
    scope, _ = reader.read(closed.jaxpr, consts, values, Context())
    used = _used(closed)
    tree = structure[-1]
    declared = {use.parameter for use in notes.uses if use.declared} | {*notes.left}
    told = declared | {
        use.bias.parameter for use in notes.uses if use.declared and use.bias
    }
    for use in notes.uses:
        use.ignored |= use.parameter in declared and not use.declared

    def rebuild(results: Sequence[Any]) -> Any:
        queue = iter(results)
        count = len(static) + len(results)
        flat = [static[i] if i in static else next(queue) for i in range(count)]
        return jax.tree.unflatten(tree, flat)

    return Program(
        closed=closed,
        scope=scope,
        uses=[use for use in notes.uses if not use.ignored],
        outside={i: s for i, s in notes.outside.items() if i not in declared},
        shapes=notes.shapes,
        seen=frozenset(
            i for i, var in enumerate(closed.jaxpr.invars[: len(leaves)]) if var in used
        ),
        masks=notes.masks,
        elsewhere={i: s for i, s in notes.elsewhere.items() if i not in told},
        left=notes.left,
        mask_numbers=notes.mask_numbers,
        arrays=arrays,
        rebuild=rebuild,
    )


_LOOKS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_NUMBERS = (
    "`{name}` looks at numbers while it runs (`if loss > 0`, `float(loss)`, "
    "`np.asarray(x)`), so that it cannot be traced, and a function is read as it is "
    "traced. Use jax.lax.cond or jnp.where for `if`, jnp for NumPy, jax.debug.print to "
    "print, and return with `has_aux=True` what is to be looked at."
)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _used(closed: ClosedJaxpr) -> set[Any]:
    """Returns the variables that equations or results read."""
    used: set[Any] = set()
    for eqn in closed.jaxpr.eqns:
        used.update(id(var) for var in eqn.invars)
    used.update(id(var) for var in closed.jaxpr.outvars)
    return {var for var in closed.jaxpr.invars if id(var) in used}


def is_array(leaf: Any) -> bool:
    """Whether an argument is an array, or stands for one."""
    return isinstance(leaf, jax.ShapeDtypeStruct) or hasattr(leaf, "__array__")
