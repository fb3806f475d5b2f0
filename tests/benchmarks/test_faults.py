"""The job that injects faults: what counts as survived, and that nothing is hidden."""

import json

import numpy as np
import pytest

from benchmarks import driver
from benchmarks.faults import injection, interrupted, mistakes, training
from benchmarks.faults.verdict import against, falls, figure
from benchmarks.jobs import faults


def run_of(losses, end, final=0.5, sound=True):
    return training.Run(np.array(losses), 2.0, end, final, sound, None)


def test_the_worst_seed_counts():
    good, bad = run_of([2.0, 1.0], 1.0, 0.51), run_of([2.0, 1.0], 1.0, 0.6)
    assert against([0.5, 0.5], [good, good])["survived"]
    cell = against([0.5, 0.5], [good, bad])
    assert (cell["survived"], cell["ratio"]) == (False, pytest.approx(1.2))
    assert figure(cell) == "**no**: 1.2x"
    cell = falls([good, run_of([2.0, 90.0], 1.5)])
    assert figure(cell) == "0.75x, after 45x"
    assert figure(falls([good, run_of([2.0, 3.0], 3.0)])) == "**no**: 1.5x"


@pytest.mark.parametrize("final", [np.nan, np.inf])
def test_what_is_not_finite_is_not_survived(final):
    cell = against([0.5], [run_of([2.0], 1.0, final)])
    assert figure(cell) == "**no**: loss not finite"
    assert figure({**cell, "ratio": None}) == "**no**: loss not finite"  # from JSON
    cell = against([0.5], [run_of([2.0], 1.0, sound=False)])
    assert figure(cell) == "**no**: not finite"


def test_tables_show_what_was_not_survived():
    good = {"survived": True, "sound": True, "ratio": 0.5}
    cells: dict = dict.fromkeys(training.COMPETITORS, good)
    cells["lnb"] = {"survived": False, "sound": True, "ratio": 3.0}
    table = faults.describe(
        {"task": "features", "rows": [{"label": "all zero", "cells": cells}]}
    )
    assert "**no**: 3x" in table
    assert "0 of 1" in table
    row = {"label": "kills", "deaths": [[3, True]], "starts": [0, 0]}
    rows = [{**row, "survived": same} for same in (True, False)]
    table = faults.describe({"task": "interrupted", "rows": rows})
    assert "3 (in a save)" in table
    assert "identical" in table
    assert "**no**: other bits" in table
    silent = {"label": "nothing wrong", "error": None, "says": None}
    loud = {"label": "wrong", "error": "ValueError", "says": "a | b " + 80 * "word "}
    table = faults.describe({"task": "mistakes", "rows": [silent, loud]})
    assert "| nothing wrong | **no error** |" in table
    assert "ValueError: a \\| b word" in table
    assert "| raise | 1 of 2 |" in table
    assert max(map(len, table.split("\n"))) < 250


def test_a_mistake_is_recorded_as_it_comes(monkeypatch):
    def wrong():
        raise ValueError("`x` must be y, got <function f at 0x7f00>. Use\n z.")

    monkeypatch.setitem(mistakes.MISTAKES, "wrong", wrong)
    monkeypatch.setitem(mistakes.MISTAKES, "right", lambda: None)
    assert mistakes.try_mistake("wrong") == {
        "label": "wrong",
        "error": "ValueError",
        "says": "`x` must be y, got <function f>.",
    }
    assert mistakes.try_mistake("right")["error"] is None


def test_batches_are_hit_at_their_rate_and_the_first_always():
    for rate, count in [(0.05, 10), (0.5, 100), (0.001, 1)]:
        hit = injection.hit(200, rate, seed=0)
        assert hit[0] == 0
        assert abs(len(hit) - count) <= 1
        assert list(hit) == sorted(set(hit))


def test_a_program_that_does_not_die_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(interrupted, "launch", lambda *args: (0, "from 0\nabc\n"))
    with pytest.raises(RuntimeError, match="ended with 0 where Death"):
        interrupted.interrupted(tmp_path, "flax", 10, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.lenient("optimizers of Optax promote implicitly")
@pytest.mark.parametrize("task", ["clipped", "features", "mistakes"])
def test_a_quick_run_writes_and_prints_its_table(task, tmp_path, capsys):
    arguments = ["--quick", "--seeds", "1", "--out", str(tmp_path), "--tasks", task]
    driver.main(["faults", *arguments])
    result = json.loads((tmp_path / f"faults-{task}.json").read_text())
    assert result["task"] == task
    assert result["rows"]
    assert faults.describe(result) in capsys.readouterr().out
