"""Exact solves on raw inputs, by the dual problem."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._layer import Affine, Layer
from linboost_optax._solvers.elimination import center, uncenter
from linboost_optax._statistics.inputs import BlockRows, Inputs


@dataclass(frozen=True)
class Dual:
    r"""``Cholesky`` on the current inputs, with fewer samples than features.

    .. math::
      (X^T X / n + \gamma I)^{-1} V
      = \big(V - X^T (X X^T + n \gamma I)^{-1} X V\big) / \gamma

    with centred inputs :math:`X`, so that only an n x n matrix is factored.
    """

    ridge: float
    layer: Layer
    statistic: Inputs

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
        rows = x.shape[1]
        mean = jnp.mean(x, axis=1)
        if g.b is not None:
            x = x - mean[:, None, :]
        v = center(g, mean)
        kernel = jnp.einsum("knd,kmd->knm", x, x)
        kernel = kernel + rows * self.ridge * jnp.eye(rows, dtype=x.dtype)[None]
        inner = jnp.einsum("knd,kdo->kno", x, v)
        inner = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(kernel), True), inner)
        w = (v - jnp.einsum("knd,kno->kdo", x, inner)) / self.ridge
        return uncenter(w, g.b, mean)
