"""Hand-written JAX: layers described by their shapes, tapped by ``tap``."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from linboost_optax import _statistics
from linboost_optax._kinds import Dense
from linboost_optax._layer import Layer, split
from linboost_optax._statistics import Rule
from linboost_optax._taps import Taps


def dense_taps(
    shapes: Mapping[str, tuple[int, int]],
    statistic: Rule | str = "auto",
    *,
    dtype: Any = jnp.float32,
    kernel: str = "kernel",
    bias: str | None = "bias",
) -> Taps:
    """Describes dense layers of hand-written code, to go with ``tap``.

    Args:
      shapes: kernel shape ``(feature, output)`` of every layer, by the layer's path
        in the parameter tree, ``"/"`` between levels; a slash inside a name is doubled.
      statistic: as for ``linen.taps``, without ``Inputs``; default ``"auto"``.
      dtype: of the statistics, float32 or float64; default float32.
      kernel: name of the kernel below each path; default ``"kernel"``.
      bias: name of the bias below each path, None for layers without; default
        ``"bias"``.

    Returns:
      The taps, for ``taps.zeros()`` and the optimizers.

    Raises:
      ValueError: if ``statistic`` is unknown or not additive, ``dtype`` is narrow, or a
        shape is not a pair.
      TypeError: if ``statistic`` is no statistic.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.dense_taps({"hidden": (3, 2)}, "moments")
      path    kind          kernel  inputs  statistic  bytes
      hidden  Dense + bias  3x2     any     moments       28
      statistics: 28 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    asked = _statistics.resolve(statistic)
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float64 and jnp.zeros(0, float).dtype != jnp.float64:
        raise ValueError(
            "`dtype` must be float32 where JAX computes in 32 bits, got float64. Set "
            "`jax_enable_x64` first."
        )
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"`dtype` must be float32 or float64, got {dtype}. Statistics are sums "
            "over many samples; inputs may be narrower."
        )
    layers = []
    for path, shape in shapes.items():
        if len(shape) != 2:
            raise ValueError(
                f"`shapes['{path}']` must be (feature, output), got {shape}. Reshape "
                "kernels with more axes."
            )
        kind = Dense((), (shape[0],), (shape[1],))
        layer = Layer(
            path=split(path),
            kind=kind,
            statistic=kind.statistic(asked),
            input_shape=(),
            dtype=str(dtype),
            kernel=kernel,
            bias=bias,
        )
        if not layer.statistic.additive:
            raise ValueError(
                f"`statistic` must be additive, got {layer.statistic}: raw inputs have "
                "a batch size that shapes of kernels do not tell. Use 'gram' or "
                "'sketch'."
            )
        layers.append(layer)
    return Taps(tuple(layers))
