"""Native core of Wardrop: router, decoders, simulator, price of anarchy, gateway and load driver.

Every class is frozen: its state changes only through its methods. Every class is thread-safe.
"""

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AnarchyMeter",
    "Candidate",
    "Cleared",
    "Decision",
    "Door",
    "Drive",
    "EngineFeed",
    "Gateway",
    "Picker",
    "Prefix",
    "Removed",
    "Router",
    "SelectServer",
    "SimWorkload",
    "Stored",
    "StreamBound",
    "WatchedFleet",
    "__version__",
    "apply_dynamo_message",
    "assign",
    "assign_congested",
    "block_hashes",
    "cost_lower_bound",
    "decode_engine_batch",
    "improve_plan",
    "sequence_hashes",
    "simulate_fleet",
    "simulate_planned",
    "stream_price",
]

__version__: str

# ---- router

_Worker: TypeAlias = int | tuple[int, int]
"""A worker: an instance id, which stands for rank 0, or a pair (instance id, dp_rank)."""

_Tokens: TypeAlias = Sequence[int] | NDArray[Any] | array[int] | bytes | bytearray | memoryview
"""Token ids, each below 2^32.

A contiguous buffer of unsigned 32-bit integers (`numpy.uint32`, `array('I')` or a memoryview) is
read in place, and so are bytes of little-endian 32-bit ids. Another integer array, of any width and
in either byte order, is copied with a range check. A list or tuple is read element by element.
"""

_Hashes: TypeAlias = Sequence[int] | NDArray[np.uint64] | NDArray[np.int64]
"""64-bit hashes. A negative number is the signed form of the same bits, as Dynamo writes it."""

def block_hashes(
    tokens: _Tokens,
    block_size: int,
    *,
    lora_name: str | None = None,
    cache_namespace: str | None = None,
) -> list[int]:
    """Local hashes of the full blocks of a prompt, equal to Dynamo's.

    A local hash is XXH3-64 over the little-endian 32-bit ids of the block. The seed is 1337 plus
    the hashes of the adapter's name and of the namespace. A partial last block has no hash. Source:
    `dynamo.llm.compute_block_hash_for_seq` of Dynamo 1.6.1. The cost is O(tokens).

    Args:
        tokens: token ids of the prompt.
        block_size: tokens per KV block, at least 1.
        lora_name: adapter of the prompt.
        cache_namespace: tenant or salt of the prompt.

    Returns:
        One hash per full block: `len(tokens) // block_size` hashes.

    Raises:
        TypeError: `tokens` is not a buffer or sequence of integers.
        ValueError: a token id is out of range, or `block_size` is 0.
    """

def sequence_hashes(local_hashes: _Hashes) -> list[int]:
    """Sequence hashes of a prompt: each stands for a block and all blocks before it.

    The first sequence hash is the first local hash. Each further one is XXH3-64 with seed 1337 over
    the previous sequence hash and the block's local hash, both little-endian.

    Args:
        local_hashes: local hashes of the prompt's blocks, in order.

    Returns:
        One hash per local hash.
    """

@final
class Prefix:
    """Hashes of a prompt that grows. Every token is hashed once.

    `Router.route`, `Router.book` and `Router.find_matches` take a `Prefix` in place of tokens. This
    constructor hashes as Dynamo does. `Router.prefix` hashes as its router does, also under a key.

    Args:
        block_size: tokens per KV block.
        lora_name: adapter of the prompt.
        cache_namespace: tenant or salt of the prompt.

    Raises:
        ValueError: `block_size` is 0.
    """

    def __new__(
        cls, block_size: int, *, lora_name: str | None = None, cache_namespace: str | None = None
    ) -> Prefix: ...
    def extend(self, tokens: _Tokens) -> None:
        """Append tokens. The cost is O(new tokens).

        Raises:
            TypeError: `tokens` is not a buffer or sequence of integers.
            ValueError: a token id is out of range.
        """

    def copy(self) -> Prefix:
        """An independent copy, for another branch of the session."""

    @property
    def tokens(self) -> int:
        """Number of tokens so far."""

    @property
    def blocks(self) -> int:
        """Number of full blocks so far."""

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""

    def block_hashes(self) -> list[int]:
        """Local hashes of the full blocks.

        Raises:
            ValueError: the hashes are made with a router's secret key.
        """

@final
class Stored:
    """KV event: a worker stored consecutive blocks of a prompt.

    Give either `tokens` with `block_size`, or `local_hashes`.

    Args:
        block_hashes: engine hashes of the blocks, in prompt order. A later `Removed` names them.
        tokens: token ids of the blocks.
        block_size: tokens per block, needed with `tokens`.
        local_hashes: local hashes of the blocks, in prompt order.
        parent: engine hash of the block before the first one; None at the start of a prompt.
        tier: memory of the blocks: "device", "host" or "disk".
        lora_name: adapter of the tokens.
        cache_namespace: tenant or salt of the tokens.

    Raises:
        ValueError: the number of engine hashes differs from the number of blocks, or the tier is
            unknown.
    """

    def __new__(
        cls,
        block_hashes: _Hashes,
        *,
        tokens: _Tokens | None = None,
        block_size: int | None = None,
        local_hashes: _Hashes | None = None,
        parent: int | None = None,
        tier: str = "device",
        lora_name: str | None = None,
        cache_namespace: str | None = None,
    ) -> Stored: ...

@final
class Removed:
    """KV event: a worker removed one copy of each named block.

    Args:
        block_hashes: engine hashes of the blocks, in any order.
        tier: memory of the blocks: "device", "host" or "disk".

    Raises:
        ValueError: the tier is unknown.
    """

    def __new__(cls, block_hashes: _Hashes, *, tier: str = "device") -> Removed: ...

@final
class Cleared:
    """KV event: a worker removed all its blocks, in every tier."""

    def __new__(cls) -> Cleared: ...

