"""Whole trials, small ones: as a function, from the command line, interrupted."""

import importlib.util
import json

import jax
import optax
import pytest

import linboost_optax as lbo
from linboost_optax.__main__ import main
from linboost_optax._trial import race
from tests.trial.tasks import TASKS, batches, loss, tree

pytestmark = [pytest.mark.slow, pytest.mark.lenient("Optax's Muon promotes")]

OPTIONS = {"minutes": 30, "steps": 40, "seeds": 2, "progress": False}


def sgd(rate=1e-2):
    return optax.sgd(rate)


@pytest.fixture(scope="module")
def found():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return lbo.trial(tree, loss, batches, optimizer=sgd, name="mine", **OPTIONS)


def test_all_of_them_raced_on_all_seeds(found):
    record = found.record
    raced = {name: len(entry["curves"]) for name, entry in record["entries"].items()}
    assert set(raced) >= {"own", "adam", "muon", "lnb", "polar"}
    assert set(raced.values()) == {2}
    assert record["left_out"] == {}
    assert (record["baseline"], record["seeds"]) == ("own", [1, 2])
    assert record["entries"]["own"]["rate"] == 1e-2
    assert list(record["conditions"]) == ["a", "b"]


def test_every_rate_was_tried_and_three_went_on_and_two(found):
    """The last ones in full, for there was time; on a seed that does not race."""
    for name in ("own", "adam", "muon", "lnb", "polar"):
        rungs = found.record["entries"][name]["rungs"]
        assert [rung["steps"] for rung in rungs] == [4, 20, 40]
        first, *later = [rung["losses"] for rung in rungs]
        assert len(first) in (7, 8, 9)
        assert [len(losses) for losses in later] == [3, 2]
        for before, after in zip([first, *later], later, strict=False):
            best = min(before, key=before.__getitem__)
            below = [rate for rate in before if rate < best]
            assert set(after) >= {best, *([max(below)] if below else [])}
        if name != "own":
            last = later[-1]
            rate = found.record["entries"][name]["rate"]
            assert rate == min(last, key=last.__getitem__)
            (ended, *_) = found.record["entries"][name]["curves"]
            assert last[rate] != ended["test_loss"][-1]
    assert "in runs of 4, 20 and 40 steps" in str(found)


def test_whoever_races_begins_alike(found):
    for seed in range(2):
        starts = {
            entry["curves"][seed]["test_loss"][0]
            for entry in found.record["entries"].values()
        }
        assert len(starts) == 1


def test_it_prints_verdict_table_and_change(found):
    text = str(found)
    assert found.verdict.headline in text
    assert "What to change:" in text
    assert text.count("\n") > 15


def test_a_loss_without_layers_is_refused():
    def flat_loss(params, batch):
        return jax.numpy.mean(params["a"]["kernel"] ** 2)

    with pytest.raises(lbo.TrialError, match="finding the layers of `loss` failed"):
        lbo.trial(tree, flat_loss, batches, **OPTIONS)


FILE = """
import optax
from tests.trial.tasks import batches, loss, tree as model
def optimizer(rate=0.01): return optax.sgd(rate)
"""


def test_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    out = tmp_path / "out"
    arguments = ["--minutes", "30", "--steps", "40", "--seeds", "1", "--out", str(out)]
    assert main(["trial", str(path), *arguments]) == 0
    printed = capsys.readouterr()
    record = json.loads((out / "mine.json").read_text())
    assert record["task"] == "mine"
    assert "Wrote" in printed.out
    assert "race, seed 1" in printed.err
    assert (out / "mine.html").read_text().startswith("<!doctype html>")


def test_a_task_that_breaks_ends_with_one_and_says_where(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FILE + "def loss(params, batch):\n    return batch.nothing\n")
    assert main(["trial", str(path)]) == 1
    said = capsys.readouterr().err
    assert "`loss` on the first training batch failed (line 6 of" in said
    assert "mine.py" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["trial", "x.py", "--minutes", "0"], "must be > 0, got 0"),
        (["trial", "x.py", "--seeds", "0"], "must be >= 1, got 0"),
        (["trial", "x.py", "--steps", "3"], "must be >= 40, got 3"),
        ([], "required: command"),
    ],
)
def test_arguments_that_are_refused(arguments, match, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert match in capsys.readouterr().err


def interrupted(monkeypatch, blocks):
    """Interrupts after so many blocks of races."""
    real, count = race.run, 0

    def run(trainer, carry, block, seed, rate, steps):
        nonlocal count
        count += seed > 0  # races have seeds of their own
        if count > blocks:
            raise KeyboardInterrupt
        return real(trainer, carry, block, seed, rate, steps)

    monkeypatch.setattr(race, "run", run)
    return lbo.trial(tree, loss, batches, optimizer=sgd, **OPTIONS)


@pytest.mark.parametrize(("blocks", "seeds"), [(0, []), (60, [1]), (6 * 40 + 60, [1])])
def test_an_interrupt_keeps_what_is_there(blocks, seeds, monkeypatch):
    found = interrupted(monkeypatch, blocks)
    assert found.record["interrupted"]
    assert found.record["seeds"] == seeds
    curves = [entry["curves"] for entry in found.record["entries"].values()]
    assert {len(each) for each in curves} == {len(seeds)}
    if seeds:
        assert "It was stopped early" in str(found)
    else:
        assert found.verdict.winner is None
    assert found.html()


@pytest.mark.parametrize("module", ["tqdm", "matplotlib"])
def test_what_is_not_installed_is_said_before_anything_runs(
    module, monkeypatch, capsys
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else real(name)
    )
    assert main(["trial", "nowhere.py"]) == 1
    said = capsys.readouterr().err
    assert f"a trial needs {module}, which the extra `trial` has" in said
    if module == "tqdm":
        with pytest.raises(ModuleNotFoundError, match="progress=False"):
            lbo.trial(tree, loss, batches)


def test_an_interrupt_among_the_first_runs_can_be_shown(monkeypatch):
    real, ran = race.short, []

    def short(*arguments, **named):
        ran.append(arguments)
        if len(ran) == 3:  # before the user's own rate, the fourth
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(race, "short", short)
    found = lbo.trial(tree, loss, batches, optimizer=sgd, **OPTIONS)
    assert found.record["interrupted"]
    assert len(found.record["entries"]["own"]["rungs"][0]["losses"]) == 2
    assert found.verdict.winner is None
    assert found.html().count("<figure>") == 1


def test_an_interrupt_before_anything_ran_is_one(monkeypatch):
    def model(key):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lbo.trial(model, loss, batches, **OPTIONS)


def test_an_optimizer_that_cannot_be_compiled_is_left_out(monkeypatch):
    from linboost_optax._trial import competitors

    def muon(rate, taps):
        raise ValueError("no such matrix\nand more")

    monkeypatch.setattr(competitors, "muon", muon)
    options = OPTIONS | {"seeds": 1}
    found = lbo.trial(TASKS["tree"].model, loss, batches, **options)
    (said,) = found.record["left_out"].values()
    assert said.startswith("compiling a step of Muon failed (line ")
    assert said.endswith("ValueError: no such matrix")
    assert "muon" not in found.record["entries"]
    assert found.record["baseline"] == "adam"
