"""Runs that read the same kept features, in one process: what is computed and compiled for one serves those after it.

``python -m yolojax.study.together`` takes a request per line on its standard input, trains with the log that it names, and answers with the exit status
that a process of the run alone would have had.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.features.shared import Shared
from yolojax.processes import show_log
from yolojax.runtime import prepare_process
from yolojax.study.scenarios import Scenario
from yolojax.system import detached
from yolojax.training.loop import train
from yolojax.training.settings import SETTINGS, TrainSettings

# What runs over one filling may differ in; where anything else differs, so do features, or the process cannot be the same.
_FREE = (
    *("hyp", "epochs", "optimizer", "init_head", "same_as", "cos_lr", "label_smoothing"),
    *("patience", "save_period", "nosave", "noval", "noplots"),
)


def sharing(scenario: Scenario, seed: int) -> TrainSettings | None:
    """What runs must agree in to be in one process; None for a run that is in one of its own."""
    if scenario.framework != "yolojax" or scenario.settings.kept_views is None:
        return None
    plain = TrainSettings()
    free = {name: getattr(plain, name) for name in _FREE}
    return dataclasses.replace(scenario.settings, seed=seed, cache="features", **free)  # whatever the number of views


class SharedProcess:
    """A process that trains one run after another.

    Attributes:
      runs: how many it was given.
    """

    def __init__(self, lock: int, environment: Mapping[str, str], log: Path) -> None:
        """Start it.

        Args:
          lock: of ``processes.locked_folder``, which it holds as well.
          environment: of the process.
          log: for what goes wrong before its first run.
        """
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "yolojax.study.together"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                pass_fds=(lock,) if lock >= 0 else (),
                **detached(),  # as in ``processes.start_process``
            )
        self._answers = ThreadPoolExecutor(1, "yolojax-study")  # no system but POSIX waits for a pipe with a timeout
        self.runs = 0

    def train(self, settings: TrainSettings, folder: Path, log: Path) -> SharedRun:
        """Begin a run, or go on with the one that its folder holds; the run before it has ended."""
        self.runs += 1
        request = {"settings": dataclasses.asdict(settings), "folder": str(folder), "log": str(log)}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process is dead, which waiting tells
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        assert self._process.stdout is not None
        return SharedRun(self._process, self._answers.submit(self._process.stdout.readline))

    @property
    def alive(self) -> bool:
        """Whether it can take another run."""
        return self._process.poll() is None

    def close(self) -> None:
        """Let it end; it is idle."""
        with suppress(BrokenPipeError):
            self._process.communicate()  # which ends its input
        self._answers.shutdown()


class SharedRun:
    """One run of a shared process, with what ``processes.wait_for`` asks of a process.

    Attributes:
      pid: of the process.
      returncode: exit status of the run; None while it trains.
    """

    def __init__(self, process: subprocess.Popen[bytes], answer: Future[bytes]) -> None:
        self.pid, self._process, self._answer = process.pid, process, answer
        self.returncode: int | None = None

    def wait(self, timeout: float) -> int:
        """Wait for the end.

        Raises:
          subprocess.TimeoutExpired: it did not come.
        """
        try:
            answer = self._answer.result(timeout)
        except TimeoutError as error:
            raise subprocess.TimeoutExpired("run", timeout) from error
        status = int(answer) if answer.strip() else self._process.wait() or 1
        self.returncode = status
        return status

    def send_signal(self, number: int) -> None:
        """Ask it to stop."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it, and the process."""
        self._process.kill()


def main() -> None:
    """Train what standard input asks for, until it ends or a signal asked to stop."""
    prepare_process()
    answers, shared = os.fdopen(os.dup(sys.stdout.fileno()), "w"), Shared()
    for line in sys.stdin:
        request = json.loads(line)
        with Path(request["log"]).open("ab") as log:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(log.fileno(), stream.fileno())
        show_log()
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in request["settings"].items()
        }
        status = _train(TrainSettings(**values), Path(request["folder"]), shared)
        sys.stdout.flush()
        sys.stderr.flush()
        print(status, file=answers, flush=True)
        if status > 128:
            return


def _train(settings: TrainSettings, folder: Path, shared: Shared) -> int:
    """Train, and give the exit status that the command line would have."""
    try:
        if (folder / SETTINGS).is_file():
            train(TrainSettings(resume=str(folder)), {"resume"}, shared)
        else:
            train(
                dataclasses.replace(settings, project=str(folder.parent), name=folder.name, exist_ok=True), None, shared
            )
    except UserError as error:
        print(f"yolojax train: {error}", file=sys.stderr)
        return 2
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
