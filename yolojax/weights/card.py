"""The model card of exported weights: a ``README.md`` that tells people, and in its head the Hugging Face Hub, what they are."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yolojax.config import read_yaml
from yolojax.errors import UserError
from yolojax.files import run_folder_of
from yolojax.version import __version__
from yolojax.weights.store import Weights

_LICENCES = ("agpl-3.0", "lgpl-3.0", "gpl-3.0", "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0")
_METRICS = {"map50": "mAP50", "map50_95": "mAP50-95", "precision": "precision", "recall": "recall"}
# Settings of a run that decide what it learns, with their defaults: its command names the others among them, in this order.
_FLAGS: dict[str, Any] = {
    **{"weights": None, "delta": None, "cfg": "", "data": None, "freeze": ["0"], "frozen_bn": "fixed"},
    **{"init_head": "fresh", "same_as": [], "imgsz": None, "batch_size": None, "epochs": None, "hyp": None},
    **{"optimizer": None, "cos_lr": False, "label_smoothing": 0.0, "patience": 100, "noautoanchor": False},
    **{"rect": False, "multi_scale": False, "image_weights": False, "albumentations": False, "single_cls": False},
    **{"cache": None, "dtype": "auto", "sync_bn": "on", "gradient_sum": "auto", "noval": False, "seed": 0},
    **{"replay": None, "replay_share": 0.25, "distil": None, "distil_gain": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run folder tells of the weights in it; empty where there is none.

    Attributes:
      settings: the run's flags by name.
      figures: of its validation: ``map50 map50_95 precision recall``.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


def run_facts(path: Path) -> RunFacts:
    """The facts of the run that a weights directory lies in; none where it lies in no run, or the run has not ended.

    Args:
      path: of the weights directory; the figures are those of the best epoch, or of the last one for ``last``.
    """
    folder = run_folder_of(path)
    if folder is None:
        return RunFacts()
    try:
        settings = read_yaml(folder / "settings.yaml")
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        figures = results["final" if path.name == "last" else "best"]
        return RunFacts(settings=settings, figures={key: float(figures[key]) for key in _METRICS if key in figures})
    except UserError:
        return RunFacts()
    except (OSError, ValueError, KeyError, TypeError):
        return RunFacts(settings=settings)


def train_words(settings: Mapping[str, Any]) -> list[str]:
    """The command that a run was started with, from its settings.

    >>> train_words({"weights": "yolov5n.pt", "data": "bccd", "freeze": ["10"], "seed": 0, "workers": 8})
    ['yolojax', 'train', '--weights', 'yolov5n.pt', '--data', 'bccd', '--freeze', '10']
    """
    words = ["yolojax", "train"]
    for name, default in _FLAGS.items():
        value = settings.get(name)
        if value is None or value == default:
            continue
        flag = {"imgsz": "img", "batch_size": "batch"}.get(name, name)
        words.append(f"--{flag.replace('_', '-')}")
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def model_card(weights: Weights, facts: RunFacts) -> str:
    """The content of ``README.md``.

    Args:
      weights: what it is about.
      facts: of their training, as far as they are known.
    """
    spec, source, settings = weights.spec, weights.source, facts.settings
    data = Path(str(settings["data"])).stem if "data" in settings else None
    name = f"{spec.name}-{data}" if data else spec.name
    licence = str(source.get("licence", "unknown"))
    freeze = " ".join(map(str, settings.get("freeze", ()))) or None
    rows = [
        ("network", f"{spec.name}, {spec.classes} classes, strides {', '.join(map(str, spec.strides))}"),
        ("classes", ", ".join(weights.names)),
        ("image size", f"{source['image_size']} px" if "image_size" in source else None),
        ("data", data),
        ("started from", source.get("trained_from")),
        ("frozen layers", None if freeze is None else f"{freeze}, BatchNorm {settings.get('frozen_bn', 'fixed')}"),
        *((label, f"{facts.figures[key]:.3f}") for key, label in _METRICS.items() if key in facts.figures),
        ("licence of the weights", licence),
    ]
    table = "\n".join(f"| {label} | {_cell(value)} |" for label, value in rows if value)
    command = f"\nTrained with\n\n```sh\n{shlex.join(train_words(settings))}\n```\n" if settings else ""
    head = yaml.safe_dump(_metadata(name, licence, data, facts.figures), sort_keys=False, allow_unicode=True)
    return f"""---
{head}---

# {name}

YOLOv5 in JAX and Flax, exported by yolojax {__version__}.

| | |
|-|-|
{table}
{command}
Detect with it, without PyTorch:

```sh
pip install 'yolojax[safetensors]'
yolojax detect --weights path/to/this/folder --source photos/
```
"""


def _metadata(name: str, licence: str, data: str | None, figures: Mapping[str, float]) -> dict[str, Any]:
    """What the Hub reads: its own words for licence, task and metrics."""
    metadata: dict[str, Any] = {
        "library_name": "yolojax",
        "pipeline_tag": "object-detection",
        "license": _hub_licence(licence),
        "tags": ["yolov5", "object-detection", "jax", "flax", "transfer-learning"],
    }
    if data:
        metadata["datasets"] = [data]
    if data and figures:
        metrics = [{"type": key, "name": _METRICS[key], "value": round(value, 5)} for key, value in figures.items()]
        result = {"task": {"type": "object-detection"}, "dataset": {"name": data, "type": data}, "metrics": metrics}
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _hub_licence(licence: str) -> str:
    """The Hub's name of a licence.

    >>> _hub_licence("AGPL-3.0 License - https://ultralytics.com/license"), _hub_licence("ours"), _hub_licence("unknown")
    ('agpl-3.0', 'other', 'unknown')
    """
    if licence == "unknown":
        return licence
    return next((name for name in _LICENCES if re.search(rf"\b{re.escape(name)}", licence.lower())), "other")


def _cell(value: Any) -> str:
    """Text that a table of Markdown keeps as it is."""
    return " ".join(str(value).split()).replace("|", "\\|")
