"""Cross-validation, split after split, until the time is over."""

from __future__ import annotations

import math
import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np

from linboost_optax._trial.clock import Clock
from linboost_optax._trial.tabular.data import Table
from linboost_optax._trial.tabular.estimators import ESTIMATORS, chosen, search

FOLDS, REPEATS = 5, 4
_PACKAGES = ("linboost_optax", "jax", "scikit-learn", "pandas", "numpy")
Record = dict[str, Any]


def compare(table: Table, minutes: float, seed: int, shown: bool) -> Record:
    """Fits all on the same splits, in turn; who goes first changes from split to split.

    Args:
      table: the data.
      minutes: after which no split is begun that would not end in time.
      seed: of the splits and of the estimators.
      shown: whether to show a bar.

    Returns:
      A record that JSON can hold; an interrupt from the keyboard ends it with the
      splits that are whole.
    """
    from sklearn.model_selection import RepeatedKFold

    clock = Clock(minutes, shown)
    record = _empty(table, minutes)
    splits = RepeatedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=seed)
    longest = 0.0
    try:
        for number, (train, test) in enumerate(splits.split(table.y)):
            if number and longest > clock.left:
                break
            began = clock.elapsed
            _add_split(record, table, train, test, number, seed, clock)
            longest = max(longest, clock.elapsed - began)
    except KeyboardInterrupt:
        record["interrupted"] = True
    finally:
        clock.close()
    record["elapsed_seconds"] = clock.elapsed
    return record


def _empty(table: Table, minutes: float) -> Record:
    return {
        "task": table.name,
        "rows": len(table.y),
        "numbers": len(table.numbers),
        "categories": len(table.categories),
        "notes": list(table.notes),
        "minutes": minutes,
        "elapsed_seconds": 0.0,
        "interrupted": False,
        "splits": [],
        "entries": {
            name: {"label": each.label, "code": each.code, "errors": [], "seconds": []}
            | {"settings": []}
            for name, each in ESTIMATORS.items()
        },
        "left_out": {},
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _add_split(
    record: Record,
    table: Table,
    train: np.ndarray,
    test: np.ndarray,
    number: int,
    seed: int,
    clock: Clock,
) -> None:
    """Adds one split to the record, once all of it is done."""
    names = [name for name in ESTIMATORS if name not in record["left_out"]]
    first = number % len(names)
    found = {}
    for name in names[first:] + names[:first]:
        if clock.left < 0:  # a split that is not whole counts for nothing
            return
        clock.tick(f"split {number + 1}, {ESTIMATORS[name].label}")
        model = search(ESTIMATORS[name], table, seed)
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of convergence: errors tell
                model.fit(table.x.iloc[train], table.y[train])
                guess = np.asarray(model.predict(table.x.iloc[test]), float)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            record["left_out"][name] = reason
            continue
        seconds = time.perf_counter() - start
        error = math.sqrt(float(np.mean((guess - table.y[test]) ** 2)))
        found[name] = (error / float(np.std(table.y)), seconds, chosen(model))
    record["splits"].append({"train": len(train), "test": len(test)})
    for name, (error, seconds, settings) in found.items():
        entry = record["entries"][name]
        entry["errors"].append(error)
        entry["seconds"].append(seconds)
        entry["settings"].append(settings)
