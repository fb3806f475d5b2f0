"""Files, cells and tables."""

import json
import math
import subprocess

import pytest

from benchmarks import results, tables


def test_numbers_and_dashes():
    assert tables.number(0.123456) == "0.1235"
    assert tables.number(0.5, "{:.2f}x") == "0.50x"
    assert [tables.number(x) for x in (None, math.nan, math.inf)] == ["-", "-", "-"]
    assert tables.ratio(3, 2) == "1.50x"
    assert tables.ratio(3, 0) == "-"
    assert tables.spread(1.0, 0.5, 2.0) == "1.00 [0.50, 2.00]"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0], "2"),
        ([3.0, 1.0, 2.0], "2 (1 to 3)"),
        ([1.00001, 1.00002], "1"),
        ([3.0, None, math.nan], "1 of 3 seeds"),
        ([None, math.inf], "-"),
        ([], "-"),
    ],
)
def test_median_and_range_over_seeds(values, expected):
    assert tables.over_seeds(values) == expected


def test_table_is_aligned_markdown():
    lines = tables.table(["a", "long"], [["word", "1"], ["b", "22"]]).split("\n")
    assert lines == [
        "| a    | long |",
        "| ---- | ---: |",
        "| word |    1 |",
        "| b    |   22 |",
    ]


def test_json_is_strict_and_short(tmp_path):
    path = tmp_path / "deep" / "x.json"
    results.write(path, {"losses": [1 / 3, math.nan, math.inf], "of": {"a [b": 2}})
    content = path.read_text()
    assert json.loads(content) == {"losses": [0.333333, None, None], "of": {"a [b": 2}}
    assert '"losses": [0.333333,null,null]' in content


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "x.json"
    curves = {"train_loss": [2.0, math.nan], "step": [0.0, 10.0]}
    result = {
        "job": "main",
        "task": "gru",
        "optimizers": {"adam": {"curves": [curves]}},
    }
    results.write(path, result)
    (read,) = results.read(path)["optimizers"]["adam"]["curves"]
    assert read["step"] == [0, 10]
    assert read["train_loss"][0] == 2
    assert math.isnan(read["train_loss"][1])
    before = path.read_bytes()
    results.write(path, results.read(path))
    assert path.read_bytes() == before
    assert list(results.read_all(tmp_path)) == ["main"]
    assert list(results.read_all(tmp_path)["main"]) == ["gru"]


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has none\. Name the folder with"):
        results.read_all(tmp_path)


def git(root, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True)


def test_the_commit_and_whether_the_code_changed_since(tmp_path):
    assert results.commit(tmp_path) == "unknown"
    (tmp_path / "linboost_optax").mkdir()
    code = tmp_path / "linboost_optax" / "code.py"
    code.write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    found = results.commit(tmp_path)
    assert len(found) == 7
    (tmp_path / "result.json").write_text("{}")
    assert results.commit(tmp_path) == found
    code.write_text("2")
    assert results.commit(tmp_path) == f"{found} with changes"
    # A copy inside of another checkout has none of its commits.
    assert results.commit(tmp_path / "linboost_optax") == "unknown"


def test_facts_are_those_of_this_machine():
    facts = results.facts()
    assert set(facts["versions"]) == {"python", "linboost_optax", *results.PACKAGES}
    assert facts["processor"]
    assert facts["device"] == "cpu"
