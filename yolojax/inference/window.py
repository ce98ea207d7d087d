"""A window for annotated images while they are made: what ``yolojax detect --view-img`` opens."""

from __future__ import annotations

import os
import sys
from typing import Any

from yolojax.data.sample import Pixels


def has_display() -> bool:
    """Whether this process may open a window: on Linux X11 or Wayland has to be there."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_window() -> Window | None:
    """A window, or None where there is no display, or nothing that opens a window on it.

    Matplotlib opens it, with whatever of Qt, GTK, Tk, … is there; OpenCV's build without windows is what yolojax is installed with.
    """
    if not has_display():
        return None
    import matplotlib.pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    try:
        figure = plt.figure("yolojax", layout="tight")
    except Exception:  # every toolkit has an error of its own for a display that does not answer
        return None
    if plt.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
        plt.close(figure)
        return None
    return Window(figure)


class Window:
    """Shows one image after the other in the same place."""

    def __init__(self, figure: Any) -> None:
        """A figure of pyplot with an interactive backend."""
        self.figure = figure
        self.artist: Any = None

    def show(self, image: Pixels, title: str) -> None:
        """Show an image, uint8 RGB; nothing happens after the user has closed the window."""
        import matplotlib.pyplot as plt

        if not plt.fignum_exists(self.figure.number):
            return
        if self.artist is None or self.artist.get_array().shape != image.shape:
            self.figure.clear()
            axes = self.figure.add_subplot()
            axes.set_axis_off()
            self.artist = axes.imshow(image)
        self.artist.set_data(image)
        self.artist.axes.set_title(title, fontsize=9)
        plt.show(block=False)
        self.figure.canvas.draw_idle()
        self.figure.canvas.flush_events()

    def wait(self) -> None:
        """Leave the last image there until the user closes the window."""
        import matplotlib.pyplot as plt

        if plt.fignum_exists(self.figure.number):
            plt.show(block=True)
