"""``yolojax COMMAND …``: finds the command, runs it, and turns a user's mistake into one clear line."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from yolojax.errors import UserError
from yolojax.flags import add_shared, with_dashes
from yolojax.hosts.cluster import Cluster, add_cluster_flags, find_cluster, refuse_several
from yolojax.processes import show_log
from yolojax.runtime import prepare_process
from yolojax.version import __version__

COMMANDS = {
    "train": "train or fine-tune, with layers frozen",
    "val": "measure precision, recall and mAP of weights on a data set",
    "detect": "find objects in images and videos",
    "export": "write a network as StableHLO, ONNX or a .pt of YOLOv5",
    "bench": "size, accuracy and time of every way of running a network",
    "data": "check, show, convert or fetch a data set",
    "freeze": "show what a freeze selector freezes, without training",
    "join": "make one network of several that share a frozen trunk, each with its own Detect",
    "audit": "compare two checkpoints layer by layer",
    "plan": "say what a training step costs with each freeze, here or on an absent GPU or TPU, without training",
    "study": "compare freezing strategies, and frameworks, side by side",
    "cache": "show or clear what is kept to save time",
    "doctor": "show versions, devices, memory, caches, and extras that are missing",
}
_COMPUTING = ("train", "val", "detect", "bench")  # many times on large arrays
_TOGETHER = ("train", "val", "study")  # what several processes may do together


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one sentence; the list of all flags before it would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; '{self.prog} --help' lists what it takes\n")


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of every flag that has one, in parentheses at the end."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        what, told, in_words = text.rpartition("; default: ")
        if told:
            return f"{what} (default: {in_words})"
        if default is False or default in (None, "", (), [], argparse.SUPPRESS):
            return text
        if "(default: " in text or not action.option_strings:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        return f"{text} (default: {shown})"


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only the arguments of ``command`` are built, so that no other command's module is imported."""
    parser = _Parser(prog="yolojax", description="YOLOv5 in JAX and Flax, for transfer learning by freezing layers.")
    parser.add_argument("--version", action="version", version=f"yolojax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        child = commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        if name == command:
            importlib.import_module(f"yolojax.cli.{name}").add_arguments(child)
            add_shared(child)
            if name in _TOGETHER:
                add_cluster_flags(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      Exit status: 0 success, 1 the command's own "no" (an audit that found movement, say), 2 a user's mistake, 130 interrupted.
    """
    words = with_dashes(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    parser = build_parser(command)
    arguments, unknown = parser.parse_known_args(words)
    if argv is None and arguments.command in _COMPUTING:
        prepare_process()
    show_log()
    try:
        if unknown:
            raise UserError(_unknown(unknown[0], _flags_of(parser)))
        _check_json(arguments.json)
        cluster = _cluster(arguments)
        if cluster is None or arguments.command == "study":  # whose runs are processes of their own
            return _run(arguments)
    except (UserError, MemoryError, KeyboardInterrupt) as error:
        if arguments.debug and not isinstance(error, KeyboardInterrupt):
            raise
        status, sentence = _told(error)
        start = "\n" if isinstance(error, KeyboardInterrupt) else ""
        print(f"{start}yolojax {arguments.command}: {sentence}", file=sys.stderr)
        return status
    return _run_together(arguments, cluster)


def _run(arguments: argparse.Namespace) -> int:
    return importlib.import_module(f"yolojax.cli.{arguments.command}").run(arguments)


def _cluster(arguments: argparse.Namespace) -> Cluster | None:
    """The processes that do a command together; None where this one is alone."""
    if arguments.command in _TOGETHER:
        return find_cluster(arguments.coordinator, arguments.process_id, arguments.process_count)
    refuse_several(arguments.command)
    return None


def _run_together(arguments: argparse.Namespace, cluster: Cluster) -> int:
    """Run a command as one of several processes; what ends one of them ends all."""
    from yolojax.hosts import membership

    try:
        membership.join(cluster)
        status = _run(arguments)
    except SystemExit:  # all of them were asked to stop, and have saved
        membership.leave()
        raise
    except BaseException as error:
        if arguments.debug or not isinstance(error, UserError | MemoryError | KeyboardInterrupt | RuntimeError):
            traceback.print_exc()
        status, sentence = _told(error)
        membership.fail(status, f"yolojax {arguments.command}: {sentence}")
    membership.leave()
    return status


def _told(error: BaseException) -> tuple[int, str]:
    """The exit status and the sentence of an error."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, MemoryError):
        return 2, f"there is not enough memory ({error}); smaller images or batches need less"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    reason = (str(error) or repr(error)).splitlines()[0]
    return (
        1,
        f"the work with the other processes failed ({reason}); their logs in the run folder tell whether one has ended before",
    )


def _flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of the commands and actions that it has."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= {flag for child in action.choices.values() for flag in _flags_of(child)}
    return flags


def _unknown(word: str, flags: set[str]) -> str:
    """What is wrong with a word that no flag takes."""
    if not word.startswith("-"):
        return f"'{word}' belongs to no flag"
    near = difflib.get_close_matches(word.partition("=")[0], sorted(flags), n=1)
    return f"{word.partition('=')[0]}: no such flag" + (f"; did you mean '{near[0]}'?" if near else "")


def _check_json(file: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    if file is not None and (file.is_dir() or any(place.is_file() for place in file.parents)):
        raise UserError(f"--json {file}: is no place for a file, because a folder or a file has that name")


if __name__ == "__main__":
    sys.exit(main())
