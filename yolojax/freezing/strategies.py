"""The strategies that a YAML file can name with its key ``kind``: small functions with settings."""

# ruff: noqa: D102 (what a call does is said once, in Kind)

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from yolojax.config import check_keys
from yolojax.errors import UserError
from yolojax.freezing.adapters import Adapter, adapter_paths, is_kernel, scale_path
from yolojax.freezing.labels import FROZEN, TRAINABLE
from yolojax.freezing.phases import (
    GRADIENT_NORMS,
    MOVEMENT,
    EpochRecord,
    History,
    Paths,
    Phase,
    labelled_phase,
    make_phase,
    moment,
    staged_phase,
    stages,
)
from yolojax.freezing.selectors import parse_selector, select
from yolojax.freezing.signals import total


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """A function of epoch, history and paths whose settings are the keys of a YAML file.

    ``config.from_mapping`` checks the types of those keys; what is ``Any`` (selectors, groups) is checked where it is read.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.type in ("int", "float") and not value > 0:
                raise UserError(f"key '{item.name}': expected a number above 0, found {value!r}")

    @abstractmethod
    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        """Give the phase of an epoch; see ``Strategy.phase``."""


@dataclass(frozen=True, kw_only=True)
class Phases(Kind):
    """Phases one after the other. Each holds from its ``start`` (epoch, or a part of the run) until the next one's.

    Keys of a phase: ``start``, ``freeze`` or ``train`` (selectors), ``rates`` (factor by selector), ``factor``, ``name``.
    """

    phases: Any

    def __post_init__(self) -> None:
        if not isinstance(self.phases, list) or not self.phases or not all(isinstance(p, dict) for p in self.phases):
            raise UserError("key 'phases': expected a list of phases")
        for number, phase in enumerate(self.phases, 1):
            check_keys(self._where(number), phase, ("start", "freeze", "train", "rates", "factor", "name"))
            if not isinstance(phase.get("rates", {}), dict):
                raise UserError(f"{self._where(number)}: key 'rates': expected 'selector: factor' lines")

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        starts = [moment(phase.get("start", 0), history.epochs, "start") for phase in self.phases]
        if starts[0] != 0:
            raise UserError(f"the first phase starts at epoch {starts[0]}; nothing says what trains before it")
        for number, (before, start) in enumerate(pairwise(starts), 2):
            if start <= before:
                raise UserError(
                    f"{self._where(number)} starts at epoch {start}, the one before it at {before}: they overlap"
                )
        if starts[-1] >= history.epochs:
            raise UserError(
                f"{self._where(len(starts))} starts at epoch {starts[-1]}, but the run has {history.epochs}"
            )
        current = max(index for index, start in enumerate(starts) if start <= epoch)
        options = {key: value for key, value in self.phases[current].items() if key != "start"}
        try:
            return make_phase(paths, network=history.network, **options)
        except UserError as error:
            raise UserError(f"{self._where(current + 1)}: {error}" if len(starts) > 1 else str(error)) from error

    def _where(self, number: int) -> str:
        return f"phase {number}"


@dataclass(frozen=True, kw_only=True)
class Layerwise(Kind):
    """Everything trains, each stage ``decay`` times as fast as the one behind it.

    Source: discriminative fine-tuning, Howard and Ruder 2018 (arXiv:1801.06146).
    """

    groups: Any = 5
    decay: float = 1 / 2.6

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        parts = stages(self.groups, paths, history.network)
        return staged_phase(paths, parts, 0, {name: self.decay**depth for depth, name in enumerate(reversed(parts))})


@dataclass(frozen=True, kw_only=True)
class Gradual(Kind):
    """Stages thaw one after the other from the back; from the epoch ``until`` on everything trains.

    Source: Howard and Ruder 2018 (arXiv:1801.06146).
    """

    groups: Any = 5
    until: int | str = "50%"

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        parts = stages(self.groups, paths, history.network)
        until = max(1, moment(self.until, history.epochs, "until"))
        thawed = len(parts) if epoch >= until else 1 + epoch * (len(parts) - 1) // until
        return staged_phase(paths, parts, len(parts) - thawed)


@dataclass(frozen=True, kw_only=True)
class FreezeOut(Kind):
    """Each stage's learning rate falls on a cosine of its own, and where it reaches zero the stage freezes.

    The front stage freezes at the part ``first`` of the run, the last one never; those between are spread evenly
    (``cubed``: on the cubes of these parts, ``first`` included). ``scaled`` raises the rates of early stages so that
    each covers the same distance. The factors multiply the run's own schedule and change once per epoch.

    Source: Brock et al. 2017 (arXiv:1706.04983).
    """

    groups: Any = 5
    first: float = 0.8
    cubed: bool = True
    scaled: bool = True

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        parts = stages(self.groups, paths, history.network)
        if len(parts) > 5:
            raise UserError("key 'groups': at most 5, because each change compiles the step again")
        if self.first > 1:
            raise UserError(f"key 'first': {self.first:g} is no part of the run (0 to 1)")
        ends = []
        for index in range(len(parts)):
            part = self.first + (1 - self.first) * index / (len(parts) - 1)
            ends.append(max(1, math.ceil(part ** (3 if self.cubed else 1) * history.epochs)))
        front = sum(end <= epoch for end in ends[:-1])
        rates = {
            name: 0.5 * (1 + math.cos(math.pi * epoch / end)) * (history.epochs / end if self.scaled else 1)
            for name, end in list(zip(parts, ends, strict=True))[front:]
        }
        return staged_phase(paths, parts, front, rates)


@dataclass(frozen=True, kw_only=True)
class Surgical(Kind):
    """One stage trains, the one with the largest gradient for its size where training starts, and ``also`` with it.

    Source: relative gradient norm of Lee et al. 2023 (arXiv:2210.11466).
    """

    needs: ClassVar[frozenset[str]] = frozenset({GRADIENT_NORMS})

    groups: Any = 5
    also: Any = "detect"

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        asked = parse_selector(self.also, "also")
        also = select(asked, paths, history.network)
        parts = {name: part - also for name, part in stages(self.groups, paths, history.network).items()}

        def relative(name: str) -> float:
            size = total(history.parameter_norms, parts[name])
            return total(history.gradient_norms, parts[name]) / size if size else 0.0

        chosen = max((name for name, part in parts.items() if part), key=relative)
        train = parts[chosen] | also
        labels = {path: TRAINABLE if path in train else FROZEN for path in paths}
        return labelled_phase(labels, name=f"train {chosen}, {asked.text}")


@dataclass(frozen=True, kw_only=True)
class Plateau(Kind):
    """The front stage freezes once its gradients have settled, one stage at most per epoch, the last one never.

    They have settled when for ``patience`` epochs in a row what the stage moved by, divided by the learning rate (the
    gradients of the epoch added up), has changed by less than the part ``tolerance`` from epoch to epoch.

    Source: in the spirit of AutoFreeze (arXiv:2102.01386) and Egeria (arXiv:2201.06227).
    """

    needs: ClassVar[frozenset[str]] = frozenset({MOVEMENT})

    groups: Any = 5
    tolerance: float = 0.1
    patience: int = 2
    start: int | str = "20%"

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        parts = stages(self.groups, paths, history.network)
        names, front = list(parts), 0
        for finished in range(max(1, moment(self.start, history.epochs, "start")), epoch + 1):
            if front == len(parts) - 1:
                break
            front += self._settled(parts[names[front]], history.records[:finished])
        return staged_phase(paths, parts, front)

    def _settled(self, part: frozenset[str], records: Sequence[EpochRecord]) -> bool:
        sums = [
            total(record.movement, part) / record.learning_rate if record.learning_rate else 0.0
            for record in records[-self.patience - 1 :]
        ]
        return len(sums) > self.patience and all(
            abs(after - before) <= self.tolerance * before for before, after in pairwise(sums)
        )


@dataclass(frozen=True, kw_only=True)
class Adapters(Kind):
    """The kernels of ``select`` are frozen and get low-rank adapters; ``train`` trains as usual.

    Adapters have ``rank``, or where ``ranks`` names their kernels (selector: rank; the last that does counts) that one. Their product is multiplied with
    ``alpha`` / rank; without ``alpha`` with 1. The factor of their learning rate is ``rate``.

    Source: Hu et al. 2021 (arXiv:2106.09685), on convolutions arXiv:2410.16954.
    """

    select: Any = "backbone"
    train: Any = "detect"
    rank: int = 4
    ranks: Any = dataclasses.field(default_factory=dict)
    alpha: float | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ranks, dict) or not all(
            isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 for rank in self.ranks.values()
        ):
            raise UserError(f"key 'ranks': expected 'selector: rank' lines, ranks from 1 on, found {self.ranks!r}")
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(f"key 'alpha': expected a number above 0, found {self.alpha!r}")

    def __call__(self, epoch: int, history: History, paths: Paths) -> Phase:
        plain = make_phase(paths, train=self.train, network=history.network)
        kernels = sorted(filter(is_kernel, select(parse_selector(self.select, "select"), paths, history.network)))
        if not kernels:
            raise UserError(f"select {self.select}: there is no kernel in it")
        if trained := set(kernels) - plain.frozen:
            raise UserError(f"select {self.select}: {min(trained)} trains itself; only frozen kernels take an adapter")
        ranks = dict.fromkeys(kernels, self.rank)
        for selector, rank in self.ranks.items():
            chosen = ranks.keys() & select(parse_selector(selector, "ranks"), paths, history.network)
            if not chosen:
                raise UserError(f"ranks {selector}: there is no adapted kernel in it")
            ranks |= dict.fromkeys(chosen, rank)
        adapters = {
            kernel: Adapter(rank, 1.0 if self.alpha is None else self.alpha / rank) for kernel, rank in ranks.items()
        }
        labels = {path: "adapters" for kernel in kernels for path in adapter_paths(kernel)}
        scales = {scale_path(kernel): FROZEN for kernel, adapter in adapters.items() if adapter.scale != 1}
        return dataclasses.replace(
            plain,
            labels={**plain.labels, **labels, **scales},
            factors={**plain.factors, "adapters": self.rate},
            adapters=adapters,
        )


KINDS: dict[str, type[Kind]] = {
    "phases": Phases,
    "layerwise": Layerwise,
    "gradual": Gradual,
    "freezeout": FreezeOut,
    "surgical": Surgical,
    "plateau": Plateau,
    "adapters": Adapters,
}
