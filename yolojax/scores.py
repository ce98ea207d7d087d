"""Precision, recall and mAP where there is not one box to find: unknown, and never a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCORES = ("precision", "recall", "map50", "map50_95")


def known_scores(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a validation; its scores are None where its images hold not one box.

    >>> known_scores({"map50": 0.0, "instances": 0, "images": 4})["map50"]
    >>> known_scores({"map50": 0.5, "instances": 3})["map50"]
    0.5

    Args:
      figures: ``instances``, the number of boxes, and whatever else.
    """
    return dict(figures) if figures["instances"] else {**figures, **dict.fromkeys(SCORES)}


def shown_score(score: float | None, digits: int) -> str:
    """A score for a table or a line: a dash where it is unknown."""
    return "-" if score is None else f"{score:.{digits}f}"
