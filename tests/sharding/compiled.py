"""What devices say to each other in a compiled step."""

from collections import Counter
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from benchmarks import paper
from benchmarks.scaling import collectives
from linboost_optax import linen
from tests.sharding.cases import OPTIMIZERS, STATISTICS, Case, loss_of, step_of
from tests.sharding.models import start


def said(step, *args):
    """Returns the collectives of a compiled step: names, and how many numbers each.

    Those of branches, which only some steps take, are left out.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        text = jax.jit(step).lower(*args).compile().as_text()
    finally:
        jax.config.update("jax_disable_most_optimizations", before)

    found = collectives.read(text)
    return [(each.kind, each.numbers) for each in found if not each.branch]


def compared(params, x, *steps):
    """Returns what is said in each of some steps of optimizers."""
    return [said(step, params, tx.init(params), x) for step, tx in steps]


def steps_of(model, x, tx_of, statistic):
    """Returns a step of Adam's, one of another optimizer, and both optimizers."""
    loss, taps = loss_of(model), linen.taps(model, x, statistic=statistic)
    adam, tx = optax.adam(1e-3), tx_of(taps)
    tapped = step_of(loss, tx, linen.value_and_grad(loss, taps))
    return (step_of(loss, adam), adam), (tapped, tx)


@dataclass(frozen=True)
class OnlySums:
    """Data-parallel steps sum gradients and statistics at once, and gather nothing."""

    mode: str
    statistic: str
    optimizer: str

    def __str__(self):
        return "only sums; " + "; ".join(vars(self).values())

    def __call__(self):
        place = Case("dense", "replicated", self.mode)
        model, params, x = start(place.model)
        statistic, tx_of = STATISTICS[self.statistic], OPTIMIZERS[self.optimizer]
        plain, ours = steps_of(model, x, tx_of, statistic)
        with place.context():
            params, x = place.placed(params, x)
            adam, found = (
                said(s, params, tx.init(params), x) for s, tx in (plain, ours)
            )
        assert {name for name, _ in found} == {"all-reduce"}, found
        assert len(found) <= len(adam) + 1, (found, adam)


class Chain(nn.Module):
    """Layers of different widths, so that their arrays can be told apart."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = jnp.tanh(nn.Dense(width)(x))
        return x


def _over_columns(ndim):
    return P(*[None] * (ndim - 1), "model")


@dataclass(frozen=True)
class OnPaper:
    """The formulas of `benchmarks/paper.py` say what a step says, to five per cent."""

    layout: str
    optimizer: str

    def __str__(self):
        return f"on paper; {self.layout}; {self.optimizer}"

    def __call__(self):
        formula, spec, batch = {
            "data": (paper.data, lambda ndim: P(), P("model")),
            "rows": (
                paper.rows,
                lambda ndim: P("model") if ndim > 1 else P(),
                P("model"),
            ),
            "columns": (paper.columns, _over_columns, P()),
        }[self.layout]
        mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
        model, x = Chain((384, 320, 192, 256)), jnp.ones((64, 256))
        params = model.init(jax.random.key(0), x)["params"]
        tx_of = {
            "whiten": lambda taps: lbo.whiten(optax.adam(1e-3), taps),
            "polar": lambda taps: lbo.polar(1e-2, taps),
        }[self.optimizer]
        plain, ours = steps_of(model, x, tx_of, lbo.Auto())
        first, *others = linen.taps(model, x).layers
        want = formula(first, self.optimizer, False)
        want += sum(formula(layer, self.optimizer, True) for layer in others)
        with jax.set_mesh(mesh):
            params = jax.tree.map(
                lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf.ndim))),
                params,
            )
            x = jax.device_put(x, NamedSharding(mesh, batch))
            adam, found = compared(params, x, plain, ours)
        more = sum(size for _, size in found) - sum(size for _, size in adam)
        assert abs(more - want) <= 0.05 * want, (more, want)


@dataclass(frozen=True)
class Columns:
    """Where kernels are sharded over their outputs, each device whitens its own.

    Beyond what Adam's step says come the rows that a layer's statistic is made of,
    where its inputs are in pieces, and a few numbers that tell whether all is finite.
    """

    kind: AxisType
    widths: tuple[int, ...]

    def __str__(self):
        return f"columns; {self.kind}; {self.widths}"

    def __call__(self):
        mesh = jax.make_mesh((4,), ("model",), axis_types=(self.kind,))
        rows, features = 32, 160
        model, x = Chain(self.widths), jnp.ones((rows, features))
        params = model.init(jax.random.key(0), x)["params"]
        whiten = lambda taps: lbo.whiten(optax.adam(1e-3), taps)  # noqa: E731
        plain, ours = steps_of(model, x, whiten, lbo.Auto())

        def put(leaf):
            sharding = NamedSharding(mesh, _over_columns(leaf.ndim))
            return jax.device_put(leaf, sharding)

        with jax.set_mesh(mesh):
            params = jax.tree.map(put, params)
            x = jax.device_put(x, NamedSharding(mesh, P()))
            adam, found = (
                said(s, params, tx.init(params), x) for s, tx in (plain, ours)
            )
        more = Counter(found) - Counter(adam)
        gathered = [
            numbers for name, numbers in more.elements() if name == "all-gather"
        ]
        assert sorted(gathered) == sorted(rows * width for width in self.widths[:-1])
        others = [numbers for name, numbers in more.elements() if name != "all-gather"]
        assert sum(others) <= 8 * len(jax.tree.leaves(params)), more


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(x.shape[-1])(x)), None


class _Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(_Block, length=8, **over)()(x, None)[0]


@dataclass(frozen=True)
class SharedOut:
    """Matrices of a stack whose rows are sharded: less is said than of whole ones."""

    width: int

    def __str__(self):
        return f"shared out; {self.width}"

    def __call__(self):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
        model, x = _Stack(), jnp.ones((32, self.width))
        params = model.init(jax.random.key(0), x)["params"]
        taps = linen.taps(model, x, statistic="gram")
        loss = jax.sharding.auto_axes(loss_of(model), out_sharding=P())
        tx = lbo.whiten(optax.adam(1e-3), taps)
        step = step_of(loss, tx, linen.value_and_grad(loss, taps))

        def put(leaf):
            spec = P(None, "data") if leaf.ndim == 3 else P()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        with jax.set_mesh(mesh):
            params = jax.tree.map(put, params)
            x = jax.device_put(x, NamedSharding(mesh, P("data")))
            state = tx.init(params)
            whole = jax.device_put(state.metric, NamedSharding(mesh, P()))
            ours, other = (
                said(step, params, each, x)
                for each in (state, state._replace(metric=whole))
            )
        assert sum(size for _, size in ours) < sum(size for _, size in other)
