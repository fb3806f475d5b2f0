"""Inverse square roots of a moving average of Gram matrices, whole or of low rank.

Matrices have the trace 1, ``[block, side, side]``. What they are made of and what is
multiplied by their roots is ``[block, row, column]``, with the side along rows or along
columns: a transpose would be one more pass over an array as large as a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from linboost_optax._statistics.low_rank import nystrom
from linboost_optax._statistics.sketch import probes

# Of the trace, which is 1. Singular values a thousandth of the whole are noise.
_DAMPING = 1e-6
_ITERATIONS = 24
_HIGH = jax.lax.Precision.HIGHEST


class Root(Protocol):
    """How a Gram matrix is kept, and what its inverse root is made of."""

    def zeros(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        """Returns what is averaged, of nothing."""
        ...

    def identity(self, blocks: int, dtype: jnp.dtype) -> Any:
        """Returns the root that changes nothing."""
        ...

    def seen(self, x: jax.Array) -> jax.Array:
        """Returns what is averaged of :math:`x x^T`, or :math:`x^T x`."""
        ...

    def inverse(self, average: jax.Array) -> Any:
        """Returns the damped inverse root of an average."""
        ...

    def apply(self, root: Any, scale: jax.Array, x: jax.Array) -> jax.Array:
        """Returns the product of a root and ``x``, times a scale for each block."""
        ...


def of(side: int, columns: bool = False, rank: int = 64) -> Root:
    """Returns how a matrix of this width is kept: as it is up to the rank.

    Eigenvectors of wider ones are found on threads that slow down all else, see
    ``_solvers/triangular.py``; a sketch was measured to train about as well.

    Args:
      side: the width.
      columns: whether the side is along columns; default False, along rows.
      rank: of the sketch of wider ones; default 64.
    """
    return LowRank(side, columns, rank) if side > rank else Whole(side, columns)


@dataclass(frozen=True)
class Whole:
    """The matrix itself, and its root."""

    side: int
    columns: bool

    def zeros(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((blocks, self.side, self.side), dtype)

    def identity(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        shape = (blocks, self.side, self.side)
        return jnp.broadcast_to(jnp.eye(self.side, dtype=dtype), shape)

    def seen(self, x: jax.Array) -> jax.Array:
        pair = "kod,koe->kde" if self.columns else "kdo,keo->kde"
        return jnp.einsum(pair, x, x)

    def inverse(self, average: jax.Array) -> jax.Array:
        # Eigenvectors are found one after another, which accelerators are slow at.
        return jax.lax.platform_dependent(
            average, cpu=by_eigenvectors, default=by_products
        )

    def apply(self, root: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
        # The root is small: to scale it is no pass over `x`.
        root = scale[:, None, None] * root
        if self.columns:
            return jnp.einsum("koe,ked->kod", x, root)
        return jnp.einsum("kde,keo->kdo", root, x)


class Directions(NamedTuple):
    r"""The root :math:`\rho\,(I + U\, \mathrm{diag}(c)\, U^T)`.

    Attributes:
      rest: :math:`\rho`, ``[block]``: in all directions but those of the basis.
      basis: :math:`U`, orthonormal columns or zero, ``[block, side, rank]``.
      scaled: the basis times :math:`c`, likewise.
    """

    rest: jax.Array
    basis: jax.Array
    scaled: jax.Array


@dataclass(frozen=True)
class LowRank:
    """A sketch of the matrix, and the root in the directions that it finds.

    All others have the average of what it misses of the trace. Nothing is as large as
    the side squared.
    """

    side: int
    columns: bool
    rank: int

    def zeros(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((blocks, self.side, self.rank), dtype)

    def identity(self, blocks: int, dtype: jnp.dtype) -> Directions:
        # One buffer a leaf: a step that donates its state must not see one twice.
        basis, scaled = (self.zeros(blocks, dtype) for _ in range(2))
        return Directions(jnp.ones(blocks, dtype), basis, scaled)

    def seen(self, x: jax.Array) -> jax.Array:
        omega = probes(self.side, self.rank, x.dtype)
        first, second = (
            ("kod,dr->kor", "kod,kor->kdr")
            if self.columns
            else ("kdo,dr->kor", "kdo,kor->kdr")
        )
        along = jnp.einsum(first, x, omega, precision=_HIGH)
        return jnp.einsum(second, x, along, precision=_HIGH)

    def inverse(self, average: jax.Array) -> Directions:
        low = nystrom(average, probes(self.side, self.rank, average.dtype))
        inner = jnp.einsum("kdr,kds->krs", low, low, precision=_HIGH)
        values, vectors = jnp.linalg.eigh(inner)
        kept = values > _DAMPING
        values = jnp.where(kept, values, 1)
        turned = vectors * jnp.where(kept, jax.lax.rsqrt(values), 0)[:, None, :]
        basis = jnp.einsum("kdr,krs->kds", low, turned, precision=_HIGH)
        found = jnp.sum(jnp.where(kept, values, 0), axis=1)
        others = self.side - jnp.sum(kept, axis=1).astype(values.dtype)
        rest = jax.lax.rsqrt(jnp.maximum(1 - found, 0) / others + _DAMPING)
        gain = jax.lax.rsqrt(values + _DAMPING) / rest[:, None] - 1
        return Directions(rest, basis, basis * gain[:, None, :])

    def apply(self, root: Directions, scale: jax.Array, x: jax.Array) -> jax.Array:
        rest = (scale * root.rest)[:, None, None]
        if self.columns:
            along = jnp.einsum("kod,kdr->kor", x, root.scaled)
            return rest * (x + jnp.einsum("kor,kdr->kod", along, root.basis))
        along = jnp.einsum("kdr,kdo->kro", root.scaled, x)
        return rest * (x + jnp.einsum("kdr,kro->kdo", root.basis, along))


def by_eigenvectors(gram: jax.Array) -> jax.Array:
    """Returns the damped inverse square root of each block."""
    values, vectors = jnp.linalg.eigh(gram)
    scaled = vectors * jax.lax.rsqrt(jnp.maximum(values, 0) + _DAMPING)[:, None, :]
    return jnp.einsum("kij,klj->kil", scaled, vectors, precision=_HIGH)


def by_products(gram: jax.Array) -> jax.Array:
    """The same by Newton's coupled iteration for a square root and its inverse.

    Each step lengthens what is left of a small eigenvalue's root by a half, until it is
    of the size of the largest: from a thousandth in 17, and some to converge.
    """
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)[None]
    damped = gram + _DAMPING * identity
    # No eigenvalue is above the norm; divided by it, all are in (0, 1].
    norm = jnp.sqrt(jnp.sum(damped**2, axis=(1, 2), keepdims=True))

    def step(_: int, roots: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        root, inverse = roots
        change = (3 * identity - _product(inverse, root)) / 2
        return _product(root, change), _product(change, inverse)

    start = (damped / norm, jnp.broadcast_to(identity, gram.shape))
    _, inverse = jax.lax.fori_loop(0, _ITERATIONS, step, start)
    return inverse * jax.lax.rsqrt(norm)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("kij,kjl->kil", a, b, precision=_HIGH)
