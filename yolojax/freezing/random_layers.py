"""Random layers that are frozen: what starts from random numbers has to train, or all that follows it computes from noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from yolojax.freezing.load import Strategy
from yolojax.freezing.phases import Phase, never_trained
from yolojax.freezing.selectors import layer_of


def frozen_random(phases: Iterable[Phase], initialised: Iterable[str]) -> tuple[str, ...]:
    """The parameters that start from random numbers and never train, in the order of ``initialised``.

    Args:
      phases: of the whole run.
      initialised: paths of what no weights were found for; those that are no parameters are passed over.
    """
    frozen = never_trained(phases)
    return tuple(path for path in initialised if path in frozen)


def random_sentence(strategy: Strategy, paths: Sequence[str], reason: str) -> str:
    """What is wrong with random layers that are frozen, and what to do.

    Args:
      strategy: that freezes them.
      paths: of ``frozen_random``, at least one.
      reason: why they are random, ``80 classes before, 3 now``.
    """
    layers = sorted({layer_of(path) for path in paths})
    names = _runs(layers)
    watched = " (as far as is known before the training)" if strategy.needs else ""
    many = len(layers) > 1
    return (
        f"--freeze {strategy.name}: {names} {'start' if many else 'starts'} from random numbers ({reason}) and "
        f"{'are' if many else 'is'} frozen{watched}: what random numbers compute cannot become right, because nothing in "
        f"{'them' if many else 'it'} learns ({len(paths)} arrays, for instance {paths[0]}); "
        f"let {'them' if many else 'it'} train, or start from weights that fit"
    )


def _runs(layers: Sequence[int]) -> str:
    """Layers by name, with a range for neighbours.

    >>> _runs([0, 1, 2, 5, 7, 8])
    'model_0 to model_2, model_5, model_7 to model_8'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"model_{run[0]}" + (f" to model_{run[-1]}" if len(run) > 1 else "") for run in runs)
