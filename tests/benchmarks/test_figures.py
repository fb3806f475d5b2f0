"""Figures: styles that can be told apart, and axes that show what there is."""

import math

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from benchmarks import figures
from benchmarks.jobs import races
from benchmarks.optimizers import OPTIMIZERS
from tests.benchmarks.curves import curves, result_of


def test_a_runaway_curve_does_not_flatten_the_figure():
    figure = Figure()
    axis = figure.subplots()
    axis.semilogy()
    losses = [8.0, 1e30, math.nan, math.inf, 0.0, 0.5]
    figures.limit(axis, losses, start=8.0)
    assert axis.get_ylim() == pytest.approx((0.5 / 1.3, 8 * 1.3))


def test_sixteen_competitors_have_colours_of_their_own():
    colours = [to_hex(figures.style_of(index)["color"]) for index in range(16)]
    assert len(set(colours)) == 16
    assert "#7f7f7f" not in colours  # the grey of the lines of reference
    lines = {figures.style_of(index)["linestyle"] for index in range(16)}
    assert lines == {"-", "--"}
    assert len(OPTIMIZERS) <= len(figures.COLOURS)


def test_a_race_is_drawn_with_every_curve_and_the_target(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    other = curves([8.0, 0.9, 0.8, 0.7, 0.6], [0, 1.5, 3, 4.5, 6])
    races.draw(result_of(other), tmp_path / "x.png")
    over_steps, over_time, test, _ = drawn[0].axes
    adam, muon, target = over_steps.get_lines()
    assert adam.get_label() == "Adam, 0.1"
    assert list(muon.get_ydata()) == other["train_loss"]
    assert list(over_time.get_lines()[1].get_xdata()) == other["seconds"]
    assert list(test.get_lines()[1].get_ydata()) == other["test_loss"]
    assert target.get_ydata()[0] == 1.0
    assert len(test.get_lines()) == 2
    assert adam.get_color() != muon.get_color()
