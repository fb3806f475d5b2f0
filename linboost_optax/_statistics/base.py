"""What a statistic is, and what solvers read of it.

A statistic is a frozen dataclass that knows all about itself: what arrays it holds,
how they are measured, and which views of them solvers may read. Arrays lead with
``[*stack, group]``: ``stack`` holds layers stacked by ``nn.scan`` or ``nn.vmap``,
``group`` the blocks of a block-diagonal layer (grouped convolutions, batched dense
layers). Views are by block, see ``_layer``.

Every statistic but ``Inputs`` is a *sum* over samples, so autodiff adds it up wherever
a layer is used more than once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, dot
from linboost_optax._statistics import bounds

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._layer import Layer
    from linboost_optax._statistics.spectrum import Spectrum


class BlockMoments(NamedTuple):
    """The moments of each block's features, over all samples of the batch.

    A convolution's are per channel of its input, the same at every place of the window.

    Attributes:
      count: number of samples, ``[block]``; zero where the block saw none.
      mean: ``[block, feature]``, finite also where ``count`` is zero.
      mean_sq: ``[block, feature]``, likewise.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: jax.Array
    mean_sq: jax.Array


class SecondMoment(Protocol):
    """A view of the second moment of a block's inputs that can be multiplied by.

    A pytree of arrays, with ``count`` ``[block]``, the samples of each block.
    """

    @property
    def count(self) -> jax.Array: ...

    def product(self, v: Affine) -> Affine:
        r"""Returns :math:`E[\tilde x \tilde x^T] v`."""
        ...


@runtime_checkable
class HasSecondMoment(Protocol):
    """A statistic that offers products with the second moment of the inputs."""

    def second_moment(self, layer: Layer, value: Any) -> SecondMoment: ...


@runtime_checkable
class Rule(Protocol):
    """Anything that chooses a statistic for a kind of layer; statistics do, too."""

    def choose(self, kind: Kind) -> Statistic: ...


class Statistic(ABC):
    """What a tap emits about a layer's inputs.

    Subclasses are frozen dataclasses. ``value`` stands for the arrays that ``measure``
    returns and autodiff adds up: any tree with the shapes that ``shapes`` tells. They
    must not depend on whether the layer has a bias, which may be masked later.

    Attributes:
      name: what the printed table calls it; by default the class's own, in lower case.
      additive: whether values of several uses of a layer may be added up.
      reads_cotangent: whether ``measure`` reads the cotangent of the output. Layers
        with one input then do not share a value, and every call counts.
      reads_rows: whether ``measure`` takes ``rows`` as its last argument, and can so
        leave out samples that a mask leaves out.
      is_whole: whether it is of all rows of the batch.
    """

    name: ClassVar[str]
    additive: ClassVar[bool] = True
    reads_cotangent: ClassVar[bool] = False
    reads_rows: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", cls.__name__.lower())

    @property
    def is_whole(self) -> bool:
        return True

    @property
    def whitens(self) -> bool:
        """Whether ``whiten`` changes the coordinates of its layers; by default so."""
        return True

    @property
    def as_read(self) -> Statistic:
        """The statistic whose values these are for a solver; by default this one."""
        return self

    def choose(self, kind: Kind) -> Statistic:
        """Returns the statistic to take of a layer of this kind; by default this."""
        del kind
        return self

    def layer_of(self, layer: Layer, kind: Kind) -> Layer:
        """Returns the layer as a tap takes it on a use of this kind; by default as is.

        Where a kernel has uses of several kinds, each measures its own part.
        """
        del kind
        return layer

    @abstractmethod
    def shapes(self, layer: Layer) -> Any:
        """Returns the value's shapes as ``ShapeDtypeStruct`` leaves, without stack."""

    @abstractmethod
    def measure(
        self,
        layer: Layer,
        x: jax.Array,
        g: jax.Array | None,
        rows: jax.Array | None = None,
    ) -> Any:
        """Returns the value of one use of the layer.

        Without ``reads_rows`` it is called without ``rows``, and need not take it.

        Args:
          layer: the layer's static facts.
          x: its input.
          g: the cotangent of its output; None where the tap sees the input alone.
          rows: which samples of ``layer.kind.design`` count, boolean, ``[sample]``;
            None where all do.
        """

    @abstractmethod
    def moments(self, layer: Layer, value: Any) -> BlockMoments:
        """Returns what any solver may read: the moments of each block's features."""

    def flops(self, layer: Layer) -> float:
        """Returns the floating-point operations of measuring one use of the layer.

        Of what the default solver reads of it, for one of ``layer.stack``, with inputs
        of ``layer.input_shape``. By default not a number: a statistic may not say.
        """
        del layer
        return math.nan

    def spectrum(self, layer: Layer, value: Any) -> Spectrum:
        """Returns what is known of the eigenvalues of each block's second moment.

        By default the bounds that moments give.
        """
        return bounds.of_moments(self.moments(layer, value), layer.biased)

    def mean_square(self, layer: Layer, value: Any, v: Affine) -> jax.Array:
        r"""Returns :math:`E|\tilde x^T v|^2`, summed over outputs, ``[block]``.

        With the second moment where the statistic offers it, else as if features were
        uncorrelated.
        """
        if isinstance(self, HasSecondMoment):
            return dot(v, self.second_moment(layer, value).product(v))
        return bounds.uncorrelated(self.moments(layer, value), v)


