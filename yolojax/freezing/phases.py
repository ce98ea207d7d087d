"""What a strategy decides, and what it decides from.

A phase is a stretch of training with the same labels, and so with the same compiled step. Learning-rate factors may
change inside a phase: they are values that the step is given, not part of its program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

from yolojax.errors import UserError
from yolojax.freezing.adapters import Adapter, is_adapter
from yolojax.freezing.labels import FROZEN, TRAINABLE, trainable_mask
from yolojax.freezing.selectors import Selection, layer_of, parse_selector, select
from yolojax.tree import Tree, unflatten

Paths: TypeAlias = Sequence[str]
# What a strategy may ask the history to hold.
GRADIENT_NORMS = "gradient_norms"
MOVEMENT = "movement"


@dataclass(frozen=True)
class Phase:
    """The labels of one stretch of training. Two phases are equal where one compiled step serves both.

    Attributes:
      labels: label of every parameter by path, adapters included; any label but ``frozen`` is a group that trains.
      adapters: by kernel, the forms of the adapters among the labels.
      factors: per group, what its learning rate is multiplied with; above 0.
      name: for logs.
    """

    labels: Mapping[str, str]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict, compare=False)
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("labels", "adapters"):  # nobody changes what was hashed
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((frozenset(self.labels.items()), frozenset(self.adapters.items())))

    def label(self, path: str) -> str:
        """The label of a parameter: ``frozen``, or the group that it trains in."""
        return self.labels[path]

    def trains(self, path: str) -> bool:
        """Whether a parameter trains; one that the phase does not know does not."""
        return self.labels.get(path, FROZEN) != FROZEN

    def tree(self) -> Tree:
        """The labels as a tree of the structure of the parameters (with adapters, where there are any)."""
        return self._tree

    @cached_property
    def _tree(self) -> Tree:
        return unflatten(self.labels)

    @cached_property
    def mask(self) -> Tree:
        """The tree with true where a parameter trains."""
        return trainable_mask(self._tree)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """The paths that do not train."""
        return frozenset(path for path, label in self.labels.items() if label == FROZEN)

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """The frozen kernels that have an adapter."""
        return tuple(self.adapters)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
      fitness: of the validation after it; ``None`` where there was none.
      loss: mean training loss.
      learning_rate: mean over its updates.
      movement: per path, the norm of what the epoch added to the parameter; only for strategies that need it.
    """

    fitness: float | None = None
    loss: float = 0.0
    learning_rate: float = 0.0
    movement: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class History:
    """All that a strategy may look at. It is saved with a checkpoint, so that a resumed run decides the same.

    Attributes:
      epochs: how many are planned.
      network: its name, for messages.
      records: one per finished epoch.
      gradient_norms: per path, norm of the gradient where training starts; only for strategies that need it.
      parameter_norms: per path, norm of the parameter at the same place.
    """

    epochs: int
    network: str = ""
    records: tuple[EpochRecord, ...] = ()
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    parameter_norms: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> History:
        """Read what ``to_dict`` made."""
        return cls(**{**content, "records": tuple(EpochRecord(**record) for record in content["records"])})


def make_phase(
    paths: Paths,
    *,
    freeze: Selection | None = None,
    train: Selection | None = None,
    rates: Mapping[Any, float] | None = None,
    factor: float = 1.0,
    name: str = "",
    network: str = "",
    origin: str = "freeze",
) -> Phase:
    """A phase from selectors.

    Args:
      paths: every parameter of the network, without adapters.
      freeze: what does not train.
      train: what trains, instead of ``freeze``; without either everything trains.
      rates: learning-rate factor by selector; each is a group of its own, the rest is the group ``trainable``.
      factor: of every trained parameter, times its rate.
      name: for logs; the selector by default.
      network: its name, for errors.
      origin: how errors call ``freeze``.

    Raises:
      UserError: a selector is wrong, nothing would train, rates overlap or are for frozen parameters.

    >>> paths = ["model_0/conv/kernel", "model_1/conv/kernel", "model_2/m_0/kernel"]
    >>> phase = make_phase(paths, freeze=1, rates={"[1]": 0.1})
    >>> dict(phase.labels)
    {'model_0/conv/kernel': 'frozen', 'model_1/conv/kernel': '[1]', 'model_2/m_0/kernel': 'trainable'}
    >>> phase.factors
    {'[1]': 0.1, 'trainable': 1.0}
    >>> phase.label("model_1/conv/kernel"), phase.trains("model_0/conv/kernel")
    ('[1]', False)
    """
    if freeze is not None and train is not None:
        raise UserError("give either 'freeze' or 'train'")
    if train is None:
        asked = parse_selector(0 if freeze is None else freeze, origin)
        frozen = select(asked, paths, network)
    else:
        asked = parse_selector(train, "train")
        frozen = frozenset(paths) - select(asked, paths, network)
    labels = {path: FROZEN if path in frozen else TRAINABLE for path in paths}
    _require_training(
        labels, "there is nothing to train" if train is not None else f"{asked.text} leaves nothing to train"
    )
    factors = {TRAINABLE: 1.0}
    for selection, rate in (rates or {}).items():
        group, chosen = str(selection), select(parse_selector(selection, "rates"), paths, network) - frozen
        if not chosen:
            raise UserError(f"rates: all of '{group}' is frozen")
        for path in chosen:
            if labels[path] != TRAINABLE:
                raise UserError(f"rates: '{labels[path]}' and '{group}' overlap at {path}")
            labels[path] = group
        factors[group] = rate
    scale = _positive(factor, "factor")
    factors = {group: _positive(rate, f"factor of '{group}'") * scale for group, rate in factors.items()}
    return labelled_phase(labels, factors, name or asked.text)


