r"""Combine directions by regression on their effects (step 2 of the method).

The residual is regressed on what the directions do to the output, to first order,
with the last layer eliminated (variable projection): for effects ``E`` and last-layer
inputs ``A``, with everything weighted,

.. math::
    (E^\top E - E^\top A (A^\top A)^{-1} A^\top E) \alpha
        = E^\top R - E^\top A (A^\top A)^{-1} A^\top R.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from linboost_optax._ills.chunks import Batch, sum_over_chunks
from linboost_optax._ills.config import IllsConfig
from linboost_optax._ills.least_squares import (
    add_diagonal,
    factorize,
    solve,
    weighted_gram,
)
from linboost_optax._ills.weighted import jacobians
from linboost_optax._network import Forward, Layers, forward, kernel_mask

# One list a hidden layer, of directions shaped like the layer's augmented matrix.
Directions = list[Layers]


class Sums(NamedTuple):
    """What the data contribute to the combination."""

    gram: jax.Array  # E^T E, [direction, direction]
    rhs: jax.Array  # E^T R, [direction]
    cross: jax.Array  # A^T E, [input + 1, output, direction]
    last_gram: jax.Array  # A^T A, [group, input + 1, input + 1]
    last_rhs: jax.Array  # A^T R, [input + 1, output]


def combine(
    config: IllsConfig,
    layers: Layers,
    directions: Directions,
    damping: jax.Array,
    working: Batch,
) -> Layers:
    """Step 2: the best damped combination, one step for every hidden layer."""
    sums = _accumulate(config, layers, directions, working)
    sums = _penalize(config, layers, directions, sums)
    coefficients = _solve_damped(*_eliminate_last_layer(sums), damping)
    return expand(config, layers, directions, coefficients)


def expand(
    config: IllsConfig, layers: Layers, directions: Directions, coefficients: jax.Array
) -> Layers:
    """The steps that a vector of coefficients stands for."""
    steps, at = [], 0
    for w, group in zip(layers[:-1], directions, strict=True):
        if config.combine == "parameter":
            steps.append(coefficients[at : at + w.size].reshape(w.shape))
            at += w.size
            continue
        # One coefficient a direction, or one a direction and unit.
        width = w.shape[1] if config.combine == "unit" else 1
        step = jnp.zeros_like(w)
        for direction in group:
            step = step + coefficients[None, at : at + width] * direction
            at += width
        steps.append(step)
    return steps


def _count(config: IllsConfig, directions: Directions) -> int:
    if config.combine == "parameter":
        return sum(group[0].size for group in directions)
    if config.combine == "unit":
        return sum(d.shape[1] for group in directions for d in group)
    return sum(len(group) for group in directions)


def _effects(
    config: IllsConfig, layers: Layers, directions: Directions, f: Forward
) -> jax.Array:
    """First-order change of the output, ``[direction, output, sample]``."""
    if config.combine == "layer":
        columns = [
            _tangent(config, layers, f, level, direction)
            for level, group in enumerate(directions)
            for direction in group
        ]
        return jnp.stack(columns)
    blocks = []
    for level, j in enumerate(jacobians(config.network, layers, f)):
        x = f.inputs[level]
        if config.combine == "unit":
            unit_first = j.swapaxes(0, 1)
            blocks += [unit_first * (d.T @ x)[:, None, :] for d in directions[level]]
        else:
            block = j.swapaxes(0, 1)[None] * x[:, None, None, :]
            blocks.append(block.reshape(-1, *block.shape[2:]))
    return jnp.concatenate(blocks)


def _tangent(
    config: IllsConfig, layers: Layers, f: Forward, level: int, direction: jax.Array
) -> jax.Array:
    change = direction.T @ f.inputs[level]
    for layer in range(level, len(f.slopes)):
        kernel = layers[layer + 1][: config.network.layers[layer].features_out]
        change = kernel.T @ (change * f.slopes[layer])
    return change


def _accumulate(
    config: IllsConfig, layers: Layers, directions: Directions, working: Batch
) -> Sums:
    def chunk(part: Batch) -> Sums:
        f = forward(config.network, layers, part.inputs)
        effects = _effects(config, layers, directions, f)
        weights = jnp.broadcast_to(part.weights, part.targets.shape)
        weighted = effects * weights[None]
        residual = part.targets - f.out
        count, outputs, samples = effects.shape
        flat = weighted.reshape(count, -1)
        a = f.inputs[-1]
        cross = a @ weighted.reshape(-1, samples).T
        return Sums(
            gram=flat @ effects.reshape(count, -1).T,
            rhs=flat @ residual.reshape(-1),
            cross=cross.reshape(-1, count, outputs).swapaxes(1, 2),
            last_gram=weighted_gram(a, part.weights),
            last_rhs=a @ (weights * residual).T,
        )

    return sum_over_chunks(chunk, working, config.chunk_size, config.axis_name)


def _penalize(
    config: IllsConfig, layers: Layers, directions: Directions, sums: Sums
) -> Sums:
    """Add the ridge penalties, which are least squares on the weights."""
    last = config.network.last
    mask = config.output_ridge * kernel_mask(last, sums.rhs.dtype)
    sums = sums._replace(
        last_gram=add_diagonal(sums.last_gram, mask[None, :, 0]),
        last_rhs=sums.last_rhs - mask * layers[-1],
    )
    if isinstance(config.hidden_ridge, int | float) and config.hidden_ridge == 0:
        return sums
    eye = jnp.eye(_count(config, directions), dtype=sums.rhs.dtype)
    basis = jax.vmap(lambda c: expand(config, layers, directions, c))(eye)
    gram, rhs = sums.gram, sums.rhs
    for layer, w, vectors in zip(
        config.network.hidden, layers[:-1], basis, strict=True
    ):
        keep = kernel_mask(layer, w.dtype)
        flat = (vectors * keep[None]).reshape(len(eye), -1)
        gram = gram + config.hidden_ridge * (flat @ flat.T)
        rhs = rhs - config.hidden_ridge * (flat @ w.reshape(-1))
    return sums._replace(gram=gram, rhs=rhs)


def _eliminate_last_layer(sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The projected system, and the unprojected diagonal to judge its rounding by."""
    scale, factor = factorize(sums.last_gram)
    width, outputs, count = sums.cross.shape
    both = jnp.concatenate([sums.cross, sums.last_rhs[:, :, None]], axis=2)
    shared = factor.shape[0] == 1
    both = both.reshape(1, width, -1) if shared else both.transpose(1, 0, 2)
    half = jax.lax.linalg.triangular_solve(
        factor, both * scale[:, :, None], left_side=True, lower=True
    ).reshape(outputs * width, count + 1)
    cross, rhs = half[:, :count], half[:, count]
    return (
        sums.gram - cross.T @ cross,
        sums.rhs - cross.T @ rhs,
        jnp.diagonal(sums.gram),
    )


def _solve_damped(
    gram: jax.Array, rhs: jax.Array, before: jax.Array, damping: jax.Array
) -> jax.Array:
    """Solve with ``damping`` added to the Gram matrix scaled to unit diagonal."""
    diagonal = jnp.diagonal(gram)
    # What is left after the elimination may be rounding only: such a direction does
    # nothing that the last layer cannot do, and is left out.
    usable = diagonal > 16 * jnp.finfo(gram.dtype).eps * before
    scale = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, diagonal, 1)), 0)
    unit = gram * scale[:, None] * scale[None, :]
    unit = add_diagonal(unit, damping + jnp.where(usable, 0, 1).astype(gram.dtype))
    return scale * solve(unit[None], (rhs * scale)[:, None])[:, 0]
