r"""The second moment that a layer's Jacobian has, beside that of its statistic.

The output of a linear layer is :math:`y = X w`, one row of :math:`X = [x; 1]` a sample,
so that the Jacobian with respect to its parameters, brought into the layer's own
coordinates ``[block, feature, output]``, has the Gram matrix

.. math:: J^T J = \mathrm{blockdiag}(X^T X, \dots, X^T X),

one :math:`X^T X` an output unit and block, zero across them. Autodiff knows nothing of
kinds, axes, padding or groups: agreement holds for all of them at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._layer import Affine, Layer

# float64: sums of at most some hundred products, in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Problem(NamedTuple):
    """A function of parameters, its taps, and what differentiates losses of it.

    Attributes:
      function: ``function(params, *args)``, an array.
      params: a tree of float64 arrays.
      args: what else it is called with.
      taps: of the model.
      value_and_grad: of the model's framework.
    """

    function: Callable[..., Any]
    params: Any
    args: tuple
    taps: lbo.Taps
    value_and_grad: Callable[..., Any]


def normal(seed: int, *shape: int) -> np.ndarray:
    """Returns float64 numbers that no layer makes on its own."""
    return np.random.default_rng(seed).normal(size=shape)


def randomized(params: Any) -> Any:
    """Returns other parameters, biases and scales too: no two of them agree."""
    leaves, treedef = jax.tree.flatten(params)
    moved = [
        jnp.asarray(normal(i + 1, *leaf.shape), leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, moved)


def of_function(function, params, *args) -> Problem:
    """Returns the problem of a function of parameters."""
    params = randomized(params)
    taps = lbo.taps(function, params, *args, statistic="gram")
    return Problem(function, params, args, taps, lbo.value_and_grad)


def of_linen(model, *args, read=lambda out: out, mutable=False, **kwargs) -> Problem:
    """Returns the problem of a Linen module; ``read`` picks the array of its output."""
    init = functools.partial(model.init, **kwargs)
    variables = dict(jax.eval_shape(init, jax.random.key(0), *args))
    if len(variables) > 1:  # scales and averages as they start
        variables = dict(jax.jit(init)(jax.random.key(0), *args))
    params = randomized(variables.pop("params"))

    def function(params, *args):
        every = {**variables, "params": params}
        return read(model.apply(every, *args, mutable=mutable, **kwargs))

    taps = linen.taps(model, *args, statistic="gram", **kwargs)
    return Problem(function, params, args, taps, linen.value_and_grad)


def of_nnx(model, *args, read=lambda out: out, wrt=nnx.Param, **kwargs) -> Problem:
    """Returns the problem of an NNX module, with its parameters apart."""
    nnx.update(model, randomized(nnx.state(model, nnx.Param)))
    graphdef, params, rest = nnx.split(model, wrt, ...)

    def function(params, *args):
        return read(nnx.merge(graphdef, params, rest, copy=True)(*args, **kwargs))

    taps = lbo.nnx.taps(model, *args, statistic="gram", wrt=wrt, **kwargs)
    return Problem(function, params, args, taps, lbo.nnx.value_and_grad)


def of(model, *args, **options) -> Problem:
    """Returns the problem of a module of either framework."""
    make = of_linen if isinstance(model, nn.Module) else of_nnx
    return make(model, *args, **options)


def measure(problem: Problem, rows: bool) -> tuple[list[Any], list[Any]]:
    """Returns second moments and, if asked for, Jacobians of all layers.

    Statistics are those of a loss that reads every element of the output; its
    gradients are compared with those of the untapped loss.
    """
    function, params, args, taps, value_and_grad = problem
    out = jax.eval_shape(function, params, *args)
    weights = normal(99, *out.shape).astype(out.dtype)

    def loss(params, *args):
        return jnp.sum(function(params, *args) * weights)

    @jax.jit
    def everything(params, *args):
        _, grads, stats = value_and_grad(loss, taps)(params, *args)
        moments = [second_moment(layer, stats) for layer in taps.layers]
        plain = jax.grad(loss)(params, *args)
        if not rows:
            return grads, plain, moments, []
        # One row after another: not every primitive can be mapped over.
        units = jnp.eye(out.size, dtype=out.dtype).reshape(-1, *out.shape)
        pull = jax.vjp(lambda params: function(params, *args), params)[1]
        jacobian = jax.lax.map(lambda unit: pull(unit)[0], units)
        return grads, plain, moments, [rows_of(each, jacobian) for each in taps.layers]

    grads, plain, moments, found = everything(params, *args)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, **EXACT)
    return moments, [np.asarray(each) for each in found]


def second_moment(layer: Layer, stats: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Returns a statistic's sums as ``[block, feature, feature]``, and its counts.

    The constant 1 is the last feature of a layer with a bias.
    """
    moment = layer.statistic.second_moment(layer, stats[layer.stats_key])
    size = layer.features + layer.biased
    units = jnp.broadcast_to(jnp.eye(size), (layer.blocks, size, size))
    w, b = units[:, : layer.features], units[:, -1] if layer.biased else None
    w, b = moment.product(Affine(w, b))
    matrix = w if b is None else jnp.concatenate([w, b[:, None]], axis=1)
    return matrix * moment.count[:, None, None], moment.count


