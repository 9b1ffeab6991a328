"""The error that every reader of outside input raises."""

from __future__ import annotations


class InputError(ValueError):
    """Input from outside that cannot be used.

    The text names what was received and what was expected. Commands print it as one line and exit
    with code 2.
    """
