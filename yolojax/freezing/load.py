"""Strategies: which parameters train in which epochs.

A strategy is a function of the epoch, of what happened so far and of the parameter paths; it gives a phase. It keeps no
state, so a resumed run takes the same decisions. What follows ``--freeze`` is a selector, the name of a file in
``configs/freezing``, a YAML file, or a Python file with a function ``phase(epoch, history, paths)``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolojax.config import configs_root, find_config, from_mapping, read_yaml
from yolojax.errors import UserError
from yolojax.freezing.adapters import is_adapter
from yolojax.freezing.phases import (
    GRADIENT_NORMS,
    MOVEMENT,
    EpochRecord,
    History,
    Paths,
    Phase,
    check_phase,
    make_phase,
)
from yolojax.freezing.selectors import GROUPS, SHARE, Selector, Term, layers_within, parse_selector
from yolojax.freezing.strategies import KINDS

Decide = Callable[[int, History, Paths], Phase]


@dataclass(frozen=True)
class Strategy:
    """What the training loop asks before every epoch.

    Attributes:
      name: for run folders and tables.
      decide: the strategy itself.
      origin: the file that errors name.
      needs: what the history must hold: ``gradient_norms`` (and ``parameter_norms``) where training starts, ``movement``
        of every finished epoch.
      description: one line for people.
    """

    name: str
    decide: Decide
    origin: str = ""
    needs: frozenset[str] = frozenset()
    description: str = ""

    def phase(self, epoch: int, history: History, paths: Paths) -> Phase:
        """The phase of an epoch.

        Args:
          epoch: from 0.
          history: with the records of the epochs before it.
          paths: every parameter of the network; adapters among them are ignored.

        Returns:
          A phase whose labels partition the paths. Where it equals the one before, the compiled step stays; its factors
          hold for this epoch.

        Raises:
          UserError: the strategy does not fit the network or the run.
        """
        plain = tuple(path for path in paths if not is_adapter(path))
        try:
            phase = self.decide(epoch, history, plain)
            check_phase(phase, plain)
        except UserError as error:
            if not self.origin:
                raise
            raise UserError(f"{self.origin}: {error}") from error
        return phase


def rehearse(strategy: Strategy, paths: Paths, epochs: int, network: str = "") -> tuple[tuple[int, Phase], ...]:
    """Go through a run without training it, so that a strategy that does not fit is refused before the start.

    A strategy that watches the training sees one that stands still, which makes it freeze as early as it ever would.

    Returns:
      ``(first epoch, phase)`` of each stretch.

    Raises:
      UserError: as ``Strategy.phase``.
    """
    ones = dict.fromkeys(paths, 1.0)
    history = History(epochs=epochs, network=network, gradient_norms=ones, parameter_norms=ones)
    phases: list[tuple[int, Phase]] = []
    for epoch in range(epochs):
        phase = strategy.phase(epoch, history, paths)
        if not phases or phases[-1][1] != phase:
            phases.append((epoch, phase))
        record = EpochRecord(fitness=0.0, loss=1.0, learning_rate=1.0, movement=ones)
        history = dataclasses.replace(history, records=(*history.records, record))
    return tuple(phases)


def load_strategy(
    values: int | str | Sequence[int | str],
    flag: str = "--freeze",
    sizes: Callable[[], Mapping[str, int]] | None = None,
) -> Strategy:
    """What a user means by ``--freeze``.

    Args:
      values: a selector (see ``selectors``), a share of the parameters (``95%``), a name in ``configs/freezing``, or a file.
      flag: that errors name.
      sizes: gives the number of values of every parameter by path; asked for a share only.

    Raises:
      UserError: it is none of these, or the file is wrong.
    """
    words = [values] if isinstance(values, int | str) else list(values)
    name = str(words[0]).strip() if len(words) == 1 else ""
    if name.endswith(".py"):
        return _from_python(Path(name), flag)
    if name.endswith((".yaml", ".yml")):
        return _from_yaml(find_config("freezing", name))
    if re.fullmatch(r"[a-zA-Z_]+", name) and name not in GROUPS:
        shipped = {file.stem: file for file in sorted((configs_root() / "freezing").glob("*.yaml"))}
        if name in shipped:
            return _from_yaml(shipped[name])
        near = difflib.get_close_matches(name, [*shipped, *GROUPS], n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"{flag} {name}: no strategy or group has this name; {hint}"
            f"strategies are {', '.join(shipped)}; groups are {', '.join(GROUPS)}"
        )
    share = SHARE.fullmatch(name)
    selector = (
        _share_selector(float(share[1]) / 100, f"{flag} {name}", sizes) if share else parse_selector(values, flag)
    )

    def decide(_: int, history: History, paths: Paths) -> Phase:
        return make_phase(paths, freeze=selector, network=history.network)

    return Strategy(" ".join(map(str, words)), decide)


def _share_selector(share: float, text: str, sizes: Callable[[], Mapping[str, int]] | None) -> Selector:
    """The first layers that hold at most a share of the parameters; its text says how many they are."""
    if sizes is None:
        raise UserError(f"{text}: what holds this share depends on the network; name layers instead")
    if share > 1:
        raise UserError(f"{text}: a share is below 100%")
    count = layers_within(share, sizes())
    return Selector(f"{text} (the first {count} layers)", (Term(str(count), layers=range(count)),))


def _from_yaml(file: Path) -> Strategy:
    content = read_yaml(file)
    description = str(content.pop("description", ""))
    kind = content.pop("kind", "phases")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{file}: key 'kind': {kind!r} is none of {', '.join(KINDS)}")
    if kind == "phases" and "phases" not in content:
        content = {"phases": [content]}
    decide = from_mapping(KINDS[kind], content, file)
    return Strategy(file.stem, decide, str(file), decide.needs, description)


def _from_python(file: Path, flag: str) -> Strategy:
    if not file.is_file():
        raise UserError(f"{flag} {file}: no such file")
    try:
        content = runpy.run_path(str(file))
    except Exception as error:
        raise UserError(f"{file}: cannot be run ({error!r})") from error
    function = content.get("phase")
    if not callable(function):
        raise UserError(f"{file}: has no function phase(epoch, history, paths)")

    def decide(epoch: int, history: History, paths: Paths) -> Phase:
        try:
            phase = function(epoch, history, paths)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"phase() failed at epoch {epoch} ({error!r})") from error
        if not isinstance(phase, Phase):
            raise UserError(f"phase() returned {phase!r} instead of a phase; make_phase makes one")
        return phase

    needs = frozenset(content.get("NEEDS", ()))
    if unknown := needs - {GRADIENT_NORMS, MOVEMENT}:
        raise UserError(f"{file}: NEEDS {min(unknown)!r} is none of {GRADIENT_NORMS}, {MOVEMENT}")
    return Strategy(file.stem, decide, str(file), needs, (content.get("__doc__") or "").strip().partition("\n")[0])
