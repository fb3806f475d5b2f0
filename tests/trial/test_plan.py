"""The budget: what is planned fits, and is the most that does."""

import numpy as np
import pytest

from linboost_optax._trial.competitors import OWN, POINTS
from linboost_optax._trial.plan import (
    EXTRA,
    FEWEST,
    FULL,
    POINTS_OF_CURVE,
    POINTS_OF_RUNG,
    RUNGS,
    Costs,
    Plan,
    leaves_time,
    plan,
)

STEPS = {OWN: 1e-3, "adam": 1e-3, "muon": 2e-3, "lnb": 1.5e-3, "polar": 1.6e-3}
COSTS = Costs(STEPS, batch=1e-4, evaluation=0.01, start=0.02)


def spent(planned, costs, extra, rng=None, noise=0.0):
    """What a trial takes, run by run: every step is counted one by one."""

    def takes(seconds):
        return seconds * (1 if rng is None else np.exp(noise * rng.normal()))

    total = 0.0
    for name in costs.steps:
        for rung, rates in zip(RUNGS, (POINTS + extra, RUNGS[0].keep)):
            steps = planned.length(rung)
            for _ in range(rates):
                total += takes(steps * (costs.steps[name] + costs.batch))
                total += takes(POINTS_OF_RUNG * costs.evaluation + costs.start)
    for _ in range(planned.seeds):
        for name in [*costs.steps, OWN]:
            total += takes(planned.steps * costs.steps[name] + costs.start)
            total += takes((POINTS_OF_CURVE + 1) * costs.evaluation)
        total += takes(planned.steps * costs.batch)
    return total


@pytest.mark.parametrize("minutes", [0.5, 1, 10, 100])
def test_the_budget_is_filled_and_kept(minutes):
    planned = plan(COSTS, 60 * minutes, None, 3)
    assert planned.seeds == 3
    assert spent(planned, COSTS, extra=EXTRA) <= 1.1 * 60 * minutes
    more = Plan(planned.steps + POINTS_OF_CURVE, 3)
    assert spent(more, COSTS, extra=EXTRA) > 0.9 * 60 * minutes
    assert spent(planned, COSTS, extra=0) <= 60 * minutes


def test_noise_of_a_fifth_keeps_the_budget_within_a_tenth():
    rng = np.random.default_rng(0)
    planned = plan(COSTS, 600, None, 3)
    for _ in range(50):
        assert spent(planned, COSTS, EXTRA, rng, noise=0.2) <= 1.1 * 600


def test_fewer_seeds_where_steps_would_be_too_few():
    least = [spent(Plan(FEWEST, seeds), COSTS, extra=1) for seeds in (1, 2, 3)]
    found = [plan(COSTS, 1.01 * seconds / 0.93, None, 3) for seconds in least]
    assert [(each.steps, each.seeds) for each in found] == [
        (FEWEST, 1),
        (FEWEST, 2),
        (FEWEST, 3),
    ]


def test_steps_of_the_users_are_kept_with_as_many_seeds_as_fit():
    assert plan(COSTS, 6000, 4000, 5) == Plan(4000, 5)
    tight = plan(COSTS, 200, 4000, 5)
    assert tight.steps == 4000
    assert spent(tight, COSTS, extra=1) <= 200
    assert spent(Plan(4000, tight.seeds + 1), COSTS, extra=1) > 0.9 * 200


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match=r"race of 4000 steps, which takes [\d.]+ min"):
        plan(COSTS, 10, 4000, 3)
    with pytest.raises(ValueError, match=rf"race of {FEWEST} steps"):
        plan(COSTS, 1, None, 3)


def test_once_begun_it_goes_on_with_the_least():
    assert plan(COSTS, 0.0, None, 3, done=2) == Plan(FEWEST, 1)
    assert plan(COSTS, 0.0, 4000, 3, done=1) == Plan(4000, 1)


def test_after_the_rungs_all_that_is_left_is_for_the_race():
    planned = plan(COSTS, 100, None, 3, done=2)
    assert 0.8 * 93 <= 3 * COSTS.of_race(planned.steps) <= 93


@pytest.mark.parametrize("seeds", [1, 3])
def test_full_runs_of_two_rates_take_what_is_left(seeds):
    """By what they take, run by run."""
    race = Plan(400, seeds)
    two = 2 * sum(
        400 * (step + COSTS.batch) + POINTS_OF_RUNG * COSTS.evaluation + COSTS.start
        for step in STEPS.values()
    )
    needed = (two + seeds * COSTS.of_race(400)) / 0.93
    assert leaves_time(COSTS, 1.01 * needed, race)
    assert not leaves_time(COSTS, 0.99 * needed, race)


def test_where_steps_fill_the_time_none_is_left():
    assert not leaves_time(COSTS, 100, plan(COSTS, 100, None, 3, done=2))


def test_a_machine_twice_as_slow():
    slow = COSTS.scaled(2)
    assert slow.of_race(400) == pytest.approx(2 * COSTS.of_race(400))
    assert slow.of_rung(0, 400) == pytest.approx(2 * COSTS.of_rung(0, 400))


@pytest.mark.parametrize("steps", [40, 41, 100, 1234])
def test_runs_are_whole_blocks(steps):
    planned = Plan(steps, 1)
    assert planned.every * POINTS_OF_CURVE <= steps
    for rung in (*RUNGS, FULL):
        assert planned.length(rung) % POINTS_OF_RUNG == 0
        assert planned.length(rung) == pytest.approx(rung.share * steps, abs=4)


def test_steps_that_cost_nothing_end():
    free = Costs({"adam": 0.0}, 0.0, 0.0, 0.0)
    assert plan(free, 60, None, 1).steps >= FEWEST
