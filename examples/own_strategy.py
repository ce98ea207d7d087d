"""A freezing strategy of one's own: freeze one more layer after every epoch that was no better than the one before.

    python examples/own_strategy.py                    # trains with it
    python train.py --freeze examples/own_strategy.py  # the same, from the command line
    yolojax freeze --freeze examples/own_strategy.py   # shows its phases without training

A strategy is a function of its arguments alone, so that a resumed run takes the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from yolojax.freezing.phases import History, Phase, make_phase
from yolojax.training.loop import train
from yolojax.training.settings import TrainSettings

DEEPEST = 10  # the backbone


def phase(epoch: int, history: History, paths: Sequence[str]) -> Phase:
    """The phase of an epoch; ``history`` has a record of every epoch before it."""
    scores = [record.fitness or 0.0 for record in history.records]
    worse = sum(after <= before for before, after in pairwise(scores))
    return make_phase(paths, freeze=min(worse, DEEPEST), network=history.network)


def main(**flags: Any) -> None:
    """Train; ``flags`` are further settings."""
    result = train(TrainSettings(freeze=(str(Path(__file__)),), name="own-strategy", **flags))
    for program in result["programs"]:
        share = program["trainable"] / program["parameters"]
        print(f"from epoch {program['epoch'] + 1}: {share:.0%} of the parameters train")


if __name__ == "__main__":
    main()
