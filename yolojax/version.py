"""The version of the package, on the ground floor so that every room may record it."""

from __future__ import annotations

__version__ = "0.1.0"