def labelled_phase(labels: Mapping[str, str], factors: Mapping[str, float] | None = None, name: str = "") -> Phase:
    """A phase from a label per path; a group without a factor has 1.0."""
    groups = dict.fromkeys(label for label in labels.values() if label != FROZEN)
    factors = {group: (factors or {}).get(group, 1.0) for group in groups}
    return Phase(labels=labels, factors=factors, name=name)


def staged_phase(
    paths: Paths, parts: Mapping[str, frozenset[str]], front: int, rates: Mapping[str, float] | None = None
) -> Phase:
    """A phase that freezes the first stages.

    Args:
      paths: every parameter.
      parts: paths of each stage, as from ``stages``.
      front: how many are frozen.
      rates: factor of every other stage, which then is a group of its own.
    """
    labels: dict[str, str] = {}
    for index, (stage, part) in enumerate(parts.items()):
        label = FROZEN if index < front else stage if rates else TRAINABLE
        labels |= dict.fromkeys(part, label)
    trained = list(parts)[front:]
    name = f"{trained[0]} and behind" if front else "all"
    return labelled_phase({path: labels[path] for path in paths}, rates, name=name)


def never_trained(phases: Iterable[Phase]) -> frozenset[str]:
    """The parameters that are frozen in every one of the phases."""
    return frozenset.intersection(*(phase.frozen for phase in phases))


def _require_training(labels: Mapping[str, str], problem: str = "there is nothing to train") -> None:
    """Raise a UserError with ``problem`` if every label is ``frozen``."""
    if set(labels.values()) <= {FROZEN}:
        raise UserError(problem)


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{what}: {value!r} is no number above 0; freeze what shall not move")
    return float(value)


def check_phase(phase: Phase, paths: Paths) -> None:
    """Raise a UserError unless the labels partition ``paths``, something trains, and every group has a factor."""
    plain = {path for path in phase.labels if not is_adapter(path)}
    if different := plain ^ set(paths):
        path = min(different)
        raise UserError(f"{path} {'is no parameter of the network' if path in plain else 'has no label'}")
    _require_training(phase.labels)
    for group in set(phase.labels.values()) - {FROZEN}:
        _positive(phase.factors.get(group), f"factor of '{group}'")


def moment(value: int | str, epochs: int, key: str) -> int:
    """An epoch: a number, or a part of the run as in ``25%``, rounded.

    >>> moment(3, 50, "start"), moment("25%", 50, "start")
    (3, 13)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        return math.floor(float(match[1]) / 100 * epochs + 0.5)
    raise UserError(f"key '{key}': {value!r} is neither an epoch (0, 1, …) nor a part of the run (25%)")


def stages(groups: int | Sequence[Selection], paths: Paths, network: str = "") -> dict[str, frozenset[str]]:
    """Cut a network into stages from front to back.

    Args:
      groups: how many: Detect is one of them and the others hold about the same number of layers, so that 5 are two
        halves of the backbone, two of the neck, and Detect. Or a list of selectors that together are the network.
      paths: every parameter.
      network: its name, for errors.

    Returns:
      Paths of each stage, by its name (``0-4``, or the selector).

    Raises:
      UserError: there are not so many layers, or the selectors overlap or leave a gap.
    """
    if isinstance(groups, int) and not isinstance(groups, bool):
        return _equal_stages(groups, paths)
    if not isinstance(groups, Sequence) or isinstance(groups, str) or len(groups) < 2:
        raise UserError(f"key 'groups': {groups!r} is neither a number nor a list of selectors")
    chosen = {str(item): select(parse_selector(item, "groups"), paths, network) for item in groups}
    seen: set[str] = set()
    for name, part in chosen.items():
        if both := seen & part:
            raise UserError(f"key 'groups': '{name}' overlaps with one before it at {min(both)}")
        seen |= part
    if len(chosen) < len(groups):
        raise UserError("key 'groups': a selector is there twice")
    if missing := set(paths) - seen:
        raise UserError(f"key 'groups': {min(missing)} is in none of them")
    return chosen


def _equal_stages(count: int, paths: Paths) -> dict[str, frozenset[str]]:
    layers = sorted({layer_of(path) for path in paths})
    if not 2 <= count <= len(layers):
        raise UserError(f"key 'groups': {count} is not between 2 and {len(layers)}, the layers with parameters")
    size, larger = divmod(len(layers) - 1, count - 1)
    parts, start = [], 0
    for index in range(count - 1):
        end = start + size + (index < larger)
        parts.append(layers[start:end])
        start = end
    return {
        str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}": _in_layers(paths, part)
        for part in [*parts, layers[-1:]]
    }


def _in_layers(paths: Iterable[str], layers: Sequence[int]) -> frozenset[str]:
    return frozenset(path for path in paths if layer_of(path) in layers)
