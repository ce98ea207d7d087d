"""Ctrl-C and SIGTERM end a run cleanly: the first is noted and acted on between two steps, the second quits at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from yolojax.system import stop_signals


class Interrupt:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def status(self) -> int:
        """The exit status that shells expect after the signal."""
        return 128 + (self.signal or 0)


@contextmanager
def interruptible(tell: bool = True) -> Iterator[Interrupt]:
    """Note a signal that asks to stop inside the block instead of dying of it, and ``tell`` so; the handlers before it come back afterwards."""
    interrupt = Interrupt()

    def note(number: int, _: FrameType | None) -> None:
        interrupt.signal = number
        for later in stop_signals():  # ends the process even while it compiles, where Python's handlers have to wait
            signal.signal(later, signal.SIG_DFL)
        if tell:
            print("\nfinishing this step, then saving; once more to quit at once", flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, note) for number in stop_signals()}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
