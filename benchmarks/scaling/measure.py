"""One training step under a layout: compiled, read, and timed against others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import linboost_optax as lbo
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.scaling import collectives
from benchmarks.scaling.layouts import Layout, sines
from benchmarks.steps import Batch, Clock, Step, against_adam, step_of
from linboost_optax import linen


@dataclass(frozen=True)
class Placed:
    """A model on the devices of a mesh.

    Attributes:
      mesh: of automatic axes.
      model: a Flax module.
      params: its parameters, where the layout has them.
      batch: inputs and targets, likewise.
    """

    mesh: Mesh
    model: Any
    params: Any
    batch: Batch

    def loss(self, params: Any, batch: Batch) -> jax.Array:
        """The mean squared error."""
        x, y = batch
        return jnp.mean((self.model.apply({"params": params}, x) - y) ** 2)


def place(layout: Layout, mesh: Mesh, rows: int, quick: bool) -> Placed:
    """Starts the model of a layout, with a batch of so many rows, on a mesh."""
    model, features = layout.build(quick)
    x = jax.ShapeDtypeStruct((2, features), jnp.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(1), x)
    batch = sines(rows, features, outputs.shape[-1])
    params = model.init(jax.random.key(1), batch[0][:2])["params"]
    return Placed(mesh, model, *layout.placed(mesh, params, batch))


def compiled(placed: Placed, optimizer: Optimizer) -> Step:
    """Compiles a step whose parameters and state end where they began.

    On automatic axes the compiler lays out what is not pinned.
    """
    taps = None
    if optimizer.statistic is not None:
        inputs = placed.batch[0]
        taps = linen.taps(placed.model, inputs, statistic=optimizer.statistic)
    # Far below the tuned rate: what is timed must not diverge.
    tx = optimizer.build(lambda count: 0.01 * optimizer.centre, taps)
    state = tx.init(placed.params)
    shardings = lbo.state_sharding(tx, placed.params)
    pinned = (jax.tree.map(lambda leaf: leaf.sharding, placed.params), shardings, None)
    jitted = jax.jit(
        step_of(placed.loss, tx, taps), donate_argnums=(0, 1), out_shardings=pinned
    )
    program = jitted.lower(placed.params, state, placed.batch).compile()
    said = collectives.read(program.as_text() or "")
    memory = program.memory_analysis()
    facts = {
        "label": optimizer.label,
        "every_step": collectives.summary(each for each in said if not each.branch),
        "in_branches": collectives.summary(each for each in said if each.branch),
        "state_bytes": bytes_of_one_device(state, shardings),
        "temporary_bytes": int(memory.temp_size_in_bytes) if memory else 0,
    }
    # Of its own: a step writes its results over its arguments.
    params = jax.tree.map(jnp.copy, placed.params)
    return Step(program, params, state, facts)


def bytes_of_one_device(tree: Any, shardings: Any) -> int:
    """What one device holds of arrays that lie as their shardings say."""
    leaves, where = jax.tree.leaves(tree), jax.tree.leaves(shardings)
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(leaves, where, strict=True)
    )


def measure(placed: Placed, names: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Compiles the steps of all optimizers, then times them: see `against_adam`."""
    with jax.set_mesh(placed.mesh):
        steps = {name: compiled(placed, OPTIMIZERS[name]) for name in names}
        return against_adam(steps, placed.batch, clock)
