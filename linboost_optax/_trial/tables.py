"""The figures of a trial as a table, the change, and the facts, as text."""

from __future__ import annotations

from collections.abc import Sequence

from linboost_optax._trial.analysis import Record, figures
from linboost_optax._trial.competitors import OWN
from linboost_optax._trial.phrases import counted, listed, loss, times
from linboost_optax._trial.verdict import Verdict

HEADER = (
    "optimizer",
    "rate",
    "steps to the loss",
    "time to the loss",
    "lowest loss",
    "training loss",
    "test loss",
    "rates that work",
    "time of a step",
    "memory of a step",
)


def rows(record: Record) -> list[tuple[str, list[str]]]:
    """One row for every competitor that raced."""
    found = []
    for name, entry in record["entries"].items():
        if not entry["curves"]:
            continue
        it = figures(record, name)
        missed = f"on {it.reached} of {len(entry['curves'])} seeds"
        cells = [
            entry["label"],
            f"{entry['rate']:g}" + ("*" if entry["edge"] else ""),
            times(it.steps) if it.steps else missed,
            times(it.seconds) if it.seconds else missed,
            loss(it.best),
            loss(it.train),
            loss(it.test) if it.test else "-",
            f"{it.works} of {it.rates}",
            f"{it.step.middle:.2f}x",
            f"{it.memory:.2f}x",
        ]
        found.append((name, cells))
    return found


def table(record: Record) -> str:
    """The same as aligned text."""
    return aligned([list(HEADER), *(cells for _, cells in rows(record))])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    first, *others = widths
    return "\n".join(
        "  ".join(
            [line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], others))]
        ).rstrip()
        for line in lines
    )


def reading(record: Record) -> str:
    """How to read the table."""
    own = record["baseline"] == OWN
    whose = "your optimizer at your rate" if own else "Adam at its best rate"
    target = "test" if record["target"] == "test_loss" else "training"
    return (
        f"The loss is the lowest {target} loss of {whose} on the same seed; steps and "
        "times are multiples of its own. Medians over the seeds, with their range in "
        "brackets. A rate works if a short run at it misses at most a tenth of the "
        "fall of the loss that the best rate of the baseline has. * marks a best rate "
        "at the edge of those that were tried."
    )


def change(record: Record, judged: Verdict) -> str:
    """What to write for the winner in the place of plain gradients and Optax."""
    if judged.winner is None or judged.winner == record["baseline"] == OWN:
        return "nothing"
    entry = record["entries"][judged.winner]
    tx = entry["code"].format(rate=format(entry["rate"], "g"))
    return record["change"].format(tx=tx) if entry["tapped"] else f"+tx = {tx}"


def facts(record: Record) -> str:
    """How long it took, on what, with which versions."""
    versions = ", ".join(f"{name} {of}" for name, of in record["versions"].items())
    minutes = f"{record['elapsed_seconds'] / 60:.1f} of {record['minutes']:g} minutes"
    done = "no race"
    if record["seeds"]:
        seeds = counted(len(record["seeds"]), "seed")
        short = listed([str(each) for each in record["rung_steps"]])
        done = f"a race of {record['steps']} steps on {seeds}, rates found in runs of "
        done += f"{short} steps"
    where = f"{record['device']}, {record['cores']} cores"
    return f"{minutes}; {done}; {where}; {versions}."
