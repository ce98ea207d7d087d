"""Two sides in turns: ours in this process, the original's in an interpreter of its own. Used by the scripts beside this file.

A machine that is slow for a while is slow for both; only ratios mean anything.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PARTS = ("median", "low", "high")
Clock = Callable[[], float]


def timed(work: Callable[[], object], count: int, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of each of ``count`` calls."""
    times = []
    for _ in range(count):
        start = clock()
        work()
        times.append(clock() - start)
    return times


class Turns(NamedTuple):
    """Seconds of every piece of work of both sides, and what the other side said at its end."""

    ours: np.ndarray
    theirs: np.ndarray
    last: Any


def answer(
    work: Callable[[], object],
    channel: object,
    clock: Clock = time.perf_counter,
    last: Callable[[], object] = lambda: None,
) -> None:
    """Be the other side: for every number that comes on standard input, do so much work and print its times; at its end, print ``last``."""
    for line in sys.stdin:
        print(json.dumps(timed(work, int(line), clock)), file=channel, flush=True)  # type: ignore[call-overload]
    print(json.dumps(last()), file=channel, flush=True)  # type: ignore[call-overload]


def take_turns(
    work: Callable[[], object],
    other: Sequence[str],
    rounds: int,
    count: int,
    pause: float = 0.0,
    clock: Clock = time.perf_counter,
) -> Turns:
    """Work on both sides, one after the other.

    Args:
      work: one piece of ours.
      other: command of a process that calls ``answer``.
      rounds: turns of each side.
      count: pieces of a turn.
      pause: seconds between two turns, for threads of the other side that spin for a while after their last work.
      clock: of both sides.
    """
    ours: list[float] = []
    theirs: list[float] = []
    # Huge pages, which the commands of yolojax ask for, are no part of the original as its users run it.
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def their_turn(pieces: int) -> list[float]:
            print(pieces, file=questions, flush=True)
            return json.loads(answers.readline())

        timed(work, 2)
        their_turn(2)
        for _ in range(rounds):
            time.sleep(pause)
            ours += timed(work, count, clock)
            time.sleep(pause)
            theirs += their_turn(count)
        questions.close()
        last = json.loads(answers.readline())
    return Turns(np.array(ours), np.array(theirs), last)


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, and the quartiles around it."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def cell(values: dict[str, float], form: str = ".0f") -> str:
    """A spread in a table."""
    return f"{values['median']:{form}} ({values['low']:{form}}–{values['high']:{form}})"


def report(keys: Sequence[str], rows: Iterable[dict[str, Any]], file: Path | None, form: str = ".0f") -> None:
    """Print a table of both sides, each row as soon as it is measured, and write it to a JSON file where one is given.

    Args:
      keys: of a row, beside ``yolojax``, ``original`` (both as from ``spread``) and ``ratio``.
      rows: measured one after the other.
      file: for the JSON.
      form: of the figures.
    """
    heads = [*keys, "yolojax (quartiles)", "original (quartiles)", "ratio"]
    print(f"| {' | '.join(heads)} |\n|{'-|' * len(heads)}", flush=True)
    done = []
    for row in rows:
        done.append(row)
        cells = [*(str(row[key]) for key in keys), *(cell(row[side], form) for side in ("yolojax", "original"))]
        print(f"| {' | '.join([*cells, format(row['ratio'], '.2f')])} |", flush=True)
    if file:
        file.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
