"""``yolojax join A B``: one network of several that share a frozen trunk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="WEIGHTS",
        help="two or more, called A, B, C …: each a .pt, a weights directory, a run folder or a name",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="weights directory to write")
    parser.add_argument(
        "--at-least", type=int, default=10, metavar="N", help="layers that they must share, bit for bit"
    )
    parser.add_argument(
        "--same-names",
        choices=("keep", "fuse"),
        default="keep",
        help="classes with one name: keep tells them apart, 'person (B)'; fuse makes one class of them",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="A:NAME,NAME",
        help="classes that a network brings, by name or number; may be given for each; default: all",
    )


def run(arguments: argparse.Namespace) -> int:
    """Join, write, and show what stands where."""
    from rich.console import Console
    from rich.table import Table

    from yolojax.errors import UserError
    from yolojax.files import write_json
    from yolojax.runtime import select_devices
    from yolojax.tree import flatten
    from yolojax.weights.find import load_weights
    from yolojax.weights.join import join_weights
    from yolojax.weights.store import save_weights

    keep: dict[str, list[str]] = {}
    for text in arguments.keep:
        letter, colon, names = text.partition(":")
        if not colon or not names.strip():
            raise UserError(f"--keep {text}: write the letter of a network and its classes, for example A:person,car")
        keep.setdefault(letter.strip().upper(), []).extend(name.strip() for name in names.split(",") if name.strip())
    select_devices("cpu")
    joined = join_weights(
        [load_weights(source) for source in arguments.networks],
        at_least=arguments.at_least,
        same_names=arguments.same_names,
        keep=keep,
        name=arguments.output.name,
    )
    save_weights(arguments.output, joined)

    sizes = {path: leaf.size for path, leaf in flatten(joined.variables["params"]).items()}
    trunk = joined.source["trunk_layers"]

    def parameters(first: int, last: int) -> int:
        return sum(size for path, size in sizes.items() if first <= int(path.split("/")[0].split("_")[1]) <= last)

    rows: list[dict[str, Any]] = [
        {"part": "trunk", "from": "A", "layers": [0, trunk - 1], "parameters": parameters(0, trunk - 1)}
    ]
    for source, record in zip(arguments.networks, joined.source["joined"], strict=True):
        first, last = max(record["layers"][0], trunk), record["layers"][1]
        rows.append(
            {
                "part": f"branch {record['letter']}",
                "from": source,
                "layers": [first, last],
                "parameters": parameters(first, last),
                "classes": len(record["classes"]),
            }
        )
    table = Table("part", "layers", "parameters", "classes", "from")
    table.columns[4].overflow = "fold"
    for row in rows:
        layers = f"{row['layers'][0]}–{row['layers'][1]}"
        table.add_row(row["part"], layers, f"{row['parameters']:,}", str(row.get("classes", "")), row["from"])
    Console(highlight=False, markup=False).print(table)
    print(f"{arguments.output}: {len(joined.names)} classes, {sum(sizes.values()):,} parameters")
    if arguments.json:
        content = {"parts": rows, "classes": list(joined.names), "trunk_layers": trunk}
        write_json(arguments.json, content)
    return 0
