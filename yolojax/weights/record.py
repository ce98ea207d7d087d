"""The network of a run, as its folder keeps it for those who resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.model.spec import ModelSpec

NETWORK = "network.json"


@dataclass(frozen=True, eq=False)
class NetworkRecord:
    """The network of a run, as its folder keeps it.

    Attributes:
      spec: with the anchors that are trained with.
      names: of the classes.
      source: where the initial weights come from.
    """

    spec: ModelSpec
    names: tuple[str, ...]
    source: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, under the names that ``weights.json`` has too; ``read_network`` reads it back."""
        return {"architecture": self.spec.to_dict(), "classes": list(self.names), "source": dict(self.source)}


def read_network(folder: Path) -> NetworkRecord:
    """The network of a run, from its folder.

    Raises:
      UserError: the folder does not hold it, or what it holds is damaged.
    """
    # Version 0.1 kept it beside the weights alone, which it wrote after the first epoch.
    places = [folder / NETWORK, *(folder / "weights" / name / "weights.json" for name in ("last", ".last.replaced"))]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(
            f"{folder}: holds no {NETWORK}; it was begun by yolojax 0.1 and stopped in its first epoch: "
            "continue it with that version, or begin a new run"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        spec = ModelSpec.from_dict(content["architecture"], file)
        return NetworkRecord(spec, tuple(map(str, content["classes"])), dict(content["source"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({error!r}), so that the run cannot go on; begin a new one") from error
