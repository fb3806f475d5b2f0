"""The regression problems, their trainers, and the tables of the ILLS jobs."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.jobs import ills, ills_recovery
from benchmarks.regression import races, sizes, tables
from benchmarks.regression.problems import PROBLEMS, friedman, load
from benchmarks.regression.trainers import TRAINERS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PROBLEMS)
def test_training_data_are_standardised_and_seeded(name):
    split = load(name, "clean", seed=0)
    for part in split.train:
        values = np.asarray(part)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
        spread = values.std(0)
        np.testing.assert_allclose(spread[spread > 0], 1, atol=1e-4)
    counts = [len(part[0]) for part in split]
    shares = np.divide(counts, sum(counts))
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.01)
    again, other = (load(name, "clean", seed) for seed in (0, 1))
    np.testing.assert_array_equal(split.train[1], again.train[1])
    assert not np.array_equal(split.train[1], other.train[1])


def test_corruption_touches_training_targets_alone():
    clean, noisy, dirty = (
        load("teacher", corruption, seed=3)
        for corruption in ("clean", "noise", "outliers")
    )
    for other in (noisy, dirty):
        np.testing.assert_array_equal(clean.train[0], other.train[0])
        for got, want in zip(other[1:], clean[1:], strict=True):
            np.testing.assert_array_equal(got[1], want[1])
    noise = np.asarray(noisy.train[1] - clean.train[1])
    assert noise.std() == pytest.approx(0.3, abs=0.02)
    moved = np.abs(np.asarray(dirty.train[1] - clean.train[1]))
    assert np.mean(moved > 1) == pytest.approx(0.1, abs=0.03)
    np.testing.assert_allclose(moved[moved > 1], 10, rtol=1e-4)


def test_losses_other_than_squared_compete_on_outliers_only():
    for trainer in TRAINERS.values():
        robust = trainer.loss != "squared"
        assert (trainer.corruptions == ("outliers",)) == robust
        assert trainer.timed <= trainer.steps


@pytest.mark.parametrize("name", ["adam_batches", "lbfgs"])
def test_trainers_lower_the_error_and_look_at_all_splits(name):
    split = load("diabetes", "clean", 0)
    start = races.begin(split, PROBLEMS["diabetes"].hidden, 0)
    trainer = races.shortened(TRAINERS)[name]
    _, curve = races.train(trainer, start, 1e-2, full=True)
    assert curve.shape == (3, 3)
    assert np.all(np.isfinite(curve))
    assert curve[-1, 0] < curve[0, 0]


def test_many_rows_leave_a_share_of_the_iterations():
    known = {key: TRAINERS[key] for key in ("adam", "ills")}
    first, *_, last = (
        point.trainers(known) for point in sizes.GROWTHS["samples"].points
    )
    assert [each.steps for each in first.values()] == [2000, 300]
    assert [each.steps for each in last.values()] == [200, 30]
    assert [each.timed for each in last.values()] == [5, 5]
    assert first["adam"].rates == TRAINERS["adam"].rates
    assert (last["adam"].rates, last["ills"].rates) == ((1e-2, 3e-2), (None,))
    assert first["ills"].train is TRAINERS["ills"].train
    assert last["ills"].train is sizes.IN_CHUNKS
    assert last["adam"].train is TRAINERS["adam"].train


def test_a_function_without_noise_is_split_as_one_likes():
    train, validation, test = friedman(50, seed=0)
    assert [len(part[0]) for part in (train, validation, test)] == [50, 200, 500]
    np.testing.assert_allclose(np.std(np.asarray(train[1])), 1, atol=1e-4)
    assert 0.8 < float(np.std(np.asarray(test[1]))) < 1.2


def test_a_trainer_that_stops_early_by_itself_is_judged_by_its_own_weights():
    start = ills._start("diabetes", "clean", 0)
    trainer = TRAINERS["ills"]

    def nothing(network, params, split, *, steps, loss):
        assert (steps, loss) == (300, "squared")
        return jax.tree.map(jax.numpy.zeros_like, params)

    error = races.stopped(dataclasses.replace(trainer, stop=nothing), start)
    want = np.sqrt(np.mean(np.asarray(start.split.test[1]) ** 2))
    assert error == pytest.approx(want, rel=1e-6)
    assert races.stopped(TRAINERS["lbfgs"], start) is None


def test_a_grid_is_reduced_to_its_best_runs():
    quick = np.array([[0.9, 0.8, 0.7], [0.5, 0.9, 0.9], [0.4, 1.0, 1.1]])
    careful = np.array([[0.9, 0.7, 0.6], [0.8, 0.5, 0.4], [0.7, 0.6, 0.5]])
    diverged = np.full((3, 3), np.nan)
    diverged[0] = 5.0
    row = races.reduced([quick, careful, diverged], target=0.5)
    assert row == {
        "iterations": 2,
        "train": 0.4,
        "test": 1.1,
        "test_early_stopping": 0.4,
    }
    assert races.reduced([careful], target=0.5)["iterations"] == math.inf


def cell(**trainers):
    return {"samples": 10, "trainers": trainers}


def entry(label, iterations, seconds, error, unit="iterations"):
    errors = {key: [error] * len(iterations) for key in tables.ERRORS}
    facts = {"label": label, "unit": unit, "seconds_an_iteration": seconds}
    return {"iterations": iterations, **facts, **errors}


@pytest.fixture
def regression():
    adam = entry("Adam", [100, 200, 300], 0.01, 0.5)
    least = entry("ILLS", [10, None, 40], 0.05, 0.25)
    never = entry("MLPRegressor", [None, None, None], None, 0.75)
    epochs = entry("Adam, mini-batch", [20, 20, 20], 0.1, 0.5, unit="epochs")
    clean = cell(adam=adam, adam_batches=epochs, ills=least, sklearn=never)
    dirty = cell(
        adam=adam,
        ills_huber=entry("ILLS, Huber", [10], 0.05, 0.125),
        sklearn={**never, "test_early_stopping": [None]},
    )
    return {"title": "a problem", "data": {"clean": clean, "outliers": dirty}}


def rows(table):
    lines = [line.split("|")[1:-1] for line in table.split("\n")]
    return [[cell.strip() for cell in line] for line in lines]


def test_a_seed_that_never_arrives_counts_as_the_longest(regression):
    adam, epochs, least, never = rows(tables.to_target([regression]))[2:]
    assert adam[3:7] == ["200 (100 to 300)", "2.000 (1.000 to 3.000)", "1.000", "1.00"]
    assert epochs[3:7] == ["20 epochs", "2.000", "", "1.00"]
    assert least[3:7] == ["40 (10 to not)", "2.000 (0.500 to not)", "0.200", "1.00"]
    assert never[3:7] == ["not", "", "", ""]
    assert never[7:] == ["0.7500"] * 3


def test_outliers_have_a_table_of_their_own(regression):
    assert all(row[1] != "outliers" for row in rows(tables.to_target([regression])))
    clean = {"title": "without", "data": {"clean": regression["data"]["clean"]}}
    table = rows(tables.outliers([regression, clean]))
    assert table[0] == ["problem", "Adam", "ILLS, Huber"]
    assert table[2:] == [["a problem", "0.5000", "0.1250"]]
    assert "10 standard deviations" in ills.across([regression, clean])
    assert "10 standard deviations" not in ills.across([clean])


def test_the_figure_has_a_bar_for_every_trainer_but_adam(
    regression, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        tables.figures, "save", lambda figure, path: drawn.append(figure)
    )
    tables.draw(regression, tmp_path / "x.png")
    (axis,) = drawn[0].axes
    heights = {bars.get_label(): bars.datavalues for bars in axis.containers}
    assert list(heights) == ["Adam, mini-batch", "ILLS", "ILLS, Huber"]
    # 40 iterations of 0.05 s against 200 of 0.01 s; not there on outliers.
    np.testing.assert_allclose(heights["ILLS"], [0, np.nan])
    np.testing.assert_allclose(heights["ILLS, Huber"], [np.nan, 0.5 / 2 - 1])


def test_outlier_ratios_compare_runs_that_differ_in_nothing_else(monkeypatch):
    """With a fit that learns nothing, all errors are the same, and all ratios one."""
    seen = []

    def fit(network, params, x, y, **options):
        seen.append((y, options))
        return SimpleNamespace(params=params)

    monkeypatch.setattr(ills_recovery.ills, "fit_ills", fit)
    ratios = ills_recovery.outlier_ratios(seed=0, quick=True)
    assert set(ratios.values()) == {1.0}
    clean, *dirty, left_out, without = seen
    assert [options["loss"] for _, options in dirty] == ["squared", "huber", "tukey"]
    hit = np.asarray(jax.numpy.abs(dirty[0][0] - clean[0]) > 5)[:, 0]
    assert 20 <= hit.sum() <= 60
    np.testing.assert_array_equal(left_out[1]["sample_weight"], 1.0 - hit)
    np.testing.assert_array_equal(without[0], clean[0])


def test_recovery_counts_the_seeds_that_are_good_enough():
    result = {
        "what": "student | RMSE",
        "limit": 0.01,
        "rows": [{"label": "10 units", "values": [0.005, 0.01, None]}],
    }
    header, _, row = rows(ills_recovery.describe(result))
    assert header == ["student", "at most 0.01", "RMSE, median", "best", "worst"]
    assert row == ["10 units", "2 of 3", "0.01", "0.005", "-"]
