"""What a compiled step costs: time to compile, operations, memory; recorded when it is compiled."""

from __future__ import annotations

from typing import Any

import jax


def program_record(lowered: Any) -> dict[str, Any]:
    """The cost of a program as XLA counts it.

    Args:
      lowered: what ``jitted.lower(...)`` gives; a program that was just called is not compiled again.

    Returns:
      ``flops`` of one call and its ``argument_bytes``, ``temporary_bytes``; None where the platform does not say.
    """
    compiled = lowered.compile()
    costs = compiled.cost_analysis() or lowered.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops": costs.get("flops"),
        "argument_bytes": None if memory is None else memory.argument_size_in_bytes,
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
    }


def device_peak_bytes(device: jax.Device) -> int | None:
    """The most memory that this process ever held on a device, in bytes; None where the device does not say (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
