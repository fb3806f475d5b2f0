"""RESULTS.md: what `report` makes of the committed JSON, and nothing else."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import comparison, driver, report, results
from benchmarks.jobs import JOBS, defaults, memory, sensitivity
from tests.benchmarks.curves import curves, result_of

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def committed():
    return results.read_all(COMMITTED)


def test_the_recommended_recipe_is_held_against_its_rivals():
    """Muon is at its best, 2, after 20 steps and 6 s; polar is there in 10, in 3 s."""
    muon = curves([8.0, 3.0, 2.0, 2.5, 2.5], [0, 3, 6, 9, 12])
    polar = curves([8.0, 1.9, 1.5, 1.5, 1.5], [0, 3, 4, 5, 6])
    race = result_of(muon, polar, names=("adam", "muon", "polar"))
    race["optimizers"]["adam"]["tuning"] = {"0.1": {"best": 1.0, "steps": 30.0}}
    row = cells(comparison.against_rivals([race]), 2)
    assert row == ["A task", "0.50x / 0.50x", "0.33x"]
    # The other way round the target is never reached.
    swapped = result_of(polar, muon, names=("adam", "muon", "polar"))
    swapped["optimizers"]["adam"]["tuning"] = {"0.1": {"best": 1.0, "steps": 30.0}}
    assert cells(comparison.against_rivals([swapped]), 2)[1] == "not reached"
    # Without the recipe there is no such table.
    lone = result_of(muon, names=("adam", "muon"))
    assert "to the best loss of" not in comparison.tables([lone])


def test_results_are_what_report_makes_of_the_json(committed):
    assert report.path_for(COMMITTED).read_text() == report.render(committed)


def test_committed_results_are_rounded_and_of_jobs_and_tasks_that_exist():
    for path in COMMITTED.glob("*.json"):
        result = results.read(path)
        job = JOBS[result["job"]]
        assert result["task"] in (*job.all_tasks, *job.tasks)
        assert path.name == f"{result['job']}-{result['task']}.json"
        assert result["facts"]["commit"] != "unknown"
        assert path.stat().st_size < 100_000


def test_a_report_changes_with_its_results(committed):
    for job, made in (("whiten", report.render), ("faults", report.guides)):
        changed = copy.deepcopy(committed)
        next(iter(changed[job].values()))["title"] = "Something else"
        assert made(changed) != made(committed)


def test_guides_are_what_report_makes_of_the_json(committed):
    guides = report.guides(committed)
    assert list(guides) == ["faults.md"]
    for name, text in guides.items():
        assert (report.docs_for(COMMITTED) / name).read_text() == text
        assert JOBS["faults"].title not in report.render(committed)


def test_guides_are_written_beside_the_benchmarks_alone(tmp_path, committed):
    folder = tmp_path / "benchmarks" / "results"
    for task, result in committed["faults"].items():
        results.write(folder / f"faults-{task}.json", result)
    driver.main(["report", "--results", str(folder)])
    assert not report.docs_for(folder).exists()
    report.docs_for(folder).mkdir()
    driver.main(["report", "--results", str(folder)])
    text = (report.docs_for(folder) / "faults.md").read_text()
    assert text == report.guide(JOBS["faults"], committed["faults"])
    assert text.startswith("# Faults, and what survives them\n\nA step whose")


@pytest.fixture
def race():
    """Muon reaches Adam's best in a third of the steps and half of the time."""
    fast = curves([8.0, 0.9, 0.8, 0.7, 0.6], [0, 1.5, 3, 4.5, 6])
    never = curves([8.0, 7.0, 6.0, 5.0, 4.0], [0, 1, 2, 3, 4])
    return result_of(fast, never)


def cells(table, row):
    return [cell.strip() for cell in table.split("\n")[row].split("|")][1:-1]


def test_tasks_side_by_side(race):
    lone = result_of(title="Alone")
    table = comparison.to_target([race, lone])
    assert cells(table, 0) == ["steps / time to Adam's best loss", "Muon", "LNB"]
    assert cells(table, 2) == ["A task", "0.33x / 0.50x", "not reached"]
    assert cells(table, 3) == ["Alone", "-", "-"]


def test_a_race_on_validation_has_a_row_for_training(race):
    table = comparison.to_target([{**race, "target": "test_loss"}])
    assert cells(table, 2)[0] == "A task, validation loss"
    assert cells(table, 3)[0] == "A task, training loss, same runs"
    assert len(table.split("\n")) == 4


def test_seeds_have_a_range_side_by_side(race):
    slow = curves([8.0, 4.0, 0.9, 0.9, 0.9], [0, 1, 2, 3, 4])
    late = curves([8.0, 4.0, 2.0, 1.5, 1.1], [0, 1, 2, 3, 4])
    race["optimizers"]["adam"]["curves"] *= 2
    race["optimizers"]["lnb"]["curves"] *= 2
    entry = race["optimizers"]["muon"]
    both = {**entry, "curves": [entry["curves"][0], slow]}
    race["optimizers"]["muon"] = both
    table = comparison.to_target([race])
    expected = "0.50x (0.33 to 0.67x) / 0.58x (0.50 to 0.67x)"
    assert cells(table, 2)[1] == expected
    assert "1.2 (1.2 to 1.8)" not in comparison.losses([race])
    assert "0.25 / 1.5 (1.2 to 1.8)" in comparison.losses([race])
    race["optimizers"]["muon"] = {**entry, "curves": [entry["curves"][0], late]}
    assert cells(comparison.to_target([race]), 2)[1] == "reached by 1 of 2 seeds"
    # Medians alone in the short table, and none where one seed never arrives.
    assert cells(comparison.short([race], ("adam", "muon")), 2)[1] == "not reached"
    race["optimizers"]["muon"] = both
    assert cells(comparison.short([race], ("adam", "muon")), 2)[1] == "0.50x / 0.58x"


