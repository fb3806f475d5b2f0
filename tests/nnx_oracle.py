"""An independent account of what reaches the kernels of NNX modules.

While the plain loss runs, patched layers send their kernels and inputs to the host:
loops, branches and maps report every actual use. Layers are told apart by the values of
their kernels. Statistics are then NumPy's.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linboost_optax import nnx as adapter
from tests.oracle import STATISTIC, close, expected, probes, same_tree

KINDS = {nnx.Linear: "kernel", nnx.Conv: "kernel", nnx.Embed: "embedding"}
KINDS[nnx.LinearGeneral] = "kernel"
_fresh = jax.make_user_context(None)  # what was traced in it, no one else is served


@contextlib.contextmanager
def reporting(log):
    """Inside, NNX's own layers report their kernels and inputs."""

    def report(kernel, x):
        log.append((np.asarray(kernel), np.asarray(x)))

    def patched(call, name):
        def reports(self, x, *args, **kwargs):
            jax.debug.callback(report, getattr(self, name)[...], x)
            return call(self, x, *args, **kwargs)

        return reports

    calls = {kind: kind.__call__ for kind in KINDS}
    for kind, name in KINDS.items():
        kind.__call__ = patched(calls[kind], name)
    try:
        yield
    finally:
        for kind, call in calls.items():
            kind.__call__ = call


def inputs_seen(function, *args):
    """Runs ``function``; returns ``[(kernel, input), ...]`` of every use."""
    log = []
    with _fresh(object()), reporting(log):
        jax.block_until_ready(nnx.jit(lambda *args: function(*args))(*args))
    jax.effects_barrier()
    return log


def by_name(state):
    """Returns arrays of a state by the names of their paths."""
    leaves = nnx.to_flat_state(state)
    return {tuple(map(str, path)): leaf[...] for path, leaf in leaves}


def check_statistics(taps, stats, log, params):
    """Asserts that ``stats`` are those of the inputs in ``log``."""
    arrays = by_name(params)
    for layer in taps.layers:
        kernels, stat = (
            np.asarray(arrays[layer.where(layer.kernel)]),
            stats[layer.stats_key],
        )
        for index in np.ndindex(*layer.stack):
            count, total, outer = expected(layer, log, kernels[index])
            where, square = (layer.key, index), np.diagonal(outer)
            close(stat.count[index], [count], STATISTIC, where)
            close(stat.sum[index].reshape(-1), total, STATISTIC, where)
            if hasattr(stat, "sum_sq"):
                close(stat.sum_sq[index].reshape(-1), square, STATISTIC, where)
            if layer.statistic.name == "gram":
                close(stat.outer[index], outer[None], STATISTIC, where)
            if layer.statistic.name == "sketch":
                rank = min(layer.statistic.rank, layer.kind.channels)
                seen = outer @ probes(layer.kind.channels, rank)
                close(stat.outer[index], seen[None], STATISTIC, where)


def check(
    taps, loss_fn, model, *args, has_aux=False, jit=True, wrt=nnx.Param, statistics=True
):
    """Gradients, statistics and what changes in nodes are as without taps, by hand."""
    wrap = nnx.jit if jit else lambda function: function
    plain = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, wrt), has_aux=has_aux)
    tapped = adapter.value_and_grad(loss_fn, taps, has_aux, wrt=wrt)
    before = raw(nnx.state((model, args)))
    log = inputs_seen(loss_fn, *nnx.clone((model, *args)))
    want_nodes, got_nodes = nnx.clone((model, *args)), nnx.clone((model, *args))
    want_value, want_grads = wrap(plain)(*want_nodes)
    value, grads, stats = wrap(tapped)(*got_nodes)
    same_tree(value, want_value)
    same_tree(grads, want_grads)
    same_state(got_nodes, want_nodes)
    if statistics:
        check_statistics(taps, stats, log, nnx.state(model, wrt))
    same_tree(raw(nnx.state((model, args))), before)
    return value, grads, stats, got_nodes


def same_state(got, want):
    """Asserts that all variables of two trees of nodes are equal."""
    same_tree(raw(nnx.state(got)), raw(nnx.state(want)))


def raw(state):
    """Returns a state with the data of keys in the place of keys."""

    def data(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return leaf

    return jax.tree.map(data, state)


def normal(key, *shape):
    """Returns normal numbers."""
    return jax.random.normal(jax.random.key(key), shape)


def check_gram(stat, x):
    """Asserts that a statistic is count, sum and second moment of the rows of ``x``."""
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    close(stat.count, [len(rows)], STATISTIC)
    close(stat.sum[0], rows.sum(0), STATISTIC)
    close(stat.outer[0], rows.T @ rows, STATISTIC)


def mean_square(model, *args):
    """Returns a loss."""
    return jnp.mean(jnp.square(model(*args)))


class MLP(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs, inputs=3, width=4, outputs=2):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.out = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


class Noisy(nnx.Module):
    """Dense layers with all that has a state of its own."""

    def __init__(self, rngs):
        self.a = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.b = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(jnp.tanh(self.norm(self.a(x)))))
