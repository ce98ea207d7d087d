"""What a study compares: its YAML, read and checked before the first run starts."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from yolojax.config import check_keys, find_config, from_mapping, read_yaml
from yolojax.data.sources import load_data
from yolojax.errors import UserError
from yolojax.features.front import require_front
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.model.network import parameter_sizes
from yolojax.study.comparison import Comparison, read_comparison
from yolojax.study.forgetting import Forgetting, check_forgetting
from yolojax.study.held_out import check_test
from yolojax.training.settings import LARGEST, TrainSettings
from yolojax.training.setup import Job, prepare
from yolojax.training.step import fixed_modules
from yolojax.tree import flatten
from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights

Framework = Literal["yolojax", "torch"]

_STUDY_KEYS = ("title", "note", "train", "seeds", "scenarios", "reference", "forgetting", "test", "compare")
_OWN_FLAGS = ("resume", "project", "name", "exist_ok", "seed")  # the study sets these itself
# What the original always does; its dtype is float32 on a CPU and float16 by automatic mixed precision on a GPU, which ``auto`` is nearest to.
_ONLY_HERE = {
    "frozen_bn": "track",
    "init_head": "fresh",
    "same_as": (),
    "replay": None,
    "replay_share": 0.25,
    "distil": None,
    "distil_gain": 1.0,
    "dtype": "auto",
    "sync_bn": "on",
    "gradient_sum": "auto",
    "cfg": "",
    "strict": False,
    "deterministic": True,
    "remat": False,
    "steps_per_dispatch": "auto",
}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row of the comparison.

    Attributes:
      name: for tables, unique in its study.
      settings: of the training but for the seed, with the defaults of the data set filled in.
      framework: ``yolojax``, or ``torch`` for the original.
      python: the interpreter that has the original, for ``torch``.
    """

    name: str
    settings: TrainSettings
    framework: Framework = "yolojax"
    python: str = ""

    @property
    def folder(self) -> str:
        """The name as part of a folder's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def freeze(self) -> str:
        """What is frozen, for tables."""
        return " ".join(self.settings.freeze)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Figures that somebody published, to stand beside those measured; ``seconds`` is the wall time of a run."""

    name: str
    source: str = ""
    map50: float | None = None
    map50_95: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of scenarios, each run once per seed.

    Attributes:
      file: the YAML.
      title: of the report.
      note: what a reader should know.
      seeds: of the runs.
      scenarios: in the order of the tables.
      reference: published figures.
      forgetting: a second data set, on which the head of the initial weights is measured before and after; None for none.
      test: whether every run is measured on the test images of its data set too.
      comparisons: whose means are compared.
    """

    file: Path
    title: str
    note: str = ""
    seeds: tuple[int, ...] = (0,)
    scenarios: tuple[Scenario, ...]
    reference: tuple[Reference, ...] = ()
    forgetting: Forgetting | None = None
    test: bool = False
    comparisons: tuple[Comparison, ...] = ()

    def only(self, names: Sequence[str]) -> Study:
        """The study with these scenarios alone; with all where no name is given.

        Raises:
          UserError: no scenario has this name.
        """
        names_here = [scenario.name for scenario in self.scenarios]
        for name in names:
            if name not in names_here:
                raise UserError(f"{self.file}: no scenario is named {name!r}; there are: {', '.join(names_here)}")
        chosen = [scenario for scenario in self.scenarios if not names or scenario.name in names]
        kept = {scenario.name for scenario in chosen}
        pairs = tuple(pair for pair in self.comparisons if {pair.first, pair.second} <= kept)
        return dataclasses.replace(self, scenarios=tuple(chosen), comparisons=pairs)


def load_study(name: str | Path) -> Study:
    """A study from a YAML file or a shipped name; see ``docs/studies.md``.

    Raises:
      UserError: an unknown key or flag, a wrong value, two scenarios of one name.
    """
    file = find_config("studies", name)
    content = read_yaml(file)
    check_keys(file, content, _STUDY_KEYS)
    shared = _mapping(content.get("train", {}), f"{file}: key 'train'")
    rows = content.get("scenarios")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{file}: key 'scenarios': expected a list of scenarios, found {rows!r}")
    scenarios = tuple(_scenario(row, shared, file, number) for number, row in enumerate(rows, 1))
    for attribute in ("name", "folder"):
        name, count = Counter(getattr(scenario, attribute) for scenario in scenarios).most_common(1)[0]
        if count > 1:
            raise UserError(f"{file}: {count} scenarios have the name {name!r}; runs and rows are told apart by it")
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{file}: key 'seeds': expected a list of numbers from 0 on, found {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{file}: key 'seeds': {seeds} names a seed twice")
    reference = [
        from_mapping(Reference, _mapping(row, f"{file}: key 'reference'"), f"{file}: key 'reference'")
        for row in content.get("reference") or []
    ]
    names = [scenario.name for scenario in scenarios]
    where = f"{file}: key 'compare'"
    comparisons = [read_comparison(_mapping(row, where), where, names) for row in content.get("compare") or []]
    where = f"{file}: key 'forgetting'"
    second = content.get("forgetting")
    test = content.get("test", False)
    if not isinstance(test, bool):
        raise UserError(f"{file}: key 'test': expected true or false, found {test!r}")
    return Study(
        file=file,
        title=str(content.get("title", file.stem)),
        note=str(content.get("note", "")).strip(),
        seeds=tuple(seeds),
        scenarios=scenarios,
        reference=tuple(reference),
        forgetting=None if second is None else from_mapping(Forgetting, _mapping(second, where), where),
        test=test,
        comparisons=tuple(comparisons),
    )


def _scenario(row: Any, shared: Mapping[str, Any], file: Path, number: int) -> Scenario:
    row = _mapping(row, f"{file}: scenario {number}")
    name = str(row.pop("name", "")).strip()
    if not re.search(r"[A-Za-z0-9]", name):
        raise UserError(f"{file}: scenario {number}: key 'name' is missing, or has no letter and no digit")
    where = f"{file}: scenario '{name}'"
    framework = row.pop("framework", "yolojax")
    if framework not in ("yolojax", "torch"):
        raise UserError(f"{where}: key 'framework': {framework!r} is none of 'yolojax', 'torch'")
    python = row.pop("python", "")
    if (framework == "torch") != bool(python):
        raise UserError(f"{where}: 'framework: torch' and 'python: INTERPRETER' belong together")
    flags = {**shared, **row}
    if framework == "torch":
        flags = {**{key: value for key, value in shared.items() if key.replace("-", "_") not in _ONLY_HERE}, **row}
    settings = _train_settings(flags, where)
    if framework == "torch":
        _check_torch_settings(settings, row, where)
        settings = dataclasses.replace(settings, frozen_bn="track", cache=settings.images_cache)
    return Scenario(name=name, settings=settings, framework=framework, python=str(python))


def _train_settings(flags: Mapping[str, Any], where: str) -> TrainSettings:
    """Settings from the flags of ``yolojax train``, spelled as there; without figures unless ``noplots: false`` asks for them."""
    spelled = {
        word.lstrip("-").replace("-", "_"): item
        for item in dataclasses.fields(TrainSettings)
        for word in (item.name, *item.metadata["names"])
    }
    values: dict[str, Any] = {"noplots": True}
    for key, value in flags.items():
        word = key.replace("-", "_")
        if word in _OWN_FLAGS:
            raise UserError(f"{where}: key '{key}': the study sets this itself")
        check_keys(where, {word: value}, list(spelled))
        item = spelled[word]
        values[item.name] = item.metadata["const"] if value is True and item.metadata["const"] else value
    freeze = values.pop("freeze", 0)
    words = tuple(str(word) for word in (freeze if isinstance(freeze, list) else [freeze]))
    try:
        settings = dataclasses.replace(from_mapping(TrainSettings, values, where), freeze=words)
        if settings.batch_size == LARGEST:
            raise UserError("key 'batch': name a number, so that all scenarios have the same")
        # Defaults of the data set are fixed now, so that every run of a study has the same.
        return settings.with_defaults(load_data(settings.data, settings.data_root))
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error


def _check_torch_settings(settings: TrainSettings, row: Mapping[str, Any], where: str) -> None:
    for name, value in _ONLY_HERE.items():
        if name in row and row[name] != value:
            raise UserError(f"{where}: key '{name}': the original has no such flag")
    if settings.albumentations:
        raise UserError(
            f"{where}: key 'albumentations': the original has no such flag; it looks whether the package is installed"
        )
    if not all(word.isdigit() for word in settings.freeze):
        raise UserError(f"{where}: key 'freeze': the original takes layer numbers only")
    if settings.delta is not None:
        raise UserError(
            f"{where}: key 'delta': the original reads none; name the trained weights themselves (weights/best of the run)"
        )
    if settings.weights == "":
        raise UserError(
            f"{where}: key 'weights': the original starts from weights here; name a .pt, a run or other weights"
        )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected 'key: value' lines, found {value!r}")
    return {str(key): item for key, item in value.items()}


@dataclass(frozen=True)
class Extent:
    """How large a run is: parameters that train (the most of any phase), all parameters, images of a batch, epochs."""

    trainable: int
    parameters: int
    batch: int
    epochs: int


def check_study(study: Study) -> dict[str, Extent]:
    """Read data and weights and rehearse every strategy, so that no run fails for a reason that could be known before.

    Nothing is trained, and no accelerator is touched, so that the runs have it for themselves.

    Returns:
      The extent of a run by name of scenario.

    Raises:
      UserError: of what a run would be refused for; the message names the scenario.
    """
    jobs: dict[TrainSettings, Job] = {}
    extents = {}
    for scenario in study.scenarios:
        where = f"{study.file}: scenario '{scenario.name}'"
        common = dataclasses.replace(
            scenario.settings, freeze=("0",), frozen_bn="fixed", dtype="float32", device="cpu", cache=None
        )
        try:
            if scenario.framework == "torch":
                _check_original(interpreter(scenario))
                _check_original_weights(scenario.settings.weights)
            if common not in jobs:
                with _quietly():
                    jobs[common], _ = prepare(common)
                    if study.forgetting is not None:
                        check_forgetting(study.forgetting, common)
                    if study.test:
                        check_test(common)
            job = jobs[common]
            strategy = load_strategy(scenario.settings.freeze, sizes=partial(parameter_sizes, job.spec))
            phases = rehearse(strategy, job.paths, job.epochs, job.spec.name)
            if scenario.settings.kept_views is not None:
                fixed = {phase: fixed_modules(phase, scenario.settings.frozen_bn) for _, phase in phases}
                require_front(job.spec, strategy.name, fixed)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        leaves = {path: leaf.size for path, leaf in flatten(job.shapes["params"]).items()}
        trainable = max(sum(size for path, size in leaves.items() if phase.trains(path)) for _, phase in phases)
        extents[scenario.name] = Extent(trainable, sum(leaves.values()), job.batch_size, job.epochs)
    for job in jobs.values():
        job.stream.close()
    return extents


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what every run will say again in its own log; warnings stay."""
    log = logging.getLogger("yolojax")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def interpreter(scenario: Scenario) -> str:
    """The interpreter that has the original.

    Raises:
      UserError: it stands in an environment variable that is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(scenario.python))
    if "$" in expanded:
        raise UserError(
            f"key 'python': {scenario.python} is not set; it names an interpreter with 'pip install yolov5==7.0.14', "
            "or leave this scenario out (--only)"
        )
    return expanded


def _check_original_weights(weights: str | None) -> None:
    if find_weights(weights or EMBEDDED_WEIGHTS).suffix != ".pt":
        from convert.untrusted import import_torch

        import_torch()  # which writes the .pt


def _check_original(python: str) -> None:
    code = "import importlib.metadata as m, torch; print(m.version('yolov5'))"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    except OSError as error:
        raise UserError(f"key 'python': {python} cannot be run ({error.strerror})") from error
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"key 'python': {python} has no working yolov5 and torch ({last}): pip install yolov5==7.0.14")
