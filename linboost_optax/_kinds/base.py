"""What a kind of layer is: a linear map, and how its arrays become matrices.

Inputs become ``[group, sample, feature]``, kernels ``[block, feature, output]``; see
``_layer`` for the convention.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from linboost_optax._statistics import Rule, Statistic


class Kind(ABC):
    """One kind of linear map.

    Subclasses are frozen dataclasses that hold the sizes of one layer. Of a kind whose
    kernel is ``[*in, *out]``, without groups, only ``kernel_shape``, ``bias_shape``,
    ``channels`` and ``design`` need to be told.

    Attributes:
      name: what the printed table calls it; by default the class's own.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", cls.__name__)

    @property
    @abstractmethod
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel of one layer."""

    @property
    @abstractmethod
    def bias_shape(self) -> tuple[int, ...]:
        """Shape that its bias has, if it has one."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of the input, in one group."""

    @property
    def groups(self) -> int:
        """Number of independent blocks that input and kernel fall into."""
        return 1

    @property
    def repeats(self) -> int:
        """How many places of the input a feature's channel is read at."""
        return 1

    @property
    def features(self) -> int:
        """Width of one least-squares problem, the constant left out."""
        return self.channels * self.repeats

    @property
    def outputs(self) -> int:
        """Number of outputs of one group."""
        return math.prod(self.bias_shape) // self.groups

    @property
    def is_in_order(self) -> bool:
        """Whether axes of the kernel are groups, then features, then outputs.

        By default so, unless a kind has a ``to_matrix`` of its own.
        """
        return type(self).to_matrix is Kind.to_matrix

    @property
    def design_key(self) -> Hashable:
        """What determines the design matrix, given the input.

        Layers with one input and equal keys share a statistic.
        """
        return self

    @property
    def one_hot(self) -> bool:
        """Whether inputs are tokens that stand for one-hot vectors."""
        return False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an input may have this shape."""
        return shape[-1:] == (self.channels,)

    def statistic(self, asked: Rule) -> Statistic:
        """Returns the statistic to take where the user asked for ``asked``."""
        return asked.choose(self)

    @abstractmethod
    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        """Returns the design matrix ``[group, sample, feature]``.

        Args:
          x: the layer's input.
          limit: take this many samples at most, by ``some_rows``; None takes all.
        """

    def sample_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes that the samples of ``design`` are flattened from.

        Masks are of these axes, or of the first of them. By default all axes of the
        input but the last.

        Args:
          shape: of the layer's input.
        """
        return shape[:-1]

    def flops(self, shape: tuple[int, ...]) -> float:
        r"""Returns the floating-point operations of one use, forward and backward.

        By default three products of :math:`n \times d` by :math:`d \times o` a group:
        the output, and the gradients of kernel and input; a product and a sum are two.

        Args:
          shape: of the layer's input.
        """
        samples = math.prod(self.sample_axes(shape))
        return 6.0 * samples * self.groups * self.features * self.outputs

    def reached(self, g: jax.Array) -> jax.Array:
        """Returns which samples of ``design`` the loss depends on, ``[sample]``.

        Args:
          g: the cotangent of the layer's output, by default ``[*sample_axes, *out]``.
        """
        return jnp.any(g.reshape(-1, math.prod(self.bias_shape)) != 0, axis=1)

    def samples(self, x: jax.Array) -> jax.Array:
        """Returns the input by channel, ``[sample, group, channel]``."""
        return jnp.moveaxis(self.design(x), 0, 1)

    def rows_of(self, rows: jax.Array | None, limit: int | None) -> jax.Array | None:
        """Returns ``rows`` at the samples that ``design(x, limit)`` takes.

        The choice is fixed, whatever a mask leaves out: fewer rows then count, and
        their mean is that of a random choice among those that do.

        Args:
          rows: which samples count, ``[sample]``; None for all.
          limit: of samples, as for ``design``.
        """
        if rows is None:
            return None
        some = some_rows(rows.shape[0], limit)
        return rows if some is None else rows[some]

    def read_by(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns which of ``samples`` the chosen rows of ``design`` are made of.

        Args:
          rows: which samples of the design matrix count, ``[sample]``.
          shape: of the layer's input.
        """
        del shape
        return rows

    def per_feature(self, channels: jax.Array) -> jax.Array:
        """Maps what is known by channel, ``[block, channel]``, to features.

        A kind with ``repeats`` says here in which order places and channels come.
        """
        return channels

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        """Maps ``[stack, *kernel_shape]`` to ``[stack, group, feature, output]``."""
        shape = (kernel.shape[0], self.groups, self.features, self.outputs)
        return kernel.reshape(shape)

    def from_matrix(self, w: jax.Array) -> jax.Array:
        """Undoes ``to_matrix``."""
        return w.reshape(w.shape[0], *self.kernel_shape)

    def __str__(self) -> str:
        return f"{self.name} with a kernel of shape {self.kernel_shape} ({self!r})"


def some_rows(count: int, limit: int | None) -> np.ndarray | None:
    """Returns ``limit`` of ``count`` row numbers, always the same; None for all.

    At random, because rows are flattened from several axes: a stride that divides the
    sequence length would only ever see a few positions.
    """
    if limit is None or count <= limit:
        return None
    chosen = np.random.default_rng(0).choice(count, limit, replace=False)
    return np.sort(chosen)
