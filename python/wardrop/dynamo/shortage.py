"""Errors that say that this process or machine lacks a resource, and nothing about a peer."""

from __future__ import annotations

import errno

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or an error that caused it, is a lack of descriptors, memory or ports."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            return True
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
        seen += 1
    return False
