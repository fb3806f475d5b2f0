"""What a trial came to, in words: whether it is worth it, why, and what would be.

Ours is worth it where it is ahead of the user's optimizer as it is, and of the best
that needs no statistics, at any rate: of what one would try first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from linboost_optax._trial.analysis import Figures, Record, Spread, figures
from linboost_optax._trial.competitors import OURS, OWN

_WORTH = 0.95  # of another's time, at most, for a change to be worth it
_LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}


class Verdict(NamedTuple):
    """The verdict on one trial.

    Attributes:
      winner: who is recommended: a competitor's name, the baseline's to change nothing,
        None if there was no race.
      worth: whether that is one of this package's.
      headline: one sentence.
      reasons: sentences.
    """

    winner: str | None
    worth: bool
    headline: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"- {each}" for each in self.reasons)])


def verdict(record: Record) -> Verdict:
    """Judges a trial by its record."""
    raced = [name for name, entry in record["entries"].items() if entry["curves"]]
    if record["baseline"] not in raced:
        headline = "No verdict: there was no time for a race."
        return Verdict(None, False, headline, tuple(_notes(record)))
    rival = _first(record, [name for name in raced if name not in OURS])
    ours = _first(record, [name for name in raced if name in OURS], than=rival)
    winner = _winner(record, ours, rival)
    reasons = [*_about(record, ours), *_about_rival(record, ours, rival)]
    return Verdict(
        winner,
        winner in OURS,
        _headline(record, winner, ours, rival),
        (*reasons, *_notes(record)),
    )


def better(it: Figures) -> bool:
    """Whether a competitor is ahead on every seed, by the clock."""
    seconds = it.seconds
    return seconds is not None and seconds.middle <= _WORTH and seconds.high < 1


def times(ratio: Spread) -> str:
    """A ratio with its range, where that says more."""
    return _with_range(ratio, lambda value: f"{value:.2f}", "x")


def loss(value: Spread) -> str:
    """A loss, with its range over the seeds."""
    return _with_range(value, lambda each: f"{each:.3g}")


def counted(number: int, name: str) -> str:
    """A number of things, in words."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _first(record: Record, names: Sequence[str], than: str | None = None) -> str | None:
    """Of ours, who is first at another's loss; of the others, who ends lowest."""
    if than is None:
        ends = {name: figures(record, name).best.middle for name in names}
        return min(names, key=ends.__getitem__, default=None)

    def key(name: str) -> tuple[float, float]:
        it = figures(record, name, than)
        return (it.seconds.middle if it.seconds else math.inf, it.best.middle)

    return min(names, key=key, default=None)


def _winner(record: Record, ours: str | None, rival: str | None) -> str:
    baseline = record["baseline"]
    if ours is not None:
        ahead = better(figures(record, ours))
        if ahead and (
            rival in (None, baseline) or better(figures(record, ours, rival))
        ):
            return ours
    if rival is not None and better(figures(record, rival)):
        return rival
    return baseline


def _headline(record: Record, winner: str, ours: str | None, rival: str | None) -> str:
    what, baseline = _at_rate(record, winner), record["baseline"]
    if winner == baseline:
        keep = "keep what you have" if winner == OWN else f"take {what}"
        return f"Not worth it here, because {_because(record, ours)}: {keep}."
    seconds = figures(record, winner).seconds
    assert seconds is not None  # whoever wins came to the loss
    share = f"{times(seconds)} of the time to {_whose(record)} loss"
    if winner in OURS:
        text = f"Worth it: {what} takes {share}"
        if rival in (None, baseline):
            return f"{text}."
        than = figures(record, winner, rival).seconds
        assert than is not None
        return (
            f"{text}, and {times(than)} of the time to the loss of "
            f"{_at_rate(record, rival)}, the best without statistics."
        )
    if ours is not None and better(figures(record, ours)):
        return f"Not worth it here, because {what} does as well without it: {share}."
    because = _because(record, ours)
    return f"Not worth it here, because {because}. {what}, which takes {share}, is."


def _because(record: Record, ours: str | None) -> str:
    """Why the best of ours is not recommended."""
    if ours is None:
        return "none of ours could run"
    seconds = figures(record, ours).seconds
    if seconds is None:
        return f"{_label(record, ours)} does not come to that loss on every seed"
    text = f"{_label(record, ours)} takes {times(seconds)} of the time to the same loss"
    if seconds.middle <= 1 and seconds.high >= 1:
        return f"{text}, which cannot be told from chance"
    return text if seconds.middle > 1 else f"{text}, which is hardly less"


