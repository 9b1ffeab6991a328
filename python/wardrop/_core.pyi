"""The native core. Every class here is frozen: it changes only through its methods."""

from collections.abc import Sequence
from typing import Any, TypedDict, final, type_check_only

from numpy.typing import NDArray

__all__ = ["Drive", "SimWorkload", "__version__", "simulate_fleet"]

__version__: str

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

    def __init__(
        self,
        *,
        arrival_ms: NDArray[Any],
        input_tokens: NDArray[Any],
        output_tokens: NDArray[Any],
        block_start: NDArray[Any],
        blocks: NDArray[Any],
        block_size: int,
        after: NDArray[Any],
        think_ms: NDArray[Any],
    ) -> None: ...
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

# ---- gateway

@final
class Gateway:
    """The native data plane: HTTP in, decision, HTTP out, on threads of its own.

    No Python runs between a request's first byte and its last. Every call is short, thread-safe and
    releases the interpreter. Calls take and give JSON; unknown keys are refused.
    """

    def __init__(self, config_json: str = "{}") -> None:
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

    def drain(self, timeout_s: float) -> bool:
        """Take no new requests and wait for those in flight; whether all ended in time."""

    def stop(self) -> None:
        """Stop at once. A second call does nothing."""
