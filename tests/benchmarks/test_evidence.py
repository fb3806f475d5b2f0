"""Pages of evidence: verdicts by hand, and pages that are what the JSON says."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from benchmarks import driver, results
from benchmarks.evidence import fitted, grown, page, raced, swept
from benchmarks.evidence.claim import Case, Claim, Proof, Verdict, quartiles
from benchmarks.evidence.figure import draw
from benchmarks.evidence.pages import PAGES

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results"
ALL_CLAIMS = [claim for each in PAGES for claim in each.claims]
each_page = pytest.mark.parametrize("each", PAGES, ids=lambda page: page.file)


@pytest.fixture(scope="module")
def committed():
    return results.read_all(COMMITTED)


@each_page
def test_the_page_is_what_the_command_makes_of_the_json(each, committed):
    text = (ROOT / "docs" / each.file).read_text()
    assert text == page.render(each, committed)


@each_page
def test_every_claim_has_a_row_and_a_small_picture(each):
    text = (ROOT / "docs" / each.file).read_text()
    for claim in (*each.claims, *each.proofs):
        assert f"[{claim.says}](#{claim.name})" in text
        assert f"({claim.name})=\n## {claim.says}\n" in text
    for claim in each.claims:
        picture = ROOT / "docs" / page.picture(claim)
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert picture.stat().st_size < 60_000


def test_nothing_is_left_of_claims_that_went():
    folder = ROOT / "docs" / "figures" / "evidence"
    names = {f"{claim.name}.png" for claim in ALL_CLAIMS}
    assert {path.name for path in folder.iterdir()} == names


def test_names_of_claims_are_anchors_of_their_own():
    names = [claim.name for each in PAGES for claim in (*each.claims, *each.proofs)]
    assert len(set(names)) == len(names)


@each_page
def test_tests_that_prove_a_claim_exist(each):
    for proof in each.proofs:
        for test in proof.tests:
            path, _, function = test.partition("::")
            text = (ROOT / "tests" / path).read_text()
            assert re.search(rf"^def {function}\(", text, re.M), test


@pytest.mark.parametrize("claim", ALL_CLAIMS, ids=lambda claim: claim.name)
def test_claims_have_three_seeds_where_there_is_chance(claim, committed):
    for case in claim.measured(committed):
        for values in case.values.values():
            assert len(values) == 1 or len(values) >= 3


CLAIM = Claim(
    name="toy",
    says="Toys are fast",
    where="Nobody, anywhere",
    job="whiten",
    tasks=("cnn", "gru"),
    quantity="time / Adam's",
    cases=lambda results: [
        Case("one", {"a": [0.4, 0.5, 0.9], "b": [0.5, 1.0, 2.0]}),
        Case("two", {"a": [0.5, None, None], "b": [0.2, None, 0.3]}),
        Case("three", {"b": [1.5]}),
    ],
)


def test_quartiles_by_hand():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([0.5]) == (0.5, 0.5, 0.5)
    # Of three, the median is the second; one that never got there is the last.
    assert quartiles([None, 1.0, 2.0])[1:] == (2.0, math.inf)
    assert quartiles([None, math.nan, 2.0])[1] == math.inf


def test_verdicts_by_hand():
    cases = CLAIM.measured({"whiten": {"cnn": {}, "gru": {}}})
    assert CLAIM.verdicts(cases) == {"a": Verdict(1, 2), "b": Verdict(2, 3)}
    below = dataclasses.replace(CLAIM, strict=True)
    assert below.verdicts(cases)["b"] == Verdict(1, 3)
    words = [Verdict(*each).words for each in ((3, 3), (2, 3), (1, 2), (1, 3), (0, 1))]
    assert words == [
        "holds", "holds in part", "holds in part", "does not hold", "does not hold",
    ]  # fmt: skip


def test_results_that_are_missing_are_named():
    with pytest.raises(
        ValueError, match=r"'toy' needs .* no JSON of gru\. Run .* --ta"
    ):
        CLAIM.measured({"whiten": {"cnn": {}}})


@pytest.fixture
def toys(committed):
    """A page of two claims, a worse and a better one, and a proof."""
    better = dataclasses.replace(CLAIM, name="sure", says="Toys are toys", limit=9.0)
    better = dataclasses.replace(better, cases=lambda results: [Case("x", {"b": [1]})])
    proof = Proof("proof", "Toys add up", "Nobody", ("test_lnb.py::test_x",), "So.")
    made = page.Page(
        "toys.md", "Evidence: toys", "Toys.", "b", (better, CLAIM), (proof,)
    )
    return made, {"whiten": committed["whiten"]}


def test_what_falls_short_comes_first(toys):
    text = page.render(*toys)
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert "| holds in part, 2 of 3 | a 1 of 2 |" in re.sub(" +", " ", rows[0])
    assert "holds, 1 of 1" in rows[1]
    assert "holds, by tests" in rows[2]
    assert text.index("(toy)=") < text.index("(sure)=") < text.index("(proof)=")


def test_cells_and_commands(toys):
    text = re.sub(" +", " ", page.render(*toys))
    assert "| one | 0.50 [0.45, 0.70] | 1.00 [0.75, 1.50] |" in text
    assert "*never*" in text
    assert "python -m benchmarks whiten --seeds 3 --tasks cnn gru`" in text
    assert "Measured on" in text
    assert "`tests/test_lnb.py::test_x`" in text


def test_the_command_writes_pages_and_pictures(toys, tmp_path, monkeypatch, capsys):
    made, found = toys
    monkeypatch.setattr(driver, "PAGES", (made,))
    folder = tmp_path / "benchmarks" / "results"
    (tmp_path / "docs").mkdir()
    with pytest.raises(SystemExit, match="has none"):
        driver.main(["evidence", "--results", str(folder)])
    results.write(folder / "whiten-cnn.json", found["whiten"]["cnn"])
    with pytest.raises(SystemExit, match="no JSON of gru"):
        driver.main(["evidence", "--results", str(folder)])
    results.write(folder / "whiten-gru.json", found["whiten"]["gru"])
    driver.main(["evidence", "--results", str(folder)])
    assert (tmp_path / "docs" / "toys.md").read_text() == page.render(made, found)
    for name in ("toy", "sure"):
        assert (tmp_path / "docs" / "figures" / "evidence" / f"{name}.png").is_file()
    assert "toys.md" in capsys.readouterr().out


def test_the_picture_has_medians_seeds_and_the_limit():
    cases = CLAIM.cases([])
    axis = draw(CLAIM, cases, ["b", "a"]).axes[0]
    marked = {
        (line.get_marker(), *line.get_xdata())
        for line in axis.get_lines()
        if line.get_marker() in "os"
    }
    assert {("s", 0.5), ("o", 1.0), ("o", 0.3), ("o", 1.5)} <= marked
    never = [line for line in axis.get_lines() if line.get_marker() == ">"]
    assert [line.get_xdata()[0] for line in never] == [1.5 * 2.0]
    assert any(list(line.get_xdata()) == [1.0, 1.0] for line in axis.get_lines())
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "one", "two", "three",
    ]  # fmt: skip


SWEEP = {
    "task": "toy",
    "optimizers": {
        "adam": {
            "label": "Adam",
            "losses_by_seed": {
                "plain": [[8.0, 4.0], [2.0, 1.0], [2.1, None]],
                "norm": [[4.0, 4.0], [1.0, 2.0], [0.5, 1.0]],
            },
        },
        "polar": {
            "label": "polar",
            "losses_by_seed": {
                "plain": [[1.0, 1.0], [1.0, 0.5], [4.0, 4.0]],
                "norm": [[4.0, 8.0], [2.0, 4.0], [1.0, 0.5]],
            },
        },
    },
}


def of(cases):
    return {case.label: case.values["polar"] for case in cases}


def test_sweeps_by_hand():
    best = of(swept.cases(swept.best_loss)([SWEEP]))
    assert best == {"toy: plain": [0.5, 0.5], "toy: norm": [2.0, 0.5]}
    # Adam's best: 2 and 1. Within a tenth of it: two of its rates and one; of ours
    # both low ones on both seeds.
    good = of(swept.cases(swept.rates_that_do)([SWEEP]))
    assert good["toy: plain"] == [2 / 2, 1 / 2]
    # Nothing of ours is near 0.5 on the first seed.
    assert good["toy: norm"] == [None, 1 / 1]
    own = of(swept.cases(swept.rates_of_own)([SWEEP]))
    assert own["toy: plain"] == [2 / 2, 1 / 1]
    # Medians choose the second rate for both; ours then has 2 and 4 beside 1 and 0.5.
    kept = of(swept.kept_rate([SWEEP]))
    assert kept == {"toy: plain to norm": [(2 / 1) / (1 / 0.5), (4 / 0.5) / (2 / 1)]}
    assert of(swept.normalised([SWEEP])) == {"toy: norm": [2.0, 0.5]}
    instead = of(swept.instead([SWEEP]))
    assert instead == {"against norm": [1.0 / 0.5, 0.5 / 1.0]}


def test_errors_where_training_went_lowest():
    accuracies = {
        "adam": [[0.1, 0.1], [0.9, 0.8], [0.2, 0.2]],
        "polar": [[0.3, 0.3], [0.8, 0.9], [0.1, 0.1]],
    }
    optimizers = {
        name: {**entry, "accuracy_by_seed": {"plain": accuracies[name]}}
        for name, entry in SWEEP["optimizers"].items()
    }
    for entry in optimizers.values():
        entry["losses_by_seed"] = {"plain": entry["losses_by_seed"]["plain"]}
    # The second rate is best for both: wrong are 0.2 and 0.1, of Adam's 0.1 and 0.2.
    got = of(swept.test_errors([{**SWEEP, "optimizers": optimizers}]))
    assert got == {"toy: plain": pytest.approx([2.0, 0.5])}


def test_sweeps_without_ours_are_without_it():
    alone = {**SWEEP, "optimizers": {"adam": SWEEP["optimizers"]["adam"]}}
    assert swept.cases(swept.best_loss)([alone])[0].values == {}


RACE = {
    "title": "race",
    "target": "train_loss",
    "optimizers": {
        "adam": {
            "label": "Adam",
            "temporary_bytes": 60,
            "state_bytes": 40,
            "curves": [{"train_loss": [3.0, 2.0], "test_loss": [5.0, 6.0]}],
        },
        "lnb": {
            "label": "LNB",
            "temporary_bytes": 70,
            "state_bytes": 80,
            "curves": [{"train_loss": [3.0, 1.0], "test_loss": [6.0, 10.0]}],
        },
    },
}


def test_races_by_hand():
    def only(quantity):
        (case,) = raced.cases(quantity)([RACE])
        return case.values

    assert only(raced.lowest(None)) == {"LNB": [0.5]}
    assert only(raced.lowest("test_loss")) == {"LNB": [1.2]}
    assert only(raced.memory) == {"LNB": [1.5]}


def test_coverage_and_collectives_by_hand():
    model = {"title": "m", "framework": "NNX", "kernels": 8, "kernels_covered": 6}
    assert raced.covered([model]) == [Case("m (NNX)", {"taps": [0.25]})]
    kinds = {"adam": 1, "whiten": 3}
    run = {
        "batch": 16,
        "optimizers": {
            name: {"label": name, "every_step": {"all-reduce": {"count": count}}}
            for name, count in kinds.items()
        },
    }
    runs = [{**run, "devices": count} for count in (1, 2)]
    runs.append({**run, "devices": 4, "batch": 64})
    cases = raced.said([{"rows": 16, "runs": runs}])
    assert cases == [Case("2 devices", {"whiten": [3.0]})]


def trainers(ills_seconds=0.4):
    """What three trainers came to on three seeds."""

    def entry(label, iterations, train, test, seconds):
        return {
            "label": label,
            "iterations": iterations,
            "train": train,
            "test_early_stopping": test,
            "seconds_an_iteration": seconds,
        }

    return {
        "adam": entry("Adam", [100.0] * 3, [1.0, 2.0, 4.0], [0.5, 1.0, 2.0], 0.1),
        "lbfgs": entry("L-BFGS", [50.0] * 3, [1.0] * 3, [0.8, 0.9, 1.5], 0.2),
        "ills": entry(
            "ILLS",
            [10.0, 20.0, None],
            [0.5, 0.5, 1.0],
            [0.9, 0.45, 1.8],
            ills_seconds,
        ),
    }


PROBLEM = {
    "title": "p",
    "data": {
        "clean": {"trainers": trainers()},
        "noise": {"trainers": trainers(None)},
        "outliers": {"trainers": {}},
    },
}


def of_ills(quantity):
    return {
        case.label: case.values.get("ILLS")
        for case in fitted.cases(quantity, ("ills",))([PROBLEM])
    }


def test_fits_by_hand():
    iterations = of_ills(fitted.iterations)
    assert iterations == {"p, clean": [0.1, 0.2, None], "p, noise": [0.1, 0.2, None]}
    seconds = of_ills(fitted.seconds)
    assert seconds["p, clean"] == [pytest.approx(0.4), pytest.approx(0.8), None]
    assert seconds["p, noise"] is None  # was not on the clock
    assert of_ills(fitted.error("train"))["p, clean"] == [0.5, 0.25, 0.25]
    assert of_ills(fitted.worst_seed)["p, clean"] == [0.25]
    assert of_ills(fitted.spread)["p, clean"] == [(1.0 / 0.5) / (4.0 / 2.0)]
    # Medians of Adam and L-BFGS are 1 and 0.9.
    test = of_ills(fitted.test_error(("adam", "lbfgs")))
    assert test["p, clean"] == [1.0, 0.5, 2.0]


def test_sizes_and_corruption_by_hand():
    points = [{"size": "20", "trainers": trainers()}]
    (case,) = grown.sizes(fitted.error("train"))([{"axis": "units", "points": points}])
    assert case.label == "units: 20"
    assert case.values == {"L-BFGS": [1.0, 0.5, 0.25], "ILLS": [0.5, 0.25, 0.25]}
    levels = {
        "axis": "noise",
        "levels": [0.0, 0.5],
        "test": {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[2.0, 2.0], [None, None]]},
    }
    rivals = {"a": "b", "c": "b"}
    assert grown.corrupted(rivals)([levels]) == [Case("noise: 0", {"a": [0.5, 1.0]})]


def test_planted_faults_and_students_by_hand():
    row = {"label": "r", "found": [True, True, False, True], "alarm": [False] * 4}
    assert grown.missed([{"rows": [row]}]) == [Case("r", {"diagnostics": [0.25]})]
    assert grown.false_alarms([{"rows": [row]}]) == [Case("r", {"diagnostics": [0]})]
    student = {"label": "s", "values": [0.5, None]}
    assert grown.recovered([{"rows": [student]}]) == [Case("s", {"ILLS": [0.5, None]})]


def test_uci_sets_by_hand():
    methods = {
        "ills": {"label": "ILLS", "rmse": [1.0, 3.0]},
        "adam": {"label": "Adam", "rmse": [2.0, 2.0]},
    }
    yacht = {"task": "yacht", "samples": 308, "methods": methods}
    assert grown.over_adam([yacht]) == [Case("yacht, 308 rows", {"ILLS": [0.5, 1.5]})]
    # PBP has the lowest of three figures, 1.02.
    (case,) = grown.over_published([yacht])
    assert case == Case("yacht", {"ILLS": [2 / 1.02], "Adam": [2 / 1.02]})
    # Published as 0.00 and 0.01, and without any figure.
    others = [
        {**yacht, "task": task} for task in ("naval-propulsion-plant", "diabetes")
    ]
    assert grown.over_published(others) == []
