"""Figures as SVG that takes the colour of the page's text, light or dark.

matplotlib is in the extra ``trial``, and imported when a picture is drawn.
"""

from __future__ import annotations

import io
from typing import Any

TEXT = "#010203"  # stands for the colour of the page's text


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, drawn without a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def legend(figure: Any, axis: Any) -> None:
    """Puts the legend of one axis below all of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def to_svg(figure: Any) -> str:
    """The figure as SVG with text as text, transparent, in the page's own colour."""
    import matplotlib

    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", colors=TEXT)
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_color(TEXT)
        for spine in axis.spines.values():
            spine.set_edgecolor(TEXT)
    for legend in figure.legends:
        for text in legend.get_texts():
            text.set_color(TEXT)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trial"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return text.replace(TEXT, "currentColor")
