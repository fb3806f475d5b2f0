"""Training goes on bit for bit from a state that was saved and restored."""

import pickle

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP, data, squared_error, train_step

pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")

MODEL, BATCH = MLP((140, 3)), data()
TRANSFORMS = {
    "lnb": lambda taps: lbo.lnb(0.1, taps, lbo.Cholesky(every=2)),
    "cg": lambda taps: lbo.lnb(0.1, taps, lbo.ConjugateGradient()),
    "whiten": lambda taps: lbo.whiten(optax.adam(1e-2), taps, lbo.Cholesky(every=2)),
    "polar": lambda taps: lbo.polar(1e-2, taps, weight_decay=0.1),
}


def through_flax(carry, like, path):
    path.write_bytes(serialization.to_bytes(carry))
    return serialization.from_bytes(like, path.read_bytes())


def through_pickle(carry, like, path):
    del like
    path.write_bytes(pickle.dumps(jax.device_get(carry)))
    return pickle.loads(path.read_bytes())


def through_orbax(carry, like, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, carry)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, like)


@pytest.mark.parametrize("way", [through_flax, through_pickle, through_orbax])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_resumed_training_is_bit_identical(name, way, tmp_path):
    taps = linen.taps(MODEL, BATCH[0], statistic="gram" if name == "cg" else "auto")
    tx = TRANSFORMS[name](taps)
    train = jax.jit(train_step(squared_error(MODEL), taps, tx))

    def start():
        params = MODEL.init(jax.random.key(0), BATCH[0])["params"]
        return params, tx.init(params)

    def run(carry, steps):
        for _ in range(steps):
            carry = train(*carry, BATCH)[:2]
        return carry

    half = run(start(), 3)
    restored = way(half, start(), tmp_path / "state")
    assert jax.tree.structure(restored) == jax.tree.structure(half)
    want, got = run(half, 4), run(restored, 4)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_taps_are_saved_as_they_are():
    taps = linen.taps(MODEL, BATCH[0])
    assert pickle.loads(pickle.dumps(taps)) == taps
