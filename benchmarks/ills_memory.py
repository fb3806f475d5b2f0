"""Peak memory of ILLS on one million rows by twenty features, in chunks.

``python -m benchmarks.ills_memory`` prints iterations, seconds and the peak resident
set of the whole process, data and compiler included.
"""

import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import linboost_optax as lbo

ROWS, FEATURES, UNITS, CHUNK, STEPS = 1_000_000, 20, 50, 8192, 5


def main() -> None:
    """Generate the data a chunk at a time, train, report."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (ROWS, FEATURES))
    y = jnp.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    params = lbo.init_mlp(jax.random.key(1), (FEATURES, UNITS, 1))
    tx: Any = lbo.ills(lbo.network(params), chunk_size=CHUNK)

    @jax.jit
    def step(params, state, x, y):
        updates, state = tx.update(None, state, params, inputs=x, targets=y)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, x, y))
        print(
            f"iteration {int(state.count)}: {time.perf_counter() - start:.1f} s, "
            f"objective {float(state.objective):.4f}",
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{ROWS} rows x {FEATURES} features: peak resident set {peak:.2f} GiB")


if __name__ == "__main__":
    main()
