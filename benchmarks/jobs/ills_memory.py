"""Peak memory of ILLS on one million rows by twenty features, in chunks."""

from __future__ import annotations

import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.tables import over_seeds, table
from linboost_optax import ills

FEATURES, UNITS, CHUNK = 20, 50, 8192
ROWS, STEPS = 1_000_000, 5


def run(name: str, options: Options) -> Result:
    """Generate the data, train, and ask the system for the peak."""
    del name
    rows, steps = (2 * CHUNK, 2) if options.quick else (ROWS, STEPS)
    before = _peak()
    x = jax.random.normal(jax.random.key(0), (rows, FEATURES))
    y = jnp.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    params = ills.init_mlp(jax.random.key(1), (FEATURES, UNITS, 1))
    tx: Any = ills.ills(ills.network(params), chunk_size=CHUNK)

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        updates, state = tx.update(None, state, params, inputs=x, targets=y)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    seconds, objectives = [], []
    for _ in tqdm(range(steps), desc="training", unit="iteration"):
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, x, y))
        seconds.append(time.perf_counter() - start)
        objectives.append(float(state.objective))
    return {
        "title": f"{rows:,} rows by {FEATURES} features, {UNITS} units",
        "chunk_size": CHUNK,
        "peak_bytes": _peak(),
        "bytes_before": before,
        "data_bytes": x.nbytes + y.nbytes,
        "seconds": seconds,
        "objectives": objectives,
    }


def describe(result: Result) -> str:
    """Memory in one row; the first iteration compiles and is left out of the time."""
    header = "chunk | peak resident set, GiB | before the data | the data | "
    header += "seconds an iteration"
    sizes = [
        result[key] / 2**30 for key in ("peak_bytes", "bytes_before", "data_bytes")
    ]
    row = [f"{result['chunk_size']:,}", *(f"{size:.2f}" for size in sizes)]
    return table(header.split(" | "), [[*row, over_seeds(result["seconds"][1:])]])


def _peak() -> int:
    """Bytes of the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


JOB = Job(
    name="ills_memory",
    title="ILLS on a million rows",
    reading=(
        "The peak is that of the whole process, with Python, the libraries, the data "
        "and the compiler; seconds are a median with its range, after the first "
        "iteration, which compiles."
    ),
    tasks=("million_rows",),
    run=run,
    table=describe,
)
