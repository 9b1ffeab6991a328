"""The native core. Every class here is frozen: it changes only through its methods."""

import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AnarchyMeter",
    "Candidate",
    "Cleared",
    "Decision",
    "Drive",
    "EngineFeed",
    "Gateway",
    "Prefix",
    "Removed",
    "Router",
    "SimWorkload",
    "Stored",
    "WatchedFleet",
    "__version__",
    "apply_dynamo_message",
    "assign",
    "assign_congested",
    "block_hashes",
    "decode_engine_batch",
    "sequence_hashes",
    "simulate_fleet",
]

__version__: str

# ---- router

_Worker: TypeAlias = int | tuple[int, int]
"""An instance (its rank 0), or (instance, dp_rank)."""

_Tokens: TypeAlias = Sequence[int] | NDArray[Any] | array[int] | bytes | bytearray | memoryview
"""Token ids. A contiguous buffer of unsigned 32-bit ints (`numpy.uint32`, `array('I')`, a
memoryview of them) and bytes of little-endian 32-bit ids are read in place; other integer arrays
are converted with a range check (a copy); lists and tuples are read one by one."""

_Hashes: TypeAlias = Sequence[int] | NDArray[np.uint64] | NDArray[np.int64]
"""64-bit hashes; negative ones are the same bits as signed numbers, as Dynamo writes them."""

def block_hashes(
    tokens: _Tokens,
    block_size: int,
    *,
    lora_name: str | None = None,
    cache_namespace: str | None = None,
) -> list[int]:
    """Local hashes of the full blocks of a prompt, equal to Dynamo's.

    XXH3-64 over the little-endian ids of each block, seed 1337 (+ the hashes of the adapter's name
    and of the namespace). A partial last block has none. Equals
    `dynamo.llm.compute_block_hash_for_seq` of Dynamo 1.6.1.

    Raises:
        TypeError: `tokens` is nothing of the kind.
        ValueError: an id out of range, or `block_size` 0.
    """

def sequence_hashes(local_hashes: _Hashes) -> list[int]:
    """Hashes of each block and all before it.

    The first is the local hash, each further one XXH3-64 over (the one before, the local hash),
    seed 1337.
    """

@final
class Prefix:
    """The hashes of a prompt that grows: what was hashed once is not hashed again.

    `Router.route`, `book` and `find_matches` take one in place of tokens. This constructor is for
    routers with Dynamo's hash; `Router.prefix` makes one for its router, whatever its hash.

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
        """Append tokens: O(new tokens). Errors as `block_hashes`."""

    def copy(self) -> Prefix:
        """One that grows on its own: for another branch of the session."""

    @property
    def tokens(self) -> int:
        """Tokens so far."""

    @property
    def blocks(self) -> int:
        """Full blocks among them."""

    @property
    def block_size(self) -> int: ...
    def block_hashes(self) -> list[int]:
        """Local hashes of the full blocks. ValueError when they are under a router's key."""

