"""What a trial on a table came to, in words."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from linboost_optax._trial.phrases import counted
from linboost_optax._trial.tabular.compare import Record
from linboost_optax._trial.tabular.estimators import ILLS, MEAN, RIDGE
from linboost_optax._trial.verdict import Verdict

_SURE = 2.0  # standard errors from which a difference is one


class Difference(NamedTuple):
    """Two competitors on the same splits: errors of the first less the second's.

    Attributes:
      mean: over the splits.
      error: its standard error, corrected for training sets that overlap.
      lower: on how many splits the first one's error is lower.
    """

    mean: float
    error: float
    lower: int

    @property
    def sign(self) -> int:
        """-1 where the first is better, 1 where the second is, 0 for chance."""
        if not abs(self.mean) > _SURE * self.error:
            return 0
        return -1 if self.mean < 0 else 1


def difference(record: Record, name: str, than: str) -> Difference:
    """Compares two on the same splits, two or more (Nadeau and Bengio 2003).

    The variance of a mean over splits whose training sets overlap is that of
    independent ones, ``1 / splits``, and the share of test to training rows besides.
    """
    pairs = zip(_errors(record, name), _errors(record, than), strict=True)
    values = np.array([mine - other for mine, other in pairs])
    split = record["splits"][0]
    factor = 1 / len(values) + split["test"] / split["train"]
    error = math.sqrt(factor * float(np.var(values, ddof=1)))
    return Difference(float(values.mean()), error, int((values < 0).sum()))


def judge(record: Record) -> Verdict:
    """The simplest of those that nobody is surely better than."""
    names = competing(record)
    if not names or len(record["splits"]) < 2:
        headline = "No verdict: two splits are needed to tell differences from chance."
        return Verdict(None, False, headline, tuple(_notes(record)))
    lowest = min(names, key=lambda name: mean(record, name))
    equal = [each for each in names if difference(record, each, lowest).sign < 1]
    winner = equal[0]
    worth = winner == ILLS
    reasons = [_of(record, name) for name in names]
    reasons += _notes(record)
    return Verdict(winner, worth, _headline(record, winner), tuple(reasons))


def competing(record: Record) -> list[str]:
    """Who was fitted on all splits, the simplest first."""
    done = len(record["splits"])
    entries = record["entries"]
    return [name for name in entries if done and len(_errors(record, name)) == done]


def mean(record: Record, name: str) -> float:
    """The mean error of one."""
    return float(np.mean(_errors(record, name)))


def settings(record: Record, name: str) -> dict[str, Any]:
    """The settings that were chosen most often."""
    found = record["entries"][name]["settings"]
    counts = Counter(str(sorted(each.items())) for each in found)
    common = counts.most_common(1)[0][0]
    return next(each for each in found if str(sorted(each.items())) == common)


def code(record: Record, name: str) -> str:
    """What a user writes to have it."""
    chosen = settings(record, name)
    named = ", ".join(
        repr(tuple(value)) if key == "hidden_layer_sizes" else f"{key}={value!r}"
        for key, value in sorted(chosen.items())
    )
    return record["entries"][name]["code"].format(named)


def _headline(record: Record, winner: str) -> str:
    label, splits = record["entries"][winner]["label"], len(record["splits"])
    at = f"a test error of {mean(record, winner):.3f}"
    if winner == MEAN:
        return (
            "Nothing can be said of this target from these inputs: no regression is "
            f"surely better than the mean of the targets, {at}."
        )
    if winner == ILLS:
        others = [name for name in competing(record) if name not in (ILLS, MEAN)]
        if not others:
            return f"Use IllsRegressor: {at}."
        rival = min(others, key=lambda name: mean(record, name))
        versus = difference(record, ILLS, rival)
        label = record["entries"][rival]["label"]
        how = "lower" if versus.sign < 0 else "as low and simpler"
        return (
            f"Use IllsRegressor: {at} against {mean(record, rival):.3f} of {label}, "
            f"{how}; lower on {versus.lower} of {splits} splits."
        )
    if ILLS not in competing(record):
        return f"Take {label}, {at}: IllsRegressor could not be fitted."
    versus = difference(record, winner, ILLS)
    mine = f"{mean(record, ILLS):.3f} of IllsRegressor"
    if versus.sign < 0:
        return (
            f"Do not use IllsRegressor here: {label} has {at} against {mine}, lower on "
            f"{versus.lower} of {splits} splits."
        )
    why = "what there is to know is linear" if winner == RIDGE else "it is simpler"
    label = label[0].upper() + label[1:]
    return f"{label} does as well, {at} against {mine}: take it, {why}."


def _of(record: Record, name: str) -> str:
    entry = record["entries"][name]
    return (
        f"{entry['label']}: {mean(record, name):.3f}, standard deviation over splits "
        f"{np.std(entry['errors'], ddof=1):.3f}; {np.median(entry['seconds']):.2f} s "
        "to choose settings and fit."
    )


def _notes(record: Record) -> list[str]:
    said = list(record["notes"])
    if record["interrupted"]:
        said.append(
            "It was stopped early: what is here is of the splits that were done."
        )
    if len(record["splits"]) < 5:
        said.append(
            f"Only {counted(len(record['splits']), 'split')} fitted into the time. "
            "Give it more minutes, or fewer rows."
        )
    for name, reason in record["left_out"].items():
        said.append(f"{record['entries'][name]['label']} was left out: {reason}")
    return said


def _errors(record: Record, name: str) -> list[float]:
    return record["entries"][name]["errors"]