@final
class Candidate:
    """One candidate of an explained decision, as it was priced."""

    @property
    def worker(self) -> tuple[int, int]:
        """Worker as (instance, dp_rank)."""

    @property
    def cost(self) -> float:
        """Cost in the unit of the policy. Lower is better."""

    @property
    def trust(self) -> str:
        """What the price believed of the cache: `exact`, `degraded`, `predicted` or `load_only`."""

    @property
    def listed_blocks(self) -> int:
        """Leading blocks of the prompt in device memory, as the index lists them."""

    @property
    def device_blocks(self) -> int:
        """Leading blocks of the prompt that the worker holds in device memory."""

    @property
    def host_blocks(self) -> int:
        """Blocks after the device prefix that the worker holds in host memory."""

    @property
    def disk_blocks(self) -> int:
        """Blocks after the host prefix that the worker holds on disk."""

    @property
    def prefill_tokens(self) -> int:
        """Uncached prompt tokens of the worker's requests that wait for their first token."""

    @property
    def decode_blocks(self) -> int:
        """Distinct blocks of the worker's requests in flight."""

    @property
    def shared_blocks(self) -> int:
        """Leading blocks of this prompt among the worker's `decode_blocks`."""

    @property
    def active_requests(self) -> int:
        """Number of the worker's requests in flight."""

    @property
    def parts(self) -> dict[str, float]:
        """Summands of the cost by name, in the unit of the policy.

        `toll` has its weighted terms in seconds. `dynamo` has the blocks to prefill, the blocks in
        flight, and the term for requests in flight. A policy whose cost is not a sum has no parts.
        """

