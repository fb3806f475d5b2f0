"""The figures. Colours belong to optimizers and are the same in every figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.analysis import BASELINE, best
from benchmarks.optimizers import OPTIMIZERS

LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}


def colour(name: str) -> Any:
    """The colour of an optimizer."""
    return colormaps["tab10"](list(OPTIMIZERS).index(name))


def race_figure(result: dict[str, Any], path: Path) -> None:
    """Training and test loss over steps and over time; one seed's curves."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    for row, (key, label) in enumerate(LOSSES.items()):
        for column, over in enumerate(("step", "seconds")):
            axis = axes[row][column]
            _curves(axis, result, over, key)
            if column == 0:
                axis.set_ylabel(label)
            if row == 1:
                axis.set_xlabel("steps" if over == "step" else "seconds of training")
    goal = best(result["optimizers"][BASELINE]["curves"][0], result["target"])
    raced = axes[list(LOSSES).index(result["target"])]
    for axis in raced:
        axis.axhline(goal, color="grey", linestyle=":", label="Adam's best")
    figure.suptitle(f"{result['title']}: learning rates tuned, then one run in turn")
    handles, labels = raced[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


def sensitivity_figure(result: dict[str, Any], path: Path) -> None:
    """Best loss of every learning rate; the rate is relative to the tuned one."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    for name, entry in result["optimizers"].items():
        share = f"{entry['label']}: {entry['share_of_own_best']:.0%} within 10 %"
        axis.loglog(
            entry["relative_rates"],
            entry["losses"],
            marker="o",
            color=colour(name),
            label=share,
        )
        limit = 1.1 * min(entry["losses"])
        axis.axhline(limit, color=colour(name), linestyle=":", linewidth=1)
    axis.set_xlabel("learning rate / tuned learning rate")
    axis.set_ylabel(f"best {LOSSES[result['target']]}")
    axis.grid(alpha=0.3, which="both")
    axis.set_title(f"{result['title']}: sensitivity to the learning rate")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def step_time_figure(result: dict[str, Any], path: Path) -> None:
    """Step time relative to Adam: median and quartiles."""
    entries = result["optimizers"]
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(entries)), layout="constrained")
    axis = figure.subplots()
    for row, (name, entry) in enumerate(entries.items()):
        low, middle, high = entry["ratio_quartiles"]
        error = [[middle - low], [high - middle]]
        axis.barh(row, middle, xerr=error, color=colour(name), alpha=0.85, capsize=3)
        axis.text(high, row, f"  {middle:.2f}x", va="center")
    axis.set_yticks(range(len(entries)), [entry["label"] for entry in entries.values()])
    axis.invert_yaxis()
    axis.axvline(1, color="grey", linestyle=":")
    axis.margins(x=0.12)
    axis.set_xlabel("step time / Adam's, same run, median and quartiles")
    axis.set_title(f"{result['title']}, batch {result['batch_size']}: step time")
    _save(figure, path)


def _curves(axis: Axes, result: dict[str, Any], over: str, key: str) -> None:
    values: list[float] = []
    for name, entry in result["optimizers"].items():
        curves = entry["curves"][0]
        label = f"{entry['label']}, {entry['learning_rate']:g}"
        axis.semilogy(curves[over], curves[key], color=colour(name), label=label)
        values += curves[key]
    _limit(axis, values, start=values[0])
    axis.grid(alpha=0.3, which="both")


def _limit(axis: Axes, values: list[float], start: float) -> None:
    """Keep a loss that ran away, or to nothing, from flattening the others."""
    shown = [value for value in values if 1e-12 * start < value < 10 * start]
    axis.set_ylim(min(shown) / 1.3, max(shown) * 1.3)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
