"""The error that speaks to the user."""

from __future__ import annotations

from yolojax.text import printable


class UserError(Exception):
    """A mistake that the user can mend: says what is wrong, where (file, line, key) and what to do.

    The command line prints it as one line and exits with status 2; a traceback appears only with ``--debug``.
    """

    def __str__(self) -> str:
        """The sentence; what does not print is escaped, so that it can be seen and cannot steer a terminal."""
        return printable(super().__str__())