@final
class Decision:
    """Worker chosen for a request."""

    @property
    def worker(self) -> tuple[int, int]:
        """Chosen worker as (instance, dp_rank)."""

    @property
    def overlap_blocks(self) -> int:
        """Leading blocks of the prompt that the worker holds in device memory."""

    @property
    def cost(self) -> float:
        """Cost of the worker in the unit of the policy.

        It is the lowest cost of all candidates, unless the policy has a temperature above 0.
        """

    @property
    def misfit(self) -> str | None:
        """Why a static rule decided in place of the policy; None if the policy decided.

        `first_tokens_unreported`, `first_tokens_unpredicted` or `steps_unpredicted`.
        """

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates if `explain` was True, otherwise an empty list."""

@final
class Router:
    """Router of one pool of workers: applies KV events, matches, prices, picks and books.

    Any number of threads may call it, with the GIL or on a free-threaded build. A call sees the
    effects of every call that returned before it began. Matching takes no lock and does not wait
    for `apply`. It may see a part of an `apply` that runs at the same time
    (docs/explanation/prefix-index.md). Choosing and booking are one step. The GIL is released where
    work grows with the prompt or the fleet.

    Times are seconds of one monotonic clock. The time None stands for `time.monotonic()`.

    Args:
        block_size: tokens per KV block, at least 1.
        policy: "round_robin", "least_loaded", "power_of_two", "dynamo", "paper", "lmetric",
            "two_tier", "sticky", "chwbl" or "toll".
        seed: seed of ties and samples. Equal calls give equal answers.
        tracks_prefill: whether to track prefill tokens. False for the decode pool of a split fleet.
        tracks_decode: whether to track decode blocks. False for the prefill pool of a split fleet.
        booking_ttl_s: age in seconds at which a booking without a release ends.
        max_bookings: largest number of open bookings.
        max_workers: largest number of workers, at most 65,536.
        index_max_blocks: largest number of distinct blocks in the index. At the limit, the block
            that was neither stored nor matched for longest is evicted. `snapshot()` counts
            evictions as `blocks_evicted`.
        index_max_bytes: largest size of the index in bytes, at least 1 MiB, with the same eviction.
            None sets no limit.
        predicted: prediction of caches from booked requests. "off" predicts nothing, as Dynamo
            does by default. "alone" is for fleets without KV events: a prediction lasts
            `predicted_ttl_s` after the request's end. "beside" is for fleets with KV events: a
            prediction lasts `predicted_settle_s` after the first token, and at most
            `predicted_ttl_s`. `snapshot()["predicted"]` counts predictions.
        hash: "xxh3" is Dynamo's hash, bit for bit. Dynamo's events need it, because they carry no
            tokens. "keyed" uses a secret key, so that a client cannot construct prompts that
            collide; two blocks collide with probability 2⁻⁶³. Prompts and events must then come as
            tokens (`EngineFeed`, `Stored(tokens=…)`), and hashes from elsewhere are refused.
        hash_key: 16 secret random bytes that several routers share. None draws a key.
        predicted_ttl_s: see `predicted`.
        predicted_settle_s: see `predicted`.
        predicted_capacity_blocks: assumed cache of a worker without `total_kv_blocks`, in blocks.
            The blocks of its oldest requests are dropped first.
        price_guard: whether Dynamo's cost decides while the predicted seconds do not fit what
            `prefill_done` and `release` report (docs/explanation/price-guard.md). True needs a call
            of `prefill_done` for the first token of every streamed answer.
        **parameters: parameters of the policy, by name.

    Raises:
        ValueError: a parameter is unknown or out of range. The text names it and the valid range.
    """

    def __new__(
        cls,
        block_size: int,
        policy: str = "dynamo",
        *,
        seed: int = 0,
        tracks_prefill: bool = True,
        tracks_decode: bool = True,
        booking_ttl_s: float = 600.0,
        max_bookings: int = 1_000_000,
        max_workers: int = 65_536,
        index_max_blocks: int = 100_000_000,
        index_max_bytes: int | None = None,
        predicted: str = "off",
        predicted_ttl_s: float = 120.0,
        predicted_settle_s: float = 1.0,
        predicted_capacity_blocks: int = 65_536,
        hash: str = "xxh3",
        hash_key: bytes | None = None,
        price_guard: bool = False,
        **parameters: Any,
    ) -> Router: ...
    @property
    def block_size(self) -> int:
        """Tokens per KV block."""

    @property
    def workers(self) -> list[tuple[int, int]]:
        """Registered workers as (instance, dp_rank), in ascending order."""

    def add_worker(
        self,
        worker: _Worker,
        *,
        total_kv_blocks: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        """Register a worker as available and idle, with an empty cache.

        Args:
            worker: the worker.
            total_kv_blocks: capacity of its device memory, in blocks.
            max_num_seqs: number of sequences that its engine runs at the same time.
            max_num_batched_tokens: number of tokens that one iteration of its engine computes.

        Raises:
            ValueError: the worker is already registered.
            RuntimeError: the router has `max_workers` workers.
        """

    def remove_worker(self, worker: _Worker) -> None:
        """Remove a worker with its blocks and bookings.

        Raises:
            KeyError: the worker is not registered.
        """

    def set_available(self, worker: _Worker, available: bool) -> None:
        """Set whether a worker takes new requests. Its blocks and bookings stay.

        Raises:
            KeyError: the worker is not registered.
        """

    def apply(
        self, worker: _Worker, event: Stored | Removed | Cleared | Mapping[str, Any] | str
    ) -> None:
        """Apply one KV event of a worker.

        Args:
            worker: the worker that published the event.
            event: the event, or a dict of Dynamo's event plane: `{"stored": {"parent_hash",
                "blocks": [{"block_hash", "tokens_hash"}]}}`, `{"removed": {"block_hashes"}}`, or
                `{"cleared": ...}`, each with an optional "storage_tier". The text "cleared" stands
                for a cleared event.

        Raises:
            KeyError: the worker is not registered.
            ValueError: the parent is unknown, a removed block is not held, or one engine hash names
                two blocks. The other blocks of the event are applied. `snapshot()` counts refused
                events, and the feed may continue.
            RuntimeError: the index is full.
        """

    def prefix(self, *, lora_name: str | None = None, cache_namespace: str | None = None) -> Prefix:
        """An empty `Prefix` that hashes as this router does.

        Args:
            lora_name: adapter of the prompt.
            cache_namespace: tenant or salt of the prompt.
        """

    def find_matches(
        self,
        tokens: _Tokens | Prefix | None = None,
        *,
        hashes: _Hashes | None = None,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
    ) -> dict[tuple[int, int], tuple[int, int, int]]:
        """Overlap of a prompt with every worker's cache.

        Args:
            tokens: token ids of the prompt, or a `Prefix`.
            hashes: local hashes of the prompt, in place of `tokens`.
            lora_name: adapter of the prompt.
            cache_namespace: tenant or salt of the prompt.

        Returns:
            By worker (instance, dp_rank), the blocks in device memory, in host memory and on disk.
            Host blocks continue the device prefix, and disk blocks continue the host prefix. A
            worker without overlap is absent.

        Raises:
            ValueError: `tokens` and `hashes` are both given, or a token id is out of range.
            TypeError: an argument has another type.
        """

    def route(
        self,
        tokens: _Tokens | Prefix | None = None,
        *,
        hashes: _Hashes | None = None,
        request_id: str | int | None = None,
        allowed: Sequence[_Worker] | None = None,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
        input_tokens: int | None = None,
        expected_output_tokens: int | None = None,
        streamed: bool = True,
        explain: bool = False,
        now_s: float | None = None,
    ) -> Decision:
        """Choose a worker and, if a `request_id` is given, book the request there in the same step.

        Args:
            tokens: token ids of the prompt, or a `Prefix`.
            hashes: local hashes of the prompt, in place of `tokens`. Without either, only load
                determines the choice.
            request_id: id of the booking. It may be used again after `release`.
            allowed: the only workers that may be chosen. Unknown workers are ignored.
            lora_name: adapter of the prompt.
            cache_namespace: tenant or salt of the prompt.
            input_tokens: prompt tokens. The default is the length of `tokens`, or of the blocks of
                `hashes`.
            expected_output_tokens: expected answer tokens, for policies that price the answer.
            streamed: whether `prefill_done` will report the first token. If False, the prefill
                counts as done at its expected time.
            explain: whether to fill `Decision.candidates`.
            now_s: time of the decision, in seconds.

        Raises:
            LookupError: no allowed worker is available.
            ValueError: the id is already booked, `tokens` and `hashes` are both given, or a token
                id is out of range.
            RuntimeError: the router has `max_bookings` open bookings.
            TypeError: an argument has another type.
        """

    def book(
        self,
        worker: _Worker,
        request_id: str | int,
        tokens: _Tokens | Prefix | None = None,
        *,
        hashes: _Hashes | None = None,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
        input_tokens: int | None = None,
        expected_output_tokens: int | None = None,
        streamed: bool = True,
        now_s: float | None = None,
    ) -> None:
        """Book a request on a worker that the caller chose.

        The other arguments are those of `route`.

        Raises:
            KeyError: the worker is not registered.
            ValueError: the id is already booked, `tokens` and `hashes` are both given, or a token
                id is out of range.
            RuntimeError: the router has `max_bookings` open bookings.
            TypeError: an argument has another type.
        """

    def prefill_done(self, request_id: str | int, *, now_s: float | None = None) -> tuple[int, int]:
        """Report the first token of a request.

        Returns:
            The request's worker as (instance, dp_rank).

        Raises:
            KeyError: the request is not booked.
        """

    def release(
        self,
        request_id: str | int,
        *,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
        now_s: float | None = None,
    ) -> tuple[int, int]:
        """End the booking of a request, regardless of its outcome. The router learns from it.

        Args:
            request_id: id of the booking.
            output_tokens: tokens of the answer, if known.
            cached_tokens: prompt tokens that the engine found in its cache, if known.
            now_s: time of the end, in seconds.

        Returns:
            The request's worker as (instance, dp_rank).

        Raises:
            KeyError: the request is not booked.
        """

    def expire(self, *, now_s: float | None = None) -> int:
        """End the bookings older than `booking_ttl_s`. `route` also does this.

        Returns:
            The number of bookings that ended.
        """

    def set_policy(self, policy: str, **parameters: Any) -> None:
        """Replace the policy and all its parameters. Caches, bookings and curves stay.

        Raises:
            ValueError: the policy or a parameter is unknown, or a parameter is out of range.
        """

    def save_index(
        self,
        path: str | os.PathLike[str],
        *,
        positions: Mapping[tuple[int, int], int] | None = None,
    ) -> int:
        """Write the blocks of every worker to a file, for a restart.

        The file replaces an older one atomically. It has a version and a checksum. It holds no
        bookings, predictions or curves. Calls of `apply` wait meanwhile, and decisions do not.

        Args:
            path: path of the file.
            positions: position of each worker's feed by (instance, dp_rank), for instance its last
                sequence number. `load_index` returns it.

        Returns:
            The size of the file in bytes.

        Raises:
            OSError: the file cannot be written. An older file stays unchanged.
        """

    def load_index(
        self, path: str | os.PathLike[str]
    ) -> dict[tuple[int, int], tuple[tuple[int, int, int], int | None]]:
        """Read the file of `save_index`. Only registered workers take their blocks over.

        Call it before the first event. The loaded blocks belong to the incarnation that was saved.
        Some feeds have restarted, or do not continue at their saved position. For such a feed,
        apply `Cleared` to the worker and then its dump, if there is one. A stale block costs a
        cache miss, never a request.

        Args:
            path: path of the file.

        Returns:
            By (instance, dp_rank): the blocks in device memory, in host memory and on disk, and the
            saved position.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is not a saved index, is damaged, or has another version, block
                size, hash or key. The router is unchanged.
            RuntimeError: the index is not empty, or the saved index exceeds its limit.
        """

    def snapshot(self) -> dict[str, Any]:
        """Load and blocks of every worker, size of the index, and counters, as plain data."""

# ---- engines

@final
class EngineFeed:
    """KV events of one worker, as vLLM and SGLang publish them over ZMQ.

    A message has three frames: topic, sequence number (8 bytes, big-endian) and payload (msgpack,
    in map or array form). A sequence number that does not rise is a restart: the worker's blocks
    are cleared. Adapters and salts are part of the block hashes, so that `Router.route` finds them
    by `lora_name` and `cache_namespace`. Blocks are hashed as the router hashes its prompts.

    Args:
        block_size: tokens per KV block, equal to the router's. Events with another block size are
            skipped.
    """

    def __new__(cls, block_size: int) -> EngineFeed: ...
    def apply(
        self, router: Router, worker: _Worker, sequence: int, payload: bytes
    ) -> tuple[int, int]:
        """Apply one message to a router. The GIL is released meanwhile.

        Args:
            router: router of the worker's pool.
            worker: worker that published the message.
            sequence: sequence number of the message.
            payload: msgpack payload of the message.

        Returns:
            The number of applied events, and the number of events that the router refused.

        Raises:
            ValueError: the payload is malformed or larger than 8 MiB, or the router has another
                block size. No event was applied.
            KeyError: the worker is not registered.
        """

    @property
    def counters(self) -> dict[str, int]:
        """Counts since the start.

        `frames` counts messages, `missed` counts missing sequence numbers, `restarts` counts
        sequence numbers that did not rise, and `malformed` counts unreadable payloads. `skipped`
        counts events with another block size, kind of KV cache group or type, and events of an
        adapter without a name. `unusable` counts events with an unusable field.
        """

def decode_engine_batch(payload: bytes) -> dict[str, Any]:
    """Decode one payload of vLLM or SGLang.

    Args:
        payload: msgpack in map or array form.

    Returns:
        `at_s` (seconds of the engine's clock, or None), `dp_rank` (or None) and `events`. An event
        is a dict with a `type`: "stored" (with block_hashes, parent, tokens, block_size, lora_name,
        numbered_adapter, tier, group and group_kind), "removed" (with block_hashes, tier and
        group), "cleared", "other" or "unusable" (with a reason). Engine hashes of 32 bytes are
        hashed to 64 bits.

    Raises:
        ValueError: the payload is malformed or larger than 8 MiB. The text names the position and
            repeats no content.
    """

def apply_dynamo_message(router: Router, frames: Sequence[bytes]) -> tuple[int, int, int]:
    """Apply one message of Dynamo's event plane, topic `kv-events`. The GIL is released meanwhile.

    Args:
        router: a router with Dynamo's hash.
        frames: the frames topic, publisher, sequence number and body.

    Returns:
        The numbers of applied, refused and ignored events. An event is ignored if the router does
        not know its worker, or if its memory is shared by several workers.

    Raises:
        ValueError: the message is malformed or larger than 8 MiB, and no event was applied; or the
            router hashes with a secret key.
    """

# ---- load driver

@type_check_only
class DriveProgress(TypedDict):
    """Progress of a run: seconds since the start, counts of requests, and quantiles of the TTFT.

    The quantiles are None before the first token.
    """

    elapsed_s: float
    planned: int
    sent: int
    ended: int
    ok: int
    tokens: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    finished: bool

@final
class Drive:
    """Load driver: sends requests over HTTP from its own thread, and records when tokens arrive.

    In an open loop (`concurrency` is None), each request is sent at its time, regardless of the
    server. In a closed loop, `concurrency` requests are in flight, and times are ignored.

    Args:
        url: URL of the form `http://host:port/path`.
        requests: per request, its time in seconds, the index of its predecessor or None, and its
            JSON body. The time counts from the start, or from the predecessor's end. A request is
            not sent if its predecessor failed.
        duration_s: seconds from the start after which no request is sent.
        timeout_s: largest time from sending a request to the last byte of its answer, in seconds.
        concurrency: number of requests in flight, at least 1, or None for an open loop.
        max_in_flight: largest number of requests in flight in an open loop. Further requests are
            shed and counted.
        headers: further headers of every request, as pairs of name and value.

    Raises:
        ValueError: the plan cannot be executed. The text names the field.
        RuntimeError: the thread cannot be started.
    """

    def __new__(
        cls,
        url: str,
        requests: Sequence[tuple[float, int | None, bytes]],
        *,
        duration_s: float,
        timeout_s: float,
        concurrency: int | None = None,
        max_in_flight: int = 4096,
        headers: Sequence[tuple[str, str]] | None = None,
    ) -> Drive: ...
    def progress(self) -> DriveProgress:
        """Progress of the run. The cost does not grow with the run."""

    def stop(self) -> None:
        """Send no further request, and abort the requests in flight."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the run, for at most `timeout_s` seconds.

        Returns:
            Whether the run has ended.
        """

    def report(self) -> str:
        """Report of a run that has ended.

        Returns:
            JSON `{"report": columns, "first_error": text or null}`. Entry i of a column belongs to
            request i, and times are seconds since the start. `outcome` is "unsent", "shed", "ok",
            "refused" (a status other than 2xx, or an error event), "broken", "timeout" or
            "stopped". `lateness_*` is the time of sending minus the due time. `loop_lag_*` is the
            delay of the driver's timer. Both have the 1 ms resolution of the timer.

        Raises:
            RuntimeError: the run has not ended, or its thread died.
        """

# ---- simulator

@final
class SimWorkload:
    """Workload of the simulator, checked once. Columns are contiguous arrays.

    Args:
        arrival_ms: float64, arrival times in milliseconds, never falling.
        input_tokens: uint32, prompt tokens, at least 1.
        output_tokens: uint32, answer tokens, at least 1.
        block_start: uint64, one entry more than requests. The prompt of request i has the ids
            `blocks[block_start[i]:block_start[i + 1]]`.
        blocks: uint32, block ids of all prompts. An id stands for a block and all before it.
        block_size: tokens per block of the trace.
        after: uint32, index of the request that must end first, or 2^32 − 1.
        think_ms: float64, milliseconds from the end of `after` to the arrival.

    Raises:
        ValueError: a column has the wrong type, length or range. The text names the column.
    """

    def __new__(
        cls,
        *,
        arrival_ms: NDArray[Any],
        input_tokens: NDArray[Any],
        output_tokens: NDArray[Any],
        block_start: NDArray[Any],
        blocks: NDArray[Any],
        block_size: int,
        after: NDArray[Any],
        think_ms: NDArray[Any],
    ) -> SimWorkload: ...
    def __len__(self) -> int:
        """Number of requests."""

def simulate_fleet(workload: SimWorkload, fleet: str, routers: str) -> dict[str, Any]:
    """Simulate a workload on a fleet. The GIL is released meanwhile.

    The result depends on nothing but the arguments.

    Args:
        workload: the requests.
        fleet: JSON of the fleet, as `wardrop.replay.Fleet.to_json` writes it.
        routers: JSON list with one `{"policy", "parameters", "queue", "predicted",
            "price_guard", "seed"}` per pool. Only "policy" is required.

    Returns:
        Columns as little-endian bytes, and `totals`, a dict of numbers. float64: `arrival_ms`,
        `admit_ms`, `first_token_ms`, `end_ms`, `sample_ms`, `gap_ms`. uint64: `gap_counts`. uint8:
        `end`. uint32: all other columns. Times are milliseconds of simulated time, and NaN if a
        request never reached the point.

    Raises:
        ValueError: a field is unknown or out of range. The text names the field.
        RuntimeError: the router refused a call that every fleet needs.
    """

def cost_lower_bound(
    workload: SimWorkload, fleet: str, counted: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Lower bound on the cost of any routing, with the GIL released.

    Args:
        workload: the requests.
        fleet: JSON of the fleet, as `wardrop.replay.Fleet.to_json` writes it.
        counted: whether the cost of each request counts; None for every request.

    Returns:
        `requests` and `pooled_requests` as numbers, and the sums of TTFT and E2E in seconds, as
        pairs: `all` for all limits together, and `alone`, `prefill`, `work` and `memory` for one.

    Raises:
        ValueError: a field is out of range, or no bound is proven for the engines.
    """

