"""The benchmarks: every job runs, and what it reports is what it measured."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from benchmarks import analysis, options, plots, races, report, training
from benchmarks.__main__ import OPTIMIZERS as OPTIMIZERS_OF
from benchmarks.__main__ import TASKS as TASKS_OF
from benchmarks.__main__ import main
from benchmarks.optimizers import OPTIMIZERS, Optimizer, _kernel_axes, grid
from benchmarks.tasks import TASKS, _digits, text

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's own Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def read(folder, name):
    """The JSON of a job, after its figure was checked to be one."""
    assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    return json.loads((folder / f"{name}.json").read_text())


def run(job, folder, *arguments):
    main([job, "--quick", "--out", str(folder), *arguments])


# Jobs, end to end -----------------------------------------------------------


def test_main_job_reports_every_available_optimizer(tmp_path, capsys):
    main(["--quick", "--out", str(tmp_path), "--tasks", "digits_classifier"])
    printed = capsys.readouterr().out
    expected = list(OPTIMIZERS_OF["main"])
    result = read(tmp_path, "main-digits_classifier")
    assert list(result["optimizers"]) == expected
    assert list(result["summary"]) == expected
    assert result["title"] in printed
    for name in expected:
        assert f"| {OPTIMIZERS[name].label} " in printed
        assert f"  {OPTIMIZERS[name].label}: " in printed
    assert "learning rate: best loss (steps to the target)" in printed
    for column in ("train loss", "test loss", "accuracy", "step time / Adam"):
        assert column in printed


def test_race_json_has_every_curve_and_the_facts(tmp_path):
    arguments = ("--tasks", "digits_autoencoder", "--optimizers", "adam")
    run("whiten", tmp_path, *arguments, "--seeds", "2")
    result = read(tmp_path, "whiten-digits_autoencoder")
    assert result["job"] == "whiten"
    assert result["facts"]["versions"]["jax"] == jax.__version__
    assert result["facts"]["cores"] >= 1
    adam = result["optimizers"]["adam"]
    assert len(adam["curves"]) == result["seeds"] == 2
    for curves in adam["curves"]:
        assert curves["step"] == [0, 2, 4]
        assert curves["seconds"][0] == 0
        assert np.all(np.diff(curves["seconds"]) > 0)
        assert set(curves) == {"step", "seconds", "train_loss", "test_loss"}
        assert all(len(values) == 3 for values in curves.values())
    tuning = {float(rate): tuned for rate, tuned in adam["tuning"].items()}
    best = tuning[adam["learning_rate"]]
    assert best["best"] == min(tuned["best"] for tuned in tuning.values())
    assert best["best"] == min(adam["curves"][0]["train_loss"])
    assert best["steps"] in (0, 2, 4)
    assert adam["state_bytes"] > 0
    assert adam["temporary_bytes"] > 0
    assert result["summary"]["adam"]["seconds_ratio"] == 1.0
    assert result["summary"]["adam"]["step_time"] == 1.0


@pytest.mark.parametrize("task", ["cnn_batch_norm", "gru"])
def test_state_and_integer_inputs_pass_through(tmp_path, task):
    run("whiten", tmp_path, "--tasks", task, "--optimizers", "adam")
    result = read(tmp_path, f"whiten-{task}")
    assert list(result["optimizers"]) == ["adam"]
    for entry in result["optimizers"].values():
        losses = entry["curves"][0]["train_loss"]
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[0] != losses[-1]


def test_step_time_job(tmp_path, capsys):
    run("step_time", tmp_path, "--tasks", "factorisation", "--optimizers", "muon")
    result = read(tmp_path, "step_time-factorisation")
    adam, muon = result["optimizers"]["adam"], result["optimizers"]["muon"]
    assert adam["ratio_quartiles"] == [1, 1, 1]
    assert len(muon["block_seconds"]) == result["rounds"] == 1
    expected = muon["block_seconds"][0] / adam["block_seconds"][0]
    assert muon["ratio_quartiles"] == pytest.approx([expected] * 3)
    assert "temporary MiB" in capsys.readouterr().out


def test_sensitivity_job(tmp_path, capsys):
    run("sensitivity", tmp_path, "--tasks", "factorisation", "--optimizers", "muon")
    result = read(tmp_path, "sensitivity-factorisation")
    losses = [loss for e in result["optimizers"].values() for loss in e["losses"]]
    for entry in result["optimizers"].values():
        assert entry["relative_rates"] == pytest.approx([0.1, 1, 10])
        for key, reference in (
            ("share_of_own_best", min(entry["losses"])),
            ("share_of_overall_best", min(losses)),
            ("share_of_baseline_best", min(result["optimizers"]["adam"]["losses"])),
        ):
            within = [loss <= 1.1 * reference for loss in entry["losses"]]
            assert entry[key] == pytest.approx(np.mean(within))
    assert "within 10 % of its own best" in capsys.readouterr().out


def test_defaults_job_races_every_variant_to_the_same_goal(tmp_path, capsys):
    run("defaults", tmp_path, "--tasks", "factorisation")
    result = json.loads((tmp_path / "defaults-factorisation.json").read_text())
    record = json.loads((tmp_path / "whiten-factorisation.json").read_text())
    tuned = record["optimizers"]
    assert result["learning_rate"] == tuned["whiten"]["learning_rate"]
    assert result["goal"] == min(e["best"] for e in tuned["adam"]["tuning"].values())
    labels = [row["label"] for row in result["variants"]]
    assert labels == ["the defaults", "ridge 0.1", "ridge 0.01"]
    first, second, _ = (row["best"] for row in result["variants"])
    assert first == pytest.approx(tuned["whiten"]["lowest"])
    assert first != second
    printed = capsys.readouterr().out
    assert all(f"| {label} " in printed for label in labels)


def test_memory_job_reports_multiples_of_adam(tmp_path, capsys):
    run("memory", tmp_path, "--tasks", "factorisation", "--optimizers", "whiten")
    result = json.loads((tmp_path / "memory.json").read_text())
    adam, whiten = result["tasks"]["factorisation"]["optimizers"].values()
    # Two moments of two 32 x 32 kernels; whitening adds at least its two averages.
    assert adam["state_bytes"] >= 4 * 4 * 32 * 32
    assert whiten["state_bytes"] >= adam["state_bytes"] + 2 * 4 * 32 * 32
    times = whiten["state_bytes"] / adam["state_bytes"]
    assert f" {times:.2f}x |" in capsys.readouterr().out


def test_sensitivity_starts_from_rates_that_were_tuned(tmp_path):
    arguments = ("--tasks", "factorisation", "--optimizers", "adam")
    run("whiten", tmp_path, *arguments)
    path = tmp_path / "whiten-factorisation.json"
    record = json.loads(path.read_text())
    record["optimizers"]["adam"]["tuning"] = {
        "0.123": {"best": 1.0, "steps": None},
        "7.0": {"best": None, "steps": None},
    }
    path.write_text(json.dumps(record))
    run("sensitivity", tmp_path, *arguments)
    result = read(tmp_path, "sensitivity-factorisation")
    assert result["optimizers"]["adam"]["rates"][1] == 0.12


def test_help_lists_the_jobs(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(job in printed for job in (*TASKS_OF, "ills"))


def test_unknown_job():
    with pytest.raises(SystemExit, match=r"Unknown job 'wither'\. Choose one of main"):
        main(["wither"])


def test_ills_is_told_its_arguments_or_missed_clearly(monkeypatch):
    import sys
    from types import ModuleType

    import benchmarks

    seen = []
    module = ModuleType("benchmarks.ills")
    module.main = seen.append  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "benchmarks.ills", module)
    monkeypatch.setattr(benchmarks, "ills", module, raising=False)
    main(["ills", "--seeds", "3"])
    assert seen == [["--seeds", "3"]]
    monkeypatch.delattr(benchmarks, "ills")
    monkeypatch.setitem(sys.modules, "benchmarks.ills", None)
    with pytest.raises(SystemExit, match="no ILLS benchmark"):
        main(["ills"])


# Options --------------------------------------------------------------------


def test_the_baseline_runs_first_and_once():
    parsed = options.parse("main", ["--optimizers", "muon", "adam"], ["gru"], [])
    assert parsed.optimizers == ("adam", "muon")
    assert parsed.tasks == ("gru",)
    assert parsed.seeds == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "must be >= 1, got 0"),
        (["--tasks", "nothing"], "invalid choice: 'nothing'"),
        (["--optimizers", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        options.parse("main", arguments, [], [])
    assert message in capsys.readouterr().err


def test_the_rate_that_races_is_the_first_at_the_target():
    losses = {0.1: 1.0, 0.2: 0.5, 0.3: 0.7}
    assert analysis.fastest(losses, {0.1: 30.0, 0.2: 50.0, 0.3: None}) == 0.1
    assert analysis.fastest(losses, {0.1: 50.0, 0.2: 50.0, 0.3: None}) == 0.2
    assert analysis.fastest(losses, dict.fromkeys(losses)) == 0.2


def test_the_jobs_name_tasks_and_optimizers_that_exist():
    for names in TASKS_OF.values():
        assert set(names) <= set(TASKS)
    for names in OPTIMIZERS_OF.values():
        assert names[0] == analysis.BASELINE
        assert set(names) <= set(OPTIMIZERS)


# Analysis -------------------------------------------------------------------


def curves(losses, seconds, every=10):
    steps = [float(every * i) for i in range(len(losses))]
    return {
        "step": steps,
        "seconds": list(seconds),
        "train_loss": list(losses),
        "test_loss": [2 * loss for loss in losses],
    }


def result_of(*others):
    """A result with a synthetic baseline, whose best is 1 after 30 steps, 3 s."""
    runs = [curves([8.0, 4.0, 2.0, 1.0, 1.5], [0, 1, 2, 3, 4]), *others]
    names = list(OPTIMIZERS)[: len(runs)]
    return {
        "target": "train_loss",
        "optimizers": {
            name: {
                "label": OPTIMIZERS[name].label,
                "learning_rate": 0.1,
                "lowest": 0.25,
                "edge": False,
                "temporary_bytes": 100,
                "curves": [run],
            }
            for name, run in zip(names, runs, strict=True)
        },
    }


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
    cells = [
        cell.strip() for cell in report.race_table(result).split("\n")[3].split("|")
    ]
    assert cells[1:-1] == [
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


def test_best_ignores_what_is_not_finite():
    assert analysis.best({"x": [math.nan, 3.0, math.inf, 2.0]}, "x") == 2.0
    assert analysis.best({"x": [math.nan]}, "x") == math.inf


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
    monkeypatch.setattr(races, "race", falling)

    class Bar:
        total = 0

        def update(self, steps):
            raise AssertionError(steps)

    bar, task = Bar(), races.load("factorisation", quick=True)
    unused = training.Trainer(None, None, 0, 0)  # pyright: ignore[reportArgumentType]
    tuning = races.tune(task, OPTIMIZERS["adam"], unused, lambda carry: {}, 3, bar)
    assert list(tuning) == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert races.losses_of(tuning, task) == pytest.approx(
        {0.001: 1000, 0.01: 100, 0.1: 10, 1.0: 1, 10.0: 0.1}
    )
    assert bar.total == 2 * task.steps


def test_share_within():
    assert analysis.share_within([1.0, 1.1, 1.2, math.nan], 1.0) == 0.5
    assert analysis.share_within([math.inf], 1.0) == 0.0


# Report ---------------------------------------------------------------------


def test_numbers_and_dashes():
    assert report.number(0.123456) == "0.1235"
    assert report.number(0.5, "{:.2f}x") == "0.50x"
    assert [report.number(x) for x in (None, math.nan, math.inf)] == ["-", "-", "-"]
    assert report.ratio(3, 2) == "1.50x"
    assert report.ratio(3, 0) == "-"
    assert report.spread(1.0, 0.5, 2.0) == "1.00 [0.50, 2.00]"


def test_table_is_aligned_markdown():
    lines = report.table(["a", "long"], [["word", "1"], ["b", "22"]]).split("\n")
    assert lines == [
        "| a    | long |",
        "| ---- | ---: |",
        "| word |    1 |",
        "| b    |   22 |",
    ]


def test_json_is_strict(tmp_path):
    report.write_json(
        tmp_path / "deep" / "x.json", {"losses": [1.0, math.nan, math.inf]}
    )
    content = (tmp_path / "deep" / "x.json").read_text()
    assert json.loads(content)["losses"] == [1.0, None, None]
    assert set(json.loads(content)["facts"]["versions"]) == {"python", *report.PACKAGES}


def test_a_runaway_curve_does_not_flatten_the_figure():
    figure = Figure()
    axis = figure.subplots()
    axis.semilogy()
    losses = [8.0, 1e30, math.nan, math.inf, 0.0, 0.5]
    plots._limit(axis, losses, start=8.0)
    assert axis.get_ylim() == pytest.approx((0.5 / 1.3, 8 * 1.3))


def test_every_optimizer_has_its_own_colour():
    assert len({plots.colour(name) for name in OPTIMIZERS}) == len(OPTIMIZERS)


# Training -------------------------------------------------------------------


def test_batches_are_seeded_epochs():
    task = races.load("digits_autoencoder", quick=False)
    order = training.batches(task, seed=3)
    assert order.shape == (task.steps, task.batch_size)
    np.testing.assert_array_equal(order, training.batches(task, seed=3))
    assert not np.array_equal(order, training.batches(task, seed=4))
    samples = len(task.train["x"])
    epoch = np.sort(np.asarray(order).ravel()[:samples])
    np.testing.assert_array_equal(epoch, np.arange(samples))


def test_schedule_warms_up_and_ends_at_zero():
    task = races.load("digits_autoencoder", quick=False)
    schedule = training.schedule_for(task, jnp.float32(0.5))
    rates = np.array([schedule(count) for count in range(task.steps)])
    assert rates.argmax() == task.steps // 20 - 1
    assert rates.max() == pytest.approx(0.5)
    assert 0 < rates[0] < 0.05
    assert abs(rates[-1]) < 1e-6


@pytest.fixture(scope="module")
def descent():
    """A tiny task under gradient descent, compiled, with its evaluation."""
    with jax.numpy_dtype_promotion("standard"):
        task = races.load("factorisation", quick=True)
        sgd = Optimizer("SGD", lambda schedule, taps: optax.sgd(schedule), 0.01)
        yield (
            task,
            training.compile_trainer(task, sgd),
            training.compile_evaluate(task),
        )


def test_step_is_the_optimizers_own(descent):
    task, trainer, _ = descent
    carry = trainer.init(0)
    order = training.batches(task, seed=0)
    batch = {key: value[order[0]] for key, value in task.train.items()}
    grads = jax.grad(lambda p: task.loss(p, carry.state, batch)[0])(carry.params)
    rate = training.schedule_for(task, jnp.float32(0.01))(0)
    expected = jax.tree.map(lambda p, g: p - rate * g, carry.params, grads)
    entry = training.Entry(trainer, 0.01)
    carry, seconds = training.run_block(entry, carry, task, order, steps=1)
    for got, want in zip(*map(jax.tree.leaves, (carry.params, expected)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert carry.steps == 1
    assert seconds > 0


def test_interleaving_changes_no_curve(descent):
    """Racers see the same batches from the same start, and do not touch each other."""
    task, trainer, evaluate = descent
    entry, other = training.Entry(trainer, 0.01), training.Entry(trainer, 0.001)
    alone = training.race(task, {"a": entry}, evaluate)["a"]
    taken = []
    together = training.race(
        task, {"a": entry, "b": other, "c": entry}, evaluate, advance=taken.append
    )
    for name in ("a", "c"):
        assert together[name]["train_loss"] == alone["train_loss"]
    assert together["b"]["train_loss"] != alone["train_loss"]
    assert together["b"]["train_loss"][0] == alone["train_loss"][0]
    assert alone["train_loss"][-1] < alone["train_loss"][0]
    assert sum(taken) == 3 * task.steps


# Tasks and optimizers -------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_task_is_consistent(name):
    task = TASKS[name]()
    assert task.name == name
    assert task.steps % task.every == 0
    assert task.every % 10 == 0
    assert task.batch_size <= len(task.train["x"])
    batch = task.batch_like()
    assert len(batch["x"]) == task.batch_size

    def losses():
        variables = task.model.init(jax.random.key(0), batch["x"], train=True)
        params = variables.pop("params")
        loss, state = task.loss(params, variables, batch)
        assert jax.tree.structure(state) == jax.tree.structure(dict(variables))
        return loss, task.metrics(params, state, task.test)

    loss, metrics = jax.eval_shape(losses)
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert all(value.shape == () for value in metrics.values())
    assert task.target in {f"{split}_loss" for split in ("train", "test")}


def test_shifted_digits_look_like_mnist():
    (train, _), (test, _) = splits = _digits.digits()
    assert len(train) + len(test) == 1797
    images, labels = _digits.shifted(splits[1], size=28, copies=2, seed=0, shift=4)
    assert images.shape == (2 * len(test), 28, 28)
    assert images.min() == 0
    assert 0.9 < images.max() <= 1
    assert 0.1 < np.mean(images > 0) < 0.6
    np.testing.assert_array_equal(labels[: len(test)], splits[1][1])
    assert not np.array_equal(images[: len(test)], images[len(test) :])
    again, _ = _digits.shifted(splits[1], size=28, copies=2, seed=0, shift=4)
    np.testing.assert_array_equal(images, again)


def test_shifting_keeps_the_digit():
    """Without enlarging, a shift moves every pixel and loses none."""
    split = _digits.digits()[1]
    images, _ = _digits.shifted(split, size=10, copies=1, seed=0, shift=1)
    totals = images.sum(axis=(1, 2))
    np.testing.assert_allclose(totals, split[0].sum(axis=(1, 2)), rtol=1e-5)


def test_corpus_is_the_library_in_ascii():
    codes = text.corpus()
    assert len(codes) > 500_000
    assert codes.min() == 0
    assert codes.max() < text.VOCABULARY
    source = "".join("\n" if code == 0 else chr(code + 31) for code in codes[:20_000])
    assert "import argparse" in source or "ArgumentParser" in source
    np.testing.assert_array_equal(codes, text.corpus())


def test_windows_predict_the_next_character():
    data = text.windows(np.arange(11, dtype=np.int32), length=5)
    np.testing.assert_array_equal(data["x"], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(data["y"], [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def test_a_library_without_source_is_an_error(monkeypatch):
    monkeypatch.setattr(text, "MODULES", ("ast", "no_such_module"))
    with pytest.raises(FileNotFoundError, match=r"\['no_such_module'\] is not in"):
        text.corpus()


@pytest.mark.parametrize("centre", [3e-3, 0.3])
def test_grid_spans_two_decades(centre):
    rates = grid(centre, 5)
    assert rates[-1] / rates[0] == pytest.approx(100)
    assert rates[2] == centre
    ratios = np.divide(rates[1:], rates[:-1])
    np.testing.assert_allclose(ratios, math.sqrt(10), rtol=0.05)


def test_muon_orthogonalises_kernels_alone():
    params = {
        "Conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
        "Embed": {"embedding": jnp.zeros((5, 4))},
    }
    axes = _kernel_axes(params)
    assert axes["Conv"]["kernel"] == ((0, 1, 2), 3)
    assert axes["Conv"]["bias"] is None
    assert axes["Embed"]["embedding"] is None
    transformation = OPTIMIZERS["muon"].build(optax.constant_schedule(1.0), None)
    grads = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(0), p.shape), params
    )
    updates, _ = transformation.update(grads, transformation.init(params), params)
    singular = jnp.linalg.svd(updates["Conv"]["kernel"].reshape(18, 4))[1]
    assert singular.max() / singular.min() < 2
