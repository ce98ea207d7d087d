"""What all figures share: how one is made, its colours, and the look of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolojax.drawing import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in PALETTE)
INK, MUTED, LINE = "#1c2430", "#5b6472", "#dfe3e8"  # of what matters most, of labels, and of axes and grids


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no display and no global state; its size is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def quiet_axes(axes: Axes) -> None:
    """Axes that leave the eye to the data: grey labels and grid, no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=9, color=LINE)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
