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
from tests.networks import train_step

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


def train(model, params, batches, statistic, optimizer):
    """Losses and parameters after every step."""

    def loss_fn(params, batch):
        x, y = batch
        logits = model.apply({"params": params}, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean()

    taps = linen.taps(model, batches[0][0], statistic=statistic)
    rate, solver = optimizer
    tx = lbo.lnb(rate, taps, solver)
    step = jax.jit(train_step(loss_fn, taps, tx))
    state, losses, trained = tx.init(params), [], []
    for x, y in zip(*batches, strict=True):
        params, state, loss = step(params, state, (x, y))
        losses.append(loss)
        trained.append(params)
    return losses, trained


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


EXACT = ["gram", "inputs"]
# The moments that this solver reads are of all rows, whatever the matrix is made of.
CASES = [("lnb_dense_cg", statistic) for statistic in EXACT]
CASES += [
    ("lnb_dense_ichol", statistic)
    for statistic in [*EXACT, "moments", lbo.Gram(8), lbo.Sketch(2, max_samples=8)]
]


@pytest.mark.parametrize(("name", "statistic"), CASES)
def test_trajectory(name, statistic):
    with jax.enable_x64(True):
        data = np.load(Path(__file__).parent / "data" / f"{name}.npz")
        losses, trained = train(
            MLP(),
            weights(data, "init"),
            (data["x"], data["y"]),
            statistic,
            (0.3, SOLVERS[name]),
        )
        for i in (1, 2, 20):
            assert_same(trained[i - 1], weights(data, f"step{i}"))
        np.testing.assert_allclose(losses, data["losses"], rtol=0, atol=TOLERANCE)


class ConvNet(nn.Module):
    """The convolutional network of the stored trajectory."""

    @nn.compact
    def __call__(self, x):
        options = {"use_bias": False, "param_dtype": jnp.float64}
        x = jnp.tanh(nn.Conv(4, (3, 3), padding="VALID", **options)(x))
        x = jnp.tanh(nn.Conv(5, (3, 3), strides=2, padding=1, **options)(x))
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # channel first
        return nn.Dense(3, param_dtype=jnp.float64)(x)


def conv_weights(data, prefix):
    def kernel(i):
        return jnp.asarray(data[f"{prefix}_w{i}"].transpose(2, 3, 1, 0))

    last = {"kernel": jnp.asarray(data[f"{prefix}_w2"].T)}
    last["bias"] = jnp.asarray(data[f"{prefix}_b2"])
    return {
        "Conv_0": {"kernel": kernel(0)},
        "Conv_1": {"kernel": kernel(1)},
        "Dense_0": last,
    }


@pytest.mark.parametrize("statistic", EXACT)
def test_trajectory_of_convolutions(statistic):
    """The preconditioner's moments are per channel, whatever the operator's are."""
    with jax.enable_x64(True):
        data = np.load(Path(__file__).parent / "data" / "lnb_conv_nobias_cg.npz")
        images = jnp.asarray(data["x"].transpose(0, 1, 3, 4, 2))
        losses, trained = train(
            ConvNet(),
            conv_weights(data, "init"),
            (images, data["y"]),
            statistic,
            (0.2, lbo.ConjugateGradient(ridge=0.5)),
        )
        for i in (1, 2, 15):
            assert_same(trained[i - 1], conv_weights(data, f"step{i}"))
        np.testing.assert_allclose(losses, data["losses"], rtol=0, atol=TOLERANCE)