def simulate_planned(workload: SimWorkload, fleet: str, plan: str) -> dict[str, Any]:
    """Simulate a workload with placements and orders chosen in advance. The GIL is released.

    Args:
        workload: the requests.
        fleet: JSON of a fleet without queues and faults.
        plan: JSON with the fields of the crate's `Plan`.

    Returns:
        As `simulate_fleet`.

    Raises:
        ValueError: a field is unknown or out of range. The text names the field.
    """

def improve_plan(
    workload: SimWorkload,
    fleet: str,
    plan: str,
    weights: tuple[float, float],
    seed: int,
    limits: tuple[int, float],
) -> tuple[str, float, int]:
    """Look for a better plan with all requests known in advance. The GIL is released.

    A plan without limits is first tried under a grid of orders and limits.

    Args:
        workload: the requests.
        fleet: JSON of a fleet without queues and faults.
        plan: JSON of the plan to start from.
        weights: weights of the sums of TTFT and E2E.
        seed: seed of the random changes.
        limits: largest number of simulations, and seconds after which none begins.

    Returns:
        JSON of the best plan, its weighted cost in seconds, and the number of simulations.

    Raises:
        ValueError: a field is unknown or out of range. The text names the field.
    """

_Costs: TypeAlias = tuple[int, float, float]
"""Number of requests, seconds that they paid, and seconds that no routing can go below."""