@final
class Stored:
    """Blocks that a worker stored, in prompt order.

    Args:
        block_hashes: the engine's names of the blocks, under which it will remove them.
        tokens: their ids, with `block_size`; or
        local_hashes: their local hashes.
        parent: the engine's name of the block before the first one; None at the start of a prompt.
        tier: device, host or disk.
        lora_name: adapter of these tokens.
        cache_namespace: tenant or salt of these tokens.

    Raises:
        ValueError: as many names as blocks are needed; an unknown tier.
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
    """One copy of each of these blocks is gone, in any order."""

    def __new__(cls, block_hashes: _Hashes, *, tier: str = "device") -> Removed: ...

@final
class Cleared:
    """The worker holds nothing any more, in any tier."""

    def __new__(cls) -> Cleared: ...

@final
class Candidate:
    """One candidate of an explained decision, as it was priced."""

    @property
    def worker(self) -> tuple[int, int]: ...
    @property
    def cost(self) -> float: ...
    @property
    def device_blocks(self) -> int:
        """Leading blocks of the prompt in device memory."""

    @property
    def host_blocks(self) -> int:
        """Further blocks in host memory."""

    @property
    def disk_blocks(self) -> int:
        """Further blocks on disk."""

    @property
    def prefill_tokens(self) -> int:
        """Uncached prompt tokens that wait there for a first token."""

    @property
    def decode_blocks(self) -> int:
        """Distinct blocks of the requests in flight there."""

    @property
    def shared_blocks(self) -> int:
        """Leading blocks of this prompt among them."""

    @property
    def active_requests(self) -> int: ...
    @property
    def parts(self) -> dict[str, float]:
        """What the cost is the sum of, by name, in the unit of the policy.

        `toll`: its weighted terms in seconds. `dynamo`: blocks to prefill, in flight, and for
        requests in flight. Empty for rules that add nothing up.
        """

@final
class Decision:
    """Where a request goes."""

    @property
    def worker(self) -> tuple[int, int]:
        """(instance, dp_rank)."""

    @property
    def overlap_blocks(self) -> int:
        """Leading blocks of the prompt in its device memory."""

    @property
    def cost(self) -> float:
        """In the unit of the policy; the lowest of the candidates unless a temperature is set."""

    @property
    def candidates(self) -> list[Candidate]:
        """Every candidate, with `explain=True`; else empty."""

@final
class Router:
    """Routes the requests of one pool of workers: applies their KV events, prices, picks, books.

    Any number of threads may call it, with the GIL or on a free-threaded build. Each call sees all
    of a call that returned before it began. Matching takes no lock and waits for no `apply`. It may
    see a part of an `apply` that runs at the same time (docs/explanation/prefix-index.md). Choosing
    and booking are one step. The GIL is released where work grows with the prompt or the fleet.
    Times are seconds of one monotonic clock; None reads `time.monotonic()`.

    Args:
        block_size: tokens per KV block.
        policy: round_robin, least_loaded, power_of_two, dynamo, paper, lmetric, two_tier, sticky,
            chwbl, toll.
        seed: of ties and samples: equal calls give equal answers.
        tracks_prefill: False for the decode pool of a split.
        tracks_decode: False for the prefill pool of a split.
        booking_ttl_s: until a booking that nobody released ends.
        max_bookings: open bookings at most.
        max_workers: workers at most, up to 65,536.
        index_max_blocks: distinct blocks in the index at most. At the limit, what was neither
            stored nor matched for longest goes; counted as `blocks_evicted`.
        index_max_bytes: bytes of the index at most, at least 1 MiB; the same rule. None: no limit.
        predicted: what is predicted of caches by where booked requests went. "off": nothing, as
            Dynamo by default; "alone": for fleets without events, until `predicted_ttl_s` after a
            request's end; "beside": until events arrive, `predicted_settle_s` after its first
            token, `predicted_ttl_s` at most. Counted in `snapshot()["predicted"]`.
        hash: "xxh3" is Dynamo's, bit for bit, and needed for its events, which carry no tokens.
            "keyed": under a secret key, so that nobody can make prompts that collide: 2⁻⁶³ per
            pair of blocks. Every prompt and event must then come as tokens (`wardrop.engines`,
            `Stored(tokens=…)`); hashes from elsewhere are refused.
        hash_key: 16 secret random bytes, to share hashes between routers; None draws them.
        predicted_capacity_blocks: what a worker without `total_kv_blocks` is taken to hold: the
            blocks of its oldest requests go first.
        **parameters: of the policy, by name.

    Raises:
        ValueError: a parameter is unknown or out of range; the text says what is expected.
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
        **parameters: Any,
    ) -> Router: ...
    @property
    def block_size(self) -> int: ...
    @property
    def workers(self) -> list[tuple[int, int]]:
        """Registered workers, in order."""

    def add_worker(
        self,
        worker: _Worker,
        *,
        total_kv_blocks: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        """Register a worker: available, idle, with an empty cache.

        Raises:
            ValueError: it is registered already.
            RuntimeError: the limit of workers is reached.
        """

    def remove_worker(self, worker: _Worker) -> None:
        """Forget a worker, its blocks and its bookings. KeyError when it is not registered."""

    def set_available(self, worker: _Worker, available: bool) -> None:
        """Whether a worker takes requests; its blocks and bookings stay. KeyError as above."""

    def apply(
        self, worker: _Worker, event: Stored | Removed | Cleared | Mapping[str, Any] | str
    ) -> None:
        """Apply one KV event of a worker.

        `event` may be a dict of Dynamo's event plane: `{"stored": {"parent_hash", "blocks":
        [{"block_hash", "tokens_hash"}]}}`, `{"removed": {"block_hashes"}}`, `{"cleared": ...}` or
        the text "cleared", with an optional "storage_tier".

        Raises:
            KeyError: the worker is not registered.
            ValueError: an unknown parent, a removal of blocks that are not held (the others are
                removed), one name for two blocks. The feed may go on; the snapshot counts them.
            RuntimeError: the index is full.
        """

    def prefix(self, *, lora_name: str | None = None, cache_namespace: str | None = None) -> Prefix:
        """An empty prompt that grows, hashed as this router's prompts are."""

    def find_matches(
        self,
        tokens: _Tokens | Prefix | None = None,
        *,
        hashes: _Hashes | None = None,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
    ) -> dict[tuple[int, int], tuple[int, int, int]]:
        """Overlap per worker that holds anything.

        (device, host, disk) blocks, each going on where the one before ends.
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
        """Choose a worker and, when there is a `request_id`, book the request there: one step.

        Args:
            tokens: the prompt, or a `Prefix` of it; or
            hashes: its local hashes; or neither, then only load counts.
            request_id: text, or an int; free again after `release`.
            allowed: only these workers; unknown ones are ignored.
            lora_name: adapter of the prompt.
            cache_namespace: tenant or salt of the prompt.
            input_tokens: length of the prompt; default: of `tokens`, or of the blocks of `hashes`.
            expected_output_tokens: for policies that price the answer.
            streamed: False where the answer comes in one piece, so that nobody will call
                `prefill_done`: its prefill counts as over when it is expected to be.
            explain: fill `Decision.candidates`.
            now_s: seconds.

        Raises:
            LookupError: no worker is available and allowed.
            ValueError: the id is booked already; tokens and hashes both; an id out of range.
            RuntimeError: the limit of open bookings is reached.
            TypeError: an argument of another type.
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
        """Book a placement that somebody else made. Arguments and errors as `route`."""

    def prefill_done(self, request_id: str | int, *, now_s: float | None = None) -> tuple[int, int]:
        """The first token of a request is out. Its worker. KeyError when it is not booked."""

    def release(
        self,
        request_id: str | int,
        *,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
        now_s: float | None = None,
    ) -> tuple[int, int]:
        """The request ended, well or not; its worker. KeyError when it is not booked.

        What it told teaches the latency curves.
        """

    def expire(self, *, now_s: float | None = None) -> int:
        """End the bookings that outlived their time (`route` does it, too); how many."""

    def set_policy(self, policy: str, **parameters: Any) -> None:
        """Put another policy in force, as a whole. ValueError as in the constructor."""

    def save_index(
        self,
        path: str | os.PathLike[str],
        *,
        positions: Mapping[tuple[int, int], int] | None = None,
    ) -> int:
        """Write the index to a file, for a restart: who holds which blocks; its bytes.

        The file is put in place as a whole. Its form is versioned and checksummed. Bookings,
        predictions and curves are not in it. Events wait meanwhile, decisions do not.

        Args:
            path: where; an old file there is replaced.
            positions: by (instance, dp_rank), where the worker's feed stands, for instance its last
                sequence number; handed back by `load_index`.

        Raises:
            OSError: the file could not be written; an old one is as before.
        """

    def load_index(
        self, path: str | os.PathLike[str]
    ) -> dict[tuple[int, int], tuple[tuple[int, int, int], int | None]]:
        """Take over what `save_index` wrote, of those of its workers that are registered.

        Load before the first event. What is loaded is of the incarnation that was saved: where a
        feed does not go on right behind the position that it was saved with, or started anew,
        apply `Cleared` to its worker, and then its dump, where there is one. A restored block that
        is stale costs a cache miss, never a request.

        Returns:
            By (instance, dp_rank): blocks in device memory, host memory and on disk, and the
            position that was given.

        Raises:
            OSError: the file could not be read.
            ValueError: it is no saved index, damaged, of another version, or hashed in another way
                (block size, mode, key). The router is as before.
            RuntimeError: the index is not empty, or the file's is larger than its limit.
        """

    def snapshot(self) -> dict[str, Any]:
        """Load and blocks of every worker, size of the index, counters: plain data."""

# ---- engines

@final
class EngineFeed:
    """The KV events of one worker as vLLM or SGLang publish them over ZMQ.

    A message has three frames: topic, sequence (8 bytes, big-endian), payload (msgpack, both the
    map and the array form). A sequence at or below the last one is a restart: the worker starts
    empty. Salts and adapters go into the block hashes, so that `Router.route(..., lora_name=...,
    cache_namespace=...)` finds them.

    The blocks are hashed as the router hashes its prompts, by Dynamo's hash or under its key.

    Args:
        block_size: tokens per block, as in the router; events of other sizes are stepped over.
    """

    def __new__(cls, block_size: int) -> EngineFeed: ...
    def apply(
        self, router: Router, worker: _Worker, sequence: int, payload: bytes
    ) -> tuple[int, int]:
        """Apply one message to a router without holding the GIL.

        Returns:
            (events applied, events that the router refused and counted).

        Raises:
            ValueError: the payload is malformed or above 8 MiB, or the router has blocks of another
                size; nothing was applied.
            KeyError: the worker is not registered.
        """

    @property
    def counters(self) -> dict[str, int]:
        """frames, missed (sequence numbers), restarts, malformed, skipped (events)."""

def decode_engine_batch(payload: bytes) -> dict[str, Any]:
    """One payload of vLLM or SGLang (msgpack, map or array form), decoded.

    Returns:
        `at_s` (seconds of the engine's clock), `dp_rank` or None, and `events`: dicts of a `type`:
        stored (block_hashes, parent, tokens, block_size, lora_name, tier, group), removed
        (block_hashes, tier, group), cleared, other. Names of 32 bytes are hashed to 64 bits.

    Raises:
        ValueError: malformed or above 8 MiB; the text says where, and repeats no content.
    """

def apply_dynamo_message(router: Router, frames: Sequence[bytes]) -> tuple[int, int, int]:
    """Apply one message of Dynamo's event plane, topic `kv-events`, without holding the GIL.

    Args:
        router: one with Dynamo's hash.
        frames: topic, publisher, sequence, body.

    Returns:
        Events applied, refused and counted by the router, and passed over: of workers that the
        router does not know, or of memory that is not a worker's own.

    Raises:
        ValueError: malformed or above 8 MiB (nothing was applied), or the router hashes under a
            key.
    """

# ---- load driver

@type_check_only
class DriveProgress(TypedDict):
    """Where a run stands."""

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
    """Sends requests over HTTP on a thread of its own and records when their tokens came.

    Open loop (no `concurrency`): a request leaves at its time, however far the server lags. Closed
    loop: `concurrency` requests in flight, times ignored.

    Args:
        url: `http://host:port/path`.
        requests: (seconds, index of the request to follow or None, JSON body). Without one to
            follow the seconds count from the start; with one, from its end (think time), and the
            request is not sent when that one failed.
        duration_s: nothing leaves after this.
        timeout_s: one answer, from sent to its last byte.
        concurrency: None, or at least 1.
        max_in_flight: open loop: what would exceed this is shed and counted.
        headers: further headers of every request.

    Raises:
        ValueError: a plan that can not be driven.
        RuntimeError: no thread, or no runtime, could be started.
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
        """Where the run stands; cheap."""

    def stop(self) -> None:
        """Send nothing more, break off what is in flight."""

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long; whether the run is over."""

    def report(self) -> str:
        """JSON of a run that is over: `{"report": columns, "first_error": text or null}`.

        Column i is request i; times in seconds since the start. `outcome` is one of unsent, shed,
        ok, refused (status not 2xx, or an error event), broken, timeout, stopped. The driver's own
        faults: `lateness_*` (sent − due) and `loop_lag_*` (its timer's delay; both have the 1 ms
        grain of the timer).

        Raises:
            RuntimeError: the run goes on, or its thread was lost.
        """

# ---- simulator

@final
class SimWorkload:
    """A checked workload of the simulator.

    Columns are contiguous arrays; see `wardrop.replay.Workload`.

    Raises:
        ValueError: a column has the wrong type, length or range; the text names it.
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
    """Run one cell of a replay; releases the interpreter.

    Args:
        workload: what comes in.
        fleet: JSON, as `wardrop.replay.Fleet.to_json` makes it.
        routers: JSON list with one `{"policy", "parameters", "seed"}` per pool.

    Returns:
        Little-endian columns as bytes (float64: `arrival_ms`, `admit_ms`, `first_token_ms`,
        `end_ms`, `sample_ms`, `gap_ms`; uint64: `gap_counts`; uint8: `end`; uint32: the rest),
        and `totals`, a dict of numbers.

    Raises:
        ValueError: a field is unknown or out of range.
        RuntimeError: the router refused something that a fleet must be able to do.
    """

@final
class WatchedFleet:
    """A replay that stops for a controller's looks and changes; see `wardrop.replay.controlled`.

    Without a change the run is that of `simulate_fleet`, bit for bit. It has the part of `Gateway`
    that a controller needs: `sample`, `routing` and `set_routing` take and give the same JSON.
    """

    def __new__(cls, workload: SimWorkload, fleet: str, routers: str) -> WatchedFleet:
        """A fleet at time 0; arguments and errors as of `simulate_fleet`."""

    def advance(self, until_s: float) -> bool:
        """Let simulated time pass up to `until_s`; False when nothing is left to happen.

        Raises:
            RuntimeError: the router refused something that a fleet must be able to do.
        """

    def sample(self) -> str:
        """JSON of the outcomes since the last call and of every pool's state now."""

    def routing(self) -> str:
        """JSON of policy and queue in force."""

    def set_routing(self, change_json: str, /) -> str:
        """Change them now in every pool, all or nothing; JSON of what is then in force.

        Raises:
            ValueError: a key is unknown or a value out of range; nothing has changed.
        """

    def finish(self) -> dict[str, Any]:
        """What the run left behind, as from `simulate_fleet`; the fleet is gone then.

        Raises:
            RuntimeError: it was taken before.
        """

# ---- game

def assign(costs: NDArray[np.float64]) -> tuple[list[int | None], float]:
    """Exact assignment of rows to columns, each at most once, min(rows, columns) pairs.

    Args:
        costs: (requests, workers) finite float64, C order.

    Returns:
        The column of each row (None for rows left over) and the least total cost.

    Raises:
        ValueError: not two dimensions, or a cost that is not finite.
    """

def assign_congested(
    costs: NDArray[np.float64], marginals: NDArray[np.float64]
) -> tuple[list[int], float]:
    """Exact assignment of every row to some column under convex congestion.

    Args:
        costs: (requests, workers) own costs.
        marginals: (workers, slots) with slots ≥ requests: `k·ℓ_j(k) − (k−1)·ℓ_j(k−1)` for
            k = 1, 2, …; must not fall along a row.

    Returns:
        The worker of each request and the least social cost.

    Raises:
        ValueError: a wrong shape, a cost that is not finite, or marginals that fall.
    """

@final
class AnarchyMeter:
    """Price-of-anarchy estimates over sliding windows of placements; all costs in seconds."""

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
        """Note one decision, with what each worker would have cost.

        Per worker: its own prefill and decode, what waits ahead, and what one more request in the
        batch adds to another's decode.

        Raises:
            ValueError: lists of unequal length, or a cost that is negative or not finite.
        """

    def record_outcome(self, predicted_s: float, observed_s: float) -> None:
        """What a prediction made at decision time turned out to be."""

    def solve(self) -> bool:
        """Solve the oldest closed window; False when none waits. Releases the interpreter."""

    def finish(self) -> None:
        """Close the open window and solve everything."""

    def report(self) -> dict[str, Any] | None:
        """The figures over the kept windows; None before the first.

        `poa` (≥ 1) with `poa_interval`, `poa_paper`, `poa_square` (ratio of sums; `_median`,
        `_p90`, `_max`), `regret_mean_s`, the split `free_s`, `split_s`, `cache_s`, `load_s`, and
        the model's error.
        """

# ---- gateway

@final
class Gateway:
    """The native data plane: HTTP in, decision, HTTP out, on threads of its own.

    No Python runs between a request's first byte and its last. Every call is short, thread-safe and
    releases the interpreter. Calls take and give JSON; unknown keys are refused.
    """

    def __new__(cls, config_json: str = "{}") -> Gateway:
        """A gateway that is configured but does not listen yet; its feeds may be filled before.

        Args:
            config_json: `listen` ("host:port", port 0 takes a free one), `upstreams`
                (["http://host:port"]), `worker_threads`, `router_id`, `log` (a filter such as
                "info"), and the groups `limits`, `upstream`, `routing`, `prompt`, `feed`.

        Raises:
            ValueError: a key is unknown or a value out of range; the text names it.
        """

    def start(self) -> int:
        """Serve; returns the bound port.

        Raises:
            RuntimeError: the address is taken, or the gateway runs already.
        """

    def set_upstreams(self, urls: list[str], /) -> None:
        """Replace the upstream frontends; those that stay keep their connections."""

    def upsert_model(self, model_json: str, /) -> None:
        """Register a model or change it.

        Its tokeniser and template are checked against Dynamo's dry run in the background; ids are
        handed over only for prompt shapes without a difference. The same model again is free.

        Args:
            model_json: `name`, `block_size`, `folder` (with tokenizer.json), `context_length`,
                `loras` (adapters that run on it).

        Raises:
            ValueError: not such an object, or the folder can not be read.
        """

    def recheck_model(self, name: str, /) -> None:
        """Check the template again, for example after it changed upstream."""

    def remove_model(self, name: str, /) -> bool:
        """Forget a model with its workers and feeds; whether it was known."""

    def upsert_worker(self, worker_json: str, /) -> None:
        """Add an instance with its ranks, or take over new figures. The same again is free.

        Args:
            worker_json: `model`, `role` ("aggregated", "prefill", "decode"), `instance`,
                `dp_start`, `dp_size`, `total_kv_blocks`, `max_num_seqs`, `max_num_batched_tokens`.
        """

    def remove_worker(self, model: str, role: str, instance: int) -> bool:
        """Forget an instance, its blocks and its bookings; whether it was known."""

    def subscribe(self, subscription_json: str, /) -> None:
        """Follow a publisher of Dynamo's event plane. The same subscription again is free.

        Args:
            subscription_json: `endpoint` ("tcp://host:port"), `topic` ("kv-events",
                "forward-pass-metrics", "kv_metrics"), `model`, `role`, `publisher_id`, and
                `instance` when known: the feed may then touch only that one.
        """

    def unsubscribe(self, publisher_id: int, /) -> bool:
        """Leave a feed; whether it was followed."""

    def load_dump(self, model: str, role: str, dump_json: str) -> int:
        """Fill the index of workers whose events are not known from their first one.

        Live events since the subscription are joined with the dump, each block counted once, so
        subscribe first, then take the dump.

        Args:
            model: its name.
            role: of the workers.
            dump_json: what `KvRouter.dump_events()` returns.

        Returns:
            Workers that were filled; synchronised ones keep their live state.
        """

    def status(self) -> str:
        """JSON: upstreams, models with workers, handover and health, feeds with their freshness."""

    def metrics(self) -> str:
        """The text of `GET /metrics`."""

    def routing(self) -> str:
        """JSON of the policy and the queue in force: `{"policy": {"name": …}, "queue": …}`."""

    def set_routing(self, change_json: str, /) -> str:
        """Change the policy or the queue of every pool, all or nothing; what is in force then.

        Args:
            change_json: `policy` (name and all its parameters), `queue` (its parameters, or null
                for none); what is not named stays. Without a queue those who wait are placed.

        Raises:
            ValueError: a name is unknown or a value out of range; nothing has changed.
        """

    def sample(self) -> str:
        """JSON of the outcomes since the last call and of every pool's state, for one poller."""

    def shadows(self) -> str | None:
        """JSON of what the shadows of every model say; None where the gateway has none."""

    def curves(self) -> str:
        """JSON of the learned latency curves: per pool the workers' coefficients and a record."""

    def restore_curves(self, model: str, role: str, record_json: str) -> int:
        """Take over a record of `curves`: the fleet's, and of workers known by their id; how many.

        Raises:
            ValueError: no such pool, another version, or values that no curve can have.
        """

    def save_index(self) -> bytes:
        """Who holds which blocks in every pool, and where the workers' feeds stand.

        Versioned and checksummed; hashes only. Events wait meanwhile, decisions do not.
        """

    @staticmethod
    def saved_index(data: bytes, /) -> str:
        """JSON of what `save_index` put into these bytes: `saved_at_s` (unix time) and `pools`.

        Raises:
            ValueError: they are damaged, cut off, of another version, or something else.
        """

    def restore_index(
        self, model: str, role: str, data: bytes, publishers: list[int], dump_follows: bool
    ) -> str:
        """Take over what was saved of one pool, before its first feed of KV events is followed.

        A worker that is not registered, whose feed's publisher is not among `publishers`, or of
        which some events were missing starts empty. What is taken over stands until the worker's
        first event or a dump: the next event proves it; a later one, or another incarnation's,
        refutes it.

        Args:
            model: its name.
            role: of the workers.
            data: from `save_index`.
            publishers: those of the pool's feeds of KV events now.
            dump_follows: blocks of workers whose events are missing will be read again, so that
                they need not be forgotten at once.

        Returns:
            JSON: `taken_over`, `restarted`, `not_known`, `gone` workers, and `blocks`.

        Raises:
            ValueError: what is wrong with the bytes, or the pool's index is not empty any more.
        """

    def set_gauges(self, gauges_json: str, /) -> None:
        """Put `{name: number}` on the metrics page as `wardrop_control_state{quantity=name}`.

        A name `setting_X` becomes `wardrop_control_setting{setting=X}`.

        Raises:
            ValueError: not such an object, or more than 64 names.
        """

    def receipt(self, request_id: str, /) -> str | None:
        """JSON of why a request (its `x-request-id`) went where it went, and what came of it.

        None when it is not kept: only the last `routing.receipts` are, none by default.
        """

    def drain(self, timeout_s: float) -> bool:
        """Take no new requests and wait for those in flight; whether all ended in time."""

    def stop(self) -> None:
        """Stop at once. A second call does nothing."""
