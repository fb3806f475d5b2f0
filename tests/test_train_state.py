"""The train state: Flax's own, and the update by hand, are what it must equal."""

import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import linboost_optax as lbo
from linboost_optax import linen
from tests.networks import MLP, data, squared_error, train_step

pytestmark = pytest.mark.lenient("optimizers of Optax promote implicitly")

MODEL, BATCH = MLP((8, 3)), data()
TAPS = linen.taps(MODEL, BATCH[0])
LOSS = squared_error(MODEL)
RTOL = 1e-5  # float32, where two programs that were compiled apart are compared
TRANSFORMS = {
    "lnb": lambda taps: lbo.lnb(0.1, taps, lbo.Cholesky(every=2)),
    "whiten": lambda taps: lbo.whiten(optax.adam(1e-2), taps, lbo.Cholesky(every=2)),
}


def start(tx, of=linen.TrainState, **fields):
    params = MODEL.init(jax.random.key(0), BATCH[0])["params"]
    return of.create(apply_fn=MODEL.apply, params=params, tx=tx, **fields)


def step(state, batch):
    loss, grads, stats = linen.value_and_grad(LOSS, state.taps)(state.params, batch)
    return state.apply_gradients(grads=grads, stats=stats), loss


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_steps_are_those_taken_by_hand(name):
    tx = TRANSFORMS[name](TAPS)
    state, train = start(tx, taps=TAPS), jax.jit(step)
    params, opt_state = state.params, state.opt_state
    by_hand = jax.jit(train_step(LOSS, TAPS, tx))
    for _ in range(3):
        state, loss = train(state, BATCH)
        params, opt_state, expected = by_hand(params, opt_state, BATCH)
        assert loss == expected
    assert state.step == 3
    assert state.tx is tx
    assert_equal((state.params, state.opt_state), (params, opt_state))


PLAIN = {
    "adam": optax.adam(1e-2),
    "chained": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, 0.9)),
    "multi_steps": optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
}


@pytest.mark.parametrize("name", PLAIN)
def test_another_optimizer_is_all_that_a_comparison_changes(name):
    state = start(PLAIN[name], taps=TAPS)
    flax_own = start(PLAIN[name], of=train_state.TrainState)
    for _ in range(3):
        grads = jax.grad(LOSS)(flax_own.params, BATCH)
        flax_own = flax_own.apply_gradients(grads=grads)
        state, _ = step(state, BATCH)
    assert_equal(jax.tree.leaves(state), jax.tree.leaves(flax_own))


def test_gradients_that_overwrite_their_parameters_are_flaxs_affair():
    scales = {"scale": jnp.ones(3)}
    made = {"scale": jnp.arange(3.0)}
    trained = MODEL.init(jax.random.key(0), BATCH[0])["params"]
    params = {"params": trained, OVERWRITE_WITH_GRADIENT: scales}
    state = linen.TrainState.create(
        apply_fn=MODEL.apply, params=params, tx=lbo.lnb(0.1, TAPS), taps=TAPS
    )
    _, grads, stats = linen.value_and_grad(LOSS, TAPS)(trained, BATCH)
    updates, opt_state = state.tx.update(grads, state.opt_state, trained, stats=stats)
    state = state.apply_gradients(
        grads={"params": grads, OVERWRITE_WITH_GRADIENT: made}, stats=stats
    )
    expected = {
        "params": optax.apply_updates(trained, updates),
        OVERWRITE_WITH_GRADIENT: made,
    }
    assert_equal((state.params, state.opt_state), (expected, opt_state))


def test_other_extra_arguments_reach_the_optimizer():
    def watching(seen):
        def update(updates, state, params=None, *, value, **extra_args):
            seen.append((value, sorted(extra_args)))
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    seen = []
    state = start(optax.chain(watching(seen), optax.sgd(0.1)), taps=TAPS)
    grads = jax.tree.map(jnp.ones_like, state.params)
    state.apply_gradients(grads=grads, extra_args={"value": 3.0})
    state.apply_gradients(grads=grads, stats={}, extra_args={"value": 4.0})
    assert seen == [(3.0, []), (4.0, ["stats"])]
    # An optimizer without extra arguments has none, and is not asked to take any.
    moved = start(optax.sgd(1.0), taps=TAPS).apply_gradients(
        grads=grads, extra_args={"value": 3.0}
    )
    assert_equal(moved.params, jax.tree.map(lambda p: p - 1, state.params))


def test_the_optimizer_may_be_replaced_with_the_update():
    other = optax.sgd(0.5)
    state = start(optax.sgd(0.1), taps=TAPS)
    grads = jax.tree.map(jnp.ones_like, state.params)
    assert state.apply_gradients(grads=grads, tx=other).tx is other


class Normalised(nn.Module):
    """A network with running averages."""

    @nn.compact
    def __call__(self, x, train):
        # A bias here would have no gradient but rounding errors, and Adam scales them.
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.relu(x))


class WithAverages(linen.TrainState):
    """As users write it: a field more, and no default."""

    batch_stats: Any


def averages_step(state, batch):
    x, y = batch

    def loss_fn(params):
        outputs, mutated = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(jnp.square(outputs - y)), mutated["batch_stats"]

    grad_fn = linen.value_and_grad(loss_fn, state.taps, has_aux=True)
    (loss, batch_stats), grads, stats = grad_fn(state.params)
    return state.apply_gradients(
        grads=grads, stats=stats, batch_stats=batch_stats
    ), loss


