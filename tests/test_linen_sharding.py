"""Data-parallel gradients and statistics are those of one device."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from linboost_optax import linen

assert jax.device_count() == 2

class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))

model, x = MLP(), jax.random.normal(jax.random.key(0), (8, 3))
params = model.init(jax.random.key(1), x)["params"]
loss = lambda params, x: jnp.sum(model.apply({"params": params}, x) ** 2)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

for statistic in ("moments", "gram", "sketch"):
    step = linen.value_and_grad(loss, linen.taps(model, x, statistic=statistic))
    want = step(params, x)

    def same(got):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    same(jax.jit(step)(params, jax.device_put(x, NamedSharding(mesh, P("data")))))

    def by_hand(params, x):
        return jax.lax.psum(step(params, x), "data")

    def automatic(params, x):  # JAX sums the cotangents of what all devices share
        loss, grads, stats = step(params, x)
        return jax.lax.psum(loss, "data"), grads, stats

    for function, check in ((by_hand, False), (automatic, True)):
        sharded = jax.shard_map(
            function, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(),
            check_vma=check,
        )
        same(jax.jit(sharded)(params, x))
print("the same")
"""


@pytest.mark.slow
def test_two_devices():
    flags = "--xla_force_host_platform_device_count=2"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True
    )
    assert run.stdout.strip() == "the same", run.stderr
