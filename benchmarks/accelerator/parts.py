"""Which parts there are, in the order in which they tell most, with the cases of each and what is asked of them together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
# Time of a frozen step, of one that is not: what passes. (The compiled programs promise .51 and .30.)
RATIOS = (0.60, 0.35)
# By default the first process that uses a GPU reserves most of its memory.
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the acceptance.

    Attributes:
      name: as ``--parts`` calls it.
      function: ``module:function`` below this package; it takes a case and yields rows.
      seconds: of eight minutes; what a part does not need is for those behind it.
      cases: each runs in a process of its own.
      starts_others: whether its cases start processes that need the device too.
      judge: what is asked of all cases together.
    """

    name: str
    function: str
    seconds: int
    cases: Sequence[Mapping[str, Any]]
    starts_others: bool = False
    judge: Callable[[Sequence[Row]], Iterable[dict[str, Any]]] = lambda rows: ()


def parts(small: bool, torch_python: str = "") -> list[Part]:
    """All parts: those of the acceptance, or the same in small, for a CPU."""
    large = {"model": "small", "size": 64, "batch": 4} if small else {"model": "yolov5m", "size": 512, "batch": 48}
    little = {"model": "small", "size": 64, "batch": 4} if small else {"model": "yolov5n", "size": 320, "batch": 16}
    nothing, backbone, head = (0, 5, 6) if small else (0, 10, 24)
    timed = {"blocks": 2, "steps": 2} if small else {"blocks": 5, "steps": 10}
    depths = (nothing, backbone, head)
    narrow = {"dtype": "narrow", **timed}

    steps = [large | narrow | {"freeze": freeze} for freeze in depths]
    # Every two of the three properties meet in the first four.
    pairs = [(backbone, "fixed", "SGD"), (head, "track", "SGD"), (backbone, "track", "AdamW"), (head, "fixed", "AdamW")]
    if small:
        pairs = [pairs[0], (head, "track", "AdamW")]
    else:
        pairs += [
            (head, "fixed", "SGD"),
            (backbone, "track", "SGD"),
            (head, "track", "AdamW"),
            (backbone, "fixed", "AdamW"),
        ]
        steps += [little | narrow | {"freeze": freeze} for freeze in depths]
        steps += [large | narrow | {"freeze": nothing, "dtype": "float32"}]
    names = ("freeze", "frozen_bn", "optimizer")
    only_deterministic = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_exclude_nondeterministic_ops=true".strip()
    anew = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    files = {"images": 24, "epochs": 1, "workers": 0} if small else {"images": 2000, "epochs": 2, "workers": 16}
    # The original has no network as small as ours.
    original = {**large, "model": "yolov5n", "batch": 2, "device": "cpu"} if small else {**large, "device": "gpu"}
    repeated = little | {"freeze": nothing}
    return [
        Part(name="environment", function="commands:environment", seconds=15, cases=[{}]),
        Part(
            name="parity",
            function="numerics:parity",
            seconds=60,
            cases=[little | ({} if small else {"batch": 8})],
        ),
        Part(
            name="frozen",
            function="numerics:frozen",
            seconds=60,
            cases=[little | dict(zip(names, pair, strict=True)) for pair in pairs],
        ),
        Part(name="step", function="timing:step", seconds=165, cases=steps, judge=_ratios),
        Part(
            name="determinism",
            function="numerics:determinism",
            seconds=40,
            starts_others=True,
            cases=[
                repeated | {"deterministic": True, "variables": anew | {"XLA_FLAGS": only_deterministic}},
                repeated | {"deterministic": False, "variables": anew},
            ][: 1 if small else 2],
        ),
        Part(
            name="original",
            function="commands:original",
            seconds=45,
            starts_others=True,
            cases=[
                {**original, **timed, "freeze": freeze, "torch_python": torch_python}
                for freeze in ((nothing,) if small else (nothing, backbone))
            ],
        ),
        Part(
            name="stem",
            function="timing:stem",
            seconds=20,
            cases=[large | narrow | {"freeze": freeze} for freeze in ((head,) if small else (head, nothing))],
        ),
        Part(
            name="dispatch",
            function="timing:dispatch",
            seconds=20,
            cases=[
                little | narrow | {"freeze": freeze, "together": 8}
                for freeze in ((head,) if small else (backbone, head))
            ],
        ),
        Part(
            name="profile",
            function="timing:profile",
            seconds=15,
            cases=[large | narrow | {"freeze": backbone, "kernels": 3 if small else 20, "seconds": 1 if small else 4}],
        ),
        Part(
            name="feeding",
            function="commands:feeding",
            seconds=25,
            starts_others=True,
            cases=[
                large | files | {"freeze": backbone, "cache": cache}
                for cache in ((None, "device") if small else ("device", None, "ram"))
            ],
        ),
        Part(
            name="validation",
            function="commands:validation",
            seconds=10,
            starts_others=True,
            cases=[{"size": 64 if small else 320, "batch": 32}],
        ),
        Part(
            name="suppression",
            function="commands:suppression",
            seconds=5,
            cases=[{"size": 64 if small else 320, "batch": 8 if small else 32, "batches": 1 if small else 3}],
        ),
    ]


def _ratios(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Whether freezing shows on the clock."""
    times = {(row["model"], row["dtype"], row["freeze"]): row["milliseconds"] for row in rows if "milliseconds" in row}
    for model, dtype in dict.fromkeys(key[:2] for key in times):
        depths = sorted(freeze for kind, narrow, freeze in times if (kind, narrow) == (model, dtype))
        if len(depths) != 1 + len(RATIOS):
            continue
        for freeze, limit in zip(depths[1:], RATIOS, strict=True):
            ratio = times[model, dtype, freeze] / times[model, dtype, depths[0]]
            # Small networks are bound by the host, and the smallest of a CPU prove nothing.
            asked = model == "yolov5m"
            yield {
                "what": f"{model}, {dtype}: time of freeze {freeze} by that of freeze {depths[0]}",
                "result": f"{ratio:.3f}",
                "limit": f"{limit}" if asked else "",
                "passes": ratio <= limit if asked else None,
                "ratio": ratio,
            }
