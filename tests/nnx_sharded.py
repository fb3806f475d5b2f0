"""Trains an NNX module on four host devices; run by ``test_nnx.py``."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from tests.nnx_oracle import MLP, check_gram, mean_square, normal
from tests.oracle import same_tree


def trained(model, x, taps):
    """Returns parameters and statistics after two steps."""
    optimizer = nnx.Optimizer(model, lbo.lnb(0.1, taps), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        _, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, x)
        optimizer.update(model, grads, stats=stats)
        return stats

    step(model, optimizer, x)
    return nnx.state(model, nnx.Param), step(model, optimizer, x)


def main():
    """Compares steps of a sharded model on a sharded batch with those on one device."""
    assert jax.device_count() == 4
    x = normal(0, 8, 4)
    model = MLP(nnx.Rngs(0), inputs=4, width=6)
    taps = lbo.nnx.taps(model, x, statistic="gram")
    want = trained(nnx.clone(model), x, taps)
    check_gram(want[1]["hidden"], x)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"hidden": P(None, "model"), "out": P("model", None)}
    for name, spec in specs.items():
        kernel = getattr(model, name).kernel
        kernel[...] = jax.device_put(kernel[...], NamedSharding(mesh, spec))
    batch = jax.device_put(x, NamedSharding(mesh, P("data")))
    got = trained(model, batch, taps)
    kernel = model.hidden.kernel[...]
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, specs["hidden"]), 2)
    same_tree(jax.device_get(got), jax.device_get(want))
    assert jnp.isfinite(kernel).all()


if __name__ == "__main__":
    main()