def leaves_by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """Returns the arrays of a tree by their names."""

    def names(path):
        keys = (
            getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))) for k in path
        )
        return tuple(str(key) for key in keys if key != "value")

    return {names(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def rows_of(layer: Layer, jacobian: Any) -> jax.Array:
    """Returns a Jacobian as ``[row, block, feature, output]`` of a layer."""
    leaves = leaves_by_path(jacobian)
    shapes = layer.shapes

    def flat(name):
        if name is None:
            return None
        return leaves[layer.where(name)].reshape(-1, *shapes[name])

    affine = jax.vmap(lambda w, b: layer.to_affine(w, b, jnp.dtype("float64")))(
        flat(layer.kernel), flat(layer.bias)
    )
    if affine.b is None:
        return affine.w
    return jnp.concatenate([affine.w, affine.b[:, :, None]], axis=2)


def check_jacobian(problem: Problem, *, layers: int = 1, plain: int = 0) -> lbo.Taps:
    """Asserts that statistics are the second moments that Jacobians have.

    Args:
      problem: whose function is linear in its parameters.
      layers: how many are to be tapped.
      plain: how many parameters are to keep their plain gradient.
    """
    taps = problem.taps
    assert (len(taps.layers), len(taps.plain)) == (layers, plain), f"\n{taps}"
    moments, jacobians = measure(problem, rows=True)
    for layer, (matrix, count), rows in zip(taps.layers, moments, jacobians):
        gram = np.einsum("rkfo,rlgp->kolpfg", rows, rows)
        want = np.zeros_like(gram)
        for k, o in np.ndindex(*gram.shape[:2]):
            want[k, o, k, o] = matrix[k]
        np.testing.assert_allclose(gram, want, **EXACT, err_msg=str(layer))
        reads = np.any(rows != 0, axis=2).sum(axis=(0, 2)) / rows.shape[3]
        if layer.biased:  # without, padding and relus leave rows of zeros
            np.testing.assert_allclose(count, reads)
        elif rows.shape[1] * layers == 1:
            np.testing.assert_allclose(count, len(rows) / rows.shape[3])
    return taps


def check_inputs(
    problem: Problem, expected: dict[str, Any], tolerance: dict[str, float] = EXACT
) -> lbo.Taps:
    """Asserts that statistics are the second moments of inputs written out by hand.

    Args:
      problem: whatever uses the layers.
      expected: by name of each layer, its inputs ``[..., feature]`` and whether it has
        a bias.
    """
    taps = problem.taps
    assert {str(layer) for layer in taps.layers} == set(expected), f"\n{taps}"
    moments, _ = measure(problem, rows=False)
    for layer, (matrix, count) in zip(taps.layers, moments):
        x, biased = expected[str(layer)]
        x = np.asarray(x, np.float64).reshape(layer.blocks, -1, x.shape[-1])
        assert layer.biased == biased, f"\n{taps}"
        if biased:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        want = np.einsum("kni,knj->kij", x, x)
        np.testing.assert_allclose(matrix, want, **tolerance, err_msg=str(layer))
        np.testing.assert_allclose(count, np.full(len(x), x.shape[1]))
    return taps
