"""Figures of records that were made by hand."""

import math

import pytest

from linboost_optax._trial import analysis
from tests.trial.records import FAST, LOW, SLOW, curve, entry, record, three, worth_it


def test_steps_and_time_to_the_baselines_best_loss():
    it = analysis.figures(worth_it(), "polar")
    # 2 is reached after 10 of 40 steps, of 1.2 seconds each.
    assert (it.reached, it.steps.middle, it.seconds.middle) == (3, 0.25, 0.3)
    assert it.best == (1.3, 1.3, 1.3)
    assert (it.train.middle, it.test.middle) == (0.65, 1.3)
    assert (it.step.middle, it.memory) == (pytest.approx(1.2), 1.5)
    assert (it.works, it.rates) == (2, 3)


def test_the_baseline_is_one_by_itself():
    it = analysis.figures(worth_it(), "own")
    assert (it.steps.middle, it.seconds.middle, it.step.middle) == (1, 1, 1)


def test_another_may_be_the_measure():
    it = analysis.figures(worth_it(), "polar", than="adam")
    assert it.steps.middle == 20 / 40
    assert it.seconds.middle == pytest.approx(24 / 40)


def test_the_spread_is_over_seeds():
    runs = [curve(FAST), curve([8.0, 3, 2, 2, 2]), curve([8.0, 3, 3, 2, 2])]
    found = record({"own": entry("yours", 1, three(SLOW)), "x": entry("x", 1, runs)})
    assert analysis.figures(found, "x").steps == (0.5, 0.25, 0.75)


def test_a_seed_that_misses_leaves_no_ratio():
    runs = [curve(FAST), curve([8.0, 3, 3, 3, 3]), curve(FAST)]
    found = record({"own": entry("yours", 1, three(SLOW)), "x": entry("x", 1, runs)})
    it = analysis.figures(found, "x")
    assert (it.reached, it.steps, it.seconds) == (2, None, None)


def test_what_is_not_finite_never_wins():
    runs = [curve([8.0, math.nan, math.nan, math.inf, math.nan])]
    base = [curve(LOW)]
    found = record({"own": entry("yours", 1, base), "x": entry("x", 1, runs)})
    it = analysis.figures(found, "x")
    assert (it.reached, it.best.middle, it.test.middle) == (0, 8.0, math.inf)
    back = analysis.figures(found, "own", than="x")
    assert back.reached == 0  # its best is where it began


def test_curves_of_different_length_have_blocks_in_common():
    ratios = analysis.block_ratios(curve(FAST, 3.0), curve(SLOW[:3]))
    assert list(ratios) == pytest.approx([3, 3])


def test_the_bar_is_a_tenth_of_the_best_fall_above_its_end():
    losses = {0.1: 3.0, 1.0: 2.0, 10.0: math.inf}
    found = record({"own": entry("yours", 1, [], losses)})
    assert analysis.bar(found) == pytest.approx(2 + 0.1 * (8 - 2))


@pytest.mark.parametrize("offset", [-100.0, 0.0, 100.0])
def test_an_offset_of_the_loss_moves_nothing(offset):
    losses = {0.1: 3.0 + offset, 1.0: 2.0 + offset, 10.0: 2.5 + offset}
    found = record({"own": entry("yours", 1, [], losses)})
    found["start"]["test_loss"] += offset
    found["bar"] = analysis.bar(found)
    assert analysis.working(found, "own") == (2, 3)


def test_rates_from_json_are_read_alike():
    found = worth_it()
    rung = found["entries"]["polar"]["rungs"][0]
    rung["losses"] = {"0.001": 0.5, "0.01": 0.4, "0.1": None}
    assert analysis.working(found, "polar") == (2, 3)


def test_a_loss_that_does_not_fall_has_only_the_best_rate_to_work():
    found = record({"own": entry("yours", 1, [], {0.1: 9.0, 1.0: 10.0})})
    found["bar"] = analysis.bar(found)
    assert analysis.working(found, "own") == (1, 2)
