"""Trains in two processes, of which one stops between two steps.

``python -m tests.sharding.stopped ADDRESS COUNT ID FOLDER``: saves after two steps;
after the third the last process is gone. What the others then meet ends them.
"""

import os
import sys

import jax
import orbax.checkpoint as ocp

from linboost_optax import linen
from tests.sharding.cases import OPTIMIZERS, STATISTICS, Case, loss_of, step_of
from tests.sharding.models import start

CASE = Case("dense 3-d", "fsdp", "auto", "auto", "whiten")
SAVED = 2  # steps


def main(address, count, number, folder):
    jax.distributed.initialize(
        address, int(count), int(number), heartbeat_timeout_seconds=10
    )
    model, params, x = start(CASE.model)
    taps = linen.taps(model, x, statistic=STATISTICS[CASE.statistic])
    tx, loss = OPTIMIZERS[CASE.optimizer](taps), loss_of(model)
    step = jax.jit(step_of(loss, tx, linen.value_and_grad(loss, taps)))
    with CASE.context():
        params, x = CASE.placed(params, x)
        state = tx.init(params)
        for done in range(1, 10):
            last, state = jax.block_until_ready(step(params, state, x))
            params = last.params
            if done == SAVED:
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(os.path.join(folder, "state"), (params, state))
            if done > SAVED and int(number) == int(count) - 1:
                os._exit(0)  # as if it were switched off
    print("went on alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
