"""Data-parallel training is that of one device: statistics, and whole steps."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import linboost_optax as lbo
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
sharded_x = jax.device_put(x, NamedSharding(mesh, P("data")))

def same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

def over_devices(function, check):
    return jax.jit(jax.shard_map(
        function, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check
    ))

for statistic in ("moments", "gram", "sketch"):
    step = linen.value_and_grad(loss, linen.taps(model, x, statistic=statistic))
    want = step(params, x)
    same(jax.jit(step)(params, sharded_x), want)

    def by_hand(params, x):
        return jax.lax.psum(step(params, x), "data")

    def automatic(params, x):  # JAX sums the cotangents of what all devices share
        loss, grads, stats = step(params, x)
        return jax.lax.psum(loss, "data"), grads, stats

    for function, check in ((by_hand, False), (automatic, True)):
        same(over_devices(function, check)(params, x), want)
print("the same statistics")

for statistic, make in (
    ("gram", lambda taps: lbo.lnb(0.1, taps, lbo.ConjugateGradient())),
    ("moments", lambda taps: lbo.lnb(0.1, taps, lbo.IncompleteCholesky())),
    ("gram", lambda taps: lbo.lnb(0.1, taps, lbo.Cholesky(every=2))),
    ("sketch", lambda taps: lbo.whiten(optax.adamw(0.01), taps, lbo.Cholesky(every=2))),
):
    taps = linen.taps(model, x, statistic=statistic)
    tx, grad = make(taps), linen.value_and_grad(loss, taps)

    def train(carry, x, collect=grad):
        new, state = carry
        value, grads, stats = collect(new, x)
        updates, state = tx.update(grads, state, new, stats=stats)
        return optax.apply_updates(new, updates), state

    def of_shards(params, x):
        value, grads, stats = grad(params, x)
        return jax.lax.psum(value, "data"), grads, stats

    def by_shards(carry, x):
        return train(carry, x, of_shards)

    start = (params, tx.init(params))
    alone, jitted, mapped = start, start, start
    for _ in range(3):
        alone = jax.jit(train)(alone, x)
        jitted = jax.jit(train)(jitted, sharded_x)
        mapped = over_devices(by_shards, True)(mapped, x)
    same(jitted[0], alone[0])  # signs of eigenvectors in the states are arbitrary
    same(mapped[0], alone[0])
print("the same steps")
"""


@pytest.mark.slow
def test_two_devices():
    flags = "--xla_force_host_platform_device_count=2"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n") == ["the same statistics", "the same steps", ""]
