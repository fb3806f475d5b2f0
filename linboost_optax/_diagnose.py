"""What a step's statistics say about every layer: numbers to log, under ``jit``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax._layer import Layer, Path
from linboost_optax._precondition import slots
from linboost_optax._precondition import stats as statistics
from linboost_optax._precondition.slots import Slot
from linboost_optax._sharding import replicated
from linboost_optax._statistics import accumulation_dtype
from linboost_optax._statistics.spectrum import rounding
from linboost_optax._taps import Taps, check_taps


class LayerDiagnosis(NamedTuple):
    r"""What a step's statistics say about one layer, as scalars.

    Of layers that are stacked or fall into groups the worst block counts, among those
    that saw a sample; where none did, numbers are NaN.

    Attributes:
      condition: condition number :math:`\lambda_1 / \lambda_k` of the second moment
        :math:`M = E[\tilde x \tilde x^T]`, which gradient descent suffers from and
        preconditioning removes; with ``k`` the number of inputs that are not always
        zero, and the constant of a bias, or of samples, where they are fewer. Infinite
        where rounding errors hide the smallest eigenvalue.
      rank: effective rank :math:`(\mathrm{tr}\,\Sigma)^2 / \mathrm{tr}\,\Sigma^2` of
        the covariance of the inputs, their participation ratio: 1 where they vary along
        one direction, their number where they vary equally along all.
      dead: share of inputs that were zero in all samples.
      mean_to_std: largest :math:`|\mu| / \sigma` of the other inputs; infinite for a
        constant.
      samples: number of samples that moments are of.
      exact: whether ``condition`` and ``rank`` are exact; else ``condition`` is a lower
        bound and ``rank`` an upper one, as moments or a sketch give them.
      step: root mean square :math:`\sqrt{E|\tilde x^T \Delta W|^2}`, summed over
        outputs, that the updates change the layer's outputs by, with the covariance
        that solvers make of the statistic; NaN without updates, or where they leave
        the layer out.
      decrease: :math:`-\langle \Delta W, G \rangle`, by which the updates lower the
        loss to first order; NaN without updates and gradients.
    """

    condition: jax.Array
    rank: jax.Array
    dead: jax.Array
    mean_to_std: jax.Array
    samples: jax.Array
    exact: jax.Array
    step: jax.Array
    decrease: jax.Array


def diagnose(
    taps: Taps,
    stats: Mapping[str, Any],
    *,
    updates: optax.Updates | None = None,
    grads: optax.Updates | None = None,
) -> dict[str, LayerDiagnosis]:
    r"""Looks at the inputs of every tapped layer, and at what a step does to it.

    Works inside ``jax.jit`` and changes nothing. Eigenvalues cost more than
    refreshing a solver: in a training loop, call it every so many steps, in a step
    compiled for that. Numbers are those of the rows that a statistic is of: of one
    batch, of ``max_samples`` of its rows.

    ``step`` is the size of the updates in the norm that ``lnb`` has its trust region
    in, whatever optimizer they are from: those of ``lnb`` add up to the learning rate,
    :math:`\eta \approx \sqrt{\sum_l \mathrm{step}_l^2}`, up to ridge, weight decay and
    the parameters without a tap. ``decrease`` over it is the trust region's norm,
    :math:`\sqrt{\langle H, G \rangle} \approx \sum_l \mathrm{decrease}_l / \eta`.

    Args:
      taps: the tapped layers.
      stats: what ``value_and_grad`` returned for them.
      updates: of the optimizer, shaped like the parameters; default None leaves out
        ``step`` and ``decrease``.
      grads: the gradients; default None leaves out ``decrease``.

    Returns:
      A ``LayerDiagnosis`` by layer, named as in the table of ``taps``.

    Raises:
      TypeError: if ``taps`` is not a ``Taps``, or ``stats`` no dictionary.
      ValueError: if ``stats``, ``updates`` or ``grads`` do not fit the taps.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> x = jnp.array([[3.0, 1.0, 0.0], [3.0, -1.0, 0.0]])  # the last one is dead
      >>> model = nn.Dense(2, use_bias=False)
      >>> params = model.init(jax.random.key(0), x)
      >>> loss_fn = lambda params: jnp.mean(model.apply(params, x) ** 2)
      >>> taps = linen.taps(model, x)
      >>> loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
      >>> found = lbo.diagnose(taps, stats)["."]
      >>> print(f"{found.condition:.1f} {found.rank:.1f} {found.dead:.2f}")
      9.0 1.0 0.33

    References:
      Munoz (2025), arXiv:2502.01131: the norm of the trust region.
    """
    check_taps(taps)
    values = statistics.check(stats, taps.layers)
    moved = _leaves(taps, updates)
    slopes = _leaves(taps, grads)
    found, inputs = {}, {}
    for layer in taps.layers:
        value = values[layer.stats_key]
        key = (layer.stats_key, layer.biased)
        if key not in inputs:
            of_inputs = functools.partial(_of_inputs, layer)
            inputs[key] = replicated(of_inputs, value)
        step = decrease = jnp.full((), jnp.nan, jnp.dtype(layer.dtype))
        if layer.path in moved:
            slot, leaves = moved[layer.path]
            step = replicated(functools.partial(_step, slot), value, leaves)
            if layer.path in slopes:
                decrease = replicated(_decrease, leaves, slopes[layer.path][1])
        found[str(layer)] = LayerDiagnosis(**inputs[key], step=step, decrease=decrease)
    return found


def as_scalars(
    found: Mapping[str, LayerDiagnosis], state: optax.OptState | None = None
) -> dict[str, jax.Array]:
    """Returns a diagnosis as one flat dictionary of scalars, as loggers take it.

    Args:
      found: what ``diagnose`` returned.
      state: an optimizer's, for what it knows of itself; default None.

    Returns:
      ``{"layer/condition": ..., "layer/rank": ..., ...}`` and, without a slash, of the
      whole network: ``step``, the root of the sum of squares of all layers, and
      ``decrease``, their sum, of the layers that have one; given a state, ``skipped``,
      the number of steps that were not finite, and ``learning_rate`` under
      ``optax.inject_hyperparams``.

    Example:
      >>> import jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> one = lbo.LayerDiagnosis(*map(jnp.float32, (9, 1, 0, 3, 8, 1, 0.3, 0.1)))
      >>> scalars = lbo.as_scalars({"a": one, "b": one._replace(step=0.4)})
      >>> float(scalars["a/condition"]), round(float(scalars["step"]), 3)
      (9.0, 0.5)
    """
    flat = {
        f"{name}/{field}": value
        for name, each in found.items()
        for field, value in each._asdict().items()
    }
    if found:
        flat["step"] = jnp.sqrt(_known([each.step**2 for each in found.values()]))
        flat["decrease"] = _known([each.decrease for each in found.values()])
    if state is not None:
        for name in ("skipped", "learning_rate"):
            values = [each for _, each in optax.tree.get_all_with_path(state, name)]
            if name == "skipped" and values:
                flat[name] = sum(values[1:], values[0])
            elif len(values) == 1:
                flat[name] = jnp.asarray(values[0])
    return flat


def _known(values: list[jax.Array]) -> jax.Array:
    """Returns the sum of what is a number; NaN if nothing is."""
    values = [jnp.asarray(each) for each in values]
    dtype = accumulation_dtype(*(each.dtype for each in values))
    row = jnp.stack([each.astype(dtype) for each in values])
    return jnp.where(jnp.all(jnp.isnan(row)), jnp.nan, jnp.nansum(row))


def _leaves(taps: Taps, tree: Any) -> dict[Path, tuple[Slot, dict[int, jax.Array]]]:
    """Returns the arrays of every layer in a tree like the parameters, and where."""
    if tree is None:
        return {}
    leaves = jax.tree.leaves(tree)
    found = {}
    for slot in slots.find(taps.layers, tree):
        own = {i: leaves[i] for i in (slot.kernel, slot.bias) if i is not None}
        found[slot.layer.path] = slot, own
    return found


def _of_inputs(layer: Layer, value: Any) -> dict[str, jax.Array]:
    """Returns what a statistic says of a layer's inputs, of the worst block."""
    layer = layer.as_read()
    condition, rank, exact = layer.statistic.spectrum(layer, value)
    count, mean, mean_sq = layer.statistic.moments(layer, value)
    live = mean_sq > 0
    dead = 1 - jnp.mean(live, axis=1, dtype=mean_sq.dtype)
    variance = mean_sq - mean**2
    varies = variance > rounding(mean_sq)
    std = jnp.sqrt(jnp.where(varies, variance, 0))
    ratio = jnp.abs(mean) / jnp.where(varies, std, 1)
    ratio = jnp.where(varies, ratio, jnp.inf)
    ratio = jnp.max(jnp.where(live, ratio, 0), axis=1)
    return {
        "condition": _worst(count, condition),
        "rank": -_worst(count, -rank),
        "dead": _worst(count, dead),
        "mean_to_std": _worst(count, ratio),
        "samples": jnp.min(count),
        "exact": exact,
    }


