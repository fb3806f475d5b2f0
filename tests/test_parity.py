"""The published algorithm, step by step, against stored trajectories."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import linboost_optax as lbo
from linboost_optax import linen

# float64 trajectories of 20 steps; rounding alone is left.
TOLERANCE = 1e-10

SOLVERS = {
    "lnb_dense_cg": lbo.ConjugateGradient(),
    "lnb_dense_ichol": lbo.IncompleteCholesky(),
}


class MLP(nn.Module):
    """The network of the stored trajectories: tanh, 6-8-8-3."""

    @nn.compact
    def __call__(self, x):
        for width in (8, 8):
            x = jnp.tanh(nn.Dense(width, param_dtype=jnp.float64)(x))
        return nn.Dense(3, param_dtype=jnp.float64)(x)


def weights(data, prefix):
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(data[f"{prefix}_w{i}"].T),
            "bias": jnp.asarray(data[f"{prefix}_b{i}"]),
        }
        for i in range(3)
    }


@pytest.mark.parametrize("statistic", ["gram", "inputs", "moments"])
@pytest.mark.parametrize("name", SOLVERS)
def test_trajectory(name, statistic):
    if statistic == "moments" and name == "lnb_dense_cg":
        pytest.skip("conjugate gradients need a matrix")
    with jax.enable_x64(True):
        data = np.load(Path(__file__).parent / "data" / f"{name}.npz")
        model, params = MLP(), weights(data, "init")

        def loss_fn(params, x, y):
            logits = model.apply({"params": params}, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean()

        taps = linen.taps(model, data["x"][0], statistic=statistic)
        tx = lbo.lnb(0.3, taps, SOLVERS[name])
        state = tx.init(params)

        @jax.jit
        def step(params, state, x, y):
            loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x, y)
            updates, state = tx.update(grads, state, params, stats=stats)
            return optax.apply_updates(params, updates), state, loss

        losses = []
        for i in range(20):
            params, state, loss = step(params, state, data["x"][i], data["y"][i])
            losses.append(loss)
            if i + 1 in (1, 2, 20):
                for got, want in zip(
                    jax.tree.leaves(params),
                    jax.tree.leaves(weights(data, f"step{i + 1}")),
                    strict=True,
                ):
                    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(losses, data["losses"], rtol=0, atol=TOLERANCE)
