"""The command line, and what the driver does with any job."""

import json
import os
from dataclasses import replace

import pytest

from benchmarks import driver, report
from benchmarks.__main__ import JOBS as COMMANDS
from benchmarks.job import Job
from benchmarks.jobs import JOBS
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.regression.trainers import TRAINERS
from benchmarks.tasks import TASKS

pytestmark = pytest.mark.slow


def parse(*argv):
    args = driver.parser().parse_args(driver.with_default(argv))
    return args.job, driver.options(JOBS[args.job], args)


TOY = Job(
    name="toy",
    title="A toy",
    reading="Read it.",
    tasks=("one", "two"),
    run=lambda task, options: {"title": task.upper(), "value": 1 / 3},
    table=lambda result: f"value {result['value']}",
    across=lambda results: f"{len(results)} of them",
    figure=lambda result, path: path.write_text("drawn"),
)


@pytest.fixture
def options():
    return parse("main", "--quick")[1]


def test_a_job_prints_writes_and_draws_every_task(tmp_path, capsys, options):
    driver.run(TOY, replace(options, tasks=("one", "two"), out=str(tmp_path)))
    printed = capsys.readouterr().out
    assert "ONE\n\nvalue 0.333333\n" in printed
    assert "2 of them" in printed
    for task in TOY.tasks:
        result = json.loads((tmp_path / f"toy-{task}.json").read_text())
        assert (result["job"], result["task"]) == ("toy", task)
        assert result["value"] == 0.333333
        assert set(result["facts"]["versions"]) >= {"python", "jax"}
        assert (tmp_path / f"toy-{task}.png").read_text() == "drawn"
    assert not report.path_for(tmp_path).exists()


def test_one_task_alone_is_not_compared(tmp_path, capsys, options):
    job = replace(TOY, figure=None)
    driver.run(job, replace(options, tasks=("one",), out=str(tmp_path)))
    assert "of them" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["toy-one.json"]


def test_a_report_beside_the_results_is_made_again(tmp_path, options):
    folder = tmp_path / "results"
    report.path_for(folder).write_text("stale")
    driver.run(TOY, replace(options, tasks=("one",), out=str(folder)))
    assert report.path_for(folder).read_text().startswith("# Results")


def test_a_report_survives_a_task_that_fails(tmp_path, options):
    """What was written before is in it."""
    folder = tmp_path / "results"
    report.path_for(folder).write_text("stale")

    def fail(task, options):
        if task == "two":
            raise RuntimeError("out of luck")
        return TOY.run(task, options)

    job = replace(TOY, run=fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        driver.run(job, replace(options, tasks=TOY.tasks, out=str(folder)))
    assert report.path_for(folder).read_text().startswith("# Results")


def test_without_a_job_the_main_one_runs():
    job, chosen = parse()
    assert job == "main"
    assert chosen.tasks == ("digits_classifier", "digits_autoencoder")
    assert chosen.optimizers == ("adam", "muon", "lnb", "whiten", "polar", "soap")
    assert (chosen.seeds, chosen.quick, chosen.out) == (1, False, "benchmarks/results")
    assert parse("--seeds", "3")[1].seeds == 3


def test_a_smoke_run_writes_apart_from_results_and_with_one_seed():
    assert parse("ills")[1].seeds == 5
    smoke = parse("ills", "--quick")[1]
    assert (smoke.seeds, smoke.out) == (1, "benchmarks/results/quick")
    assert parse("ills", "--quick", "--out", "x", "--seeds", "2")[1].out == "x"


def test_the_baseline_runs_first_and_once():
    _, chosen = parse("whiten", "--optimizers", "muon", "adam", "--tasks", "gru")
    assert chosen.optimizers == ("adam", "muon")
    assert chosen.tasks == ("gru",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main", "--seeds", "0"], "must be >= 1, got 0"),
        (["main", "--tasks", "nothing"], "invalid choice: 'nothing'"),
        (["main", "--optimizers", "nothing"], "invalid choice: 'nothing'"),
        (["ills", "--optimizers", "muon"], "invalid choice: 'muon'"),
        (["memory", "--seeds", "2"], "unrecognized arguments: --seeds 2"),
        (["wither"], "invalid choice: 'wither' (choose from "),
        (["ills", "--text", "x"], "unrecognized arguments: --text x"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        driver.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["whiten", "--tasks", "gru", "--optimizers", "lbfgs"], r"`--tasks gru`: .*32"),
        (["step_time", "--tasks", "cnn", "--optimizers", "kfac"], r"no criterion"),
        (
            ["compile_time", "--tasks", "transformer12", "--optimizers", "lbfgs"],
            r"`--optimizers lbfgs` cannot run on .*more of a task than the job has",
        ),
    ],
)
def test_an_optimizer_that_a_task_cannot_serve_is_refused(arguments, message, tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(SystemExit, match=message):
        driver.main([*arguments, "--quick", "--out", str(folder)])
    assert not folder.exists()


def test_an_optimizer_that_a_task_serves_runs(options):
    driver.refuse(replace(options, tasks=("factorisation",), optimizers=("lbfgs",)))
    driver.refuse(replace(options, tasks=("diabetes",), optimizers=("adam", "ills")))


def test_a_job_with_trainers_of_its_own_refuses_none_of_them(monkeypatch):
    ran = []
    monkeypatch.setattr(driver, "run", lambda job, options: ran.append(options))
    driver.main(["ills", "--tasks", "diabetes"])
    assert "lbfgs" in ran[0].optimizers


def test_a_text_is_handed_to_the_jobs_that_read_one():
    _, chosen = parse("whiten", "--tasks", "shakespeare", "--text", "input.txt")
    assert chosen.text == "input.txt"
    assert parse("whiten")[1].text is parse("ills")[1].text is None
    for name in ("main", "whiten", "sensitivity", "memory", "step_time", "defaults"):
        assert JOBS[name].reads_text


def test_help_lists_the_jobs(capsys):
    with pytest.raises(SystemExit, match="0"):
        driver.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f" {command}" in printed for command in COMMANDS)
    assert all(job.title.split(":")[0] in printed for job in JOBS.values())


@pytest.mark.parametrize("name", JOBS)
def test_help_of_a_job_says_how_to_read_it(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        driver.main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(JOBS[name].reading.split()[:4]) in printed


def test_tasks_and_optimizers_name_jobs_that_exist():
    for entry in (*TASKS.values(), *OPTIMIZERS.values()):
        assert set(entry.jobs) <= set(JOBS)
    for job in JOBS.values():
        assert job.tasks
        assert job.optimizers[:1] in ((), ("adam",))
        assert set(job.optimizers) <= {*OPTIMIZERS, *TRAINERS, "sklearn"}


def test_the_environment_is_set_before_it_is_read():
    assert (*JOBS, "report", "cost", "evidence") == COMMANDS
    assert os.environ["OPENBLAS_NUM_THREADS"]
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


def test_a_report_of_nothing_says_how_to_go_on(tmp_path):
    with pytest.raises(SystemExit, match=r"has none\. Name the folder with --results"):
        driver.main(["report", "--results", str(tmp_path)])
    assert not report.path_for(tmp_path).exists()
