"""``yolojax COMMAND …``: finds the command, runs it, and turns a user's mistake into one clear line."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from yolojax.errors import UserError
from yolojax.flags import add_shared, with_dashes
from yolojax.runtime import use_huge_pages
from yolojax.version import __version__

COMMANDS = {
    "train": "train or fine-tune, with layers frozen",
    "val": "measure precision, recall and mAP of weights on a data set",
    "detect": "find objects in images and videos",
    "export": "write a network as StableHLO, ONNX or a .pt of YOLOv5",
    "bench": "size, accuracy and time of every way of running a network",
    "data": "check, show, convert or fetch a data set",
    "freeze": "show what a freeze selector freezes, without training",
    "audit": "compare two checkpoints layer by layer",
    "plan": "say what a training step costs with each freeze, here or on an absent GPU or TPU, without training",
    "study": "compare freezing strategies, and frameworks, side by side",
    "doctor": "show versions, devices, memory, caches, and extras that are missing",
}
_COMPUTING = ("train", "val", "detect", "bench")  # many times on large arrays


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
    parser = argparse.ArgumentParser(
        prog="yolojax", description="YOLOv5 in JAX and Flax, for transfer learning by freezing layers."
    )
    parser.add_argument("--version", action="version", version=f"yolojax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        child = commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        if name == command:
            importlib.import_module(f"yolojax.cli.{name}").add_arguments(child)
            add_shared(child)
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
    arguments = build_parser(command).parse_args(words)
    if argv is None and arguments.command in _COMPUTING:
        use_huge_pages()
    _show_log()
    try:
        return importlib.import_module(f"yolojax.cli.{arguments.command}").run(arguments)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"yolojax {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nyolojax {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _show_log() -> None:
    """Print what yolojax logs; on a terminal through rich, which keeps the lines and a progress bar apart."""
    # What OpenCV and FFmpeg print about damaged files names no file; our own lines do. Data workers inherit this.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if sys.stdout.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(show_time=False, show_level=False, show_path=False)
    log = logging.getLogger("yolojax")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
