"""What a trial came to, in words: whether it is worth it, why, and what would be.

Ours is worth it where it is ahead of the user's optimizer as it is, and of all that
needs no statistics, at any rate: of what one would try first. That is either in time to
the user's loss, or in time to the lowest losses of these.
"""

from __future__ import annotations

from typing import NamedTuple

from linboost_optax._trial.analysis import Figures, Record, figures
from linboost_optax._trial.competitors import OURS, OWN
from linboost_optax._trial.field import Field, of
from linboost_optax._trial.phrases import at_rate, label, loss, share, times, whose
from linboost_optax._trial.reasons import about, about_rivals, notes

_WORTH = 0.95  # of another's time, at most, for a change to be worth it


class Verdict(NamedTuple):
    """The verdict on a trial.

    Attributes:
      winner: who is recommended: a name; the baseline to change nothing;
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
        return Verdict(None, False, headline, tuple(notes(record)))
    field = of(record, raced)
    winner = _winner(record, field)
    reasons = [*about(record, field.ours), *about_rivals(record, field)]
    return Verdict(
        winner,
        winner in OURS,
        _headline(record, field, winner),
        (*reasons, *notes(record)),
    )


def better(it: Figures) -> bool:
    """Whether a competitor is ahead on every seed, by the clock."""
    seconds = it.seconds
    return seconds is not None and seconds.middle <= _WORTH and seconds.high < 1


def _winner(record: Record, field: Field) -> str:
    if _is_fast(record, field) or _is_low(record, field):
        assert field.ours is not None
        return field.ours
    ahead = [
        name
        for name in (field.fastest, field.lowest)
        if name is not None and better(figures(record, name))
    ]
    if not ahead:
        return field.baseline
    # Of two that are faster than the user's the one that surely ends lower.
    first, last = (figures(record, name).best for name in (ahead[0], ahead[-1]))
    return ahead[-1] if last.high < first.low else ahead[0]


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
    """Whether ours is ahead of all at their own lowest losses, below the baseline's."""
    if field.ours is None or field.lowest == field.baseline:
        return False
    rivals = {field.baseline, field.lowest, field.fastest} - {None}
    return all(better(figures(record, field.ours, rival)) for rival in rivals)


def _headline(record: Record, field: Field, winner: str) -> str:
    what, baseline, ours = at_rate(record, winner), field.baseline, field.ours
    lower = _lower(record, field, winner)
    if winner == baseline:
        keep = "keep what you have" if winner == OWN else f"take {what}"
        return f"Not worth it here, because {_because(record, ours)}: {keep}.{lower}"
    taken = f"{share(record, winner)} of the time to {whose(record)} loss"
    if winner != ours:
        if ours is not None and better(figures(record, ours)):
            return (
                f"Not worth it here, because {what} does as well without it: {taken}."
                f"{lower}"
            )
        because = _because(record, ours)
        return (
            f"Not worth it here, because {because}. {what}, which takes {taken}, is."
            f"{lower}"
        )
    low = ""
    if _is_low(record, field):
        low = f"{share(record, winner, field.lowest)} of the time to the loss of "
        low += f"{at_rate(record, field.lowest)}, the lowest without statistics"
    if _is_fast(record, field):
        return f"Worth it: {what} takes {taken}{f', and {low}' if low else ''}.{lower}"
    assert field.fastest is not None
    faster = at_rate(record, field.fastest)
    return (
        f"Worth it for a lower loss: {what} takes {low}. To {whose(record)} loss, "
        f"{faster} is faster: {share(record, field.fastest)} of the time against "
        f"{share(record, winner)}."
    )


def _lower(record: Record, field: Field, winner: str) -> str:
    """Who ends lower than the one that is recommended, if anyone surely does."""
    names = [name for name in (field.lowest, field.ours) if name is not None]
    name = min(names, key=lambda name: figures(record, name).best.middle)
    mine, lowest = (figures(record, each).best for each in (winner, name))
    if not mine.low > lowest.high:
        return ""
    against = f"{loss(lowest)} against {loss(mine)}"
    return f" For the lowest loss take {at_rate(record, name)}: {against}."


def _because(record: Record, ours: str | None) -> str:
    """Why the best of ours is not recommended."""
    if ours is None:
        return "none of ours could run"
    seconds = figures(record, ours).seconds
    if seconds is None:
        return f"{label(record, ours)} does not come to that loss on every seed"
    text = f"{label(record, ours)} takes {times(seconds)} of the time to the same loss"
    if seconds.middle <= 1 and seconds.high >= 1:
        return f"{text}, which cannot be told from chance"
    return text if seconds.middle > 1 else f"{text}, which is hardly less"
