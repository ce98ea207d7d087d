"""A signal to one of several processes stops all of them, after the same step."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from jax.sharding import Mesh

from yolojax.hosts.agreement import gathered, process_count
from yolojax.interrupts import Interrupt
from yolojax.mesh import put_batch

log = logging.getLogger(__name__)

FLAG = "stop"


class CommonStop:
    """Whether this process, or another one that it trains with, was asked to stop.

    Each process puts a number per device into its part of the batch, and the step adds them up together with the loss: so all learn it from the metrics of
    the same step, without a question of its own. One process alone looks at its own interruption.
    """

    def __init__(self, interrupt: Interrupt, mesh: Mesh) -> None:
        """Watch an interruption."""
        self._interrupt = interrupt
        self._together = process_count() > 1
        self._seen = False
        if self._together:
            count = len(mesh.local_devices)
            flags = np.zeros(count, np.float32), np.ones(count, np.float32)
            self._flags = [put_batch({FLAG: flag}, mesh) for flag in flags]  # on the devices once, not at every step

    def feed(self) -> dict[str, Any]:
        """What goes with the next step."""
        return self._flags[bool(self._interrupt)] if self._together else {}

    def see(self, metrics: dict[str, np.ndarray]) -> None:
        """Look at the metrics of a step, or of several."""
        self._seen |= bool(metrics.get(FLAG, np.zeros(1)).any())

    def __bool__(self) -> bool:
        return self._seen if self._together else bool(self._interrupt)

    @property
    def status(self) -> int:
        """The exit status, the same in all processes; all have to ask."""
        own = self._interrupt.status if self._interrupt else 0
        told = [int(status) for status in gathered("status", str(own))]
        if self._together:
            log.info(
                "asked to stop: %s", ", ".join(f"process {number}" for number, status in enumerate(told) if status)
            )
        return max(told)
