"""Reading text that people and their tools wrote, with the bytes in it that nobody sees."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

_ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")
_HIDDEN = "[\u00a0\u2007\u202f\u200b\u200c\u200d\u2060\ufeff]"
_INVISIBLE = re.compile(_HIDDEN)
_MISPLACED = re.compile(rf"^[ \t]*{_HIDDEN}|[-:,\[{{]{_HIDDEN}|{_HIDDEN}(:|[ \t]*$)", re.MULTILINE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says; without that mark.

    Raises:
      OSError: it cannot be read.
      UnicodeDecodeError: it is no text.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def visible(text: str) -> str:
    """The text without characters of no width, and with plain spaces instead of non-breaking ones.

    >>> visible("0\\u200b 0.5\\u00a00.5")
    '0 0.5 0.5'
    """
    return _INVISIBLE.sub(" ", _ZERO_WIDTH.sub("", text))


def has_misplaced_space(text: str) -> bool:
    """Whether invisible characters stand where YAML needs a space or nothing: at the ends of a line or around a mark."""
    return _MISPLACED.search(text) is not None


def trimmed(text: str) -> str:
    """The text without spaces and invisible characters at its ends; those inside stay, as in a file's name.

    >>> trimmed("\u200b a b\u00a0")
    'a b'
    """
    start, stop = 0, len(text)
    while start < stop and not visible(text[start]).strip():
        start += 1
    while start < stop and not visible(text[stop - 1]).strip():
        stop -= 1
    return text[start:stop]


def printable(text: str) -> str:
    """The text with escapes for what does not print or cannot be seen; line breaks stay.

    >>> printable("cat\\u200b")
    'cat\\\\u200b'
    """
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in text
    )


def numbers_by_name(names: Sequence[str]) -> dict[str, int]:
    """The numbers of classes by their plain names; of several with one name, the first.

    >>> numbers_by_name(["car", "bus", "Car"])
    {'car': 0, 'bus': 1}
    """
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        numbers.setdefault(plain_name(name), number)
    return numbers


def plain_name(name: str) -> str:
    """The name of a class without case and blanks, by which classes are matched.

    >>> plain_name("Traffic  Light ")
    'trafficlight'
    """
    return "".join(name.casefold().split())
