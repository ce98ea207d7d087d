"""What every command shares: its help, its errors."""

import re

import pytest

from yolojax.cli.main import COMMANDS, main


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
