"""``python -m convert SRC DST``: a PyTorch checkpoint as a weights directory, or the way back where ``DST`` ends in ``.pt``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from yolojax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversion.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      Exit status: 0 success, 2 a user's mistake.
    """
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Convert YOLOv5 weights from PyTorch to JAX, or back where DST ends in .pt. Nothing in SRC is run.",
    )
    parser.add_argument(
        "source", metavar="SRC", help="a .pt of YOLOv5 v6.0 or newer, a weights directory, or a run folder"
    )
    parser.add_argument("target", metavar="DST", help="weights directory to write, or a .pt file for the original")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    try:
        return _convert(arguments.source, arguments.target)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"convert: {error}", file=sys.stderr)
        return 2


def _convert(source: str, target: str) -> int:
    import jax

    from convert.writer import write_checkpoint
    from yolojax.runtime import select_devices
    from yolojax.weights.find import load_weights
    from yolojax.weights.store import save_weights

    if target.endswith(".pt") and Path(target).exists():
        raise UserError(f"{target}: exists; it is left as it is, name another file")
    select_devices("cpu")
    weights = load_weights(source)
    if target.endswith(".pt"):
        write_checkpoint(target, weights)
    else:
        save_weights(target, weights)
    count = sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"]))
    print(f"{target}: {weights.spec.name}, {count:,} parameters, {weights.spec.classes} classes")
    licence = weights.source.get("licence", "unknown")
    print(f"licence of the weights: {licence if licence != 'unknown' else 'not stated in the file'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
