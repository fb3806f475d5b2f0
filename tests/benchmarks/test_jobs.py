"""Every job, end to end on a few steps: it writes and prints what it measured."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from benchmarks import driver, results
from benchmarks.jobs import JOBS, races, step_time, transfer
from benchmarks.tasks._deep import DEEP
from benchmarks.tasks.versions import STUDIES
from linboost_optax import linen

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


def run(job, folder, *arguments, task="factorisation"):
    """The result of a quick job, read from its JSON."""
    arguments = [job, "--quick", "--out", str(folder), "--tasks", task, *arguments]
    driver.main(arguments)
    if JOBS[job].figure is not None:
        assert (folder / f"{job}-{task}.png").read_bytes().startswith(PNG)
    return json.loads((folder / f"{job}-{task}.json").read_text())


def test_a_race_writes_every_curve_and_the_facts(raced):
    result = results.read(raced.folder / "whiten-factorisation.json")
    assert (result["job"], result["task"]) == ("whiten", "factorisation")
    assert result["facts"]["versions"]["jax"] == jax.__version__
    assert result["facts"]["cores"] >= 1
    assert list(result["optimizers"]) == ["adam", "whiten"]
    for entry in result["optimizers"].values():
        assert len(entry["curves"]) == result["seeds"] == 2
        for curves in entry["curves"]:
            assert curves["step"] == [0, 2, 4]
            assert curves["seconds"][0] == 0
            assert np.all(np.diff(curves["seconds"]) > 0)
            assert set(curves) == {"step", "seconds", "train_loss", "test_loss"}
            assert all(len(values) == 3 for values in curves.values())
        assert entry["curves"][0] != entry["curves"][1]
        assert entry["state_bytes"] > 0
        assert entry["temporary_bytes"] > 0


def test_a_race_is_at_the_tuned_rate_from_the_seed_that_tuned_it(raced):
    result = results.read(raced.folder / "whiten-factorisation.json")
    for entry in result["optimizers"].values():
        tuning = {float(rate): tuned for rate, tuned in entry["tuning"].items()}
        tuned = tuning[entry["learning_rate"]]
        assert tuned["best"] == min(entry["curves"][0]["train_loss"])
        assert entry["lowest"] == min(other["best"] for other in tuning.values())
        assert entry["learning_rate"] in tuning


def test_a_race_prints_its_table(raced):
    result = results.read(raced.folder / "whiten-factorisation.json")
    assert races.describe(result) in raced.printed
    assert result["title"] in raced.printed
    for entry in result["optimizers"].values():
        assert f"| {entry['label']} " in raced.printed
        assert f"- {entry['label']}: " in raced.printed
    for column in ("train loss", "test loss", "accuracy", "step time / Adam"):
        assert column in raced.printed
    assert (raced.folder / "whiten-factorisation.png").read_bytes().startswith(PNG)


def test_step_time_has_ratios_of_the_same_round(tmp_path, capsys):
    result = run("step_time", tmp_path, "--optimizers", "whiten")
    adam, whiten = result["optimizers"]["adam"], result["optimizers"]["whiten"]
    assert adam["ratio_quartiles"] == [1, 1, 1]
    assert len(whiten["block_seconds"]) == result["rounds"] == 1
    expected = whiten["block_seconds"][0] / adam["block_seconds"][0]
    assert whiten["ratio_quartiles"] == pytest.approx([expected] * 3, rel=1e-4)
    assert (adam["statistic"], whiten["statistic"]) == (None, "auto")
    printed = capsys.readouterr().out
    assert "temporary MiB" in printed
    times = whiten["compile_seconds"][0] / adam["compile_seconds"][0]
    assert f" {times:.2f}x |" in printed


def test_compilations_count_only_with_empty_caches(monkeypatch):
    done = []

    def compile_trainer(task, optimizer):
        done.append(optimizer.label)
        return step_time.Trainer(None, None, 0, 0, float(len(done)))

    monkeypatch.setattr(step_time, "compile_trainer", compile_trainer)
    monkeypatch.setattr(jax, "clear_caches", lambda: done.append("clear"))
    trainers, seconds = step_time.compile_all(None, ("adam", "muon"), rounds=2)
    assert done == ["Adam", *["clear", "Adam", "clear", "Muon"] * 2]
    assert seconds == {"adam": [3, 7], "muon": [5, 9]}
    assert list(trainers) == ["adam", "muon"]


def test_sensitivity_counts_the_rates_that_are_good_enough(tmp_path, capsys):
    result = run("sensitivity", tmp_path, "--optimizers", "whiten")
    losses = [loss for e in result["optimizers"].values() for loss in e["losses"]]
    for entry in result["optimizers"].values():
        assert entry["relative_rates"] == pytest.approx([0.1, 1, 10])
        for key, reference in (
            ("share_of_own_best", min(entry["losses"])),
            ("share_of_overall_best", min(losses)),
            ("share_of_baseline_best", min(result["optimizers"]["adam"]["losses"])),
        ):
            within = [loss <= 1.1 * reference for loss in entry["losses"]]
            assert entry[key] == pytest.approx(np.mean(within), rel=1e-4)
    assert "within 10 % of its own best" in capsys.readouterr().out


def test_sensitivity_starts_from_rates_that_were_tuned(raced, tmp_path):
    record = json.loads((raced.folder / "whiten-factorisation.json").read_text())
    record["optimizers"]["adam"]["tuning"] = {
        "0.123": {"best": 1.0, "steps": None},
        "7.0": {"best": None, "steps": None},
    }
    (tmp_path / "whiten-factorisation.json").write_text(json.dumps(record))
    result = run("sensitivity", tmp_path, "--optimizers", "adam")
    assert result["optimizers"]["adam"]["rates"][1] == 0.12


def test_defaults_race_every_variant_to_the_recorded_goal(raced, tmp_path, capsys):
    shutil.copy(raced.folder / "whiten-factorisation.json", tmp_path)
    before = (tmp_path / "whiten-factorisation.json").read_bytes()
    tuned = json.loads(before)["optimizers"]
    result = run("defaults", tmp_path)
    assert result["learning_rate"] == tuned["whiten"]["learning_rate"]
    assert result["goal"] == min(e["best"] for e in tuned["adam"]["tuning"].values())
    labels = [row["label"] for row in result["variants"]]
    assert labels == ["the defaults", "ridge 0.1"]
    first, second = (row["best"] for row in result["variants"])
    rate = str(result["learning_rate"])
    assert first == pytest.approx(tuned["whiten"]["tuning"][rate]["best"], rel=1e-5)
    assert first != second
    printed = capsys.readouterr().out
    assert all(f"| {label} " in printed for label in labels)
    assert (tmp_path / "whiten-factorisation.json").read_bytes() == before


def test_defaults_tune_where_nothing_was_recorded(tmp_path, raced):
    result = run("defaults", tmp_path)
    shutil.copy(raced.folder / "whiten-factorisation.json", tmp_path)
    recorded = run("defaults", tmp_path)
    for key in ("goal", "learning_rate", "variants"):
        assert result[key] == recorded[key]


def test_memory_is_in_multiples_of_adam(tmp_path, capsys):
    result = run("memory", tmp_path, "--optimizers", "whiten")
    adam, whiten = result["optimizers"].values()
    # Two moments of two 32 x 32 kernels; whitening adds at least its two averages.
    assert adam["state_bytes"] >= 4 * 4 * 32 * 32
    assert whiten["state_bytes"] >= adam["state_bytes"] + 2 * 4 * 32 * 32
    times = whiten["state_bytes"] / adam["state_bytes"]
    assert f" {times:.2f}x |" in capsys.readouterr().out


def test_compile_time_is_in_multiples_of_adam(tmp_path, capsys):
    chosen = ("--optimizers", "whiten")
    result = run("compile_time", tmp_path, *chosen, task="transformer12")
    adam, whiten = result["optimizers"].values()
    # Whitening takes more of a program than Adam alone, which is part of it.
    assert whiten["instructions"] > adam["instructions"] > 0
    for part in ("lower_seconds", "compile_seconds"):
        assert len(adam[part]) == len(whiten[part]) == 1
        assert min(adam[part] + whiten[part]) > 0
    times = whiten["compile_seconds"][0] / adam["compile_seconds"][0]
    assert f" {times:.2f}x |" in capsys.readouterr().out


def test_deep_models_have_the_layers_that_their_titles_say():
    for name, build in DEEP.items():
        deep = build(False)
        taps = linen.taps(deep.model, deep.batch["x"], train=True)
        assert f"{len(taps.layers)} kernels" in deep.title, name


def test_ills_reports_every_trainer_it_is_asked_for(tmp_path, capsys):
    chosen = ("--optimizers", "ills", "sklearn", "--seeds", "2")
    result = run("ills", tmp_path, *chosen, task="diabetes")
    cell = result["data"]["clean"]
    assert cell["samples"] == 308  # 70 % of 442, rounded twice
    trainers = cell["trainers"]
    assert list(trainers) == ["adam", "ills", "sklearn"]
    assert trainers["sklearn"]["iterations"] == [None, None]
    assert all(1 <= count <= 3 for count in trainers["adam"]["iterations"])
    for entry in trainers.values():
        assert len(entry["train"]) == result["seeds"] == 2
        assert all(0 < error < 3 for error in entry["train"] + entry["test"])
    # Regressions against three steps of gradient descent.
    assert max(trainers["ills"]["train"]) < min(trainers["adam"]["train"])
    printed = capsys.readouterr().out
    assert all(f" {entry['label']} |" in printed for entry in trainers.values())


def test_ills_growth_job(tmp_path, capsys):
    result = run("ills_growth", tmp_path, "--optimizers", "ills", task="samples")
    (point,) = result["points"]
    assert (point["size"], point["rows"]) == ("1,000,000", 100)
    adam, least = point["trainers"].values()
    assert (adam["at_most"], least["at_most"]) == (3, 3)
    assert 0 < least["train"][0] < adam["train"][0]
    assert "| 1,000,000 |    ILLS |" in capsys.readouterr().out


def test_ills_recovery_job(tmp_path, capsys):
    result = run("ills_recovery", tmp_path, task="noise_free")
    (row,) = result["rows"]
    assert row["label"] == "10 units, 0 restarts"
    assert len(row["values"]) == result["seeds"] == 1
    assert 0 < row["values"][0] < 1
    assert "| 10 units, 0 restarts |" in capsys.readouterr().out


def test_ills_regressor_job(tmp_path, capsys):
    result = run("ills_regressor", tmp_path, task="piston")
    assert list(result["data"]) == ["clean", "noise"]
    for cell in result["data"].values():
        errors = [each["test_early_stopping"] for each in cell["trainers"].values()]
        assert len(errors) == 4
        # Three iterations of ILLS are ahead of three of anything else.
        assert 0 < errors[0][0] < min(other for (other,) in errors[1:])
    assert "| piston, noise |" in capsys.readouterr().out


def test_ills_robust_job(tmp_path, capsys):
    result = run("ills_robust", tmp_path, task="missing")
    assert result["levels"] == [0.2]
    assert len(result["test"]) == 4
    errors = {label: each for label, ((each,),) in result["test"].items()}
    assert errors["ILLS, mask"] < errors["Adam, mask"] < 2
    # Fewer rows give other weights.
    assert errors["ILLS, complete rows"] != errors["ILLS, mask"]
    assert "| ILLS, complete rows |" in capsys.readouterr().out


def test_ills_planted_job(tmp_path, capsys):
    result = run("ills_planted", tmp_path, task="dependent_inputs")
    (row,) = result["rows"]
    assert (row["found"], row["alarm"]) == ([True], [False])
    assert row["control"][0] < result["limit"] < row["planted"][0]
    assert "1 of 1 |             0 of 1" in capsys.readouterr().out


def test_ills_memory_job(tmp_path):
    result = run("ills_memory", tmp_path, task="million_rows")
    assert result["peak_bytes"] >= result["bytes_before"] > 2**26
    assert result["data_bytes"] == 4 * 21 * 2 * result["chunk_size"]
    first, second = result["objectives"]
    assert math.isfinite(first)
    assert second < first
    assert len(result["seconds"]) == 2


def test_ills_search_job(tmp_path, capsys):
    result = run("ills_search", tmp_path, task="diabetes")
    assert result["fits"] == 7
    padded, plain = result["rows"].values()
    assert (padded["programs"], plain["programs"]) == ([1], [3])
    assert min(padded["first"] + padded["again"] + plain["first"]) > 0
    assert "| as they are " in capsys.readouterr().out


def test_ills_uci_job(tmp_path, capsys):
    result = run("ills_uci", tmp_path, "--seeds", "2", task="diabetes")
    assert (result["samples"], result["features"], result["units"]) == (442, 10, 50)
    assert list(result["methods"]) == ["ills", "adam", "mlp"]
    for entry in result["methods"].values():
        assert len(entry["rmse"]) == len(entry["seconds"]) == result["seeds"] == 2
        # The mean of the targets is 77 off; MLPRegressor hardly leaves its start.
        assert all(40 < error < 100 for error in entry["rmse"])
        assert min(entry["seconds"]) > 0
    assert "| diabetes |" in capsys.readouterr().out


def test_transfer_trains_every_version_at_the_same_rates(tmp_path, capsys):
    result = run("transfer", tmp_path, "--optimizers", "adam", task="inputs")
    assert result["rates"] == [0.0001, 0.01, 1]
    (adam,) = result["optimizers"].values()
    assert len(adam["losses_by_seed"]) == 4
    for losses in adam["losses_by_seed"].values():
        assert [len(seeds) for seeds in losses] == [result["seeds"]] * 3
    # A bias takes an offset in, a unit changes all.
    first, *others = adam["losses_by_seed"].values()
    assert all(other != first for other in others)
    assert "| Adam " in capsys.readouterr().out


@pytest.mark.parametrize("task", ["batches", "depths", "norms"])
def test_transfer_keeps_what_the_test_set_says(task, tmp_path, capsys):
    result = run("transfer", tmp_path, "--optimizers", "adam", "soap", task=task)
    assert list(result["optimizers"]) == ["adam"]  # SOAP runs on the other tasks
    (adam,) = result["optimizers"].values()
    assert adam["rates"] == result["rates"] == [0.00032, 0.01, 0.32]
    labels = list(STUDIES[task].versions)[:2]
    for what in transfer.BY_SEED:
        assert list(adam[what]) == labels
        for by_rate in adam[what].values():
            assert [len(seeds) for seeds in by_rate] == [result["seeds"]] * 3
    losses, tests = (adam[what][labels[0]] for what in transfer.BY_SEED[:2])
    assert losses != tests
    assert "| test accuracy there |" in capsys.readouterr().out


def test_transfer_tells_what_is_lost_by_keeping_the_rate():
    losses = {"here": [[4.0, 4.0], [2.0, 4.0]], "there": [[1.0, 1.0], [None, 7.0]]}
    adam = {"label": "Adam", "losses_by_seed": losses}
    text = transfer.describe({"rates": [0.1, 0.2], "optimizers": {"adam": adam}})
    assert last_row(text) == ["Adam", "3 at 0.2", "1 at 0.1; - at 0.2"]
    # At each version's own best rate; a run that ran away has no accuracy.
    accuracies = {"here": [[0.1, 0.1], [0.5, 0.7]], "there": [[0.9, 0.7], [None, 1.0]]}
    adam["accuracy_by_seed"] = accuracies
    text = transfer.describe({"rates": [0.1, 0.2], "optimizers": {"adam": adam}})
    assert last_row(text) == ["Adam", "60.0%", "80.0%"]
    accuracies["there"][0][1] = None
    text = transfer.describe({"rates": [0.1, 0.2], "optimizers": {"adam": adam}})
    assert last_row(text) == ["Adam", "60.0%", "-"]


def test_transfer_gives_an_optimizer_rates_of_its_own():
    assert transfer.shift("whiten") == transfer.shift("polar") == 1
    assert transfer.shift("lnb") == 10
    lnb = {"label": "LNB", "losses_by_seed": {"here": [[4.0], [2.0]]}, "rates": [1, 2]}
    text = transfer.describe({"rates": [0.1, 0.2], "optimizers": {"lnb": lnb}})
    assert last_row(text) == ["LNB", "2 at 2"]


def last_row(text):
    return [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
