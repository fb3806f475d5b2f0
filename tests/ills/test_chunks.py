"""Large data: memory does not grow with the samples, sums run over devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import ills
from linboost_optax.ills._numerics.chunks import Batch, map_over_chunks, sum_over_chunks


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 10, 99, None])
def test_every_sample_counts_once(chunk_size):
    x = jnp.arange(20.0).reshape(10, 2)
    batch = Batch(x, x[:, :1], jnp.ones((10, 1)))

    def total(part):
        return jnp.sum(part.inputs * part.weights), jnp.sum(part.weights)

    assert sum_over_chunks(total, batch, chunk_size, None) == (190.0, 10.0)
    rows = map_over_chunks(lambda part: 2 * part.inputs, batch, chunk_size)
    np.testing.assert_array_equal(rows, 2 * x)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_memory_does_not_grow_with_the_samples(loss):
    """Beyond the data: nothing a sample, or targets, weights and residuals once."""
    params = ills.init_mlp(jax.random.key(0), (20, 10, 1))
    tx = ills.ills(ills.network(params), chunk_size=512, loss=loss)
    state = tx.init(params)

    def temporary(n):
        x = jax.ShapeDtypeStruct((n, 20), jnp.float32)
        y = jax.ShapeDtypeStruct((n, 1), jnp.float32)

        def step(state, params, x, y):
            return tx.update(None, state, params, inputs=x, targets=y)

        compiled = jax.jit(step).lower(state, params, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    growth = (temporary(100_000) - temporary(10_000)) / 90_000
    # Bytes a sample: the weight; a robust loss sorts residuals and keeps T and w.
    assert growth <= (8 if loss == "squared" else 40)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, functools
from jax.sharding import Mesh, PartitionSpec as P
from linboost_optax import ills
assert jax.device_count() == 2
x = jax.random.normal(jax.random.key(0), (40, 3))
y = jnp.sin(x[:, :1]) + x[:, 1:2] ** 2
params = ills.init_mlp(jax.random.key(1), (3, 5, 1))
net = ills.network(params)
results = []
for axis_name in (None, "data"):
    tx = ills.ills(net, loss="huber", chunk_size=8, axis_name=axis_name)
    state = tx.init(params)._replace(count=jnp.int32(1))
    def step(state, params, x, y):
        return tx.update(None, state, params, inputs=x, targets=y)
    if axis_name:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        step = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")),
            out_specs=P(), check_vma=False)
    results.append(jax.jit(step)(state, params, x, y))
assert bool(results[0][1].accepted)
jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
    results[0], results[1])
"""


def test_two_devices_equal_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
