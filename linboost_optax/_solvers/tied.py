r"""Solves on an embedding that is the output layer, too: a metric of two sides.

Such weights :math:`E`, ``[token, component]``, have the metric

.. math::
  M(E) = D E + E S + \gamma E,

with the diagonal matrix :math:`D` of the tokens' frequencies and the second moment
:math:`S` of the hidden states, each times its share of the samples; see ``Uses``. It is
no Kronecker product, but with :math:`S = Q\, \mathrm{diag}(l)\, Q^T` every power of it
is two products and a division:

.. math:: (M^p(G)\, Q)_{vj} = (D_v + l_j + \gamma)^p\, (G Q)_{vj}

Here are ``Cholesky`` and ``IncompleteCholesky`` with it; conjugate gradients multiply
by it, see ``BlockUses``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers import refreshed
from linboost_optax._solvers.cholesky import Cholesky, cholesky_on
from linboost_optax._solvers.damping import Damping
from linboost_optax._solvers.elimination import columns
from linboost_optax._solvers.incomplete_cholesky import (
    ArrowMetric,
    IncompleteCholesky,
    MomentsState,
    arrow_on,
)
from linboost_optax._solvers.refreshed import Refreshed
from linboost_optax._statistics.base import BlockMoments, Statistic
from linboost_optax._statistics.gram import Gram
from linboost_optax._statistics.sketch import Sketch, probes
from linboost_optax._statistics.uses import Uses, UseSums

_HIGH = jax.lax.Precision.HIGHEST


class Sides(NamedTuple):
    """What is read of both uses, each times its share of the samples.

    Attributes:
      count: number of samples of both uses, ``[block]``.
      tokens: the diagonal of :math:`D`, ``[block, token]``.
      square: the diagonal of :math:`S`, ``[block, component]``.
      outer: :math:`S`, or its product with a sketch's probes.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    tokens: jax.Array
    square: jax.Array
    outer: jax.Array


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of the hidden states' side.

    Attributes:
      along: eigenvalues along the basis, ``[block, rank]``.
      basis: orthonormal columns, ``[block, component, rank]``.
      rest: the eigenvalue in all other directions, ``[block]``.
    """

    along: jax.Array
    basis: jax.Array
    rest: jax.Array


@dataclass(frozen=True)
class TwoSided:
    r"""``Cholesky`` on a tied embedding: eigenvectors of the hidden states' side.

    Whitening takes the symmetric root, which knows nothing of the order and signs of
    eigenvectors: its coordinates stay over a refresh. On a sketch the eigenvectors are
    those of its low-rank approximation, and all other directions have the average of
    what that misses of the trace, so that nothing is as large as the embedding's width
    squared.
    """

    damping: Damping
    decay: float
    every: int
    layer: Layer
    statistic: Uses

    def init(self) -> Refreshed:
        tokens, d = self.layer.kind.features, self.layer.kind.outputs
        _, attend = self.statistic.parts(self.layer)
        sketch = attend.statistic
        rank = sketch.rank_of(attend) if isinstance(sketch, Sketch) else d
        zeros = self.layer.zeros
        averaged = (zeros(tokens), zeros(d), zeros(d, rank))
        basis = zeros(d, rank) + jnp.eye(d, rank, dtype=self.layer.dtype)[None]
        spectrum = Spectrum(zeros(rank), basis, zeros())
        return refreshed.init(self.layer, averaged, zeros(tokens) + 1, spectrum)

    def read(self, value: UseSums) -> Sides:
        lookup, attend = self.statistic.parts(self.layer)
        count, share = self.statistic.numbers(self.layer, value)
        tokens = lookup.statistic.moments(lookup, value.lookup).mean
        if isinstance(attend.statistic, Sketch):
            seen = attend.statistic.sketched(attend, value.attend)
            square, outer = seen.mean_sq, seen.outer
        else:
            assert isinstance(attend.statistic, Gram)
            outer = attend.statistic.second_moment(attend, value.attend).outer
            square = jnp.diagonal(outer, axis1=1, axis2=2)
        rows, other = share[:, None], (1 - share)[:, None]
        return Sides(count, rows * tokens, other * square, columns(other) * outer)

    def update(self, state: Refreshed, view: Sides, step: jax.Array) -> Refreshed:
        return refreshed.update(
            state,
            (view.tokens, view.square, view.outer),
            view.count > 0,
            step,
            self._factorise,
            decay=self.decay,
            every=self.every,
        )

    def _factorise(self, averages: Any) -> tuple[jax.Array, Spectrum]:
        tokens, square, outer = averages
        sketched = isinstance(self.statistic.attend, Sketch)
        # Frequencies have no correlations, hidden states have.
        kept = self.damping.kept
        if sketched:
            spectrum = _of_sketch(square, kept * outer)
        else:
            eye = jnp.eye(outer.shape[2], dtype=outer.dtype)[None]
            own = self.damping.shrinkage * square[:, None, :] * eye
            spectrum = _of_matrix(kept * outer + own)
        info = jnp.finfo(tokens.dtype)
        # Eigenvalues have the errors of the largest. Frequencies have none, but without
        # a ridge what was never there has no scale but the others'.
        largest = jnp.max(spectrum.along, axis=1, keepdims=True)
        rounding = outer.shape[2] * info.eps * largest
        if self.damping.ridge == 0:
            rounding = rounding + info.eps * jnp.max(tokens, axis=1, keepdims=True)
        # The mean of one-hot inputs, which goes with the spectrum, is the other side.
        return tokens + (self.damping.ridge + rounding + info.tiny), spectrum

    def solve(self, state: Refreshed, view: Any, g: Affine) -> Affine:
        del view
        return _power(state, g, lambda level: 1 / level)

    def whiten(self, state: Refreshed, g: Affine) -> Affine:
        return _power(state, g, jax.lax.rsqrt)

    def unwhiten(self, state: Refreshed, u: Affine) -> Affine:
        return _power(state, u, jax.lax.rsqrt)

    def coordinates(self, state: Refreshed, w: Affine) -> Affine:
        return _power(state, w, jnp.sqrt)


def _of_matrix(outer: jax.Array) -> Spectrum:
    along, basis = jnp.linalg.eigh(outer)
    return Spectrum(jnp.maximum(along, 0), basis, jnp.zeros_like(outer[:, 0, 0]))


def _of_sketch(square: jax.Array, outer: jax.Array) -> Spectrum:
    """Returns that of ``Y (Omega^T Y)^+ Y^T``, and the average of the rest."""
    d, rank = outer.shape[1:]
    omega = probes(d, rank, outer.dtype)
    inner = jnp.einsum("dr,kds->krs", omega, outer, precision=_HIGH)
    values, vectors = jnp.linalg.eigh((inner + inner.mT) / 2)
    # Directions below rounding are left out.
    kept = values > jnp.maximum(rank * jnp.finfo(values.dtype).eps * values[:, -1:], 0)
    root = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
    scaled = vectors * root[:, None, :]
    low = jnp.einsum("kdr,krs->kds", outer, scaled, precision=_HIGH)
    # Powers are applied as differences along the basis, which therefore has to be
    # orthonormal also where the low-rank part has fewer dimensions.
    basis, triangle = jnp.linalg.qr(low)
    inner = jnp.einsum("krs,kts->krt", triangle, triangle, precision=_HIGH)
    along, vectors = jnp.linalg.eigh(inner)
    along = jnp.maximum(along, 0)
    basis = jnp.einsum("kdr,krs->kds", basis, vectors, precision=_HIGH)
    missed = jnp.sum(square, axis=1) - jnp.sum(along, axis=1)
    return Spectrum(along, basis, jnp.maximum(missed, 0) / max(d - rank, 1))


def _power(
    state: Refreshed, g: Affine, power: Callable[[jax.Array], jax.Array]
) -> Affine:
    """Returns ``g`` times a power of the metric."""
    tokens, spectrum, _ = state.factor
    along = jnp.einsum("kvd,kdr->kvr", g.w, spectrum.basis)
    at = power(columns(tokens) + spectrum.along[:, None, :])
    d, rank = spectrum.basis.shape[1:]
    if rank == d:
        w = jnp.einsum("kvr,kdr->kvd", along * at, spectrum.basis)
    else:
        rest = columns(power(tokens + spectrum.rest[:, None]))
        w = jnp.einsum("kvr,kdr->kvd", along * (at - rest), spectrum.basis)
        w = w + g.w * rest
    return Affine(w, None)


class ArrowSides(NamedTuple):
    """The moments of both uses, of samples times the root of their share."""

    lookup: BlockMoments
    attend: BlockMoments

    @property
    def count(self) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Number of samples of both uses, ``[block]``."""
        return self.lookup.count


