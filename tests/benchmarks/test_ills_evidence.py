"""What the ILLS jobs on robustness and faults corrupt, plant and look for."""

from typing import Any

import numpy as np
import pytest

from benchmarks.jobs import ills_planted
from benchmarks.regression import corruption, planted
from linboost_optax.ills import LayerDiagnostics


def rows(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(200, 3)), rng.normal(size=(200, 4))


@pytest.mark.parametrize(
    ("corrupt", "moved"),
    [(corruption.outliers(0.2), 0.2), (corruption.noise(0.1), 1.0)],
)
def test_validation_is_corrupted_like_training_and_the_test_is_not(corrupt, moved):
    clean, dirty = (
        corruption.load(rows(0), each, seed=0).start.split
        for each in (corruption.noise(0.0), corrupt)
    )
    assert [len(x) for x, _ in clean] == [120, 40, 40]
    for before, after in zip(clean[:2], dirty[:2], strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        change = np.abs(np.asarray(before[1]) - np.asarray(after[1]))
        assert np.mean(change > 0) == pytest.approx(moved, abs=0.1)
    for before, after in zip(clean[2], dirty[2], strict=True):
        np.testing.assert_array_equal(before, after)


def test_missing_targets_are_masked_and_complete_rows_have_none():
    data = corruption.load(rows(0), corruption.missing(0.2), seed=0)
    train, validation = data.known
    assert float(train.mean()) == pytest.approx(0.8, abs=0.1)
    assert np.all(np.isfinite(np.asarray(data.start.split.train[1])))
    assert np.all(np.asarray(data.start.split.train[1])[~np.asarray(train)] == 0)
    kept = corruption.complete(data)
    for known, whole in zip((train, validation), kept.known, strict=True):
        expected = np.all(np.asarray(known), axis=1)
        assert 0 < expected.sum() < len(expected)
        np.testing.assert_array_equal(whole, np.repeat(expected[:, None], 4, axis=1))


def test_too_few_complete_rows_are_not_trained_on():
    def fit(data, quick):
        raise AssertionError

    data = corruption.load(rows(0), corruption.missing(0.8), seed=0)
    assert corruption.on_complete_rows(fit)(data, True) == np.inf


def layer(weights, saturated=(0.0, 0.0), condition=(1.0, 1.0)):
    weights = np.asarray(weights, float)
    zeros = np.zeros_like(weights)
    facts = {"r2": zeros[0], "clipped": zeros[0]}
    return LayerDiagnostics(
        name="a layer",
        pre_activations=zeros,
        ideal=zeros + 2,
        fitted=zeros,
        weights=weights,
        condition=np.asarray(condition),
        saturated=np.asarray(saturated),
        **facts,
    )


def test_rules_value_units_layers_and_rows():
    first = layer([[1, 0], [3, 0]], (0.25, 0.75), (7.0, np.nan))
    second = layer([[2, 4], [0, 0]], (1.0, 0.0), (1.0, 1.0))
    both = [first, second]
    # Means are 2 and 0, then 1 and 2; medians 1 and 1.5.
    np.testing.assert_allclose(planted.unimportance(both), [0.5, np.inf, 1.5, 0.75])
    np.testing.assert_allclose(planted.saturation(both), [0.5, 0.5])
    # Twice 1 + 2 + 4, and twice 3: over their mean.
    np.testing.assert_allclose(planted.pull(both), [14 / 10, 6 / 10])
    np.testing.assert_allclose(planted.collinearity(both), [7.0])


def test_a_fault_is_found_if_it_is_flagged_and_first(monkeypatch):
    values = {True: np.array([3.0, 5.0]), False: np.array([4.0, 1.0])}
    monkeypatch.setattr(planted, "look", lambda rule, case: values[case.network])

    def search(at, limit):
        def build(seed: int, there: Any, quick: bool) -> planted.Case:
            nothing: Any = None
            return planted.Case(there, nothing, nothing, nothing, at)

        rule = planted.Rule("", lambda layers: np.zeros(1), limit)
        return planted.search(rule, build, 0, True)

    assert search(1, 2.0) == {
        "found": True,
        "alarm": True,
        "planted": 5.0,
        "control": 4.0,
    }
    assert (search(1, 4.5)["found"], search(1, 4.5)["alarm"]) == (True, False)
    assert not search(1, 5.5)["found"]
    assert not search(0, 2.0)["found"]


def test_infinite_values_are_the_greatest_of_a_table():
    row = {"label": "a plant", "found": [True, False], "alarm": [False, False]}
    row |= {"planted": [None, 3.0], "control": [1.0, 1.0]}
    text = ills_planted.describe({"limit": 2.0, "rows": [row]})
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells == ["a plant", "1 of 2", "0 of 2", "inf (3 to inf)", "1", "2"]
