"""Trials on tables, small ones."""

import json

import numpy as np
import pytest

from linboost_optax.__main__ import main
from linboost_optax._trial.tabular import compare, data, estimators
from linboost_optax._trial.tabular.words import judge

pytestmark = pytest.mark.slow


def linear(path, rows=60):
    """A target that is linear in two columns and an offset of a third's categories."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    kind = rng.integers(0, 2, rows)
    y = x @ [1.0, -2.0] + 3 * kind + 0.01 * rng.normal(size=rows)
    lines = ["a,b,kind,y"]
    lines += [
        f"{a if i % 9 else ''},{b},{'oak' if k else 'ash'},{t}"
        for i, ((a, b), k, t) in enumerate(zip(x, kind, y))
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def table(tmp_path):
    return data.read(linear(tmp_path / "t.csv"), "y")


@pytest.fixture
def quick(monkeypatch):
    """Two splits, and of regressors those that take no time."""
    monkeypatch.setattr(compare, "FOLDS", 2)
    monkeypatch.setattr(compare, "REPEATS", 1)
    monkeypatch.setattr(
        compare,
        "ESTIMATORS",
        {name: estimators.ESTIMATORS[name] for name in ("mean", "ridge")},
    )


def test_every_regressor_is_searched_and_predicts(table):
    train, test = np.arange(40), np.arange(40, 60)
    for name, each in estimators.ESTIMATORS.items():
        model = estimators.search(each, table, seed=0)
        model.fit(table.x.iloc[train], table.y[train])
        guess = model.predict(table.x.iloc[test])
        assert guess.shape == (20,)
        assert np.isfinite(guess).all()
        assert set(estimators.chosen(model)) == set(each.grid(table))
        if name == "ills":
            assert np.mean((guess - table.y[test]) ** 2) < 0.5 * np.var(table.y)


def test_outliers_let_robust_losses_compete(table):
    from dataclasses import replace

    grid = estimators.ESTIMATORS["ills"].grid
    assert "loss" not in grid(table)
    assert grid(replace(table, outliers=2))["loss"] == ["squared", "huber"]


def test_errors_are_those_of_the_splits(table, quick):
    found = compare.compare(table, minutes=10, seed=0, shown=False)
    assert found["splits"] == [{"train": 30, "test": 30}] * 2
    # By hand: the mean of the training targets, on the other half.
    from sklearn.model_selection import RepeatedKFold

    splits = RepeatedKFold(n_splits=2, n_repeats=1, random_state=0).split(table.y)
    expected = [
        np.sqrt(np.mean((table.y[test] - table.y[train].mean()) ** 2)) / np.std(table.y)
        for train, test in splits
    ]
    np.testing.assert_allclose(found["entries"]["mean"]["errors"], expected)
    assert judge(found).winner == "ridge"


def test_no_split_is_begun_that_would_not_end_in_time(table, quick, monkeypatch):
    monkeypatch.setattr(compare.Clock, "left", property(lambda self: 0.0))
    found = compare.compare(table, minutes=10, seed=0, shown=False)
    assert len(found["splits"]) == 1


def test_a_split_that_ran_out_of_time_counts_for_nothing(table, quick, monkeypatch):
    monkeypatch.setattr(compare.Clock, "left", property(lambda self: -1.0))
    found = compare.compare(table, minutes=10, seed=0, shown=False)
    assert found["splits"] == []
    assert judge(found).winner is None


def test_who_fails_is_left_out(table, quick, monkeypatch):

    class Broken:
        def fit(self, x, y):
            raise ValueError("no\nmore")

    real = compare.search
    monkeypatch.setattr(
        compare,
        "search",
        lambda each, *rest: Broken() if each.label == "ridge" else real(each, *rest),
    )
    found = compare.compare(table, minutes=10, seed=0, shown=False)
    assert found["left_out"] == {"ridge": "ValueError: no"}
    assert len(found["entries"]["mean"]["errors"]) == 2


def test_an_interrupt_keeps_whole_splits(table, quick, monkeypatch):
    real, calls = compare.search, []

    def search(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(compare, "search", search)
    found = compare.compare(table, minutes=10, seed=0, shown=False)
    assert found["interrupted"]
    assert len(found["splits"]) == 1
    assert {len(each["errors"]) for each in found["entries"].values()} >= {1}


def test_from_the_command_line(tmp_path, quick, capsys):
    path = linear(tmp_path / "mine.csv")
    assert main(["trial", str(path), "--target", "y", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Take ridge" in printed
    record = json.loads((tmp_path / "mine.json").read_text())
    assert record["rows"] == 60
    assert (tmp_path / "mine.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["mine.csv"], "`--target` must name the column to predict, got none"),
        (["mine.csv", "--target", "z"], "must be a column of 'mine.csv', got 'z'"),
        (["nowhere.csv", "--target", "y"], "No such file"),
    ],
)
def test_what_is_refused(arguments, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    linear(tmp_path / "mine.csv")
    assert main(["trial", *arguments]) == 1
    assert match in capsys.readouterr().err
