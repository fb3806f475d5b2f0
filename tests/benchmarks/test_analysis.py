"""From curves to figures, on curves whose figures are known."""

import math

import pytest

from benchmarks import analysis, tasks, training, tuning
from benchmarks.jobs import races
from benchmarks.optimizers import OPTIMIZERS
from tests.benchmarks.curves import curves, result_of


def test_the_rate_that_races_is_the_first_at_the_target():
    losses = {0.1: 1.0, 0.2: 0.5, 0.3: 0.7}
    assert analysis.fastest(losses, {0.1: 30.0, 0.2: 50.0, 0.3: None}) == 0.1
    assert analysis.fastest(losses, {0.1: 50.0, 0.2: 50.0, 0.3: None}) == 0.2
    assert analysis.fastest(losses, dict.fromkeys(losses)) == 0.2


def test_first_reached():
    assert analysis.first_reached([3.0, 2.0, 1.0, 0.5], 1.0) == 2
    assert analysis.first_reached([3.0, 2.0], 1.0) is None
    assert analysis.first_reached([math.nan, 2.0, 1.0], 2.0) == 1


def test_steps_to_a_goal():
    run = curves([8.0, 4.0, 2.0], [0, 1, 2])
    assert analysis.steps_to(run, "train_loss", 4.0) == 10
    assert analysis.steps_to(run, "test_loss", 4.0) == 20
    assert analysis.steps_to(run, "train_loss", 1.0) is None


def test_time_to_the_target():
    other = curves([8.0, 0.9, 0.8, 0.7, 0.6], [0, 1.5, 3, 4.5, 6])
    row = analysis.summarise(result_of(other), "muon")
    assert row["steps"] == 10
    assert row["seconds"] == 1.5
    assert row["steps_ratio"] == pytest.approx(1 / 3)
    assert row["seconds_ratio"] == pytest.approx(1.5 / 3)
    assert row["step_time"] == pytest.approx(1.5)
    assert row["best"] == 0.6
    assert row["test_accuracy"] is None


def test_a_target_never_reached_is_a_dash():
    never = curves([8.0, 7.0, math.nan, math.nan, math.nan], [0, 1, 2, 3, 4])
    result = result_of(never)
    row = analysis.summarise(result, "muon")
    assert row["steps"] is row["seconds"] is row["seconds_ratio"] is None
    assert row["best"] == 7.0
    line = races.race_table(result).split("\n")[3]
    assert [cell.strip() for cell in line.split("|")][1:-1] == [
        *("Muon", "0.1", "0.25", "-", "-", "-", "-", "-", "-", "-"),
        *("1.00 [1.00, 1.00]", "1.00x"),
    ]


def test_one_seed_that_never_arrives_leaves_no_median():
    result = result_of(curves([8.0, 0.5, 0.5, 0.5, 0.5], [0, 1, 2, 3, 4]))
    late = curves([8.0, 7.0, 6.0, 5.0, 4.0], [0, 1, 2, 3, 4])
    result["optimizers"]["muon"]["curves"].append(late)
    result["optimizers"]["adam"]["curves"] *= 2
    row = analysis.summarise(result, "muon")
    assert row["steps"] is None
    assert row["train_loss"] == pytest.approx((0.5 + 4.0) / 2)
    assert "1 of 2 seeds" in races.race_table(result)


def test_every_seed_has_a_target_of_its_own():
    result = result_of(curves([8.0, 3.0, 0.9, 0.9, 0.9], [0, 1, 2, 3, 4]))
    easy = curves([8.0, 4.0, 4.0, 4.0, 4.0], [0, 1, 2, 3, 4])
    result["optimizers"]["adam"]["curves"].append(easy)
    result["optimizers"]["muon"]["curves"] *= 2
    first, second = analysis.per_seed(result, "muon")
    assert (first["steps"], second["steps"]) == (20, 10)
    assert "15 (10 to 20)" in races.race_table(result)


def test_best_ignores_what_is_not_finite():
    assert analysis.best({"x": [math.nan, 3.0, math.inf, 2.0]}, "x") == 2.0
    assert analysis.best({"x": [math.nan]}, "x") == math.inf


def test_another_curve_where_one_is_lowest():
    run = curves([8.0, 2.0, 4.0], [0, 1, 2]) | {"test_loss": [9.0, 7.0, 5.0]}
    assert analysis.at_best(run, "train_loss", "test_loss") == 7.0
    run["train_loss"] = [math.nan, math.inf, 3.0]
    assert analysis.at_best(run, "train_loss", "test_loss") == 5.0
    run["train_loss"] = [math.nan] * 3
    assert math.isnan(analysis.at_best(run, "train_loss", "test_loss"))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({0.01: 1.0, 0.1: 2.0, 1.0: 3.0}, 0.001),
        ({0.01: 3.0, 0.1: 2.0, 1.0: 1.0}, 10.0),
        ({0.01: 3.0, 0.1: 1.0, 1.0: 2.0}, None),
        ({0.01: 3.0, 0.1: 1.0, 1.0: math.inf}, None),
    ],
)
def test_beyond_the_edge(losses, expected):
    assert analysis.beyond(losses) == expected


def test_tuning_goes_on_beyond_an_edge(monkeypatch):
    """The loss falls with the rate: the grid's upper edge, then two steps more."""
    falling = lambda task, entries, *args, **kwargs: {  # noqa: E731
        "": {"train_loss": [1 / entries[""].learning_rate]}
    }
    monkeypatch.setattr(tuning, "race", falling)

    class Bar:
        total = 0

        def update(self, steps):
            raise AssertionError(steps)

    bar, task = Bar(), tasks.load("factorisation", quick=True)
    unused = training.Trainer(None, None, 0, 0, 0.0)
    tried = tuning.tune(task, OPTIMIZERS["adam"], unused, lambda carry: {}, 3, bar)
    assert list(tried) == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert tuning.losses_of(tried, task) == pytest.approx(
        {0.001: 1000, 0.01: 100, 0.1: 10, 1.0: 1, 10.0: 0.1}
    )
    assert bar.total == 2 * task.steps


def test_share_within():
    assert analysis.share_within([1.0, 1.1, 1.2, math.nan], 1.0) == 0.5
    assert analysis.share_within([math.inf], 1.0) == 0.0