def test_the_table_of_the_readme(race):
    entries = dict(race["optimizers"])
    entries["polar"] = entries.pop("lnb")  # the table has no LNB
    race = {**race, "optimizers": entries}
    found = {"whiten": dict.fromkeys(report.README_TASKS, race)}
    table = report.readme_table(found)
    assert len(table.split("\n")) == 2 + len(report.README_TASKS)
    assert cells(table, 2) == [
        *("A task", "0.33x / 0.50x", "not reached"),
        *("0.25", "0.25", "0.25"),
    ]
    del found["whiten"]["gru"]
    with pytest.raises(ValueError, match=r"no JSON of gru\. Run .* --tasks gru"):
        report.readme_table(found)


def test_report_writes_or_prints(tmp_path, race, capsys):
    folder = tmp_path / "results"
    for task in report.README_TASKS:
        results.write(folder / f"whiten-{task}.json", {**race, "task": task})
    driver.main(["report", "--results", str(folder)])
    assert (tmp_path / "RESULTS.md").read_text() == report.render(
        results.read_all(folder)
    )
    capsys.readouterr()
    driver.main(["report", "--results", str(folder), "--readme"])
    printed = capsys.readouterr().out
    assert printed == report.readme_table(results.read_all(folder)) + "\n"


def test_a_section_names_its_command_its_facts_and_how_to_read_it(race):
    job = JOBS["whiten"]
    text = report.section(job, {"gru": {**race, "seeds": 3}})
    assert text.startswith(f"## {job.title}\n\n`python -m benchmarks whiten --seeds 3`")
    assert (
        "Measured on a processor, 2 cores, cpu, at commit unknown, 3 seeds, with "
        "python 3.11.7, jax 0.10.2." in text
    )
    assert job.reading in text
    assert comparison.tables([{**race, "seeds": 3}]) in text
    assert "### A task" in text


def test_results_of_different_origin_are_told_apart(race):
    later = {**race, "task": "cnn", "facts": {**race["facts"], "commit": "abcdef0"}}
    text = report.section(JOBS["whiten"], {"gru": race, "cnn": later})
    assert "`python -m benchmarks whiten --tasks cnn`\n\nMeasured on" in text
    assert "at commit abcdef0" in text
    assert "`python -m benchmarks whiten --tasks gru`\n\nMeasured on" in text


def test_a_section_without_results_names_the_command():
    for name, job in JOBS.items():
        text = report.section(job, {})
        assert text == (
            f"## {job.title}\n\nNo results yet: `python -m benchmarks {name}`.\n"
        )


def test_a_command_names_the_folder_of_data_that_come_from_one():
    job = JOBS["ills_uci"]
    command = "python -m benchmarks ills_uci"
    assert report.command(job, {"task": "diabetes", "seeds": 20}) == command
    found = report.command(job, {"task": "yacht", "seeds": 5})
    assert found == f"{command} --seeds 5 --folder FOLDER"


def test_single_tasks_are_left_out_where_one_row_says_all(race):
    job = replace(JOBS["whiten"], single=False)
    assert "###" not in report.section(job, {"gru": race})


def test_sensitivity_memory_and_defaults_side_by_side():
    share = {"share_of_baseline_best": 0.25, "share_of_own_best": 0.5}
    swept = {"adam": {"label": "Adam", **share}, "lnb": {"label": "LNB", **share}}
    result = {"title": "A task", "points": 9, "optimizers": swept}
    other = {**result, "optimizers": {"adam": swept["adam"]}}
    table = sensitivity.across([result, other])
    assert cells(table, 2) == ["A task", "25%", "25%", "50%", "50%"]
    assert cells(table, 3) == ["A task", "25%", "-", "50%", "-"]

    sizes = {"temporary_bytes": 2**20, "state_bytes": 2**21}
    double = {"temporary_bytes": 2**21, "state_bytes": 2**21}
    result["optimizers"] = {
        "adam": {"label": "Adam", **sizes},
        "lnb": {"label": "LNB", **double},
    }
    assert cells(memory.across([result]), 2) == [
        *("A task", "1.00", "2.00x", "2.00", "1.00x")
    ]

    row = {"label": "the defaults", "best": 0.5, "steps": 20.0}
    never = {"label": "ridge 0.1", "best": None, "steps": None}
    varied = {"title": "A task", "learning_rate": 0.1, "variants": [row, never]}
    fewer = {"title": "Another", "learning_rate": 0.2, "variants": [row]}
    table = defaults.across([varied, fewer])
    assert cells(table, 0)[1:] == ["A task, 0.1", "Another, 0.2"]
    assert cells(table, 2) == ["the defaults", "0.5 (20)", "0.5 (20)"]
    assert cells(table, 3) == ["ridge 0.1", "- (-)", "-"]