@final
class StreamBound:
    """The lower bound on a stream of requests, window by window, as a live router computes it.

    It remembers which blocks earlier requests named, in bounded memory.
    """

    def __new__(cls) -> StreamBound: ...
    def restart(self) -> None:
        """Forget every earlier request."""

    def window(
        self,
        requests: Iterable[
            tuple[float, int, Iterable[int], int, tuple[int, float | None, float] | None]
        ],
        fleet: str | None = None,
    ) -> tuple[_Costs, _Costs] | None:
        """Cost and bound of the requests of one window, by TTFT and by E2E. The GIL is released.

        Args:
            requests: arrival in seconds, prompt tokens, ids of the full blocks, leading blocks that
                were found in a cache, and what the request paid: output tokens, TTFT (None for
                an answer in one piece) and E2E in seconds. None for a request that did not finish.
            fleet: JSON of the workers, as in a line `wardrop.window/1`. None adds the requests to
                the history alone.

        Returns:
            Costs by TTFT and by E2E; None without a fleet.

        Raises:
            ValueError: the fleet has an unknown field, or the bound does not cover it.
        """

def stream_price(
    windows: Iterable[_Costs],
) -> tuple[float, tuple[float, float] | None] | None:
    """Paid over lower bound over several windows, with its 95 % interval.

    The interval is None with fewer than 4 windows. The price is None without a bound above 0.
    """

