"""The page of costs: its tables and its figure are what the JSON says."""

from pathlib import Path

import pytest

from benchmarks import driver, figures, results
from benchmarks.cost import page
from benchmarks.cost.figure import draw
from benchmarks.jobs import JOBS, scaling

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results"
EMPTY = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in page.SOURCES)


@pytest.fixture(scope="module")
def committed():
    return results.read_all(COMMITTED)


@pytest.fixture(scope="module")
def sources(committed):
    return {name: page.ordered(name, committed) for name in page.SOURCES}


def test_the_page_is_what_the_command_makes_of_the_json(sources):
    text = (ROOT / "docs" / "cost.md").read_text()
    assert page.filled(text, page.tables(sources)) == text


def test_the_figure_of_the_page_is_small():
    picture = ROOT / "docs" / "figures" / "cost.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size < 200_000


def test_the_command_writes_both(tmp_path, committed, capsys, monkeypatch):
    monkeypatch.setattr(page, "draw", lambda results: figures.Figure((2, 2)))
    docs, folder = tmp_path / "docs", tmp_path / "benchmarks" / "results"
    docs.mkdir()
    (docs / "cost.md").write_text(EMPTY)
    with pytest.raises(SystemExit, match="has none"):
        driver.main(["cost", "--results", str(folder)])
    for name in page.SOURCES:
        for task, result in committed[name].items():
            results.write(folder / f"{name}-{task}.json", result)
    driver.main(["cost", "--results", str(folder)])
    text = (docs / "cost.md").read_text()
    made = page.tables({n: page.ordered(n, committed) for n in page.SOURCES})
    for table in made.values():
        assert table in text
    assert "old" not in text
    assert (docs / "figures" / "cost.png").stat().st_size > 0
    assert "cost.png" in capsys.readouterr().out


def test_what_is_missing_is_named(committed):
    fewer = {**committed, "scaling": dict(list(committed["scaling"].items())[1:])}
    with pytest.raises(ValueError, match=r"no JSON of data\. Run .* --tasks data"):
        page.ordered("scaling", fewer)
    with pytest.raises(ValueError, match=r"table of `growth`, got 0\. Put it between"):
        page.filled("# A page", {"growth": "|"})


def test_measured_and_computed_are_told_apart(sources):
    figure = draw(sources)
    *measured, computed = figure.subfigs
    for part in measured:
        assert part.get_suptitle().startswith("Measured")
        assert part.get_facecolor() != computed.get_facecolor()
    assert computed.get_suptitle().startswith("Computed")


def test_the_figure_has_what_the_json_has(sources):
    time, _, devices, models = draw(sources).subfigs
    for axis, result in zip(time.axes, sources["growth"], strict=True):
        whiten = [point["optimizers"]["whiten"] for point in result["points"]]
        middles = [each["ratio_quartiles"][1] for each in whiten]
        assert list(axis.get_lines()[1].get_ydata()) == middles
    data = sources["scaling"][0]["runs"]
    held = {
        run["devices"]: run["optimizers"]["polar"]["state_bytes"] / 2**20
        for run in data
        if run["batch"] == 512
    }
    line = devices.axes[0].get_lines()[2]
    assert dict(zip(line.get_xdata(), line.get_ydata())) == held
    # A bar for each of four optimizers and three models.
    for axis in models.axes:
        assert len(axis.patches) == 12
    share = sources["large_models"][2]
    bar = models.axes[1].containers[3].patches[2]
    work = 100 * share["optimizers"]["polar"]["flops"] / share["flops"]
    assert bar.get_height() == pytest.approx(work)


def test_most_devices_beside_each_other(sources):
    _, _, *rows = scaling.across(sources["scaling"]).splitlines()
    assert len(rows) == 3 * len(JOBS["scaling"].tasks)
    adam, whiten = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:2])
    assert adam[1:3] == ["Adam", "8"]
    assert adam[5] == "1.00x"
    run = next(
        run
        for run in sources["scaling"][0]["runs"]
        if (run["devices"], run["batch"]) == (8, 512)
    )
    said = [
        sum(kind["bytes"] for kind in run["optimizers"][name]["every_step"].values())
        for name in ("whiten", "adam")
    ]
    assert whiten[5] == f"{said[0] / said[1]:.2f}x"
