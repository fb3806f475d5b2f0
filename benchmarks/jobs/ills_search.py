"""A grid search over ILLS in scikit-learn: seconds, and what is compiled in them."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import jax
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.tables import number, over_seeds, table
from linboost_optax.ills._loop import run_loop
from linboost_optax.ills._numerics import chunks
from linboost_optax.sklearn import IllsRegressor

ROWS, FOLDS, ROUNDS = 308, 3, 3
ALPHAS = (1e-4, 1e-2)
FITS = len(ALPHAS) * FOLDS + 1  # and the best on all rows


def run(name: str, options: Options) -> Result:
    """Search with rows padded and as they are, in turn, each with empty caches."""
    del name
    rows: dict[str, list[dict[str, float]]] = {"padded": [], "as they are": []}
    rounds = range(1 if options.quick else ROUNDS)
    for _ in tqdm(rounds, desc="searching", unit="round"):
        for key, found in rows.items():
            found.append(_measured(key == "padded", options.quick))
    names = ("first", "again", "programs")
    return {
        "title": f"{len(ALPHAS)} candidates, {FOLDS} folds, {ROWS} rows",
        "fits": FITS,
        "rows": {
            key: {name: [each[name] for each in found] for name in names}
            for key, found in rows.items()
        },
    }


def _measured(padded: bool, quick: bool) -> dict[str, float]:
    """Seconds of a first search and of one more, and programs of the first."""
    jax.clear_caches()
    loop: Any = run_loop  # the number of its programs is no public name
    with mock.patch.object(chunks, "padded_size", _sizes(padded)):
        first = _search(quick)
        programs = loop._cache_size()
        return {"first": first, "again": _search(quick), "programs": programs}


def _sizes(padded: bool) -> Any:
    return chunks.padded_size if padded else lambda rows: rows


def _search(quick: bool) -> float:
    bunch: Any = load_diabetes()
    few: dict[str, Any] = {"max_iter": 3} if quick else {}
    model = IllsRegressor((20,), random_state=0, **few)
    search = GridSearchCV(model, {"alpha": list(ALPHAS)}, cv=FOLDS)
    begin = time.perf_counter()
    search.fit(bunch.data[:ROWS], bunch.target[:ROWS])
    return time.perf_counter() - begin


def describe(result: Result) -> str:
    """A row with padding and one without."""
    header = ["rows", "programs", "seconds, first search", "fits a second"]
    header += ["seconds, once more", "fits a second"]
    rows = []
    for key, found in result["rows"].items():
        row = [key, f"{max(found['programs'])}"]
        for name in ("first", "again"):
            seconds = found[name]
            rate = result["fits"] / float(np.median(seconds))
            row += [over_seeds(seconds, "{:.2f}"), number(rate, "{:.1f}")]
        rows.append(row)
    return table(header, rows)


JOB = Job(
    name="ills_search",
    title="A grid search with IllsRegressor",
    reading=(
        "Seconds of a whole `GridSearchCV`, the last fit included, at first with "
        "nothing compiled and then once more; medians over rounds in turn, with their "
        "range. Programs are the training loops that were compiled for it."
    ),
    tasks=("diabetes",),
    run=run,
    table=describe,
)
