"""Inverse square roots of a moving average of Gram matrices, whole or of low rank.

Matrices have the trace 1, ``[block, side, side]``; what is multiplied by a root is
``[block, side, other]``.
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
        """Returns what is averaged of :math:`x x^T`."""
        ...

    def inverse(self, average: jax.Array) -> Any:
        """Returns the damped inverse root of an average."""
        ...

    def apply(self, root: Any, x: jax.Array) -> jax.Array:
        """Returns the product of a root and ``x``."""
        ...


def of(side: int, rank: int = 64) -> Root:
    """Returns how a matrix of this width is kept: as it is up to twice the rank."""
    return Whole(side) if side <= 2 * rank else LowRank(side, rank)


@dataclass(frozen=True)
class Whole:
    """The matrix itself, and its root."""

    side: int

    def zeros(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((blocks, self.side, self.side), dtype)

    def identity(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        shape = (blocks, self.side, self.side)
        return jnp.broadcast_to(jnp.eye(self.side, dtype=dtype), shape)

    def seen(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("kdo,keo->kde", x, x)

    def inverse(self, average: jax.Array) -> jax.Array:
        # Eigenvectors are found one after another, which accelerators are slow at.
        return jax.lax.platform_dependent(
            average, cpu=by_eigenvectors, default=by_products
        )

    def apply(self, root: jax.Array, x: jax.Array) -> jax.Array:
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
    rank: int

    def zeros(self, blocks: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((blocks, self.side, self.rank), dtype)

    def identity(self, blocks: int, dtype: jnp.dtype) -> Directions:
        # One buffer a leaf: a step that donates its state must not see one twice.
        basis, scaled = (self.zeros(blocks, dtype) for _ in range(2))
        return Directions(jnp.ones(blocks, dtype), basis, scaled)

    def seen(self, x: jax.Array) -> jax.Array:
        omega = probes(self.side, self.rank, x.dtype)
        along = jnp.einsum("kdo,dr->kor", x, omega, precision=_HIGH)
        return jnp.einsum("kdo,kor->kdr", x, along, precision=_HIGH)

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

    def apply(self, root: Directions, x: jax.Array) -> jax.Array:
        along = jnp.einsum("kdr,kdo->kro", root.basis, x)
        turned = x + jnp.einsum("kdr,kro->kdo", root.scaled, along)
        return root.rest[:, None, None] * turned


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
