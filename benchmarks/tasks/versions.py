"""Versions of a task that one thing sets apart, for the job `transfer`.

What differs is data: a label and a function that builds the task. The first version is
what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.tasks import dense
from benchmarks.tasks._models import MLP, Chain, Norm, batch_norm, layer_norm
from benchmarks.tasks._task import Task

SAMPLES = 40_960  # that every batch size reads: seven epochs of the digits
FEWEST = 160  # steps of the largest batches: they read more


@dataclass(frozen=True)
class Study:
    """One thing that changes, and the learning rates at which all versions train."""

    title: str
    versions: dict[str, Callable[[], Task]]
    lowest: float = 1e-4  # of the learning rates
    highest: float = 1.0
    points: int = 9
    leaves_out: tuple[str, ...] = ()  # optimizers that do not run on it
    quick: int = 4  # versions in a run that proves only that it runs

    def chosen(self, quick: bool) -> list[tuple[str, Callable[[], Task]]]:
        """The versions that a run trains."""
        return list(self.versions.items())[: self.quick if quick else None]

    def rates(self, shift: float = 1.0, points: int | None = None) -> list[float]:
        """Learning rates evenly spaced on a logarithmic scale, two digits each."""
        rates = np.geomspace(self.lowest, self.highest, points or self.points) * shift
        return [float(f"{rate:.2g}") for rate in rates]


def of_batches(size: int) -> Task:
    """The digits classifier with batches of another size, as many samples in all."""
    steps = max(FEWEST, SAMPLES // size)
    return replace(
        dense.classifier((256,)),
        batch_size=size,
        steps=steps,
        every=steps // 16 // 10 * 10,
        evaluated=2000,
    )


def of_depth(depth: int) -> Task:
    """Tanh layers 16 wide, so many of them, before the ten classes."""
    return _for(400, dense.classify(Chain(width=16, depth=depth)))


def normalised(norm: Norm | None) -> Task:
    """Five tanh layers 64 wide with a normalisation before every tanh, or none."""
    return _for(200, dense.classify(MLP((64,) * 5 + (10,), norm=norm)))


def _for(steps: int, task: Task) -> Task:
    return replace(task, steps=steps, every=20, evaluated=2000)


# Rates from 0.00032 to 0.32, a factor of the square root of ten between two.
_FEWER = {"lowest": 10**-3.5, "highest": 10**-0.5, "points": 7}
# SOAP would add a third to the time; in a chain it is not SOAP: it takes a stack of
# kernels for one matrix.
_NEWER = {**_FEWER, "leaves_out": ("soap",), "quick": 2}

STUDIES = {
    "inputs": Study(
        "Classifier 100-256-10, inputs in other units",
        {
            "pixels in [0, 1]": lambda: dense.classifier((256,)),
            "[0, 0.1]": lambda: dense.classifier((256,), unit=0.1),
            "[0, 10]": lambda: dense.classifier((256,), unit=10.0),
            "[3, 4]": lambda: dense.classifier((256,), offset=3.0),
        },
    ),
    "widths": Study(
        "Classifier 100-width-width-10",
        {
            "64 wide": lambda: dense.classifier((64, 64)),
            "128 wide": lambda: dense.classifier((128, 128)),
            "256 wide": lambda: dense.classifier((256, 256)),
            "512 wide": lambda: dense.classifier((512, 512)),
        },
    ),
    "batches": Study(
        f"Classifier 100-256-10, batches of other sizes, {SAMPLES:,} samples in all "
        f"or {FEWEST} steps, whichever is more",
        {
            "batches of 16": lambda: of_batches(16),
            "of 64": lambda: of_batches(64),
            "of 256": lambda: of_batches(256),
            "of 1024": lambda: of_batches(1024),
        },
        **_NEWER,
    ),
    "depths": Study(
        "Classifier 100-16-...-16-10, tanh layers, 400 steps",
        {
            "5 layers": lambda: of_depth(5),
            "10 layers": lambda: of_depth(10),
            "20 layers": lambda: of_depth(20),
            "50 layers": lambda: of_depth(50),
            "100 layers": lambda: of_depth(100),
        },
        **_NEWER,
    ),
    "norms": Study(
        "Classifier 100-64-64-64-64-64-10, normalised or not, 200 steps",
        {
            "plain": lambda: normalised(None),
            "BatchNorm": lambda: normalised(batch_norm),
            "LayerNorm": lambda: normalised(layer_norm),
        },
        **_NEWER,
    ),
}
