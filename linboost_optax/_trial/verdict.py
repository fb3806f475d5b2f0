"""What a trial came to, in words: whether it is worth it, why, and what would be.

Ours is worth it where it is ahead of the user's optimizer as it is, and of all that
needs no statistics, at any rate: of what one would try first. That is either in time to
the user's loss, or in time to the lowest losses of these.
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


class Field(NamedTuple):
    """Who is compared: names of competitors, None where there is none.

    Attributes:
      baseline: the user's own, or tuned Adam.
      ours: the best of this package.
      fastest: of those without statistics, who is first at the baseline's loss.
      lowest: of those without statistics, who ends lowest: the baseline, perhaps.
    """

    baseline: str
    ours: str | None
    fastest: str | None
    lowest: str


def verdict(record: Record) -> Verdict:
    """Judges a trial by its record."""
    raced = [name for name, entry in record["entries"].items() if entry["curves"]]
    if record["baseline"] not in raced:
        headline = "No verdict: there was no time for a race."
        return Verdict(None, False, headline, tuple(_notes(record)))
    field = _field(record, raced)
    winner = _winner(record, field)
    reasons = [*_about(record, field.ours), *_about_rivals(record, field)]
    return Verdict(
        winner,
        winner in OURS,
        _headline(record, field, winner),
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


def _field(record: Record, raced: Sequence[str]) -> Field:
    baseline = record["baseline"]

    def order(than: str) -> Callable[[str], tuple[float, float]]:
        """Who is first at another's loss; of those that never are, who ends lowest."""

        def key(name: str) -> tuple[float, float]:
            it = figures(record, name, than)
            return (it.seconds.middle if it.seconds else math.inf, it.best.middle)

        return key

    others = [name for name in raced if name not in OURS]
    lowest = min(others, key=lambda name: figures(record, name).best.middle)
    mine = [name for name in raced if name in OURS]
    return Field(
        baseline,
        min(mine, key=order(lowest), default=None),
        min(set(others) - {baseline}, key=order(baseline), default=None),
        lowest,
    )


def _winner(record: Record, field: Field) -> str:
    if _is_fast(record, field) or _is_low(record, field):
        assert field.ours is not None
        return field.ours
    fastest = field.fastest
    if fastest is not None and better(figures(record, fastest)):
        return fastest
    return field.baseline


def _is_fast(record: Record, field: Field) -> bool:
    """Whether ours is ahead of all to the baseline's loss."""
    if field.ours is None or not better(figures(record, field.ours)):
        return False
    mine = figures(record, field.ours).seconds
    rival = figures(record, field.fastest).seconds if field.fastest else None
    return rival is None or (
        mine is not None and mine.middle <= _WORTH * min(1.0, rival.middle)
    )


def _is_low(record: Record, field: Field) -> bool:
    """Whether ours is ahead of all at their own lowest losses."""
    rivals = {field.baseline, field.lowest, field.fastest} - {None}
    return field.ours is not None and all(
        better(figures(record, field.ours, rival)) for rival in rivals
    )


def _headline(record: Record, field: Field, winner: str) -> str:
    what, baseline, ours = _at_rate(record, winner), field.baseline, field.ours
    if winner == baseline:
        keep = "keep what you have" if winner == OWN else f"take {what}"
        return f"Not worth it here, because {_because(record, ours)}: {keep}."
    share = f"{_share(record, winner)} of the time to {_whose(record)} loss"
    if winner != ours:
        better_too = ours is not None and better(figures(record, ours))
        if better_too:
            return (
                f"Not worth it here, because {what} does as well without it: {share}."
            )
        because = _because(record, ours)
        return f"Not worth it here, because {because}. {what}, which takes {share}, is."
    low = ""
    if field.lowest != baseline and _is_low(record, field):
        low = f"{_share(record, winner, field.lowest)} of the time to the loss of "
        low += f"{_at_rate(record, field.lowest)}, the lowest without statistics"
    if _is_fast(record, field):
        text = f"Worth it: {what} takes {share}{f', and {low}' if low else ''}."
        mine = figures(record, winner).best
        lowest = figures(record, field.lowest).best
        if mine.low > lowest.high:
            text += f" For the lowest loss take {_at_rate(record, field.lowest)}: "
            text += f"{loss(lowest)} against {loss(mine)}."
        return text
    assert field.fastest is not None
    faster = _at_rate(record, field.fastest)
    return (
        f"Worth it for a lower loss: {what} takes {low}. To {_whose(record)} loss, "
        f"{faster} is faster: {_share(record, field.fastest)} of the time against "
        f"{_share(record, winner)}."
    )


def _share(record: Record, name: str, than: str | None = None) -> str:
    """The time to a loss that was reached, as text."""
    seconds = figures(record, name, than).seconds
    assert seconds is not None
    return times(seconds)


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


def _about_rivals(record: Record, field: Field) -> list[str]:
    """What is to be said of those without statistics: who is faster, who ends lower."""
    said, fastest = [], field.fastest
    if fastest is not None and (it := figures(record, fastest)).steps is not None:
        said.append(
            f"Without statistics, {_at_rate(record, fastest)} is first at "
            f"{_whose(record)} loss, in {times(it.steps)} of the steps and "
            f"{_share(record, fastest)} of the time."
        )
    if field.lowest == field.baseline:
        return said
    lowest = figures(record, field.lowest).best
    text = f"Without statistics, {_at_rate(record, field.lowest)} ends lowest, at "
    text += loss(lowest)
    if field.ours is not None:
        than = figures(record, field.ours, field.lowest)
        label = _label(record, field.ours)
        if than.steps is not None and than.seconds is not None:
            text += f"; {label} comes to that loss in {times(than.steps)} of its steps "
            text += f"and {times(than.seconds)} of its time"
            if than.best.high < lowest.low:
                text += f", and ends lower, at {loss(than.best)}"
        else:
            seeds = counted(len(record["seeds"]), "seed")
            text += f"; {label} comes to that loss on {than.reached} of {seeds}"
    return [*said, f"{text}."]


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