@final
class WatchedFleet:
    """Simulated fleet that a controller observes and changes during the run.

    Without a change the result equals that of `simulate_fleet`, bit for bit. `sample`, `routing`
    and `set_routing` have the same JSON as in `Gateway`. `wardrop.replay.controlled` uses it.
    """

    def __new__(cls, workload: SimWorkload, fleet: str, routers: str) -> WatchedFleet:
        """A fleet at time 0. The arguments are those of `simulate_fleet`.

        Raises:
            ValueError: a field is unknown or out of range. The text names the field.
        """

    def advance(self, until_s: float) -> bool:
        """Run the fleet up to `until_s` seconds of simulated time.

        Returns:
            False if no further event can follow.

        Raises:
            RuntimeError: the router refused a call that every fleet needs.
        """

    def sample(self) -> str:
        """JSON of the outcomes since the last call, and of the current state of every pool."""

    def routing(self) -> str:
        """JSON of the policy and the queue in force."""

    def set_routing(self, change_json: str, /) -> str:
        """Change the policy or the queue of every pool at once.

        Args:
            change_json: `policy` (name and parameters), `queue` (parameters, or null for none), or
                both. An absent key keeps its value.

        Returns:
            JSON of the policy and the queue in force.

        Raises:
            ValueError: a key is unknown or a value is out of range. The fleet is unchanged.
        """

    def finish(self) -> dict[str, Any]:
        """End the run and return its results, as `simulate_fleet` does.

        Raises:
            RuntimeError: the run has already ended.
        """

# ---- price of anarchy

def assign(costs: NDArray[np.float64]) -> tuple[list[int | None], float]:
    """Exact linear assignment of requests to workers, each at most once.

    The result minimises `Σ costs[i, column_of[i]]` over min(requests, workers) pairs. The worst
    case is O(n²·m) for n ≤ m. Source: Jonker and Volgenant, Computing 38, 1987.

    Args:
        costs: finite float64 of shape (requests, workers), in C order.

    Returns:
        The column of each row, None for an unmatched row; and the least total cost, in the unit of
        `costs`.

    Raises:
        ValueError: `costs` does not have two dimensions, or a cost is not finite.
    """

def assign_congested(
    costs: NDArray[np.float64], marginals: NDArray[np.float64]
) -> tuple[list[int], float]:
    """Exact assignment of every request to a worker under convex congestion.

    The result minimises `Σ_i costs[i, j_i] + Σ_j k_j·ℓ_j(k_j)`, where k_j requests are assigned to
    worker j. It is a min-cost flow with workers as nodes (Ahuja, Magnanti and Orlin, Network Flows,
    1993).

    Args:
        costs: own costs, finite float64 of shape (requests, workers), in C order.
        marginals: float64 of shape (workers, slots) with at least as many slots as requests. Entry
            (j, k − 1) is `k·ℓ_j(k) − (k−1)·ℓ_j(k−1)`, in the unit of `costs`. A row must not fall.

    Returns:
        The worker of each request, and the least social cost.

    Raises:
        ValueError: a shape is wrong, a value is not finite, or a row of marginals falls.
    """

@final
class AnarchyMeter:
    """Price of anarchy over sliding windows of routing decisions. All costs are seconds.

    Args:
        window_requests: number of decisions that closes a window.
        window_s: age in seconds that closes a window, counted from its first decision.
        keep_windows: number of solved windows that the report covers.
        max_pending: number of closed windows that may wait to be solved. Further windows are
            dropped and counted.
        resamples: number of bootstrap resamples. Below 40 there is no confidence interval.
        seed: seed of the bootstrap.
    """

    def __new__(
        cls,
        *,
        window_requests: int = 64,
        window_s: float = 10.0,
        keep_windows: int = 64,
        max_pending: int = 8,
        resamples: int = 200,
        seed: int = 0,
    ) -> AnarchyMeter: ...
    def record(
        self,
        at_s: float,
        chosen: int,
        prefill_s: Sequence[float],
        decode_s: Sequence[float],
        wait_s: Sequence[float],
        peer_decode_s: Sequence[float],
    ) -> None:
        """Record one decision. The lists have one entry per worker, in the same order.

        Args:
            at_s: time of the decision, in seconds.
            chosen: position of the chosen worker in the lists.
            prefill_s: seconds to prefill the request's uncached tokens.
            decode_s: seconds to decode the whole answer.
            wait_s: seconds of prefill queued before the request.
            peer_decode_s: seconds that one more request adds to another request's whole decode.

        Raises:
            ValueError: the lists have unequal lengths, the choice is out of range, or a cost is
                negative or not finite.
        """

    def record_outcome(self, predicted_s: float, observed_s: float) -> None:
        """Record a time predicted at the decision, and the time measured for it, in seconds."""

    def solve(self) -> bool:
        """Solve the oldest closed window. The GIL is released meanwhile.

        Returns:
            False if no window waits.
        """

    def finish(self) -> None:
        """Close the open window and solve all closed ones. The GIL is released meanwhile."""

    def report(self) -> dict[str, Any] | None:
        """Estimators over the kept windows; None before the first window is solved.

        * `poa`: price of anarchy, `Σ actual / Σ optimum` under convex congestion, at least 1;
          `poa_interval` is its 95 % bootstrap interval (low, high), or None.
        * `poa_paper`: the paper's ratio on costs with frozen waiting; `poa_square` is the same over
          windows with as many decisions as workers, as a ratio of sums, with `poa_square_median`,
          `poa_square_p90` and `poa_square_max` over windows.
        * `regret_mean_s`: mean cost of the chosen worker minus the cheapest one.
        * `free_s`, `split_s`, `cache_s`, `load_s`: the social cost by cause, in seconds.
        * `model_samples`, `model_error`, `model_bias`: number of compared predictions, their mean
          relative error, and `Σ predicted / Σ observed`.
        * `windows`, `requests`, `dropped_windows`, `refused_decisions`: counts.
        """

# ---- gateway

