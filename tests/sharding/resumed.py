"""Training that goes on over another mesh than it was begun on."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp

import linboost_optax as lbo
from linboost_optax import linen
from tests.sharding.cases import (
    STEPS,
    TOLERANCE,
    Case,
    close,
    loss_of,
    on_one_device,
    step_of,
)
from tests.sharding.models import start


@dataclass(frozen=True)
class Resumed:
    """Two steps on one mesh, the rest on another, from a checkpoint in between."""

    first: Case
    second: Case

    def __str__(self):
        return f"resumed; {self.first}; then {self.second}"

    def __call__(self):
        case = self.first
        taps, tx, want = on_one_device(case.model, case.statistic, case.optimizer)
        model, params, x = start(case.model)
        loss = loss_of(model)
        step = jax.jit(step_of(loss, tx, linen.value_and_grad(loss, taps)))

        def go_on(params, state, x, steps):
            for _ in range(steps):
                last, state = jax.block_until_ready(step(params, state, x))
                params = last.params
            return params, state

        with (
            tempfile.TemporaryDirectory() as folder,
            ocp.StandardCheckpointer() as checkpointer,
        ):
            path = Path(folder) / "state"
            with self.first.context():
                there, batch = self.first.placed(params, x)
                saved = go_on(there, tx.init(there), batch, 2)
            checkpointer.save(path, saved)
            checkpointer.wait_until_finished()
            with self.second.context():
                there, batch = self.second.placed(params, x)
                shardings = (
                    jax.tree.map(lambda leaf: leaf.sharding, there),
                    lbo.state_sharding(tx, there),
                )
                target = jax.tree.map(
                    lambda leaf, sharding: jax.ShapeDtypeStruct(
                        leaf.shape, leaf.dtype, sharding=sharding
                    ),
                    saved,
                    shardings,
                )
                restored = checkpointer.restore(path, target)
                jax.tree.map(_lies, restored, shardings)
                got, _ = go_on(*restored, batch, STEPS - 2)
        close(got, want.params, TOLERANCE)


def _lies(leaf, sharding):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
