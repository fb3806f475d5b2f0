"""What figures share. Colours belong to optimizers and are the same in every figure."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import optimizers
from benchmarks.optimizers import OPTIMIZERS

DPI = 130
LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}

# Nine strong colours, then their pale partners, which are dashed, then the strong ones
# dotted: 27 styles, told apart by hue, by strength and in black and white. Grey (7) is
# for lines of reference.
_HUES = (0, 1, 2, 3, 4, 5, 6, 8, 9)
COLOURS = [colormaps["tab20"](2 * hue + pale) for pale in (0, 1, 0) for hue in _HUES]
LINES = [line for line in ("-", "--", ":") for _ in _HUES]


def style(name: str) -> dict[str, Any]:
    """Colour and line of an optimizer; strong ones for those that are drawn most."""
    raced = optimizers.of("main")
    others = [each for each in OPTIMIZERS if each not in raced]
    return style_of([*raced, *others].index(name))


def style_of(index: int) -> dict[str, Any]:
    """Colour and line of the competitor with this number."""
    turn = index % len(COLOURS)
    return {"color": COLOURS[turn], "linestyle": LINES[turn]}


def limit(axis: Axes, values: list[float], start: float) -> None:
    """Keep a loss that ran away, or to nothing, from flattening the others."""
    shown = [value for value in values if 1e-12 * start < value < 10 * start]
    axis.set_ylim(min(shown) / 1.3, max(shown) * 1.3)


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def save_small(figure: Figure, path: Path) -> None:
    """Write a figure of few colours, small enough for a repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with BytesIO() as whole:
        figure.savefig(whole, dpi=DPI)
        Image.open(whole).convert("RGB").quantize(64).save(path, optimize=True)
