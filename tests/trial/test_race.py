"""Runs and races, against loops that are written out with Optax."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linboost_optax._trial import batches, race, training
from linboost_optax._trial.competitors import OWN, TUNED, Competitor, competitors
from linboost_optax._trial.plan import Plan, Rung
from linboost_optax._trial.task import Task
from tests.trial.tasks import TASKS, loss, tree
from tests.trial.tasks import batches as tasks_batches

SGD = Competitor("SGD", lambda rate, taps: optax.sgd(rate), 1e-2, "optax.sgd({rate})")
ADAM = Competitor("Adam", lambda rate, taps: optax.adam(rate), 1e-2, "")


@pytest.fixture(scope="module")
def setup():
    return training.set_up(TASKS["tree"])


@pytest.fixture(scope="module")
def trainers(setup):
    return {
        name: training.compile_trainer(setup, each)
        for name, each in {"sgd": SGD, "adam": ADAM}.items()
    }


def by_hand(setup, make, rate, steps, seed):
    """Losses after every step, with an Optax schedule of the same shape."""

    def schedule(count):
        done = (count + 1) / steps
        return rate * jnp.minimum(done / 0.05, 1) * (1 + jnp.cos(jnp.pi * done)) / 2

    tx = make(schedule)
    params = tree(jax.random.key(seed))
    state, found = tx.init(params), []
    for batch in itertools.islice(batches.training(setup.task, seed), steps):
        grads = jax.grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        test = [loss(params, each) for each in setup.splits["test"]]
        found.append(float(np.mean(test)))
    return found


@pytest.mark.lenient("Optax's schedules promote")
def test_a_race_is_the_loops_that_one_would_write(setup, trainers):
    racing = {
        "sgd": race.Entry(trainers["sgd"], 3e-2),
        "adam": race.Entry(trainers["adam"], 1e-2),
    }
    curves = {}
    race.race(setup, racing, Plan(40, 1), 2, lambda doing: None, curves)
    for name, make in {"sgd": optax.sgd, "adam": optax.adam}.items():
        expected = by_hand(setup, make, racing[name].rate, 40, 2)
        np.testing.assert_allclose(curves[name]["test_loss"][1:], expected, rtol=2e-4)
        assert curves[name]["step"] == [float(step) for step in range(41)]
        assert np.all(np.diff(curves[name]["seconds"]) > 0)


@pytest.mark.lenient("Optax's schedules promote")
def test_a_short_run_has_a_whole_schedule_of_its_own(setup, trainers):
    found = race.short(setup, trainers["adam"], 1e-2, 8, lambda doing: None, seed=0)
    assert found == pytest.approx(by_hand(setup, optax.adam, 1e-2, 8, 0)[-1], rel=1e-4)


def test_a_run_that_diverges_is_infinite(setup, trainers):
    found = race.short(setup, trainers["sgd"], 1e20, 8, lambda doing: None)
    assert found == math.inf


def climb(losses, rates, keep, extra, monkeypatch):
    """The rates that are kept where a run's loss is a function of its rate alone."""
    ran = []

    def short(setup, trainer, rate, steps, tick):
        ran.append((rate, steps))
        return losses(rate)

    monkeypatch.setattr(race, "short", short)
    found = {}
    kept = race.climb(
        None,
        {"a": None},
        Rung(1 / 8, keep),
        {"a": rates},
        Plan(320, 1),
        None,
        found,
        extra,
    )
    assert [rate for rate, _ in ran] == list(found["a"])
    assert {steps for _, steps in ran} == {40}
    return kept["a"], list(found["a"])


def bowl(best):
    return lambda rate: abs(math.log10(rate / best))


def test_the_best_rates_are_kept(monkeypatch):
    kept, tried = climb(bowl(0.1), [0.01, 0.1, 1.0, 10.0], 3, 2, monkeypatch)
    assert kept[0] == 0.1
    assert set(kept) == {0.01, 0.1, 1.0}
    assert tried == [0.01, 0.1, 1.0, 10.0]


@pytest.mark.parametrize(
    ("best", "beyond"), [(100.0, [3.16, 9.99]), (1e-6, [0.00316, 0.000999])]
)
def test_the_grid_goes_on_past_an_edge(best, beyond, monkeypatch):
    kept, tried = climb(bowl(best), [0.01, 0.1, 1.0], 1, 2, monkeypatch)
    assert tried[3:] == pytest.approx(beyond, rel=2e-2)
    assert kept == [tried[-1]]


def test_the_rate_below_the_best_one_is_kept(monkeypatch):
    losses = {0.01: 9.0, 0.1: 8.0, 1.0: 1.0, 10.0: 2.0, 100.0: 3.0}
    kept, _ = climb(losses.__getitem__, list(losses), 3, 0, monkeypatch)
    assert kept == [1.0, 0.1, 10.0]
    kept, _ = climb(losses.__getitem__, list(losses), 1, 0, monkeypatch)
    assert kept == [1.0]


def test_where_all_diverge_lower_rates_are_tried(monkeypatch):
    kept, tried = climb(lambda rate: math.inf, [0.01, 0.1], 1, 2, monkeypatch)
    assert tried == pytest.approx([0.01, 0.1, 0.00316, 0.001], rel=1e-2)
    assert len(kept) == 1


def test_the_users_optimizer_races_at_its_own_rate_and_at_a_better_one():
    task = Task("t", tree, loss, tasks_batches, lambda rate=0.5: optax.sgd(rate))
    racers = competitors(task)
    trainers = dict.fromkeys(racers, None)
    best = dict.fromkeys(racers, 0.1)
    found = race.entries(racers, trainers, best)
    assert {name: entry.rate for name, entry in found.items()} == {
        OWN: 0.5,
        TUNED: 0.1,
        **dict.fromkeys(("adam", "muon", "lnb", "polar"), 0.1),
    }
    assert TUNED not in race.entries(racers, trainers, {**best, OWN: 0.5})


def test_the_grid_has_the_users_rate_in_its_middle():
    rates = Competitor("c", None, 0.37, "").rates()
    assert rates[3] == 0.37
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5, atol=3e-3)


def test_muon_makes_kernels_orthogonal_and_leaves_the_rest_to_adam(setup):
    params, _ = setup.start(0)
    tx = competitors(setup.task)["muon"].build(1.0, setup.taps)
    grads = jax.tree.map(jnp.ones_like, params)
    grads["a"]["kernel"] = jax.random.normal(jax.random.key(1), (3, 4))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = tx.update(grads, tx.init(params), params)
        nadam = optax.nadam(1.0)
        expected, _ = nadam.update(grads, nadam.init(params), params)
    singular = np.linalg.svd(updates["a"]["kernel"], compute_uv=False)
    assert singular[0] < 2 * singular[-1]  # five iterations come about so near
    assert np.linalg.cond(grads["a"]["kernel"]) > 2
    np.testing.assert_allclose(updates["a"]["bias"], expected["a"]["bias"], rtol=1e-3)