def _worst(count: jax.Array, values: jax.Array) -> jax.Array:
    """Returns the largest of the blocks that saw a sample; NaN if none did."""
    largest = jnp.max(jnp.where(count > 0, values, -jnp.inf))
    return jnp.where(jnp.any(count > 0), largest, jnp.nan)


def _step(slot: Slot, value: Any, leaves: Mapping[int, jax.Array]) -> jax.Array:
    layer = slot.layer.as_read()
    kernel = leaves[slot.kernel]
    bias = None if slot.bias is None else leaves[slot.bias]
    dtype = accumulation_dtype(kernel.dtype, layer.dtype)
    change = layer.to_affine(kernel, bias, dtype)
    value = jax.tree.map(lambda leaf: leaf.astype(dtype), value)
    squares = layer.statistic.mean_square(layer, value, change)
    return jnp.sqrt(jnp.maximum(jnp.sum(squares), 0))


def _decrease(
    updates: Mapping[int, jax.Array], grads: Mapping[int, jax.Array]
) -> jax.Array:
    pairs = list(zip(updates.values(), grads.values(), strict=True))
    dtype = accumulation_dtype(*(each.dtype for pair in pairs for each in pair))
    products = [jnp.sum(u.astype(dtype) * g.astype(dtype)) for u, g in pairs]
    return -sum(products[1:], products[0])
