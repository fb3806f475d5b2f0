"""Data and tables of the UCI protocol, and what others published."""

import numpy as np
import pytest

from benchmarks.jobs import JOBS, ills_uci
from benchmarks.regression import races
from benchmarks.uci import data, methods, published
from tests.benchmarks.test_driver import parse

pytestmark = pytest.mark.slow

ROWS = ["2 7 0 10", "4 7 1 20", "6 7 0 30", "8 7 1 40"]


@pytest.fixture
def written(tmp_path):
    """A set of four rows: a name, a constant and two features, in one split."""
    folder = tmp_path / "yacht" / "data"
    folder.mkdir(parents=True)
    texts = {
        "data": "\n".join(ROWS),
        "index_features": "0\n1\n",
        "index_target": "3",
        "index_train_0": "0\n2\n3\n",
        "index_test_0": "1\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text + "\n")
    return folder


def load(folder):
    return data.load("yacht", str(folder.parent.parent))


def test_a_folder_is_read_as_it_is_laid_out(written):
    found = load(written)
    np.testing.assert_array_equal(found.x, [[2, 7], [4, 7], [6, 7], [8, 7]])
    np.testing.assert_array_equal(found.y, [10, 20, 30, 40])
    ((train, test),) = found.splits
    assert (train.tolist(), test.tolist()) == ([0, 2, 3], [1])


def test_a_split_is_standardised_by_its_training_part(written):
    part = data.standardised(load(written), 0)
    # Targets 10, 30, 40: mean 80 / 3, variance 1400 / 9.
    unit = np.sqrt(1400) / 3
    assert part.unit == pytest.approx(unit)
    np.testing.assert_allclose(part.y_test, [(20 - 80 / 3) / unit])
    # Inputs 2, 6, 8 likewise, a fifth of that; a constant is zero.
    np.testing.assert_allclose(part.x_test, [[(4 - 16 / 3) / (unit / 5), 0]])
    np.testing.assert_allclose(part.x.mean(0), 0, atol=1e-12)
    assert methods.rmse(np.zeros(1), part) == pytest.approx(20 / 3)


def test_sets_without_splits_have_twenty_of_nine_to_one(written):
    (written / "index_train_0.txt").unlink()
    assert [len(test) for _, test in load(written).splits] == [1] * 20
    bundled = data.load("diabetes", None)
    for train, test in bundled.splits:
        assert (len(train), len(test)) == (397, 45)
        assert len({*train, *test}) == 442
    assert len({tuple(test) for _, test in bundled.splits}) == 20


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "index_target",
            "4",
            r"index_target.txt' must name columns from 0 to 3, got 4",
        ),
        ("index_target", "2\n3", r"must name one column, got 2"),
        ("index_features", "0.5", r"must name columns from 0 to 3, got 0.5"),
        ("index_features", "", r"must name columns from 0 to 3, got none"),
        ("index_test_0", "-1", r"must name rows from 0 to 3, got -1"),
        ("index_test_0", "1\n2", r"Split 0 in .* no row in both of its parts, got 1"),
        ("data", "1 2\n3", r"data.txt' must hold numbers between spaces"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")  # NumPy's, of an empty file
def test_files_that_do_not_fit_are_told(written, file, text, message):
    (written / f"{file}.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(written)


def test_missing_files_and_folders_are_told(written):
    with pytest.raises(
        FileNotFoundError, match=r"`--folder` must name .* 'yacht', got"
    ):
        data.load("yacht", None)
    with pytest.raises(FileNotFoundError, match=r"data.txt' must be a file"):
        data.load("energy", str(written.parent.parent))
    (written / "index_test_0.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"index_test_0.txt' must be a file"):
        load(written)
    _, chosen = parse("ills_uci", "--tasks", "yacht")
    with pytest.raises(SystemExit, match="`--folder` must name"):
        ills_uci.run("yacht", chosen)


def test_targets_that_never_vary_are_told(written):
    (written / "index_target.txt").write_text("1")
    with pytest.raises(ValueError, match=r"Targets must vary .* got 7 .* split 0"):
        data.standardised(load(written), 0)


def test_a_folder_adds_its_sets_to_the_bundled_ones():
    job = JOBS["ills_uci"]
    assert parse("ills_uci")[1].tasks == ("diabetes",)
    _, chosen = parse("ills_uci", "--folder", "here")
    assert (chosen.folder, chosen.tasks) == ("here", job.all_tasks)
    _, chosen = parse("ills_uci", "--folder", "here", "--tasks", "yacht")
    assert chosen.tasks == ("yacht",)
    assert parse("ills")[1].folder is None


def test_adam_is_taken_where_the_held_out_error_is_least():
    first = np.array([[0.1, 0.5, 0.6], [0.0, 0.4, 0.9]])
    second = np.array([[0.5, 0.3, 0.2], [0.4, np.nan, 0.1]])
    found = races.reduced([first, second], target=0.0)
    assert found["test_early_stopping"] == 0.2


def test_every_set_of_a_folder_has_published_figures_with_sources():
    assert list(published.RMSE) == list(data.UNITS)
    for figures in published.RMSE.values():
        assert list(figures) == list(published.METHODS)
    for method in published.METHODS.values():
        assert "arXiv:" in method.source
        assert method.source in JOBS["ills_uci"].reading


def test_the_table_has_means_standard_errors_and_published_figures():
    entries = {
        key: {"label": method.label, "rmse": [1.0, 2.0, 3.0], "seconds": [9.0, 1, 2]}
        for key, method in methods.METHODS.items()
    }
    result = {"title": "yacht", "samples": 1308, "methods": entries}
    row = [
        cell.strip() for cell in ills_uci.across([result]).split("\n")[-1].split("|")
    ]
    ours = ["2.00 ± 0.58"] * 3  # one over the root of three
    others = ["1.02 ± 0.05", "1.11 ± 0.38", "1.58 ± 0.48"]
    assert row[1:-1] == ["yacht", "1,308", "3", *ours, *others, *["2.00"] * 3]
    bundled = ills_uci.across([{**result, "title": "diabetes"}])
    assert bundled.count(" - |") == 3
    assert ills_uci.with_error([0.01, 0.02]) == "0.0150 ± 0.0050"
    assert ills_uci.with_error([0.0001, 0.0003]) == "0.0002 ± 0.0001"
    assert ills_uci.with_error([0.5]) == "0.50"
    assert ills_uci.with_error([0.5, None]) == "1 of 2 splits"