def start_averages(name):
    model = Normalised()
    variables = model.init(jax.random.key(0), BATCH[0], train=True)
    taps = linen.taps(model, BATCH[0], train=True)
    return WithAverages.create(
        apply_fn=model.apply, tx=TRANSFORMS[name](taps), taps=taps, **variables
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_fields_of_a_subclass_and_donated_states(name):
    kept, donated = jax.jit(averages_step), jax.jit(averages_step, donate_argnums=0)
    state, given = start_averages(name), start_averages(name)
    first = state.batch_stats
    for _ in range(3):
        state, loss = kept(state, BATCH)
        before = given
        given, got = donated(given, BATCH)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        np.testing.assert_allclose(got, loss, rtol=RTOL)
    assert isinstance(given, WithAverages)
    for got, want in zip(jax.tree.leaves(given), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL)
    # What the running average takes up is the mean of the layer's input, by hand.
    x = BATCH[0] @ state.params["Dense_0"]["kernel"]
    after, _ = kept(state, BATCH)
    expected = 0.99 * state.batch_stats["BatchNorm_0"]["mean"] + 0.01 * x.mean(0)
    got = after.batch_stats["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=RTOL)
    assert not np.array_equal(got, first["BatchNorm_0"]["mean"])


def through_flax(state, like, path):
    path.write_bytes(serialization.to_bytes(state))
    return serialization.from_bytes(like, path.read_bytes())


def through_orbax(state, like, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, like)


@pytest.mark.parametrize("way", [through_flax, through_orbax])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_resumed_training_is_bit_identical(name, way, tmp_path):
    train = jax.jit(averages_step)

    def run(state, steps):
        for _ in range(steps):
            state, _ = train(state, BATCH)
        return state

    half = run(start_averages(name), 3)
    restored = way(half, start_averages(name), tmp_path / "state")
    assert restored.step == 3
    assert isinstance(restored, WithAverages)
    assert_equal(
        jax.tree.leaves(run(restored, 4)),
        jax.tree.leaves(run(half, 4)),
    )


def test_a_checkpoint_holds_arrays_alone():
    held = serialization.to_state_dict(start_averages("lnb"))
    assert sorted(held) == ["batch_stats", "opt_state", "params", "step"]


def test_states_of_one_model_are_traced_once():
    traces = []

    @jax.jit
    def train(state):
        traces.append(None)
        return step(state, BATCH)[0]

    state = start(lbo.lnb(0.1, TAPS), taps=TAPS).replace(step=jnp.zeros((), jnp.int32))
    for _ in range(3):
        state = train(state)
    # Taps that are made again are equal, as statics must be.
    again = linen.taps(MODEL, BATCH[0])
    train(state.replace(taps=again))
    assert len(traces) == 1


def test_a_name_that_is_no_field_is_refused():
    state = start(lbo.lnb(0.1, TAPS), taps=TAPS)
    _, grads, stats = linen.value_and_grad(LOSS, TAPS)(state.params, BATCH)
    with pytest.raises(TypeError, match=r"`batch_stat` must be a field of TrainState"):
        state.apply_gradients(grads=grads, stats=stats, batch_stat={})
    with pytest.raises(TypeError, match=r"extra_args=\{\"value\": \.\.\.\}"):
        state.apply_gradients(grads=grads, stats=stats, value=1.0)


def test_missing_statistics_and_taps_are_told():
    state = start(lbo.lnb(0.1, TAPS), taps=TAPS)
    with pytest.raises(ValueError, match=r"`stats`"):
        state.apply_gradients(grads=jax.grad(LOSS)(state.params, BATCH))
    with pytest.raises(TypeError, match=r"`taps` must be a Taps, got NoneType"):
        start(lbo.lnb(0.1, TAPS), taps=None)


def test_the_diff_of_the_guide_is_the_whole_diff():
    text = (Path(__file__).parents[1] / "docs" / "flax_mnist.md").read_text()
    script, changed, *_ = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", text, re.M | re.S)
    count = dict.fromkeys("-+", 0)
    for hunk in diff.split("\n\n"):
        old, new = (
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] == sign)
            for sign in "-+"
        )
        assert script.count(old) == 1
        script = script.replace(old, new)
        for sign, lines in zip("-+", (old, new)):
            count[sign] += lines.count("\n")
    for part in changed.split("\n\n\n")[:-1]:  # an import and two functions
        assert part.strip() in script
    assert "One line is new, the one that makes the taps; six change" in text
    assert count == {"-": 6, "+": 7}


def test_statistics_that_the_optimizer_does_not_take_are_not_computed(optimized):
    def with_statistics(state):
        return step(state, BATCH)[0]

    def without(state):
        return state.apply_gradients(grads=jax.grad(LOSS)(state.params, BATCH))

    state = start(optax.sgd(0.1), taps=TAPS)
    needed = start(lbo.lnb(0.1, TAPS), taps=TAPS)
    flops = [
        jax.jit(train).lower(each).compile().cost_analysis()["flops"]
        for train, each in (
            (without, state),
            (with_statistics, state),
            (with_statistics, needed),
        )
    ]
    assert flops[0] == flops[1] < flops[2]