def _about(record: Record, name: str | None) -> list[str]:
    """What is to be said of one competitor beside the baseline."""
    if name is None:
        return []
    it, base = figures(record, name), figures(record, record["baseline"])
    label, target = _label(record, name), _LOSSES[record["target"]]
    goal = f"{_whose(record)} {target}"
    if it.steps is not None and it.seconds is not None:
        said = (
            f"{label} comes to {goal} in {times(it.steps)} of the steps and "
            f"{times(it.seconds)} of the time."
        )
    elif it.reached:
        seeds = counted(len(record["seeds"]), "seed")
        said = f"{label} comes to {goal} on {it.reached} of {seeds} only."
    else:
        said = f"{label} does not come to {goal}."
    of = "yours" if record["baseline"] == OWN else "Adam's"
    entries = record["entries"]
    more = entries[name]["compile_seconds"]
    more -= entries[record["baseline"]]["compile_seconds"]
    return [
        said,
        f"Its lowest {target} is {_compared(it.best, base.best)}: {loss(it.best)} "
        f"against {loss(base.best)}.",
        f"{it.works} of {it.rates} learning rates work; of {of}, {base.works} of "
        f"{base.rates}.",
        f"A step takes {it.step.middle:.2f}x of the time and holds {it.memory:.2f}x of "
        f"the memory; it takes {abs(more):.1f} s {'more' if more >= 0 else 'less'} to "
        "compile, once.",
    ]


def _about_rival(record: Record, ours: str | None, rival: str | None) -> list[str]:
    """What is to be said of the best optimizer without statistics, if it is another."""
    if rival in (None, record["baseline"]):
        return []
    it = figures(record, rival)
    text = f"Without statistics, {_at_rate(record, rival)} ends lowest, at "
    text += loss(it.best)
    if it.steps is not None and it.seconds is not None:
        text += f"; to {_whose(record)} loss it takes {times(it.steps)} of the steps "
        text += f"and {times(it.seconds)} of the time"
    said = [f"{text}."]
    if ours is None:
        return said
    than = figures(record, ours, rival)
    label = _label(record, ours)
    if than.steps is not None and than.seconds is not None:
        lower = than.best.high < it.best.low
        said.append(
            f"{label} comes to that loss in {times(than.steps)} of its steps and "
            f"{times(than.seconds)} of its time"
            + (f", and ends lower, at {loss(than.best)}." if lower else ".")
        )
    else:
        seeds = counted(len(record["seeds"]), "seed")
        said.append(f"{label} comes to that loss on {than.reached} of {seeds}.")
    return said


def _notes(record: Record) -> list[str]:
    """What a reader must know to trust the verdict."""
    said = []
    if record["interrupted"]:
        said.append(
            "It was stopped early: curves are of the steps that were done, and their "
            "learning rates had not come down."
        )
    if 0 < len(record["seeds"]) < 3:
        said.append(
            f"It ran on {counted(len(record['seeds']), 'seed')}: differences may be "
            "chance. More minutes make more seeds."
        )
    edges = [
        _label(record, name)
        for name, entry in record["entries"].items()
        if entry["edge"] and entry["curves"]
    ]
    if edges:
        named = ", ".join(edges)
        said.append(
            f"The best rate lies at the edge of those that were tried: {named}."
        )
    said += [f"{name} was left out: {why}" for name, why in record["left_out"].items()]
    return said


def _with_range(value: Spread, form: Callable[[float], str], unit: str = "") -> str:
    low, high, middle = form(value.low), form(value.high), f"{form(value.middle)}{unit}"
    return middle if low == high else f"{middle} ({low} to {high})"


def _compared(it: Spread, base: Spread) -> str:
    if it.high < base.low:
        return "lower"
    return "higher" if it.low > base.high else "equal within the spread"


def _label(record: Record, name: str) -> str:
    return record["entries"][name]["label"]


def _at_rate(record: Record, name: str) -> str:
    return f"{_label(record, name)} at {record['entries'][name]['rate']:g}"


def _whose(record: Record) -> str:
    return "your" if record["baseline"] == OWN else "tuned Adam's"
