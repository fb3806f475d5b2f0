"""What is trained, and how its parameters and batches lie on the devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.steps import Batch

AXIS = "data"
FEATURES = 512
# Different, so that no layer's program serves another; eight devices divide them.
WIDTHS = (640, 448, 576, 512)
BLOCKS, BLOCK_WIDTH = 8, 128
QUICK_FEATURES, QUICK_WIDTHS, QUICK_BLOCK_WIDTH = 16, (24, 16, 8), 8


class Chain(nn.Module):
    """Dense layers one after another."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths[:-1]:
            x = jnp.tanh(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Block(nn.Module):
    """A residual block, as `nn.scan` wants it."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        hidden = jnp.tanh(nn.Dense(2 * self.width)(x))
        return x + nn.Dense(self.width)(hidden), None


class Stack(nn.Module):
    """Equal blocks in a loop: every parameter has a leading axis of blocks."""

    width: int
    blocks: int = BLOCKS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scanned = nn.scan(
            Block,
            length=self.blocks,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return scanned(self.width)(x, None)[0]


def sines(rows: int, features: int, outputs: int) -> Batch:
    """Normal inputs, and as targets sines of the first feature."""
    x = jax.random.normal(jax.random.key(0), (rows, features))
    return x, jnp.sin(x[:, :1] + jnp.linspace(0.0, 3.0, outputs)[None])


def chain(quick: bool) -> tuple[nn.Module, int]:
    """The layers one after another, and how many features they take."""
    if quick:
        return Chain(QUICK_WIDTHS), QUICK_FEATURES
    return Chain(WIDTHS), FEATURES


def stack(quick: bool) -> tuple[nn.Module, int]:
    """The blocks in a loop, and how many features they take."""
    width = QUICK_BLOCK_WIDTH if quick else BLOCK_WIDTH
    return Stack(width), width


@dataclass(frozen=True)
class Layout:
    """Where the parameters of a model and its batches lie.

    Attributes:
      title: the heading of its table.
      build: makes the model, tiny where `quick`, and tells its features.
      spec: which axes of a parameter of that many axes are sharded.
      batch: which axes of a batch are.
      grows: whether it is measured with a batch that grows with the devices, too.
    """

    title: str
    build: Callable[[bool], tuple[nn.Module, int]]
    spec: Callable[[int], P]
    batch: P
    grows: bool = False

    def placed(self, mesh: Mesh, params: Any, batch: Batch) -> tuple[Any, Batch]:
        """Parameters and batch on the devices of a mesh."""

        def put(leaf: jax.Array) -> jax.Array:
            return jax.device_put(leaf, NamedSharding(mesh, self.spec(leaf.ndim)))

        batched = jax.device_put(batch, NamedSharding(mesh, self.batch))
        return jax.tree.map(put, params), batched


def mesh_of(devices: int) -> Mesh:
    """All devices in one row, sharding over which is left to the compiler."""
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))


LAYOUTS = {
    "data": Layout(
        "Parameters on every device, batch sharded",
        chain,
        lambda axes: P(),
        P(AXIS),
        grows=True,
    ),
    "fsdp": Layout(
        "Rows of kernels sharded, and the batch",
        chain,
        lambda axes: P(AXIS) if axes > 1 else P(),
        P(AXIS),
        grows=True,
    ),
    "output": Layout(
        "Outputs of kernels sharded, batch on every device",
        chain,
        lambda axes: P(*[None] * (axes - 1), AXIS),
        P(),
    ),
    "stack": Layout(
        "Blocks of a scanned stack sharded, and the batch",
        stack,
        lambda axes: P(AXIS),
        P(AXIS),
    ),
}
