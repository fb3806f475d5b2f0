"""What counts as survived, and how a cell of a table says so."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.faults.training import Run

CLOSE = 1.1  # of the clean run's loss: as near as this counts as reached
PEAK = 10.0  # of the first loss: a detour higher than this is told

Cell = dict[str, Any]  # "survived", and the figures that say so


def against(clean: list[float], runs: list[Run]) -> Cell:
    """The loss against the same run's without the fault: the worst of the seeds."""
    ratio = _worst(each.final / want for each, want in zip(runs, clean, strict=True))
    sound = all(each.sound for each in runs)
    return {"survived": sound and ratio <= CLOSE, "sound": sound, "ratio": ratio}


def falls(runs: list[Run]) -> Cell:
    """The last loss against the first: the worst of the seeds, and of the way."""
    ratio = _worst(each.end / each.start for each in runs)
    peak = _worst(float(np.max(each.losses) / each.start) for each in runs)
    sound = all(each.sound for each in runs)
    survived = sound and ratio < 1
    return {"survived": survived, "sound": sound, "ratio": ratio, "peak": peak}


def _worst(ratios: Iterable[float]) -> float:
    """The largest, and infinite if any is not a number."""
    return max(ratio if np.isfinite(ratio) else np.inf for ratio in ratios)


def figure(cell: Cell) -> str:
    """A ratio of losses; bold with a `no` where the fault was not survived."""
    ratio = cell["ratio"]
    if not cell["sound"]:
        text = "not finite"
    else:
        # A number that is not finite comes back from JSON as None.
        text = (
            "loss not finite" if ratio is None or np.isinf(ratio) else f"{ratio:.3g}x"
        )
    peak = cell.get("peak")
    if cell["survived"] and peak is not None and peak > PEAK:
        text += f", after {peak:.2g}x"
    return text if cell["survived"] else f"**no**: {text}"
