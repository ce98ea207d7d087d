"""The version of the package, below everything else, so that every module may record it."""

from __future__ import annotations

__version__ = "0.1.0"
