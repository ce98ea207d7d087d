"""``yolojax cache``: what the cache folder holds, and emptying it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from yolojax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action", nargs="?", choices=["show", "clear"], default="show", help="list the folders, or delete what is ours"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="folders to show or clear, as 'show' names them; all")
    parser.add_argument("--yes", action="store_true", help="clear without asking")


def run(arguments: argparse.Namespace) -> int:
    """Show, and clear when that is asked for and agreed to; 1 if it is not agreed to."""
    from rich.console import Console

    from yolojax.caches import clear, read_caches
    from yolojax.files import readable_size, write_json
    from yolojax.runtime import cache_folder

    root = cache_folder()
    caches, foreign = read_caches(root)
    if unknown := [name for name in arguments.names if name not in {cache.name for cache in caches}]:
        names = ", ".join(cache.name for cache in caches) or "nothing"
        raise UserError(f"{root}: has no folder '{unknown[0]}'; it holds {names}")
    caches = [cache for cache in caches if not arguments.names or cache.name in arguments.names]
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for cache in caches:
        console.print(f"{readable_size(cache.bytes):>9}  {cache.folder}  ({cache.purpose})")
        if cache.foreign:
            console.print(f"{'':9}  not ours, left alone: {_named(cache.foreign)}")
    if foreign:
        console.print(f"{'':9}  beside them, not ours, left alone: {_named(foreign)}")
    console.print(
        f"{readable_size(sum(cache.bytes for cache in caches)):>9}  in {root} ($YOLOJAX_CACHE chooses another)"
    )
    if arguments.json:
        keys = ("name", "folder", "purpose", "bytes")
        rows = [{key: getattr(cache, key) for key in keys} | {"files": len(cache.files)} for cache in caches]
        write_json(arguments.json, rows)
    full = [cache for cache in caches if cache.files]
    if arguments.action == "show" or not full:
        return 0
    if not arguments.yes and not _agreed(len(full)):
        console.print("nothing was deleted")
        return 1
    for cache in full:
        clear(cache)
        console.print(f"deleted {len(cache.files)} files of {cache.folder}")
    return 0


def _named(places: list[Path] | tuple[Path, ...]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(str(place) for place in places[:3]) + more


def _agreed(folders: int) -> bool:
    if not sys.stdin.isatty():
        raise UserError("nothing was deleted: there is no terminal to ask on; --yes deletes without asking")
    what = "this folder" if folders == 1 else f"these {folders} folders"
    return input(f"delete {what}? Runs that use them now may fail. [y/N] ").strip().lower() in ("y", "yes")
