"""How long a StableHLO file can be read: ``jax.export`` promises six months of newer versions.

Source: docs.jax.dev, "Exporting and serializing", compatibility guarantees.
"""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import jax

_SIX_MONTHS = timedelta(days=182)


def promise(today: date) -> dict[str, str]:
    """What stands beside a file that is written today: ``jax``, the version that wrote it, ``written`` and ``readable_until``, dates.

    Six months are counted from today; the promise counts from the release of that version, which no installed JAX tells.
    """
    return {
        "jax": jax.__version__,
        "written": today.isoformat(),
        "readable_until": (today + _SIX_MONTHS).isoformat(),
    }


def expiry(path: Path, today: date) -> str | None:
    """A sentence where the promise for a StableHLO file is over; None where it holds, or nothing beside the file tells."""
    try:
        facts: Any = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        until = date.fromisoformat(facts["readable_until"])
        written = f"jax {facts['jax']} on {facts['written']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if today <= until:
        return None
    return f"{path}: written by {written}, was promised to be readable until {until}; export it again from its weights"
