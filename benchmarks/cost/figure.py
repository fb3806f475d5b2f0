"""The figure of the page: what was measured, and below it what was computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from benchmarks import figures
from benchmarks.growth import curves
from benchmarks.job import BASELINE, Result
from benchmarks.scaling.collectives import total

HATCHES = {BASELINE: "..", "whiten": "///", "polar": "xx"}
COMPUTED = "0.93"  # the ground of what was computed, a grey


def draw(results: dict[str, list[Result]]) -> Figure:
    """Curves of `growth`, lines and bars of `scaling` and `large_models`."""
    figure = Figure(figsize=(11, 12.5), layout="constrained")
    time, state, devices, models = figure.subfigures(4, 1, squeeze=False)[:, 0]
    _grown(time, results["growth"], curves.step_time)
    time.suptitle("Measured, one device: step time / Adam's, median and quartiles")
    _grown(state, results["growth"], curves.state_bytes)
    state.suptitle("Measured, one device: bytes of the state / Adam's")
    _devices(devices, results["scaling"])
    devices.suptitle("Measured, compiled for up to eight devices of a CPU, 512 rows")
    models.set_facecolor(COMPUTED)
    _models(models, results["large_models"])
    models.suptitle("Computed from shapes: large models, rows of kernels sharded")
    return figure


def _grown(
    part: SubFigure, results: Sequence[Result], panel: Callable[[Axes, Result], None]
) -> None:
    panels = part.subplots(1, len(results))
    for axis, result in zip(panels, results, strict=True):
        panel(axis, result)
    panels[-1].legend(frameon=False)


def _devices(part: SubFigure, results: Sequence[Result]) -> None:
    """State on each device, and what most devices say, for one size of a batch."""
    ratios = [1.0] * len(results) + [1.3]
    *panels, last = part.subplots(1, len(ratios), width_ratios=ratios)
    said: dict[str, list[float]] = {}
    for axis, result in zip(panels, results, strict=True):
        runs = [run for run in result["runs"] if run["batch"] == result["rows"]]
        runs = sorted(runs, key=lambda run: run["devices"])
        counts = [run["devices"] for run in runs]
        for number, name in enumerate(runs[0]["optimizers"]):
            held = [run["optimizers"][name]["state_bytes"] / 2**20 for run in runs]
            label = runs[0]["optimizers"][name]["label"]
            axis.plot(counts, held, label=label, **curves.mark(name, number))
            own, adam = (
                total(runs[-1]["optimizers"][each]["every_step"], "bytes")
                for each in (name, BASELINE)
            )
            said.setdefault(name, []).append(own / adam)
        curves.doubling(axis, counts)
        curves.from_zero(axis)
        axis.set_xlabel(f"devices, {result['task']}")
    panels[0].set_ylabel("state, MiB a device")
    panels[0].legend(frameon=False, fontsize="small")
    _bars(last, said, [result["task"] for result in results])
    last.tick_params("x", labelsize="small")
    last.set_title("said by eight / Adam", fontsize="medium")


def _models(part: SubFigure, results: Sequence[Result]) -> None:
    panels = part.subplots(1, 3)
    titles = [result["title"] for result in results]
    quantities: dict[str, Callable[[Result, dict[str, Any]], float]] = {
        "state on one of 256 devices / Adam": lambda result, entry: (
            entry["state_bytes_a_device"]["256"]
            / result["optimizers"][BASELINE]["state_bytes_a_device"]["256"]
        ),
        "operations of the update / network's, %": lambda result, entry: (
            100 * entry["flops"] / result["flops"]
        ),
        "said in a step / Adam": lambda result, entry: (
            entry["said"] / result["optimizers"][BASELINE]["said"]
        ),
    }
    for axis, (title, quantity) in zip(panels, quantities.items(), strict=True):
        values = {
            name: [quantity(each, each["optimizers"][name]) for each in results]
            for name in results[0]["optimizers"]
        }
        _bars(axis, values, titles)
        axis.set_title(title, fontsize="medium")
    labels = [entry["label"] for entry in results[0]["optimizers"].values()]
    handles = panels[0].containers
    part.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _bars(axis: Axes, values: dict[str, list[float]], groups: Sequence[str]) -> None:
    """A group for each place, in it a bar for each optimizer."""
    width = 0.8 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        left = [place - 0.4 + (number + 0.5) * width for place in range(len(groups))]
        axis.bar(
            left,
            heights,
            width,
            color=figures.style(name)["color"],
            hatch=HATCHES.get(name, ""),
            edgecolor="black",
            linewidth=0.6,
        )
    axis.set_xticks(range(len(groups)), groups)
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
