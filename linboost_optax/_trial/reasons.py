"""What is to be said for a verdict, and what lessens the trust in it."""

from __future__ import annotations

from linboost_optax._trial.analysis import Record, figures
from linboost_optax._trial.competitors import OWN
from linboost_optax._trial.field import Field
from linboost_optax._trial.phrases import (
    LOSSES,
    at_rate,
    compared,
    counted,
    label,
    loss,
    share,
    times,
    whose,
)


def about(record: Record, name: str | None) -> list[str]:
    """What is to be said of one competitor beside the baseline."""
    if name is None:
        return []
    it, base = figures(record, name), figures(record, record["baseline"])
    called, target = label(record, name), LOSSES[record["target"]]
    goal = f"{whose(record)} {target}"
    if it.steps is not None and it.seconds is not None:
        said = (
            f"{called} comes to {goal} in {times(it.steps)} of the steps and "
            f"{times(it.seconds)} of the time."
        )
    elif it.reached:
        seeds = counted(len(record["seeds"]), "seed")
        said = f"{called} comes to {goal} on {it.reached} of {seeds} only."
    else:
        said = f"{called} does not come to {goal}."
    of = "yours" if record["baseline"] == OWN else "Adam's"
    entries = record["entries"]
    more = entries[name]["compile_seconds"]
    more -= entries[record["baseline"]]["compile_seconds"]
    return [
        said,
        f"Its lowest {target} is {compared(it.best, base.best)}: {loss(it.best)} "
        f"against {loss(base.best)}.",
        f"{it.works} of {it.rates} learning rates work; of {of}, {base.works} of "
        f"{base.rates}.",
        f"A step takes {it.step.middle:.2f}x of the time and holds {it.memory:.2f}x of "
        f"the memory; it takes {abs(more):.1f} s {'more' if more >= 0 else 'less'} to "
        "compile, once.",
    ]


def about_rivals(record: Record, field: Field) -> list[str]:
    """What is to be said of those without statistics: who is faster, who ends lower."""
    said, fastest = [], field.fastest
    if fastest is not None and (it := figures(record, fastest)).steps is not None:
        said.append(
            f"Without statistics, {at_rate(record, fastest)} is first at "
            f"{whose(record)} loss, in {times(it.steps)} of the steps and "
            f"{share(record, fastest)} of the time."
        )
    if field.lowest == field.baseline:
        return said
    lowest = figures(record, field.lowest).best
    text = f"Without statistics, {at_rate(record, field.lowest)} ends lowest, at "
    text += loss(lowest)
    if field.ours is not None:
        than = figures(record, field.ours, field.lowest)
        called = label(record, field.ours)
        if than.steps is not None and than.seconds is not None:
            text += (
                f"; {called} comes to that loss in {times(than.steps)} of its steps "
            )
            text += f"and {times(than.seconds)} of its time"
            if than.best.high < lowest.low:
                text += f", and ends lower, at {loss(than.best)}"
        else:
            seeds = counted(len(record["seeds"]), "seed")
            text += f"; {called} comes to that loss on {than.reached} of {seeds}"
    return [*said, f"{text}."]


def notes(record: Record) -> list[str]:
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
        label(record, name)
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
