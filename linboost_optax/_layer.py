"""The static facts of a layer; its kernel and bias as blocks.

The convention of the whole library: inputs are ``[group, sample, feature]``,
kernels ``[block, feature, output]``, biases ``[block, output]``. A *block* is one
least-squares problem; blocks are all stacked layers times all groups, in that
order. The constant 1 that multiplies the bias is the last feature wherever it is
written out; most code keeps it apart, as the pair ``Affine(w, b)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._arrangement import Arrangement

if TYPE_CHECKING:
    from linboost_optax._kinds import Kind
    from linboost_optax._statistics import Statistic

Path = tuple[str, ...]


class Affine(NamedTuple):
    """The weights of a layer, or anything shaped like them, as matrices.

    Attributes:
      w: shape ``[block, feature, output]``.
      b: shape ``[block, output]``, or None for a layer without bias.
    """

    w: jax.Array
    b: jax.Array | None


def dot(a: Affine, b: Affine) -> jax.Array:
    """Returns the inner product of each block."""
    total = jnp.einsum("kdo,kdo->k", a.w, b.w)
    if a.b is None or b.b is None:
        return total
    return total + jnp.einsum("ko,ko->k", a.b, b.b)


def join(path: Path) -> str:
    """Returns a path as one name; a slash inside a name is doubled."""
    return "/".join(name.replace("/", "//") for name in path)


def split(name: str) -> Path:
    """Undoes ``join``."""
    if not name:
        return ()
    parts = re.split("(?<!/)/(?!/)", name)
    return tuple(part.replace("//", "/") for part in parts)


@dataclass(frozen=True)
class Layer:
    """The static facts of one tapped layer.

    Attributes:
      path: where its parameters are, below the root of the parameter tree.
      kind: how its kernel, bias and inputs become matrices.
      statistic: what its tap emits.
      input_shape: shape of the inputs that reach it, without ``stack``.
      dtype: dtype of its statistic.
      kernel: name of the kernel below ``path``.
      bias: name of the bias below ``path``, or None.
      stack: sizes of the leading axes along which layers are stacked.
      source: path of the layer whose statistic is this one's too, as both have the
        same input; None for a layer with a statistic of its own.
      home: where its parameters are if not below ``path``: where one place has several
        kernels, each is a layer of its own. Names then may have slashes.
      arrangement: of the parameter into the kernel, stack first; None where it is the
        kernel.
      bias_arrangement: likewise, of the bias.
    """

    path: Path
    kind: Kind
    statistic: Statistic
    input_shape: tuple[int, ...]
    dtype: str = "float32"
    kernel: str = "kernel"
    bias: str | None = "bias"
    stack: tuple[int, ...] = ()
    source: Path | None = None
    home: Path | None = None
    arrangement: Arrangement | None = None
    bias_arrangement: Arrangement | None = None

    @property
    def root(self) -> Path:
        """Where its kernel and bias are."""
        return self.path if self.home is None else self.home

    def where(self, name: str) -> Path:
        """Returns the path of its kernel or bias in the parameter tree."""
        return (*self.root, *split(name))

    @property
    def key(self) -> str:
        """The layer's name in dictionaries; the root's is empty."""
        return join(self.path)

    @property
    def stats_key(self) -> str:
        """The key of its statistic, another layer's where the input is shared."""
        return self.key if self.source is None else join(self.source)

    @property
    def features(self) -> int:
        """Width of one least-squares problem, the constant left out."""
        return self.kind.features

    @property
    def blocks(self) -> int:
        """Number of independent least-squares problems."""
        return math.prod(self.stack) * self.kind.groups

    @property
    def biased(self) -> bool:
        """Whether its least-squares problem has the constant 1 as a feature."""
        return self.bias is not None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its parameters by name, stack included."""
        shapes = {self.kernel: self.stack + self.kind.kernel_shape}
        if self.arrangement is not None:
            shapes[self.kernel] = self.arrangement.shape
        if self.bias is not None:
            shapes[self.bias] = self.stack + self.kind.bias_shape
            if self.bias_arrangement is not None:
                shapes[self.bias] = self.bias_arrangement.shape
        return shapes

    @property
    def design_key(self) -> Hashable:
        """What determines its statistic and metric, given the input."""
        facts = (self.statistic, self.dtype, self.stack, self.biased)
        return (self.kind.design_key, *facts)

    def __str__(self) -> str:
        """The layer's name for people: the root is a dot, as in the table."""
        return self.key or "."

    def check_input(self, x: jax.Array) -> None:
        """Raises if the statistic holds inputs of another shape than ``x``'s."""
        if not self.statistic.additive and x.shape != self.input_shape:
            raise ValueError(
                f"layer '{self}' has `statistic` '{self.statistic.name}' for inputs of "
                f"shape {self.input_shape}, got {x.shape}. Make the taps again for "
                "this shape, or use 'gram' or 'moments', which take any number of "
                "samples."
            )

    def below(self, root: Path) -> Layer:
        """Returns the layer of a model whose parameters are below ``root``."""
        source = None if self.source is None else root + self.source
        home = None if self.home is None else root + self.home
        return replace(self, path=root + self.path, source=source, home=home)

    def as_read(self) -> Layer:
        """Returns the layer as solvers are bound to it."""
        return replace(self, statistic=self.statistic.as_read)

    def without_bias(self) -> Layer:
        """Returns the layer as one whose bias is no parameter of the problem."""
        return replace(self, bias=None)

    def statistic_shapes(self) -> Any:
        """Returns its statistic as ``ShapeDtypeStruct`` leaves, stack included."""
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(self.stack + s.shape, s.dtype),
            self.statistic.shapes(self),
        )

    def zeros(self, *shape: int) -> jax.Array:
        """Returns ``jnp.zeros([block, *shape])`` in the dtype of its statistic."""
        return jnp.zeros((self.blocks, *shape), jnp.dtype(self.dtype))

    def to_affine(
        self, kernel: jax.Array, bias: jax.Array | None, dtype: jnp.dtype
    ) -> Affine:
        """Returns kernel and bias as matrices of ``dtype``."""
        if self.arrangement is not None:
            kernel = self.arrangement.apply(kernel)
        if bias is not None and self.bias_arrangement is not None:
            bias = self.bias_arrangement.apply(bias)
        kernel = kernel.reshape(-1, *self.kind.kernel_shape)
        w = self.kind.to_matrix(kernel.astype(dtype))
        w = w.reshape(-1, *w.shape[2:])
        if bias is None:
            return Affine(w, None)
        return Affine(w, bias.astype(dtype).reshape(w.shape[0], w.shape[2]))

    def from_affine(self, affine: Affine) -> tuple[jax.Array, jax.Array | None]:
        """Undoes ``to_affine``."""
        w = affine.w.reshape(-1, self.kind.groups, *affine.w.shape[1:])
        kernel = self.kind.from_matrix(w)
        if self.arrangement is not None:
            kernel = self.arrangement.undo(kernel)
        kernel = kernel.reshape(self.shapes[self.kernel])
        if affine.b is None or self.bias is None:
            return kernel, None
        bias = affine.b
        if self.bias_arrangement is not None:
            bias = self.bias_arrangement.undo(bias)
        return kernel, bias.reshape(self.shapes[self.bias])
