"""What a step says between devices, layer by layer, as formulas.

Numbers, not bytes, beyond those of the same step under Adam. Tests hold them to
compiled programs. With `d` inputs and `o` outputs, a sketch of `r` probes made of `n`
rows of the batch, of which there is one for all layers with one input:

- *data*: the batch is sharded, all else on every device. Statistics are summed.
- *rows*: so are the rows of kernels, as in fully sharded training. Whitening is a
  product along sharded rows, to and fro: `r o` numbers each. `polar` has one more along
  the shorter side, or the two halves of a root there where that side is the outputs'.
- *columns*: kernels are sharded over their outputs, the batch is not. `polar` sums `r`
  numbers an input where outputs are the shorter side.

In both of these the `n d` numbers that a statistic is made of are gathered, where they
are in pieces: not of the first layer's inputs, which come from outside.

What is left out is remade every five or ten steps: some matrices of `r` by `r`, and a
product with the probes.
"""

from __future__ import annotations

import math

import jax

from linboost_optax._layer import Layer
from linboost_optax._statistics import Sketch
from linboost_optax._statistics.base import rows_taken


def data(layer: Layer, optimizer: str, in_pieces: bool = True) -> int:
    """Of a layer whose kernel is on every device, with a sharded batch."""
    del optimizer, in_pieces
    return _statistic(layer)


def rows(layer: Layer, optimizer: str, in_pieces: bool = True) -> int:
    """Of a layer whose kernel's rows are sharded, as is the batch."""
    if not isinstance(layer.statistic, Sketch):
        return _statistic(layer)  # embeddings; narrow layers have none to speak of
    probes, outputs = _probes(layer), layer.kind.outputs
    said = _statistic(layer) + 2 * layer.blocks * probes * outputs
    said += _gathered(layer) if in_pieces else 0
    if optimizer == "polar":
        halves = 2 if layer.features >= outputs else 1
        said += halves * layer.blocks * probes * outputs
    return said


def columns(layer: Layer, optimizer: str, in_pieces: bool = True) -> int:
    """Of a layer whose kernel is sharded over its outputs, the batch being whole."""
    said = _gathered(layer) if in_pieces else 0
    if optimizer == "polar" and layer.features >= layer.kind.outputs:
        said += layer.blocks * _probes(layer) * layer.features
    return said


def _probes(layer: Layer) -> int:
    statistic = layer.statistic
    return statistic.rank_of(layer) if isinstance(statistic, Sketch) else 64


def _statistic(layer: Layer) -> int:
    if layer.source is not None:  # another layer's
        return 0
    return sum(math.prod(s.shape) for s in jax.tree.leaves(layer.statistic_shapes()))


def _gathered(layer: Layer) -> int:
    if layer.source is not None or not isinstance(layer.statistic, Sketch):
        return 0
    taken = rows_taken(layer, layer.statistic.max_samples)
    return math.prod(layer.stack) * taken * layer.features
