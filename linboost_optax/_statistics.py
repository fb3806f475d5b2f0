"""Input statistics of a linear layer: what a tap emits and a solver reads.

Every statistic but ``Inputs`` is a *sum* over samples, so autodiff adds it up
wherever a layer is used more than once. The leading axes are ``[*stack, group]``:
``stack`` holds layers stacked by ``nn.scan`` or ``nn.vmap``, ``group`` the blocks
of a block-diagonal layer (grouped convolutions, batched ``DenseGeneral``).
"""

import functools
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Kind: TypeAlias = Literal["moments", "gram", "sketch", "inputs"]
KINDS: tuple[Kind, ...] = ("moments", "gram", "sketch", "inputs")


class Moments(NamedTuple):
    r"""First and second moments per channel, as sums: :math:`\sum x, \sum x^2`.

    Attributes:
      count: number of samples, shape ``[*stack, 1]``.
      sum: shape ``[*stack, group, channel]``.
      sum_sq: shape ``[*stack, group, channel]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array
    sum_sq: jax.Array


class Gram(NamedTuple):
    r"""The augmented Gram matrix :math:`\sum \tilde x \tilde x^T`, in its blocks.

    With :math:`\tilde x = [x; 1]` the corner is the count, the last column the
    sum; they are kept apart so that no product has an odd width.

    Attributes:
      count: number of samples, shape ``[*stack, 1]``.
      sum: shape ``[*stack, group, feature]``.
      outer: shape ``[*stack, group, feature, feature]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array
    outer: jax.Array


class Sketch(NamedTuple):
    r"""A Gram matrix seen by a few probes: :math:`\sum x x^T \Omega`, linear in it.

    Attributes:
      count: number of samples, shape ``[*stack, 1]``.
      sum: shape ``[*stack, group, feature]``.
      sum_sq: shape ``[*stack, group, feature]``.
      outer: shape ``[*stack, group, feature, rank]``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum: jax.Array
    sum_sq: jax.Array
    outer: jax.Array


class Inputs(NamedTuple):
    """A layer's inputs themselves, for products that never form a matrix.

    Attributes:
      x: the inputs in the layer's own shape, ``[*stack, ...]``.
      uses: how often the layer was used, shape ``[*stack, 1]``. Inputs are not
        additive, so a value other than one marks them as unusable.
    """

    x: jax.Array
    uses: jax.Array


Statistic: TypeAlias = Moments | Gram | Sketch | Inputs


def accumulation_dtype(*dtypes: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype that values of ``dtypes`` are summed in: float32 at least."""
    # Not `jnp.promote_types`: it refuses mixed dtypes under strict promotion.
    wide = any(jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def batched_ones(like: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns ones that JAX knows to depend on ``like``.

    Under ``vmap`` a constant cotangent of an unbatched argument counts once,
    not once per example; a select on ``like`` costs nothing and counts right.
    """
    one = jnp.ones((), dtype)
    return jnp.where(like == like, one, one)


def moments(samples: jax.Array, dtype: jnp.dtype) -> Moments:
    """Returns the moments of ``[sample, group, channel]`` values, as ``dtype``."""
    x = samples.astype(dtype)
    count = jnp.sum(batched_ones(x[:, 0, :1], dtype), axis=0)
    return Moments(count, jnp.sum(x, axis=0), jnp.sum(jnp.square(x), axis=0))


def token_moments(tokens: jax.Array, vocabulary: int, dtype: jnp.dtype) -> Moments:
    """Returns the moments of one-hot vectors without forming them."""
    flat = tokens.reshape(-1)
    ones = batched_ones(flat, dtype)
    counts = jnp.zeros((vocabulary,), dtype).at[flat].add(ones)[None]
    return Moments(jnp.sum(ones, keepdims=True), counts, counts)


def gram(design: jax.Array, dtype: jnp.dtype) -> Gram:
    """Returns the Gram matrix of a ``[group, sample, feature]`` design matrix.

    Narrow floats stay narrow in the product, whose sum runs in ``dtype``.
    """
    kind = design.dtype
    if not jnp.issubdtype(kind, jnp.floating) or kind.itemsize > dtype.itemsize:
        design = design.astype(dtype)
    count = jnp.sum(batched_ones(design[0, :, :1], dtype), axis=0)
    outer = jnp.einsum("gnd,gne->gde", design, design, preferred_element_type=dtype)
    return Gram(count, jnp.sum(design.astype(dtype), axis=1), outer)


@functools.lru_cache(maxsize=64)  # one object a width: traces keep one constant
def probes(features: int, rank: int, dtype: jnp.dtype) -> np.ndarray:
    r"""Returns :math:`\Omega`, ``[feature, rank]`` with orthonormal columns.

    Random columns of a cosine transform, its rows with random signs. Always the same,
    so that sketches add up.
    """
    rng = np.random.default_rng(0)
    columns = np.sort(rng.choice(features, rank, replace=False))
    signs = rng.choice([-1.0, 1.0], features)
    rows = np.arange(features) + 0.5
    cosines = np.cos(np.outer(rows, columns) * (np.pi / features))
    norms = np.where(columns == 0, features, features / 2) ** -0.5
    return (signs[:, None] * cosines * norms).astype(dtype)


def sketch(design: jax.Array, rank: int, dtype: jnp.dtype) -> Sketch:
    """Returns the sketch of a ``[group, sample, feature]`` design matrix."""
    x = design.astype(dtype)
    count = jnp.sum(batched_ones(x[0, :, :1], dtype), axis=0)
    # Full precision: the sketch must be that of one positive semi-definite matrix.
    high = jax.lax.Precision.HIGHEST
    omega = probes(x.shape[-1], rank, dtype)
    seen = jnp.einsum("gnd,dr->gnr", x, omega, precision=high)
    outer = jnp.einsum("gnd,gnr->gdr", x, seen, precision=high)
    return Sketch(count, jnp.sum(x, axis=1), jnp.sum(jnp.square(x), axis=1), outer)