def with_constant(mean: jax.Array, product: jax.Array, v: Affine) -> Affine:
    r"""Returns :math:`E[\tilde x \tilde x^T] v`, given :math:`E[x x^T] v_w`."""
    if v.b is None:
        return Affine(product, None)
    b = jnp.einsum("kd,kdo->ko", mean, v.w) + v.b
    return Affine(product + mean[:, :, None] * v.b[:, None, :], b)


def struct(layer: Layer, *shape: int) -> Any:
    """Returns a stand-in for an array of this shape, in the statistic's dtype."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(layer.dtype))


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


def ones_of(
    like: jax.Array, dtype: jnp.dtype, rows: jax.Array | None = None
) -> jax.Array:
    """Returns ``batched_ones(like)``, zero in rows that do not count.

    Args:
      like: an array that leads with samples.
      dtype: of the ones.
      rows: which samples count, ``[sample]``; None for all.
    """
    ones = batched_ones(like, dtype)
    return ones if rows is None else only(rows, ones)


def only(rows: jax.Array | None, x: jax.Array, axis: int = 0) -> jax.Array:
    """Returns ``x`` with zeros in the rows that do not count, whatever is there.

    Args:
      rows: which samples count, ``[sample]``; None for all.
      x: an array of samples.
      axis: of the samples; default 0.
    """
    if rows is None:
        return x
    others = [i for i in range(x.ndim) if i != axis % x.ndim]
    # Not a product: what padding computes may be infinite.
    return jnp.where(jnp.expand_dims(rows, others), x, jnp.zeros((), x.dtype))


def rows_taken(layer: Layer, max_samples: int | None) -> int:
    """Returns how many rows of a layer's inputs are taken, ``max_samples`` at most."""
    rows = math.prod(layer.kind.sample_axes(layer.input_shape))
    return rows if max_samples is None else min(rows, max_samples)


def per_block(layer: Layer, count: jax.Array) -> jax.Array:
    """Returns counts ``[*stack, 1]`` as ``[block]``."""
    groups = layer.kind.groups
    return jnp.repeat(count.reshape(-1), groups, total_repeat_length=layer.blocks)


def mean_of(layer: Layer, total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns sums ``[*stack, group, ...]`` as means ``[block, ...]``; 0 of nothing."""
    flat = total.reshape(layer.blocks, *total.shape[len(layer.stack) + 1 :])
    scale = 1.0 / jnp.maximum(count, 1)
    return flat * jnp.expand_dims(scale, tuple(range(1, flat.ndim)))
