"""What every command shares: its help, its errors."""

import argparse
import re
from collections.abc import Iterator

import pytest

from yolojax.cli.main import COMMANDS, HelpFormatter, build_parser, main


def help_of(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_a_default_once_in_parentheses(command, capsys, monkeypatch):
    text = " ".join(help_of([command], capsys, monkeypatch).split())
    assert "; default:" not in text
    assert "(default: )" not in text
    assert not re.search(r"\(default: [^()]*\) \(default:", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_tracebacks_on_request(command, capsys, monkeypatch):
    assert "--debug" in help_of([command], capsys, monkeypatch)


@pytest.mark.parametrize("command", ["train", "val", "detect", "export", "bench", "freeze", "plan"])
def test_without_weights_every_command_takes_the_embedded_ones(command, capsys, monkeypatch):
    text = " ".join(help_of([command], capsys, monkeypatch).split())
    assert re.search(r"--weights [^(]*\(default: the embedded yolov5n\)", text)


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What a command takes, in its actions too, without what --help leaves out."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from actions_of(child)
        elif action.help is not argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            yield action


def flags_of(command: str) -> list[argparse.Action]:
    parser = next(action for action in build_parser(command)._actions if isinstance(action.choices, dict))
    return list(actions_of(parser.choices[command]))


def shown_help(action: argparse.Action) -> str:
    return HelpFormatter("yolojax")._get_help_string(action) or ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_one_style(command):
    for action in flags_of(command):
        flag, text = (action.option_strings or [action.metavar])[0], shown_help(action)
        takes_value = action.option_strings and action.nargs != 0
        what, _, default = text.partition(" (default: ")
        assert what, f"{flag}: no help"
        assert not what.endswith("."), f"{flag}: ends like a sentence: {text}"
        assert what[0].islower() or what.split()[0].strip(",").isupper() or what.startswith(("BatchNorm", "IoU")), text
        assert text.count("default") <= 1, f"{flag}: tells its default twice: {text}"
        if takes_value:  # the noun of the value comes first
            first = what.removeprefix("with --").split()[0]
            assert first not in {"a", "an", "the", "of", "in", "also", "what", "where", "write", "look", "use"}, text
            assert action.metavar or action.choices, f"{flag}: no name for its value"
            told = default or "without a value" in text or action.required or action.dest in NOTHING_UNLESS_GIVEN
            assert told, f"{flag}: no default in: {text}"
        else:
            assert not default, f"{flag}: a switch is off unless given"
        if action.metavar == "PIXELS":
            assert "pixels" in text, text
        if action.metavar == "VALUE":
            assert "0 to 1" in text or "mAP" in text, text


# Where nothing is the default, and the help need not say so.
NOTHING_UNLESS_GIVEN = {"data_root", "json", "plot", "output", "frozen"}
# The same flag with another number of values, or of other things, and why.
OTHERWISE = {
    "--weights": "val and detect take several, as an ensemble",
    "--imgsz": "where images need not be square, height and width",
    "--include": "formats to export, ways to measure",
    "--split": "one to draw, several to convert",
    "--out": "a folder or a file, by the action",
    "--dtype": "plan knows float16 too",
}


def test_a_flag_means_the_same_in_every_command():
    seen: dict[str, tuple[str, list]] = {}
    for command in COMMANDS:
        for action in flags_of(command):
            for flag in action.option_strings:
                if not OTHERWISE.keys() & set(action.option_strings):
                    meaning = [action.dest, action.metavar, action.nargs, action.choices]
                    where, before = seen.setdefault(flag, (command, meaning))
                    assert meaning == before, f"{flag}: not the same in {where} and {command}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_writes_its_figures_as_json(command):
    flags = [action for action in flags_of(command) if "--json" in action.option_strings]
    assert flags
    assert all(action.metavar == "FILE" for action in flags)


def test_a_default_of_zero_is_told(capsys, monkeypatch):
    text = " ".join(help_of(["train"], capsys, monkeypatch).split())
    assert "--seed N seed of weights, order and augmentation (default: 0)" in text
