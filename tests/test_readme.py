"""The README is executed: code blocks, commands, versions and links."""

import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

import linboost_optax as lbo
from benchmarks import report, results
from benchmarks.jobs import JOBS
from linboost_optax import linen

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# User code is not held to strict promotion: `x / 16` of an integer image is fine.
pytestmark = pytest.mark.lenient("the README is user code")


def blocks(language, marker=None):
    """Returns the fenced blocks of a language, or the one right after a marker."""
    start = rf"<!-- {marker} -->\n" if marker else ""
    return re.findall(rf"{start}```{language}\n(.*?)^```$", README, re.M | re.S)


def block(language, marker):
    (found,) = blocks(language, marker)
    return found


def execute(code, names):
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def quickstart():
    """The names that the quickstart leaves behind."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return execute(block("python", "quickstart"), {})


def accuracy(names, rows):
    logits = names["model"].apply(names["params"], names["x"][rows])
    return np.mean(np.argmax(logits, -1) == names["labels"][rows])


def test_readme_is_short():
    assert len(README.encode()) <= 9000


def test_results_are_those_of_the_committed_runs():
    found = results.read_all(ROOT / "benchmarks" / "results")
    (shown,) = re.findall(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, re.S)
    assert shown.strip() == report.readme_table(found)


def test_quickstart_is_short():
    assert len(block("python", "quickstart").splitlines()) <= 25


def test_quickstart_learns_what_it_says(quickstart):
    claimed = float(re.search(r"`loss` ends near (\d\.\d+)", README)[1])
    assert 0.5 * claimed < quickstart["loss"] < 2 * claimed
    assert accuracy(quickstart, slice(0, 1440)) == 1
    assert accuracy(quickstart, slice(1440, None)) > 0.85


def test_printed_table_is_current(quickstart):
    assert str(quickstart["taps"]) == block("text", "taps").rstrip("\n")


def test_ills_block_fits():
    (code,) = [block for block in blocks("python") if "fit_ills" in block]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = execute(code, {})
    assert names["result"].objectives[-1] < 0.01
    assert np.all(np.isfinite(names["y_hat"]))


def test_other_blocks_run_after_the_quickstart(quickstart):
    names = dict(quickstart)
    apart = ("load_digits", "fit_ills")
    others = [b for b in blocks("python") if not any(word in b for word in apart)]
    assert others
    for code in others:
        execute(code, names)
    # The last optimizer is another one, in the same loop.
    collect = linen.value_and_grad(names["loss_fn"], names["taps"])
    params, tx = names["params"], names["tx"]
    loss, grads, stats = collect(params, names["x"], names["labels"])
    updates, state = tx.update(grads, tx.init(params), params, stats=stats)
    made = (loss, updates, state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(made))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("side", ["-", "+"])
def test_both_sides_of_the_diff_train(quickstart, side):
    (diff,) = blocks("diff")
    code = "\n".join(
        line[1:] for line in diff.splitlines() if not line or line[0] in (" ", side)
    )
    names = execute(code, dict(quickstart))
    batch = names["x"], names["labels"]
    params = names["model"].init(jax.random.key(1), names["x"])
    state, losses = names["tx"].init(params), []
    for _ in range(10):
        params, state, loss = names["step"](params, state, *batch)
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_diff_is_as_small_as_the_text_says():
    (diff,) = blocks("diff")
    added, removed = (sum(row[:1] == c for row in diff.splitlines()) for c in "+-")
    assert (removed, added - removed) == (3, 1)
    assert "One line is new and three change" in README


@pytest.mark.parametrize("marker", ["main-command", "test-command"])
def test_commands_make_an_environment_and_install_a_real_extra(marker):
    command = block("bash", marker)
    assert command.startswith("python -m venv .venv && ")
    (extra,) = re.findall(r"pip install -e '\.\[(\w+)\]'", command)
    assert extra in PROJECT["optional-dependencies"]
    module = command.split("python -m ")[-1].strip()
    assert module == {"main-command": "benchmarks", "test-command": "pytest"}[marker]


def test_jobs_named_in_the_readme_exist():
    named = set(re.findall(r"`python -m benchmarks (\w+)`", README))
    assert named
    assert named <= set(JOBS)


def test_benchmarks_start_from_the_repository():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(job in done.stdout for job in JOBS)


def test_ci_reads_the_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    (line,) = [row for row in script.read_text().splitlines() if "sed -n" in row]
    pipeline = re.search(r"\$\((.*)\)", line)[1]
    done = subprocess.run(
        pipeline, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == block("bash", "test-command")


def test_versions_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.M)
    assert headings[:2] == ["Unreleased", lbo.__version__]
    assert re.findall(r"^  version = \{(.+)\}", README, re.M) == [lbo.__version__]


def test_both_papers_are_cited():
    assert {"2502.01131", "2307.05189"} == set(
        re.findall(r"eprint *= \{(.+?)\}", README)
    )


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_and_files_exist(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    files = re.findall(
        r"`((?:\.ci|benchmarks|docs|notebooks|linboost_optax|tests)/\S*)`", text
    )
    assert not [path for path in links + files if not (ROOT / path).exists()]


def test_names_in_the_readme_are_public():
    named = set(re.findall(r"\blbo\.(\w+)", README))
    assert named
    modules = {name for name in named if inspect.ismodule(getattr(lbo, name))}
    assert named - modules <= set(lbo.__all__)
    assert set(re.findall(r"\bills\.(\w+)", README)) - {"md"} <= set(lbo.ills.__all__)
