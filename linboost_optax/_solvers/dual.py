"""Exact solves on raw inputs, by the dual problem."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.damping import Damping
from linboost_optax._solvers.elimination import center, columns, uncenter
from linboost_optax._statistics.inputs import BlockRows, Inputs


@dataclass(frozen=True)
class Dual:
    r"""``Cholesky`` on the current inputs, with fewer samples than features.

    .. math::
      (X^T X / n + \Gamma)^{-1} V
      = \Gamma^{-1} \big(V - X^T (X \Gamma^{-1} X^T + n I)^{-1} X \Gamma^{-1} V\big)

    with centred inputs :math:`X`, so that only an n x n matrix is factored. Diagonal
    :math:`\Gamma` is the damping and every feature's own rounding error.
    """

    damping: Damping
    layer: Layer
    statistic: Inputs

    nameless: ClassVar[bool] = True

    def init(self) -> tuple[()]:
        return ()  # the inputs of one batch are all there is

    def read(self, value: Any) -> BlockRows:
        return self.statistic.second_moment(self.layer, value)

    def update(self, state: tuple[()], view: BlockRows, step: jax.Array) -> tuple[()]:
        del view, step
        return state

    def solve(self, state: tuple[()], view: BlockRows, g: Affine) -> Affine:
        del state
        x = view.x
        rows = jnp.maximum(view.count, 1)[:, None]
        mean = jnp.sum(x, axis=1) / rows
        if g.b is not None:
            x = (x - mean[:, None, :]) * view.rows[:, :, None]
        # The subtraction below leaves noise of a part of each feature's variance, and
        # centring leaves some units in the last place of its mean.
        eps = jnp.finfo(x.dtype).eps
        squares = jnp.sum(x**2, axis=1)
        rounding = eps * squares + (32 * eps * mean) ** 2
        shrunk = self.damping.shrinkage * squares / rows
        damping = shrunk + self.damping.ridge + rounding
        x = self.damping.kept**0.5 * x
        v = center(g, mean)
        scaled = x / damping[:, None, :]
        kernel = jnp.einsum("knd,kmd->knm", scaled, x)
        kernel = kernel + rows[..., None] * jnp.eye(x.shape[1], dtype=x.dtype)[None]
        inner = jnp.einsum("knd,kdo->kno", scaled, v)
        inner = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(kernel), True), inner)
        w = v / columns(damping) - jnp.einsum("knd,kno->kdo", scaled, inner)
        return uncenter(w, g.b, mean)
