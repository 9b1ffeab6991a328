"""Snapshots of a running router, from the server-sent events of its admin port."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import msgspec

from wardrop.commands.admin_client import AdminError
from wardrop.service.live.snapshot import SCHEMA, Snapshot

TIMEOUT_S = 10.0
"""A router sends a snapshot each second, so a longer silence means that it hangs."""
_LONGEST_LINE = 64 << 20

_DECODER = msgspec.json.Decoder(Snapshot)


@contextmanager
def snapshots(admin: str) -> Generator[Generator[Snapshot]]:
    """The snapshots of a router, until the context ends.

    Args:
        admin: Address of the admin API, without a trailing slash.

    Raises:
        AdminError: The router does not answer, is silent, or sends another form.
    """
    try:
        answer = urlopen(f"{admin}/v1/live", timeout=TIMEOUT_S)
    except HTTPError as error:
        with error:
            raise AdminError(f"{admin}/v1/live: got status {error.code}, expected 200") from None
    except (URLError, OSError) as error:
        raise AdminError(
            f"no admin API answers at {admin}: {error}; give --url or WARDROP_ADMIN_URL"
        ) from None
    with answer:
        yield _read(answer, admin)


def _read(answer: IO[bytes], admin: str) -> Generator[Snapshot]:
    topic = b""
    try:
        while line := answer.readline(_LONGEST_LINE):
            if line.startswith(b"event: "):
                topic = line[7:].strip()
            elif line.startswith(b"data: ") and topic == b"snapshot":
                yield _DECODER.decode(line[6:])
    except OSError as error:
        raise AdminError(f"{admin}: no snapshot within {TIMEOUT_S:g} s: {error}") from None
    except msgspec.MsgspecError as error:
        raise AdminError(f"{admin}: expected the schema {SCHEMA}: {error}") from None