@final
class SelectServer:
    """Selection service: prompts in, workers out, with reservations that callers free.

    It serves gRPC and HTTP on native threads. Every call is short, and the GIL is released
    meanwhile. Arguments and results are JSON, and unknown keys are refused.
    """

    def __new__(cls, config_json: str = "{}") -> SelectServer:
        """A configured service that does not listen yet.

        Args:
            config_json: `grpc_listen`, `http_listen` ("host:port"; port 0 takes a free one),
                `worker_threads`, `router_id`, `max_reservations`, `reservation_ttl_ms`,
                `max_selections`, `max_selection_bytes`, `selection_ttl_ms`, `all_bodies_bytes`,
                `read_timeout_ms`, `log`, and the groups `routing` and `feed`.

        Raises:
            ValueError: a key is unknown or a value is out of range. The text names the key.
        """

    def upsert_worker(self, worker_json: str, /) -> None:
        """Register a worker, with the fields of Dynamo's selection service.

        Raises:
            ValueError: the JSON is no worker.
        """

    def start(self) -> None:
        """Start to serve.

        Raises:
            RuntimeError: an address is in use, or the service already serves.
        """

    def status(self) -> str:
        """Addresses, reservations, models, workers and feeds, as JSON."""

    def metrics(self) -> str:
        """The metrics page in Prometheus' text format."""

    def stop(self) -> None:
        """Stop all threads. A second call does nothing."""

