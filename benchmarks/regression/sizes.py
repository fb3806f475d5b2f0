"""What grows in the job `ills_growth`, and how long the trainers may take there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.regression.trainers import Trainer, by_ills

CHUNK = 8192
IN_CHUNKS = by_ills(chunk_size=CHUNK)
ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "softplus", "elu")
# Few iterations leave the small rates behind: on many rows they would only cost time.
FAST_RATES = (1e-2, 3e-2)
# What the clock sees of those trainers whose own number is for small problems.
TIMED = 50


@dataclass(frozen=True)
class Point:
    """One size: data, network, and what there is time for.

    Attributes:
      size: its name on the axis.
      rows: of the training data.
      hidden: units of every hidden layer.
      activation: a name that `ills.network` knows.
      share: of every trainer's iterations.
      seeds: at most.
      chunked: whether ILLS takes its samples in chunks.
    """

    size: str
    rows: int = 1000
    hidden: tuple[int, ...] = (20,)
    activation: str = "tanh"
    share: float = 1.0
    seeds: int = 5
    chunked: bool = False

    def trainers(self, known: Mapping[str, Trainer]) -> dict[str, Trainer]:
        """The trainers with the iterations that they have here."""
        return {key: self._trainer(each) for key, each in known.items()}

    def _trainer(self, trainer: Trainer) -> Trainer:
        steps = max(1, round(self.share * trainer.steps))
        timed = max(3, round(self.share * min(trainer.timed, TIMED)))
        rates = trainer.rates
        if self.share <= 0.25 and rates != (None,):
            rates = FAST_RATES
        train = trainer.train
        if self.chunked and trainer.label == "ILLS":
            train = IN_CHUNKS
        return replace(trainer, train=train, steps=steps, timed=timed, rates=rates)


@dataclass(frozen=True)
class Growth:
    """One size that grows, from the smallest."""

    title: str
    axis: str
    points: tuple[Point, ...]


def _width(units: int) -> Point:
    return Point(str(units), hidden=(units,))


def _depth(layers: int) -> Point:
    return Point(str(layers), hidden=(20,) * layers)


GROWTHS = {
    "width": Growth(
        "Width of one hidden layer, 1,000 rows",
        "hidden units",
        tuple(map(_width, (5, 20, 50, 100, 200))),
    ),
    "depth": Growth(
        "Hidden layers of 20 units, 1,000 rows",
        "hidden layers",
        tuple(map(_depth, (1, 2, 3, 4))),
    ),
    "samples": Growth(
        "Rows, one hidden layer of 20 units",
        "rows",
        (
            Point("1,000"),
            Point("10,000", rows=10_000, share=0.5, seeds=3),
            Point("100,000", rows=100_000, share=0.25, seeds=3),
            Point("1,000,000", rows=1_000_000, share=0.1, seeds=3, chunked=True),
        ),
    ),
    "activations": Growth(
        "Activations of one hidden layer of 20 units, 1,000 rows",
        "activation",
        tuple(Point(name, activation=name) for name in ACTIVATIONS),
    ),
}
