"""Every kind of layer, statistic, method, layout, mesh and adapter, with each other.

One table a factor; a combination is one of each. All of them, over seven thousand, take
hours: ``python -m tests.sharding product``. Some in which any two that go together
occur take minutes: ``python -m tests.sharding product 2``, for whoever changes what is
sharded. The suite has some in which each occurs.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import astuple, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from linboost_optax import linen
from tests.sharding.cases import (
    POLAR,
    TOLERANCE,
    close,
    same_sharding,
    step_of,
    trained,
)
from tests.sharding.kinds import KINDS

_counts = lbo.Counts(whitened=True)
STATISTICS = {
    "gram": lbo.Gram(),
    "sketch": lbo.Sketch(3),
    "moments": lbo.Moments(),
    "inputs": lbo.Inputs(),
    "reached": lbo.Reached(lbo.Gram()),
    # Narrow enough for both of its choices.
    "auto": lbo.Auto(rank=2, max_samples=7, embeddings=_counts),
}
_SOLVERS = {
    "cholesky": lbo.Cholesky(every=2),
    "incomplete": lbo.IncompleteCholesky(),
    "cg": lbo.ConjugateGradient(),
}
_TRANSFORMS = {
    "lnb": lambda taps, solver: lbo.lnb(0.1, taps, solver),
    "whiten": lambda taps, solver: lbo.whiten(optax.adamw(0.01), taps, solver),
    "polar": lambda taps, solver: lbo.polar(0.01, taps, solver, weight_decay=0.1),
}
FACTORS = {
    "kind": tuple(KINDS),
    "statistic": tuple(STATISTICS),
    "solver": tuple(_SOLVERS),
    "transform": tuple(_TRANSFORMS),
    "layout": ("data", "rows", "columns", "stack"),
    "axes": ("explicit", "auto"),
    "adapter": ("linen", "nnx"),
}


@dataclass(frozen=True)
class Combination:
    """Twenty steps over four devices, against one device."""

    kind: str
    statistic: str
    solver: str
    transform: str
    layout: str
    axes: str
    adapter: str

    def __str__(self):
        return "; ".join(astuple(self))

    @property
    def alone(self) -> tuple[str, ...]:
        """What there is to it on one device."""
        return self.adapter, self.kind, self.statistic, self.solver, self.transform

    def __call__(self):
        """Raises unless parameters end as on one device, sharded as they began."""
        tx, want = on_one_device(*self.alone)
        made, taps = tapped(self.adapter, self.kind, self.statistic)
        kind = KINDS[self.kind]
        mesh = _mesh(self.axes)

        def put(leaf: Any, spec: P) -> jax.Array:
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        layout = kind.layout(self.layout)
        with jax.set_mesh(mesh):
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: put(leaf, layout(_is_bias(path), leaf.shape)),
                made.params,
            )
            x = put(kind.input(), P(kind.batch))
            collect = made.collect(taps, params, x)
            got = trained(jax.jit(step_of(None, tx, collect)), tx, params, x)
        close(got.params, want, POLAR if self.transform == "polar" else TOLERANCE)
        if self.axes == "explicit":
            jax.tree.map(same_sharding, got.params, params)


def _is_bias(path: Any) -> bool:
    return "bias" in jax.tree_util.keystr(path)


@functools.cache
def _mesh(axes: str) -> jax.sharding.Mesh:
    kind = AxisType.Auto if axes == "auto" else AxisType.Explicit
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)


class Linen:
    """A Linen module and its parameters."""

    def __init__(self, kind: str):
        self.module, self.x = KINDS[kind].linen(), KINDS[kind].input()
        self.params = self.module.init(jax.random.key(0), self.x)["params"]

    def taps(self, statistic: Any) -> lbo.Taps:
        return linen.taps(self.module, self.x, statistic=statistic)

    def loss(self, params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(self.module.apply({"params": params}, x) ** 2)

    def collect(self, taps: lbo.Taps, params: Any, x: jax.Array) -> Any:
        """Returns what makes loss, gradients and statistics of arrays like these."""
        if _is_refused(self.loss, params, x):
            return linen.value_and_grad(_automatic(self.loss), taps)
        return linen.value_and_grad(self.loss, taps)


class NNX:
    """An NNX module, and its parameters apart."""

    def __init__(self, kind: str):
        self.x = KINDS[kind].input()
        model = KINDS[kind].nnx(rngs=nnx.Rngs(0))
        self.graph, self.params, self.rest = nnx.split(model, nnx.Param, ...)

    def model(self, params: Any) -> nnx.Module:
        return nnx.merge(self.graph, params, self.rest, copy=True)

    def taps(self, statistic: Any) -> lbo.Taps:
        return lbo.nnx.taps(self.model(self.params), self.x, statistic=statistic)

    def loss(self, params: Any, x: jax.Array) -> jax.Array:
        return _of_module(self.model(params), x)

    def collect(self, taps: lbo.Taps, params: Any, x: jax.Array) -> Any:
        """Likewise, of a module as it is; of one that is split where axes change."""
        if _is_refused(self.loss, params, x):
            return lbo.nnx.value_and_grad(_automatic(self.loss), taps)
        collect = lbo.nnx.value_and_grad(_of_module, taps)
        return lambda params, x: collect(self.model(params), x)


def _of_module(model: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(model(x) ** 2)


def _is_refused(loss: Any, *args: Any) -> bool:
    """Whether Flax or JAX itself refuses to differentiate a loss of sharded arrays."""
    try:
        jax.eval_shape(jax.grad(loss), *args)
    except Exception:
        return True
    return False


def _automatic(loss: Any) -> Any:
    """Returns a loss that runs on automatic axes: what the guide says to do then."""
    return jax.sharding.auto_axes(loss, out_sharding=P())


_ADAPTERS = {"linen": Linen, "nnx": NNX}


@functools.cache
def tapped(adapter: str, kind: str, statistic: str) -> tuple[Any, lbo.Taps]:
    """Returns a module in its adapter, and its taps."""
    made = _made(adapter, kind)
    return made, made.taps(STATISTICS[statistic])


@functools.cache
def _made(adapter: str, kind: str) -> Any:
    return _ADAPTERS[adapter](kind)


@functools.cache
def on_one_device(
    adapter: str, kind: str, statistic: str, solver: str, transform: str
) -> tuple[optax.GradientTransformation, Any]:
    """Returns the optimizer, and the parameters that one device ends at."""
    made, taps = tapped(adapter, kind, statistic)
    tx = _TRANSFORMS[transform](taps, _SOLVERS[solver])
    collect = made.collect(taps, made.params, made.x)
    step = jax.jit(step_of(None, tx, collect))
    return tx, trained(step, tx, made.params, made.x).params


@functools.cache
def refusal(adapter: str, kind: str, statistic: str, solver: str, transform: str):
    """Returns what is said where a combination is refused on any device, or None."""
    try:
        _, taps = tapped(adapter, kind, statistic)
        _TRANSFORMS[transform](taps, _SOLVERS[solver])
    except ValueError as error:
        return str(error)
    return None


@functools.cache
def every() -> list[Combination]:
    """Returns all that are not refused."""
    found = []
    for each in itertools.starmap(Combination, itertools.product(*FACTORS.values())):
        if each.layout == "stack" and not KINDS[each.kind].stacked:
            continue
        if refusal(*each.alone) is None:
            found.append(each)
    return found


def covering(strength: int) -> list[Combination]:
    """Returns some in which all values of so many factors that occur together, do.

    Greedy: each in turn has most of what is not there yet, the first of those that do.
    """
    columns = np.array([astuple(each) for each in every()]).T
    codes, count = [], 0
    for some in itertools.combinations(columns, strength):
        _, code = np.unique(np.stack(some), axis=1, return_inverse=True)
        codes.append(code + count)
        count = codes[-1].max() + 1
    parts, missing, chosen = np.stack(codes, axis=1), np.ones(count, bool), []
    while missing.any():
        best = int(np.argmax(missing[parts].sum(axis=1)))
        missing[parts[best]] = False
        chosen.append(best)
    return [every()[i] for i in sorted(chosen)]
