"""Verdicts on tables whose right verdict is plain to see."""

import math

import numpy as np
import pytest

from linboost_optax._trial.tabular import words
from linboost_optax._trial.tabular.estimators import ESTIMATORS
from linboost_optax._trial.tabular.sheet import Sheet

WIGGLE = np.array([-0.02, 0.01, 0.0, 0.015, -0.005])
SETTINGS = {
    "mean": {},
    "ridge": {},
    "ills": {"hidden_layer_sizes": (20,)},
    "mlp": {"alpha": 0.01},
    "trees": {"learning_rate": 0.1},
}


def record(splits=5, **errors):
    """A record of so many splits, errors by name: a number, or one a split."""
    entries = {}
    for name, each in ESTIMATORS.items():
        values = []
        if name in errors:
            values = list(np.broadcast_to(errors[name] + 0 * WIGGLE, 5)[:splits])
        entries[name] = {
            "label": each.label,
            "code": each.code,
            "errors": values,
            "seconds": [0.5] * len(values),
            "settings": [SETTINGS[name]] * len(values),
        }
    return {
        "task": "mine",
        "rows": 100,
        "numbers": 3,
        "categories": 1,
        "notes": [],
        "minutes": 1.0,
        "elapsed_seconds": 30.0,
        "interrupted": False,
        "splits": [{"train": 80, "test": 20}] * splits,
        "entries": entries,
        "left_out": {},
        "versions": {"numpy": "1.2.3"},
    }


def test_a_difference_by_hand():
    found = words.difference(record(ills=0.5 + WIGGLE, trees=0.6), "ills", "trees")
    values = 0.5 + WIGGLE - 0.6
    variance = np.sum((values - values.mean()) ** 2) / 4
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(math.sqrt((1 / 5 + 20 / 80) * variance))
    assert (found.lower, found.sign) == (5, -1)


def test_a_difference_within_two_standard_errors_is_none():
    found = words.difference(record(ills=0.5 + WIGGLE, trees=0.505), "ills", "trees")
    assert found.sign == 0


@pytest.mark.parametrize(
    ("errors", "winner", "headline"),
    [
        (
            {"mean": 1, "ridge": 0.8, "ills": 0.4 + WIGGLE, "trees": 0.6},
            "ills",
            "Use IllsRegressor: a test error of 0.400 against 0.600 of gradient "
            "boosting, lower; lower on 5 of 5 splits.",
        ),
        (
            {"mean": 1, "ridge": 0.8, "ills": 0.4, "trees": 0.4 + WIGGLE},
            "ills",
            "Use IllsRegressor: a test error of 0.400 against 0.400 of gradient "
            "boosting, as low and simpler; lower on 2 of 5 splits.",
        ),
        (
            {"mean": 1, "ridge": 0.8, "ills": 0.7 + WIGGLE, "trees": 0.6},
            "trees",
            "Do not use IllsRegressor here: gradient boosting has a test error of "
            "0.600 against 0.700 of IllsRegressor, lower on 5 of 5 splits.",
        ),
        (
            {"mean": 1, "ridge": 0.5, "ills": 0.495 + WIGGLE, "trees": 0.6},
            "ridge",
            "Ridge does as well, a test error of 0.500 against 0.495 of IllsRegressor: "
            "take it, what there is to know is linear.",
        ),
        (
            {"mean": 1, "ridge": 1.0 + WIGGLE, "ills": 1.2, "trees": 0.995 + WIGGLE},
            "mean",
            "Nothing can be said of this target from these inputs: no regression is "
            "surely better than the mean of the targets, a test error of 1.000.",
        ),
        (
            {"mean": 1, "ridge": 0.5},
            "ridge",
            "Take ridge, a test error of 0.500: IllsRegressor could not be fitted.",
        ),
        ({"mean": 1, "ills": 0.5}, "ills", "Use IllsRegressor: a test error of 0.500."),
    ],
)
def test_verdicts(errors, winner, headline):
    found = words.judge(record(**errors))
    assert (found.winner, found.headline) == (winner, headline)
    assert found.worth == (winner == "ills")


@pytest.mark.parametrize("splits", [0, 1])
def test_one_split_tells_nothing(splits):
    found = words.judge(record(splits, mean=1, ills=0.5))
    assert found.winner is None
    assert found.headline.startswith("No verdict: two splits are needed")
    assert "more minutes" in str(found)


def test_who_missed_a_split_does_not_count():
    found = record(mean=1, ridge=0.9, ills=0.5)
    found["entries"]["ills"]["errors"].pop()
    found["left_out"] = {"ills": "ValueError: no"}
    assert words.competing(found) == ["mean", "ridge"]
    assert "IllsRegressor was left out: ValueError: no" in str(words.judge(found))


def test_the_code_has_the_settings_that_were_chosen_most_often():
    found = record(mean=1, ridge=0.9, ills=0.5, mlp=0.6)
    chosen = [{"hidden_layer_sizes": size} for size in ((10,), (50,), (50,))]
    found["entries"]["ills"]["settings"] = chosen
    assert words.code(found, "ills") == "IllsRegressor((50,), early_stopping=True)"
    assert "alpha=0.01" in words.code(found, "mlp")


def test_it_prints_and_is_a_page():
    sheet = Sheet(record(mean=1, ridge=0.8, ills=0.4 + WIGGLE, trees=0.6))
    text, page = str(sheet), sheet.html()
    for each in ("Use IllsRegressor", "gradient boosting", "0.400"):
        assert each in text
        assert each in page
    assert page.count("<figure>") == 1
    assert "5 of 5" in text
