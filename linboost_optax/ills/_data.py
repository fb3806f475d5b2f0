"""Checks of the data: shapes at trace time, values where they are at hand.

Data at hand are read with NumPy: with JAX every step would be compiled for every shape.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from linboost_optax.ills._model.matrices import Matrices
from linboost_optax.ills._model.network import Network
from linboost_optax.ills._numerics.chunks import Batch

# Beyond these a float32 Gram matrix loses the small directions (see `check_scale`).
_MAX_SCALE = 100.0
_MAX_OFFSET = 30.0


class Rows(NamedTuple):
    """Samples as a user gives them, see ``read_batch``."""

    inputs: Any
    targets: Any
    sample_weight: Any = None
    mask: Any = None


def concatenate(first: Rows, second: Rows) -> Rows:
    """Returns the samples of both, which were checked."""
    parts = first, second
    xp = _home(*first, *second)

    def join(arrays: Any) -> Any:
        return xp.concatenate([xp.asarray(array) for array in arrays])

    weights = known = None
    if any(part.sample_weight is not None for part in parts):
        weights = join(
            xp.ones(len(part.inputs))
            if part.sample_weight is None
            else part.sample_weight
            for part in parts
        )
    # One output may have targets with or without an axis of its own.
    targets = [xp.reshape(xp.asarray(p.targets), (len(p.inputs), -1)) for p in parts]
    if any(part.mask is not None for part in parts):
        known = join(
            xp.full(own.shape, True)
            if part.mask is None
            else xp.reshape(xp.asarray(part.mask), own.shape)
            for part, own in zip(parts, targets, strict=True)
        )
    return Rows(join(part.inputs for part in parts), join(targets), weights, known)


def make_batch(
    network: Network,
    inputs: Any,
    targets: Any,
    sample_weight: Any,
    mask: Any,
    dtype: Any,
    axis_name: Any,
) -> Batch:
    """Returns the checked data of ``read_batch``, blank where nothing counts.

    Inputs and targets without weight are 0: they would be multiplied by it, but what
    overflows on the way there times 0 is NaN.
    """
    batch = read_batch(network, inputs, targets, sample_weight, mask, dtype, axis_name)
    if sample_weight is None and mask is None:
        return batch
    counted, xp = batch.weights > 0, _home(*batch)
    return batch._replace(
        inputs=xp.where(xp.any(counted, axis=1, keepdims=True), batch.inputs, 0),
        targets=xp.where(counted, batch.targets, 0),
    )


def read_batch(
    network: Network,
    inputs: Any,
    targets: Any,
    sample_weight: Any,
    mask: Any,
    dtype: Any,
    axis_name: Any,
) -> Batch:
    """Checks the data and normalises the weights to sum to 1 over all targets.

    Args:
      network: gives the numbers of inputs and outputs.
      inputs: ``[sample, feature]``.
      targets: ``[sample, output]``, or ``[sample]`` for one output.
      sample_weight: ``[sample]`` or None.
      mask: ``[sample, output]`` or ``[sample]``, true where a target is known; None
        where all are.
      dtype: of the parameters.
      axis_name: mapped axis over which the samples are spread, or None.

    Returns:
      The ``Batch``, all of ``dtype``; missing targets are 0 with weight 0.

    Raises:
      ValueError: if a shape or, outside ``jit``, a value does not fit.
    """
    xp = _home(inputs, targets, sample_weight, mask)
    inputs, targets = _read(xp, inputs, dtype), _read(xp, targets, dtype)
    check_inputs(network, inputs)
    samples, outputs = inputs.shape[0], network.last.features_out
    if targets.shape not in [(samples, outputs), (samples,) * (outputs == 1)]:
        raise ValueError(
            f"`targets` must have shape {(samples, outputs)}, one row a sample of "
            f"`inputs` and one column an output of `{network.last.kernel}`, got "
            f"{targets.shape}."
        )
    targets = targets.reshape(samples, outputs)
    weights = _sample_weights(xp, sample_weight, samples, dtype)
    if mask is not None:
        known = _known(xp, mask, samples, outputs)
        targets = xp.where(known, targets, 0)
        weights = weights * known.astype(dtype)
    if is_known(targets, weights):
        _check_targets(network, targets, weights)
    if is_known(weights) and mask is not None and not np.any(np.asarray(weights) > 0):
        raise ValueError(
            "`sample_weight` must be positive for a sample with a known target, got 0 "
            "wherever `mask` is true. Give weight to a known target."
        )
    total = xp.sum(weights) * (outputs // weights.shape[1])
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
        xp = jnp
    weights = weights / xp.where(total > 0, total, 1).astype(dtype)
    return Batch(inputs, targets, weights)


def is_known(*arrays: Any) -> bool:
    """Returns whether values can be looked at: not inside a transformation."""
    return not any(isinstance(a, Tracer) for a in arrays)


def _home(*arrays: Any) -> Any:
    """Returns the module that computes with the arrays: NumPy where they are at hand.

    What is traced, or spread over several devices, stays with JAX.
    """
    for a in arrays:
        if isinstance(a, Tracer):
            return jnp
        if isinstance(a, jax.Array) and len(a.sharding.device_set) > 1:
            return jnp
    return np


def _read(xp: Any, values: Any, dtype: Any) -> Any:
    with np.errstate(over="ignore"):  # What overflows is refused as not finite.
        return xp.asarray(values).astype(dtype)


def check_inputs(network: Network, inputs: jax.Array) -> None:
    """Raises unless the inputs have the shape and, outside ``jit``, are finite."""
    width = network.layers[0].features_in
    if inputs.ndim != 2 or inputs.shape[1] != width or inputs.shape[0] == 0:
        raise ValueError(
            f"`inputs` must have shape [sample, {width}] with at least one sample, as "
            f"`{network.layers[0].kernel}` takes {width} features, got {inputs.shape}."
        )
    if is_known(inputs):
        _check_finite("inputs", inputs)


def check_scale(inputs: Any, batch: Batch) -> None:
    """Refuses inputs that are far from standardised where they count.

    A feature whose spread is 1000 saturates every unit, and an offset of 100 spreads
    makes it collinear with the bias in float32.

    Args:
      inputs: as they were given, ``[sample, feature]``.
      batch: with their weights, in the dtype to compute in.

    Raises:
      ValueError: naming the first such feature.
    """
    shares, dtype = np.asarray(batch.shares, np.float64), batch.inputs.dtype
    counted = shares > 0
    x, shares = np.asarray(inputs, np.float64)[counted], shares[counted]
    mean = np.average(x, axis=0, weights=shares)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=shares))
    offset = np.abs(mean)
    for j in range(x.shape[1]):
        # A constant feature is harmless unless it is large.
        limit = _MAX_OFFSET * spread[j] if spread[j] > 1e-6 * offset[j] else _MAX_SCALE
        too_far = offset[j] > max(limit, 1.0) and dtype == jnp.float32
        if spread[j] > _MAX_SCALE or offset[j] > _MAX_SCALE or too_far:
            raise ValueError(
                f"`inputs` must be about standardised, got feature {j} with mean "
                f"{mean[j]:.3g} and standard deviation {spread[j]:.3g}. Standardise "
                "first: `(x - x.mean(0)) / x.std(0)`, weighted as the samples are."
            )


def check_distinct_units(network: Network, matrices: Matrices) -> None:
    """Refuses identical hidden units: their regressions would be identical for ever.

    Raises:
      ValueError: naming the layer and the two units.
    """
    for layer, matrix in zip(network.hidden, matrices[:-1], strict=True):
        if not is_known(matrix):
            return
        seen: dict[bytes, int] = {}
        for unit, column in enumerate(np.asarray(matrix).T):
            first = seen.setdefault(np.ascontiguousarray(column).tobytes(), unit)
            if first != unit:
                raise ValueError(
                    f"`{layer.kernel}` must have distinct units, got units {first} and "
                    f"{unit} identical. Start from random weights, e.g. "
                    "N(0, 1 / fan-in)."
                )


def _sample_weights(xp: Any, sample_weight: Any, samples: int, dtype: Any) -> Any:
    if sample_weight is None:
        return xp.ones((samples, 1), dtype)
    weights = xp.asarray(sample_weight)
    if weights.shape != (samples,):
        raise ValueError(
            f"`sample_weight` must have shape {(samples,)}, got {weights.shape}. "
            "Give one weight a sample."
        )
    if is_known(weights):
        _check_finite("sample_weight", weights)
        values = np.asarray(weights)
        if values.min() < 0 or values.max() == 0:
            raise ValueError(
                "`sample_weight` must be >= 0 and not all 0, got "
                f"minimum {values.min()} and maximum {values.max()}."
            )
    return weights.astype(dtype)[:, None]


def _known(xp: Any, mask: Any, samples: int, outputs: int) -> Any:
    known = xp.asarray(mask)
    if known.dtype != np.bool_ or known.shape not in [
        (samples, outputs),
        (samples,) * (outputs == 1),
    ]:
        raise ValueError(
            f"`mask` must be boolean of shape {(samples, outputs)}, true where the "
            f"target is known, got {known.dtype} of shape {known.shape}."
        )
    known = known.reshape(samples, outputs)
    if is_known(known) and not np.any(np.asarray(known)):
        raise ValueError("`mask` must be true for at least one target, got none.")
    return known


def _check_finite(name: str, array: jax.Array) -> None:
    bad = int(np.sum(~np.isfinite(np.asarray(array))))
    if bad:
        raise ValueError(
            f"`{name}` must be finite, got {bad} NaN or infinite values. Drop or "
            "impute them; for missing targets pass `mask`."
        )


def _check_targets(network: Network, targets: jax.Array, weights: jax.Array) -> None:
    _check_finite("targets", targets)
    last = network.last.activation
    values = np.asarray(targets)
    values = values[np.broadcast_to(np.asarray(weights), values.shape) > 0]
    if np.any((values < last.low) | (values > last.high)):
        raise ValueError(
            f"`targets` must lie in [{last.low}, {last.high}], the range of the output "
            f"activation {last.name!r}, got {values.min()} to {values.max()}. "
            "Rescale the targets or use an identity output."
        )
