"""Entries of the store that are nearly right: each is read or refused, and costs itself alone."""

from __future__ import annotations

import json
import os
import random
import time
from copy import deepcopy
from typing import Any

from wardrop.dynamo.discovery.entries import BUCKETS, CardEntry, Entry, decode_entry
from wardrop.dynamo.discovery.store_reader import StoreReader
from wardrop.dynamo.gateway_json import feed_json, model_json, worker_json

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
"""Number of the first case, which is its seed; a long run can be made in parts."""

READ_EVERY = 16
"""One in so many cases has the whole store read with the changed entry in it."""

WORDS = (
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"null", b"true", b"-1", b"1e999", b"0"),
    *(b"18446744073709551616", b"\\u0000", b"\\ud800", b"\xff", b"[" * 40, b'"instance_id":'),
    *(b'"display_name":""', b'"kv_cache_block_size":0', b"1.5"),
)


def changed(text: bytes, dice: random.Random) -> bytes:
    """A text with up to four random changes."""
    for _ in range(dice.randrange(5)):
        at = dice.randrange(len(text) + 1)
        match dice.randrange(4):
            case 0:
                text = text[:at] + bytes([dice.randrange(256)]) + text[at + 1 :]
            case 1:
                text = text[:at] + dice.choice(WORDS) + text[at:]
            case 2:
                text = text[:at] + text[at + dice.randrange(40) :]
            case _:
                text = text[:at] + text[max(0, at - dice.randrange(40)) :]
    return text


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, 2**63, 2**64, -(2**70), 10**400),
    *("", "x", "\0", "\ud800", "/", "1e9"),
    *([], {}, [None], [[]], {"": None}, {"path": 7}, {"file": {"file": {}}}, "x" * 5_000),
)
"""Values of other types and sizes than a field expects."""

MAX_PLACES = 64


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each container below a value with one of its keys, at most `MAX_PLACES`."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        if len(found) < MAX_PLACES:
            found.append((value, key))
            if isinstance(value[key], dict | list):
                places(value[key], found)
    return found


def rebuilt(text: bytes, dice: random.Random) -> bytes:
    """An entry with up to four fields that are replaced, removed, renamed, wrapped or exchanged."""
    entry = json.loads(text)
    for _ in range(dice.randrange(1, 5)):
        found = places(entry, [])
        if not found:
            break
        holder, key = dice.choice(found)
        other, other_key = dice.choice(found)
        match dice.randrange(6):
            case 0 | 1:
                holder[key] = deepcopy(dice.choice(ODD_VALUES))
            case 2:
                del holder[key]
            case 3:
                holder[key] = [holder[key]] if dice.randrange(2) else {"file": holder[key]}
            case 4 if isinstance(holder, dict):
                holder[dice.choice(["", "file", "x" * 300, "display_name"])] = holder.pop(key)
            case _:
                # A copy, because a value must not hold itself.
                holder[key] = deepcopy(other[other_key])
    return json.dumps(entry).encode()


def test_no_change_of_an_entry_harms_the_others(entries):
    entries.worker(1).worker(2, component="prefill").feed(5).source(5, 1)
    content = entries.content
    sound = [
        (bucket, key, json.dumps(entry).encode())
        for bucket in BUCKETS
        for key, entry in entries.snapshot[bucket].items()
    ]
    expected = StoreReader().read(content)
    started_s = time.monotonic()
    taken = longest = 0
    for case in range(FIRST, FIRST + CASES):
        dice = random.Random(case)
        bucket, key, text = dice.choice(sound)
        text = rebuilt(text, dice) if case % 2 else changed(text, dice)
        try:
            entry: Entry = decode_entry(bucket, key, text)
        except ValueError as error:
            longest = max(longest, len(str(error)))
            continue
        taken += 1
        if isinstance(entry, CardEntry):
            card = entry.card_json
            assert card.checksum
            assert card.prompt_checksum
            assert card.prompt_options
            assert isinstance(card.files, list)
        if case % READ_EVERY:
            continue
        more = {**content, bucket: {**content[bucket], "changed": entry}}
        view = StoreReader().read(more)
        # A changed card may complete or end a worker set; an entry of another bucket cannot.
        if bucket not in ("mdc", "instances"):
            assert view.workers == expected.workers
        for model in view.models.values():
            model_json(model, None).encode()
        for worker in view.workers.values():
            worker_json(worker).encode()
        for feed in view.feeds.values():
            feed_json(feed).encode()
    print(f"discovery entries: {CASES} cases in {time.monotonic() - started_s:.1f} s, {taken} read")
    assert taken > CASES / 20
    assert longest < 2_000, "an error quotes no whole entry"
