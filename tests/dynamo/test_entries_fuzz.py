"""Entries of the store that are nearly right: each is read or refused, and costs itself alone."""

from __future__ import annotations

import json
import os
import random
import time

from wardrop.dynamo.discovery.entries import BUCKETS, Entry, decode_entry
from wardrop.dynamo.discovery.store_reader import StoreReader
from wardrop.dynamo.gateway_json import feed_json, model_json, worker_json

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
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
    for case in range(CASES):
        dice = random.Random(case)
        bucket, key, text = dice.choice(sound)
        text = changed(text, dice)
        try:
            entry: Entry = decode_entry(bucket, key, text)
        except ValueError as error:
            longest = max(longest, len(str(error)))
            continue
        taken += 1
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