class Door:
    """The calls that the gateway and the picker share; a door is one of the two.

    Every call is short, and the GIL is released meanwhile. Arguments and results are JSON, and
    unknown keys are refused.
    """

    def start(self) -> int:
        """Start to serve.

        Returns:
            The port of HTTP for the gateway, of external processing for the picker.

        Raises:
            RuntimeError: an address is in use, a file of TLS cannot be read, or the door
                already serves.
        """

    def upsert_model(self, model_json: str, /) -> None:
        """Register a model, or change it. An unchanged model has no effect.

        The gateway compares its tokeniser and template with Dynamo's dry run in the background.
        It hands over token ids only for prompt shapes without a difference. The picker hands over
        none, so it compares nothing.

        Args:
            model_json: `name`, `block_size`, `folder` (with tokenizer.json), `context_length`,
                `loras` (adapters of the model) and `aliases` (further names of the model).

        Raises:
            ValueError: a key is missing or wrong, or the folder cannot be read.
        """

    def remove_model(self, name: str, /) -> bool:
        """Remove a model with its workers and feeds.

        Returns:
            Whether the model was registered.
        """

    def subscribe(self, subscription_json: str, /) -> None:
        """Follow a publisher of Dynamo's event plane. A known subscription has no effect.

        Args:
            subscription_json: `endpoint` ("tcp://host:port"), `topic` ("kv-events",
                "forward-pass-metrics" or "kv_metrics"), `model`, `role`, `publisher_id`, and
                optionally `instance`, which restricts the feed to one instance.

        Raises:
            ValueError: a key is missing or wrong, or the pool is not registered.
        """

    def unsubscribe(self, publisher_id: int, /) -> bool:
        """Stop following a publisher.

        Returns:
            Whether the publisher was followed.
        """

    def status(self) -> str:
        """JSON of the door's state, of models with workers and health, and of feeds."""

    def metrics(self) -> str:
        """Text of `GET /metrics`, in Prometheus format."""

    def routing(self) -> str:
        """JSON of the policy and the queue in force: `{"policy": {"name": …}, "queue": …}`."""

    def set_routing(self, change_json: str, /) -> str:
        """Change the policy or the queue of every pool at once.

        Args:
            change_json: `policy` (name and all parameters), `queue` (parameters, or null for none),
                or both. An absent key keeps its value. Without a queue, all waiting requests are
                placed at once.

        Returns:
            JSON of the policy and the queue in force.

        Raises:
            ValueError: a name is unknown or a value is out of range. Nothing is changed then.
        """

    def set_parts(self, parts_json: str, /) -> None:
        """Show the states of the control plane's parts in `/health` and on the metrics page.

        The states replace those of the previous call.

        Args:
            parts_json: an object `{name: {"up": bool, "failures": int, "error": str}}` with at most
                64 names.

        Raises:
            ValueError: the text is not such an object, or it has more than 64 names.
        """

    def receipt(self, request_id: str, /) -> str | None:
        """JSON of a request's decision and outcome, by its `x-request-id`.

        The door keeps the receipts of the last `routing.receipts` requests, none by default.

        Returns:
            The receipt, or None if it is not kept.
        """

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, and wait at most `timeout_s` seconds for the requests in flight.

        Returns:
            Whether all requests ended in time.
        """

    def stop(self) -> None:
        """Stop at once. A second call has no effect."""

@final
class Picker(Door):
    """Endpoint picker: Envoy's external processing in, the address of a worker out.

    It serves gRPC on native threads. Every call is short, and the GIL is released meanwhile.
    Arguments and results are JSON, and unknown keys are refused.
    """

    def __new__(cls, config_json: str = "{}") -> Picker:
        """A configured picker that does not listen yet.

        Args:
            config_json: `listen`, `health_listen`, `http_listen` ("host:port"; port 0 takes a free
                one), `tls`, `worker_threads`, `router_id`, `dialect`, `default_model`,
                `objectives`, `model_rewrites`, `conformance_headers`, `log`, and the groups
                `limits`, `routing`, `prompt`, `feed` and `shadows`.

        Raises:
            ValueError: a key is unknown or a value is out of range. The text names the key.
        """

    def set_endpoints(self, endpoints_json: str, /) -> None:
        """Replace all endpoints. An endpoint that stays keeps its blocks, load and health.

        Args:
            endpoints_json: a list of `address` ("ip:port"), `model`, and where known `role`,
                `instance`, `dp_start`, `dp_size`, `total_kv_blocks`, `max_num_seqs` and
                `max_num_batched_tokens`.

        Raises:
            ValueError: an address is no IP address with a port, two endpoints clash, or a model is
                not registered.
        """

@final
class Gateway(Door):
    """HTTP gateway: request in, decision, answer out, on native threads.

    No Python runs between the first and the last byte of a request. Every call is short, and the
    GIL is released meanwhile. Arguments and results are JSON, and unknown keys are refused.
    """

    def __new__(cls, config_json: str = "{}") -> Gateway:
        """A configured gateway that does not listen yet. Its feeds may be filled before it starts.

        Args:
            config_json: `listen` ("host:port"; port 0 takes a free one), `upstreams`
                (["http://host:port"]), `worker_threads`, `router_id`, `log` (a filter such as
                "info"), and the groups `limits`, `upstream`, `routing`, `prompt` and `feed`.

        Raises:
            ValueError: a key is unknown or a value is out of range. The text names the key.
        """

    def set_upstreams(self, urls: list[str], /) -> None:
        """Replace the upstream frontends. Upstreams that stay keep their connections.

        Raises:
            ValueError: a URL is not of the form `http://host:port`.
        """

    def set_workers(self, workers_json: str, /) -> None:
        """Make workers the upstreams. A worker that stays keeps its connections.

        From now on a placed request goes straight to its worker, without pin headers. A request
        whose prompt is not known is placed by load.

        Args:
            workers_json: list of `{"instance": id, "url": "http://host:port"}`.

        Raises:
            ValueError: no such list, or a URL of another form.
        """

    def report_engines(self, reports_json: str, /) -> int:
        """Report what was read from engines: whether they answer, and their load.

        Args:
            reports_json: list of `model`, `role`, `instance`, `is_reachable`, and `ranks` with
                `dp_rank`, `running_requests`, `waiting_requests` and `kv_usage` (0 to 1).

        Returns:
            Number of reports about registered workers.

        Raises:
            ValueError: no such list.
        """

    def recheck_model(self, name: str, /) -> None:
        """Compare a model's template with Dynamo's again, for example after a change upstream."""

    def upsert_worker(self, worker_json: str, /) -> None:
        """Register an instance with its ranks, or change it. An unchanged one has no effect.

        Args:
            worker_json: `model`, `role` ("aggregated", "prefill" or "decode"), `instance`,
                `dp_start`, `dp_size`, `total_kv_blocks`, `max_num_seqs` and
                `max_num_batched_tokens`.

        Raises:
            ValueError: a key is missing or wrong, or the model is not registered.
        """

    def remove_worker(self, model: str, role: str, instance: int) -> bool:
        """Remove an instance with its blocks and bookings.

        Returns:
            Whether the instance was registered.
        """

    def begin_dump(self, model: str, role: str) -> int:
        """Begin a dump: keep the events of the workers that need the dump, until it is loaded.

        Call this before the dump is read, so that no event is lost between dump and load.

        Args:
            model: name of a registered model.
            role: role of the pool.

        Returns:
            The number of workers that need the dump.

        Raises:
            ValueError: the model or the role is unknown.
        """

    def load_dump(self, model: str, role: str, dump_json: str) -> int:
        """Fill the index of workers whose first events the gateway missed.

        Subscribe first, and take the dump afterwards. Live events since the subscription are merged
        with the dump, and each block counts once.

        Args:
            model: name of the model.
            role: role of the workers.
            dump_json: the result of `KvRouter.dump_events()`.

        Returns:
            The number of workers that were filled. Synchronised workers keep their live state.

        Raises:
            ValueError: the dump is malformed, or the pool is not registered.
        """

    def observation(self) -> str:
        """JSON of the facts of the live page: load, trust, curves, latency counts, anarchy."""

    def sample(self) -> str:
        """JSON of the outcomes since the last call, and of every pool's state, for one caller."""

    def shadows(self) -> str | None:
        """JSON of the reports of every model's shadow fleets; None without shadow fleets."""

    def curves(self) -> str:
        """JSON of the learned latency curves: per pool, every worker's coefficients and a record.

        `restore_curves` takes the record.
        """

    def restore_curves(self, model: str, role: str, record_json: str) -> int:
        """Restore the curves of a pool and of its workers from a record of `curves`.

        Args:
            model: name of the model.
            role: role of the pool.
            record_json: the record.

        Returns:
            The number of workers whose curves were restored, by their id.

        Raises:
            ValueError: the pool is not registered, the record has another version, or a value is
                impossible for a curve.
        """

    def save_index(self) -> bytes:
        """Blocks of every worker in every pool, and positions of the workers' feeds.

        The bytes have a version and a checksum, and hold hashes only. Events wait meanwhile, and
        decisions do not.
        """

    @staticmethod
    def saved_index(data: bytes, /) -> str:
        """JSON of the contents of `save_index`: `saved_at_s` (Unix time) and `pools`.

        Raises:
            ValueError: the bytes are damaged, truncated, of another version, or no saved index.
        """

    def restore_index(
        self, model: str, role: str, data: bytes, publishers: list[int], dump_follows: bool
    ) -> str:
        """Restore the saved index of one pool. Call it before the pool's first feed is followed.

        A worker starts empty if it is not registered, if its publisher is not in `publishers`, or
        if some of its events were missing. Restored blocks are provisional until the worker's first
        event or a dump. The event right after the saved position confirms them. A later event, or
        an event of another incarnation, drops them.

        Args:
            model: name of the model.
            role: role of the pool.
            data: bytes of `save_index`.
            publishers: ids of the publishers of the pool's current feeds of KV events.
            dump_follows: whether a dump will follow. Blocks of workers with missing events are then
                kept until the dump.

        Returns:
            JSON: the numbers of workers that are `taken_over`, `restarted`, `not_known` and `gone`,
            and the number of `blocks`.

        Raises:
            ValueError: the bytes are damaged or of another version, or the pool's index is not
                empty.
        """

    def set_figures(self, figures_json: str, /) -> None:
        """Publish figures of the control plane on the metrics page.

        Each figure has a metric of its own: `regime` sets `wardrop_control_regime`. A name
        `setting_X` becomes `wardrop_control_setting{setting="X"}`. A call with settings replaces
        all of them.

        Args:
            figures_json: an object `{name: number}` with at most 64 names.

        Raises:
            ValueError: the text is not such an object, it has more than 64 names, or a figure has
                no metric.
        """