@dataclass(frozen=True)
class SumOfArrows:
    """``IncompleteCholesky`` on a tied embedding: the sum of its uses' diagonals."""

    lookup: ArrowMetric
    attend: ArrowMetric
    layer: Layer
    statistic: Uses

    def init(self) -> tuple[MomentsState, MomentsState]:
        return self.lookup.init(), self.attend.init()

    def read(self, value: UseSums) -> ArrowSides:
        count, share = self.statistic.numbers(self.layer, value)

        def scaled(moments: BlockMoments, share: jax.Array) -> BlockMoments:
            share = share[:, None]
            mean, mean_sq = jnp.sqrt(share) * moments.mean, share * moments.mean_sq
            return BlockMoments(count, mean, mean_sq)

        return ArrowSides(
            scaled(self.lookup.read(value.lookup), share),
            scaled(self.attend.read(value.attend), 1 - share),
        )

    def update(
        self,
        state: tuple[MomentsState, MomentsState],
        view: ArrowSides,
        step: jax.Array,
    ) -> tuple[MomentsState, MomentsState]:
        lookup, attend = state
        lookup = self.lookup.update(lookup, view.lookup, step)
        return lookup, self.attend.update(attend, view.attend, step)

    def solve(self, state: Any, view: Any, g: Affine) -> Affine:
        del view
        return Affine(g.w / self._metric(state), None)

    def whiten(self, state: Any, g: Affine) -> Affine:
        return Affine(g.w * jax.lax.rsqrt(self._metric(state)), None)

    def unwhiten(self, state: Any, u: Affine) -> Affine:
        return Affine(u.w * jax.lax.rsqrt(self._metric(state)), None)

    def coordinates(self, state: Any, w: Affine) -> Affine:
        return Affine(w.w * jnp.sqrt(self._metric(state)), None)

    def _metric(self, state: tuple[MomentsState, MomentsState]) -> jax.Array:
        """Returns the metric of every weight, ``[block, token, component]``."""
        lookup, attend = state
        (_, tokens), (_, components) = (
            self.lookup.scales(lookup),
            self.attend.scales(attend),
        )
        return columns(tokens) + components[:, None, :]


@arrow_on.register
def _(statistic: Uses, solver: IncompleteCholesky, layer: Layer) -> SumOfArrows:
    lookup, attend = (ArrowMetric(solver, part) for part in statistic.parts(layer))
    return SumOfArrows(lookup, attend, layer, statistic)


@cholesky_on.register
def _(statistic: Uses, solver: Cholesky, layer: Layer, whitens: bool) -> Any:
    if isinstance(statistic.attend, Gram | Sketch):
        return TwoSided(solver.damping, solver.decay, solver.every, layer, statistic)
    moments = cholesky_on.dispatch(Statistic)  # incomplete, as where there are no more
    return moments(statistic, solver, layer, whitens)
