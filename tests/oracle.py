"""An independent account of what reaches every layer, for tests of the adapter.

An interceptor of its own sends each layer's kernel and inputs to the host while the
plain, untapped loss runs: loops, branches and maps report every actual use. Stacked
layers are told apart by the values of their kernels. Statistics are then NumPy's.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import scipy.fft

from linboost_optax import linen

# float32 sums in another order; gradients come from the same operations.
STATISTIC = {"rtol": 2e-5, "atol": 2e-5}
GRADIENT = {"rtol": 1e-5, "atol": 1e-6}

KINDS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)
_fresh = jax.make_user_context(None)


def inputs_seen(function, *args):
    """Runs ``function``; returns ``[(kernel, input), ...]`` of every use, by path."""
    log = {}

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        y = next_fun(*args, **kwargs)
        if type(module) in KINDS and context.method_name == "__call__":
            name = "embedding" if isinstance(module, nn.Embed) else "kernel"
            kernel = nn.unbox(module.variables["params"])[name]

            def report(kernel, x, path=module.path):
                log.setdefault(path, []).append((np.asarray(kernel), np.asarray(x)))

            jax.debug.callback(report, kernel, args[0] if args else kwargs["inputs"])
        return y

    with _fresh(object()), nn.intercept_methods(interceptor):
        jax.block_until_ready(jax.jit(function)(*args))
    jax.effects_barrier()
    return log


def rows(layer, x):
    """The design matrix of a dense layer, the channels of a convolution."""
    if layer.kind.name == "Embed":
        return np.eye(layer.kind.vocabulary)[np.asarray(x).reshape(-1)]
    axes = getattr(layer.kind, "axis", (-1,))
    x = np.moveaxis(np.asarray(x, np.float64), axes, range(-len(axes), 0))
    return x.reshape(-1, layer.kind.channels)


def expected(layer, uses, kernel):
    """Count, sum and second moment of one layer over all its uses."""
    own = [x for k, x in uses if np.array_equal(k, kernel)]
    design = np.concatenate([rows(layer, x) for x in own]) if own else None
    if design is None:
        d = layer.kind.channels
        return 0, np.zeros(d), np.zeros((d, d))
    return len(design), design.sum(0), design.T @ design


def close(got, want, tolerance, message=""):
    np.testing.assert_allclose(
        np.asarray(got, np.float64),
        np.asarray(want, np.float64),
        **tolerance,
        err_msg=str(message),
    )


def same_tree(got, want, tolerance=GRADIENT):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        close(a, b, tolerance)


def probes(features, rank):
    """Orthonormal columns of a cosine transform, chosen and signed at random."""
    rng = np.random.default_rng(0)
    chosen = sorted(rng.choice(features, rank, replace=False))
    signs = rng.choice([-1.0, 1.0], features)
    transform = scipy.fft.dct(np.eye(features), axis=0, norm="ortho")
    return np.stack([signs * transform[row] for row in chosen], axis=1)


def check_statistics(taps, stats, log, params):
    """Asserts that ``stats`` are those of the inputs in ``log``."""
    params = nn.unbox(params)
    for layer in taps.layers:
        branch = params
        for name in layer.path:
            branch = branch[name]
        kernels, stat = np.asarray(branch[layer.kernel]), stats[layer.stats_key]
        uses = log.get(layer.path, [])
        # Layers that `nn.vmap` stacks are blocks of one, which the host sees apart.
        own = uses[0][0].ndim if uses else kernels.ndim - len(layer.stack)
        for index in np.ndindex(*kernels.shape[: kernels.ndim - own]):
            count, total, outer = expected(layer, uses, kernels[index])
            where = (layer.key, index)
            close(stat.count[index[: len(layer.stack)]], [count], STATISTIC, where)
            close(stat.sum[index].reshape(-1), total, STATISTIC, where)
            name, square = layer.statistic.name, np.diagonal(outer)
            if name == "gram":
                close(stat.outer[index].reshape(outer.shape), outer, STATISTIC, where)
            if name in ("moments", "sketch"):
                close(stat.sum_sq[index].reshape(-1), square, STATISTIC, where)
            if name == "sketch":
                rank = min(layer.statistic.rank, layer.kind.channels)
                seen = outer @ probes(layer.kind.channels, rank)
                close(stat.outer[index].reshape(seen.shape), seen, STATISTIC, where)
            if getattr(stat, "channels", None) is not None:
                moments = stat.channels
                close(moments.count[index], [count], STATISTIC, where)
                close(moments.sum[index].reshape(-1), total, STATISTIC, where)
                close(moments.sum_sq[index].reshape(-1), square, STATISTIC, where)


def check(taps, loss_fn, params, *args, has_aux=False, **options):
    """Gradients equal the untapped ones; statistics equal those of the inputs seen."""
    plain = jax.jit(jax.value_and_grad(loss_fn, has_aux=has_aux))
    function = linen.value_and_grad(loss_fn, taps, has_aux, **options)
    want_value, want_grads = plain(params, *args)
    log = inputs_seen(loss_fn, params, *args)
    bare = params.get("params", params)
    value, grads, stats = jax.jit(function)(params, *args)
    same_tree(value, want_value)
    same_tree(grads, want_grads)
    check_statistics(taps, stats, log, bare)
    return value, grads, stats


def initial(model, *args, key=0, **kwargs):
    """Random parameters, biases too, so that no two kernels or outputs agree."""
    init = functools.partial(model.init, **kwargs)
    variables = jax.jit(init)(jax.random.key(key), *args)
    leaves, treedef = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    noise = [0.1 * jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves)]
    moved = jax.tree.unflatten(treedef, [p + n for p, n in zip(leaves, noise)])
    return {**variables, "params": moved}


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)
