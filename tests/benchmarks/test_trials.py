"""The job `trials`: both verdicts, and whether they agree."""

import json

import pytest

from benchmarks import driver
from benchmarks.jobs import trials
from benchmarks.jobs.trials import FOLDER, SIZES
from linboost_optax._trial import task


def summary(worth, seconds):
    """What one of both came to: ours at these times, None where it did not."""
    entries = {
        "own": {"label": "yours", "rate": 0.1, "seconds": [1, 1, 1], "best": [2, 2, 2]},
        "polar": {"label": "polar", "rate": 0.1, "seconds": seconds, "best": [1, 1, 1]},
    }
    return {"headline": "Said.", "winner": "own", "worth": worth, "entries": entries}


def result(trial, exhaustive, took=4.2):
    return {
        "title": "`a.py`, 40 steps",
        "minutes": 4.0,
        "took": took,
        "trial": trial,
        "exhaustive": exhaustive,
    }


def test_verdicts_that_agree_and_a_budget():
    found = result(summary(True, [0.5, 0.4, 0.6]), summary(True, [0.55, 0.5, 0.6]))
    row = trials.across([found]).splitlines()[-1]
    assert "worth it; polar 0.50x (0.40 to 0.60)" in row
    assert "worth it; polar 0.55x (0.50 to 0.60)" in row
    assert "| yes |" in " ".join(row.split())
    assert "105%" in row


def test_verdicts_that_differ():
    found = result(summary(True, [0.5, 0.4, 0.6]), summary(False, None))
    row = " ".join(trials.across([found]).splitlines()[-1].split())
    assert "| not worth it; ours do not come to the loss | no |" in row


def test_a_table_has_both():
    text = trials.describe(result(summary(True, [0.5, 0.5, 0.5]), summary(False, None)))
    assert "4.2 of 4 minutes" in text
    assert "| polar" in text
    assert text.count("Said.") == 2


@pytest.mark.parametrize("name", SIZES)
def test_the_tasks_are_tasks(name):
    found = task.load(FOLDER / f"{name}.py")
    assert found.optimizer is not None
    batches = list(found.batches("train", 0))
    assert len(batches) in (1, 40, 250)
    assert len({len(batch[0]) for batch in batches}) == 1


@pytest.mark.slow
@pytest.mark.lenient("tasks of users")
def test_the_job_runs(tmp_path):
    driver.main(["trials", "--quick", "--tasks", "spirals", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "trials-spirals.json").read_text())
    assert 0 < found["took"] < found["minutes"]
    for which in ("trial", "exhaustive"):
        entries = found[which]["entries"]
        assert set(entries) >= {"own", "adam", "muon", "lnb", "polar"}
        assert entries["own"]["seconds"] == [1, 1, 1]
        assert entries["own"]["rate"] == 3e-3
        assert found[which]["winner"] in entries
