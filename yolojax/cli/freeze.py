"""``yolojax freeze``: what a selector or a strategy freezes, without training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolojax.weights.store import Weights

DISTANCE_IMAGES = 512  # that the distance is measured on at most; more hardly change a mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="weights: a .pt, a weights directory, a run folder or a name; default: the embedded yolov5n",
    )
    parser.add_argument(
        "--cfg", metavar="MODEL", help="model YAML (yolov5m, path); default: the architecture of the weights"
    )
    parser.add_argument("--nc", type=int, metavar="N", help="number of classes; default: that of the weights or YAML")
    parser.add_argument(
        "--freeze",
        nargs="+",
        default=("0",),
        metavar="SELECTOR",
        help="layers to freeze: 10 = layers 0 to 9; 0 1 2; 0-9; 95%% of the parameters; 'model_*/cv1/**'; backbone; a strategy's name or file",
    )
    parser.add_argument(
        "--frozen-bn",
        choices=("fixed", "track"),
        default="fixed",
        help="BatchNorm of frozen layers: fixed = running statistics used and kept; track = batch statistics, as YOLOv5 does",
    )
    parser.add_argument(
        "--epochs", type=int, default=100, metavar="N", help="epochs of the run, for strategies in phases"
    )
    parser.add_argument("--list", action="store_true", help="list every parameter")
    parser.add_argument(
        "--distance",
        action="store_true",
        help=f"measure how far the photos of --data (train split, at most {DISTANCE_IMAGES}) move the moments of each layer's BatchNorm",
    )
    parser.add_argument(
        "--data", metavar="DATA", help="with --distance: data set YAML or name, or tfds:NAME; default: none"
    )
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data set, instead of the YAML's path")
    parser.add_argument(
        "--imgsz",
        "--img",
        "--img-size",
        type=int,
        metavar="PIXELS",
        help="with --distance: image side in pixels; default: the data set's, else 640",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    from functools import partial

    import jax
    from rich.console import Console
    from rich.table import Table

    from yolojax.errors import UserError
    from yolojax.files import write_json
    from yolojax.freezing.adapters import add_adapters
    from yolojax.freezing.load import load_strategy, rehearse
    from yolojax.freezing.phases import Phase
    from yolojax.freezing.random_layers import frozen_random, random_sentence
    from yolojax.freezing.selectors import layer_of
    from yolojax.freezing.summary import BN_MODES, summarise
    from yolojax.model.network import abstract_variables, parameter_sizes
    from yolojax.model.spec import load_spec
    from yolojax.runtime import select_devices
    from yolojax.tree import flatten
    from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights
    from yolojax.weights.store import initialised_parameters

    for name, value in (("--nc", arguments.nc), ("--epochs", arguments.epochs), ("--img", arguments.imgsz)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    _check_distance(arguments)
    select_devices("cpu")
    if arguments.weights == "" and not arguments.cfg:
        raise UserError("--weights '': names no network; add --cfg yolov5n (or s, m, l, x, or a YAML file)")
    named = EMBEDDED_WEIGHTS if arguments.weights is None and not arguments.cfg else arguments.weights
    weights = load_weights(named) if named else None
    spec = load_spec(arguments.cfg) if weights is None or arguments.cfg else weights.spec
    spec = spec.with_classes(arguments.nc or spec.classes)
    plain = abstract_variables(spec)["params"]
    strategy = load_strategy(arguments.freeze, sizes=partial(parameter_sizes, spec))
    phases = rehearse(strategy, tuple(flatten(plain)), arguments.epochs, spec.name)
    # A --cfg alone says what a network is, and nothing of what it starts from.
    fresh = initialised_parameters(weights, spec) if weights else tuple(flatten(plain)) if named == "" else ()
    reason = f"{named} has no arrays of their shape" if named else "there are no weights to start from"
    random = frozen_random((phase for _, phase in phases), fresh)

    def parameters_of(phase: Phase) -> dict[str, Any]:
        """Shapes of everything that the phase labels."""
        return jax.eval_shape(lambda params: add_adapters(params, phase.adapters, jax.random.key(0)), plain)

    modules = [layer.module for layer in spec.resolved]
    summaries = [summarise(parameters_of(phase), phase, modules, arguments.frozen_bn) for _, phase in phases]
    summary, first = summaries[0], phases[0][1]

    console = Console(highlight=False)
    distances = _distances(weights, arguments) if arguments.distance and weights else {}
    table = Table(title=f"{spec.name}, {spec.classes} classes, --freeze {strategy.name}", title_justify="left")
    for heading in ("layer", "module", "parameters", "trainable", "BatchNorm", *(["distance"] if distances else [])):
        table.add_column(heading, justify="left" if heading in ("module", "BatchNorm") else "right")
    for row in summary["layers"]:
        cells = [f"{row['parameters']:,}", f"{row['trainable']:,}"] if row["parameters"] else ["-", "-"]
        cells += [row["bn_mode"] or "-"]
        if distances:
            row["distance"] = distances.get(row["layer"])
            cells += ["-" if row["distance"] is None else f"{row['distance']:.3f}"]
        style = "dim" if row["trainable"] == 0 else None
        table.add_row(f"model_{row['layer']}", row["module"], *cells, style=style)
    table.add_section()
    table.add_row("total", "", f"{summary['parameters']:,}", f"{summary['trainable']:,}", "")
    console.print(table)
    console.print(f"{_share(summary)} of the parameters train{' in the first phase' if len(phases) > 1 else ''}.")
    if distances:
        console.print(
            "distance: from a layer's running moments to those of the photos, in running deviations, mean over its channels."
        )
    if summary["frozen_paths"]:
        console.print(f"{BN_MODES[arguments.frozen_bn]}.")
    if len(phases) > 1 or set(first.factors.values()) != {1.0}:
        console.print(_phase_table(strategy, phases, summaries, arguments.epochs))
    if random:
        console.print(random_sentence(strategy, random, reason), markup=False)
    if arguments.list:
        for path, leaf in sorted(flatten(parameters_of(first)).items(), key=lambda item: layer_of(item[0])):
            console.print(
                f"{first.label(path):<10} {path} {'x'.join(map(str, leaf.shape))}", soft_wrap=True, markup=False
            )
    if arguments.json:
        starts = [
            {"start": start, "name": phase.name, "trainable": own["trainable"], "factors": dict(phase.factors)}
            for (start, phase), own in zip(phases, summaries, strict=True)
        ]
        content = {"network": spec.name, "strategy": strategy.name, **summary, "phases": starts}
        write_json(arguments.json, {**content, "frozen_random_paths": list(random)})
    return 0


def _check_distance(arguments: argparse.Namespace) -> None:
    """``--distance`` needs photos, and weights whose moments they move."""
    from yolojax.errors import UserError

    if not arguments.distance:
        for name, value in (
            ("--data", arguments.data),
            ("--data-root", arguments.data_root),
            ("--img", arguments.imgsz),
        ):
            if value is not None:
                raise UserError(f"{name} {value}: is read with --distance alone; add it")
        return
    if arguments.data is None:
        raise UserError("--distance: needs photos; add --data with the data set that you would train on")
    if arguments.cfg or arguments.weights == "":
        raise UserError("--distance: is one of weights; leave --cfg out and name them with --weights")


def _distances(weights: Weights, arguments: argparse.Namespace) -> dict[int, float]:
    """The distance of every layer that has BatchNorm, over photos of the train split."""
    from rich import get_console
    from rich.progress import track

    from yolojax.data.batches import validation_batches
    from yolojax.data.sources import load_data, open_split
    from yolojax.errors import UserError
    from yolojax.inference.distance import layer_distances, measure_distances
    from yolojax.model.network import Network
    from yolojax.model.spec import whole_strides

    data = load_data(arguments.data, arguments.data_root)
    samples = open_split(data, "train").samples
    samples = samples[:: -(-len(samples) // DISTANCE_IMAGES)]
    size = arguments.imgsz or data.defaults.get("img", 640)
    batches = validation_batches(
        samples,
        image_size=whole_strides(size, weights.spec.stride),
        batch_size=16,
        stride=weights.spec.stride,
        pad=0,
        most_shapes=8,
    )
    shown = get_console().is_terminal
    bar = track(batches.iterate(threads=2), "measuring", len(batches), transient=True, disable=not shown)
    distances = measure_distances(Network(weights.spec), weights.variables, bar)
    if not distances:
        raise UserError(f"{data.file}: not one photo of its train split can be read")
    return layer_distances(distances)


def _share(summary: dict[str, Any]) -> str:
    return f"{summary['trainable']:,} of {summary['parameters']:,} ({summary['trainable'] / summary['parameters']:.2%})"


def _phase_table(strategy: Any, phases: Any, summaries: Any, epochs: int) -> Any:
    from rich.table import Table

    note = "; as early as possible, the training decides" if strategy.needs else ""
    table = Table(title=f"phases of {epochs} epochs{note}", title_justify="left")
    for heading in ("from epoch", "phase", "trainable", "learning-rate factors"):
        table.add_column(heading, justify="right" if heading in ("from epoch", "trainable") else "left")
    for (start, phase), summary in zip(phases, summaries, strict=True):
        factors = ", ".join(f"{group}: {factor:.3g}" for group, factor in phase.factors.items())
        table.add_row(str(start), phase.name or "-", f"{summary['trainable']:,}", factors)
    return table
