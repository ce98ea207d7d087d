"""The error that speaks to the user."""


class UserError(Exception):
    """A mistake that the user can mend: says what is wrong, where (file, line, key) and what to do.

    The command line prints it as one line and exits with status 2; a traceback appears only with ``--debug``.
    """
