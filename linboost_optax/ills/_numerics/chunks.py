"""Sums and maps over the samples, a chunk at a time and over devices.

A sum holds one chunk in memory. The last chunk is moved back to end at the last
sample, and the samples it shares with the one before get weight 0, so that every
chunk has one shape and nothing is padded. Data hold one row a sample, as users give
them; a chunk holds one column a sample, see ``_model/matrices.py``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax.ills._numerics.padding import pad_rows, padded_size


class Batch(NamedTuple):
    """Samples of a weighted least-squares problem; the weights are sums' only scale.

    Attributes:
      inputs: ``[sample, feature]``; ``[feature, sample]`` in a chunk, and so on.
      targets: ``[sample, output]``.
      weights: ``[sample, output]``, or ``[sample, 1]`` shared by all outputs.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array

    @property
    def T(self) -> "Batch":
        """The same with rows as columns."""
        return Batch(self.inputs.T, self.targets.T, self.weights.T)

    @property
    def shares(self) -> jax.Array:
        """What each sample counts, ``[sample]``: its mean weight, with sum 1."""
        mean = self.weights.mean(axis=1)
        return mean / mean.sum()

    def padded(self, room: int = 0) -> "Batch":
        """Returns the same on the device, rows of weight 0 after it where they help.

        Compiled code is for one number of rows: that of one fit serves the next one,
        and with ``room`` for so many rows in all that of a part serves the whole.
        Arrays that are spread over devices stay as they are.
        """
        if not all(isinstance(array, np.ndarray) for array in self):
            return self
        rows = padded_size(max(len(self.inputs), room))
        return Batch(*(jnp.asarray(pad_rows(np.asarray(a), rows)) for a in self))


def sum_over_chunks(
    fn: Callable[[Batch], Any], batch: Batch, chunk_size: int | None, axis_name: Any
) -> Any:
    """Returns the sum of ``fn(chunk)`` over all chunks and devices.

    Args:
      fn: maps a chunk, one column a sample, to a pytree of sums that are linear in
        the weights.
      batch: all samples of this device.
      chunk_size: samples a chunk; None takes them at once.
      axis_name: mapped axis to sum over, or None.

    Returns:
      A pytree like ``fn``'s.
    """
    total = _local_sum(fn, batch, chunk_size)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _local_sum(fn: Callable[[Batch], Any], batch: Batch, chunk_size: int | None) -> Any:
    samples = batch.inputs.shape[0]
    if chunk_size is None or chunk_size >= samples:
        return fn(batch.T)

    def step(total, index):
        chunk, new = _take(batch, index, chunk_size)
        chunk = chunk._replace(weights=jnp.where(new[:, None], chunk.weights, 0))
        return jax.tree.map(jnp.add, total, fn(chunk.T)), None

    shapes = jax.eval_shape(lambda: fn(_take(batch, 0, chunk_size)[0].T))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(step, zeros, jnp.arange(-(-samples // chunk_size)))[0]


def map_over_chunks(
    fn: Callable[[Batch], Any], batch: Batch, chunk_size: int | None
) -> Any:
    """Returns ``fn(chunk)``, one column a sample, collected: one row a sample."""
    samples = batch.inputs.shape[0]

    def rows_of(chunk):
        return jax.tree.map(jnp.transpose, fn(chunk.T))

    if chunk_size is None or chunk_size >= samples:
        return rows_of(batch)

    def step(rows, index):
        chunk, _ = _take(batch, index, chunk_size)
        start = _start(index, chunk_size, samples)
        write = jax.lax.dynamic_update_slice_in_dim
        return jax.tree.map(
            lambda r, c: write(r, c, start, 0), rows, rows_of(chunk)
        ), None

    shapes = jax.eval_shape(lambda: rows_of(_take(batch, 0, chunk_size)[0]))
    empty = jax.tree.map(lambda s: jnp.zeros((samples, *s.shape[1:]), s.dtype), shapes)
    return jax.lax.scan(step, empty, jnp.arange(-(-samples // chunk_size)))[0]


def _start(index: Any, chunk_size: int, samples: int) -> Any:
    return jnp.minimum(index * chunk_size, samples - chunk_size)


def _take(batch: Batch, index: Any, chunk_size: int) -> tuple[Batch, jax.Array]:
    """Returns one chunk, and which of its samples no chunk before it held."""
    start = _start(index, chunk_size, batch.inputs.shape[0])
    chunk = jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, start, chunk_size), batch
    )
    return chunk, start + jnp.arange(chunk_size) >= index * chunk_size
