"""Tables: what is read, what is left out, and what is refused."""

import numpy as np
import pytest

from linboost_optax._trial.tabular import data

ROWS = 40


def columns():
    rng = np.random.default_rng(0)
    return {
        "size": rng.normal(size=ROWS),
        "kind": [["oak", "ash"][i % 2] for i in range(ROWS)],
        "y": np.linspace(0, 1, ROWS),
    }


def write(tmp_path, **changes):
    found = {name: list(values) for name, values in (columns() | changes).items()}
    lines = [",".join(found)]
    lines += [",".join(map(str, row)) for row in zip(*found.values())]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    return path


def test_numbers_and_categories_are_told_apart(tmp_path):
    flags = [i % 3 == 0 for i in range(ROWS)]
    found = data.read(write(tmp_path, flag=flags), "y")
    assert (found.numbers, found.categories) == (("size", "flag"), ("kind",))
    np.testing.assert_allclose(found.y, columns()["y"])
    assert found.x["flag"].tolist() == [float(each) for each in flags]
    assert (found.outliers, found.notes) == (0, ())


def test_rows_without_a_target_are_left_out(tmp_path):
    y = [*columns()["y"][:-3], "", "inf", "nan"]
    found = data.read(write(tmp_path, y=y), "y")
    assert len(found.x) == len(found.y) == ROWS - 3
    assert found.notes == ("3 rows without a target were left out.",)


def test_columns_that_tell_nothing_are_left_out(tmp_path):
    path = write(
        tmp_path,
        constant=[7] * ROWS,
        empty=[""] * ROWS,
        name=[f"tree {i}" for i in range(ROWS)],
    )
    found = data.read(path, "y")
    assert found.numbers + found.categories == ("size", "kind")
    assert found.notes == (
        "Left out, as constant or different in nearly every row: 'constant', 'empty', "
        "'name'.",
    )


def test_missing_and_infinite_inputs_are_counted(tmp_path):
    size = list(columns()["size"])
    size[:3] = ["", "inf", "-inf"]
    kind = [*columns()["kind"][:-1], ""]
    found = data.read(write(tmp_path, size=size, kind=kind), "y")
    assert int(found.x.isna().sum().sum()) == 4
    assert found.notes[0] == "2 infinite values of 'size' are missing."
    assert found.notes[1].startswith("4 inputs are missing")


def test_outliers_of_the_target_are_counted(tmp_path):
    y = columns()["y"]
    y[[3, 9]] = [1e4, -50]
    found = data.read(write(tmp_path, y=y), "y")
    assert found.outliers == 2
    assert found.notes[0].startswith("2 targets are outliers: robust losses compete")


@pytest.mark.parametrize(
    ("changes", "target", "match"),
    [
        ({}, "z", "must be a column of .*, got 'z'. Name one of size, kind, y"),
        ({}, "kind", "must be numbers, got 'oak' in 'kind'. .*take a classifier"),
        ({"y": [1.0] * ROWS}, "y", "must vary, got 1 in all rows of 'y'. Name another"),
        ({"y": [1.0] * 12 + [""] * 28}, "y", "at least 30 rows with a target, got 12"),
        (
            {"size": [1] * ROWS, "kind": ["a"] * ROWS},
            "y",
            "must have a column beside 'y' that varies",
        ),
    ],
)
def test_what_is_refused(changes, target, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        data.read(write(tmp_path, **changes), target)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n1,2,3,4\n"])
def test_what_is_no_table(text, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"must be CSV with a heading, got '.*'.* Mend"
    ):
        data.read(path, "y")
