"""What runs of one process share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from yolojax.features.store import Store

T = TypeVar("T")


@dataclass
class Shared:
    """Features and programs of the runs of a process.

    Attributes:
      stores: of features, by the digest of their key.
      programs: jitted functions, by all that they depend on besides their arguments.
    """

    stores: dict[str, Store] = field(default_factory=dict)
    programs: dict[Hashable, object] = field(default_factory=dict)

    def program(self, key: Hashable, make: Callable[[], T]) -> T:
        """The program of a key, made where there is none."""
        if key not in self.programs:
            self.programs[key] = make()
        return cast(T, self.programs[key])
