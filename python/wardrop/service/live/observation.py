"""The facts of the live page as `Gateway.observation` returns them, typed.

The fields have the names of `rust/service/src/service/observation.rs`.
"""

from __future__ import annotations

import msgspec

BinCount = tuple[float, int]
"""Middle of a bin of latencies in seconds, and the number of latencies in it since the start."""


class Curve(msgspec.Struct):
    """Points of a worker's learned curves.

    Attributes:
        prefill_s: Prefill of prompts of 256, 2,048, 4,096, 6,144 and 8,192 tokens, in seconds.
        step_s: One decode step of 8 sequences with 1,024 tokens each, in seconds.
        prefill_samples: Samples behind the prefill curve; 0 for a prior.
        step_samples: Samples behind the step curve; 0 for a prior.
    """

    prefill_s: list[float]
    step_s: float
    prefill_samples: int
    step_samples: int


class Worker(msgspec.Struct):
    """One worker. Ages are seconds; cached tokens are sums over finished requests.

    Attributes:
        instance: Id of the instance, as text because a browser rounds numbers of 64 bits.
        feed_state: What its KV events say of its blocks: `synced`, `partial`, `restored` or
            `suspect`.
        trust_mode: What a price may believe: `exact`, `degraded`, `predicted` or `load_only`.
        trust_score: Trust in the index about the worker, 0 to 1.
        fault: Reason why the worker may not be chosen: `silent`, `failed` or `refusing`.
    """

    instance: str
    dp_rank: int
    available: bool
    fault: str | None
    feed_state: str
    trust_mode: str
    trust_score: float
    prefill_tokens: int
    decode_blocks: int
    active_requests: int
    held_blocks: int
    total_kv_blocks: int | None
    event_age_s: float | None
    events_lost: int
    audited_requests: int
    predicted_cached_tokens: int
    reported_cached_tokens: int
    curve: Curve | None


class Anarchy(msgspec.Struct):
    """Loss of a decision with its 95 % interval, and the shares of the cost that are lost."""

    poa: float
    low: float | None
    high: float | None
    windows: int
    lost_to_cache: float
    lost_to_load: float
    lost_to_split: float


class BoundFigure(msgspec.Struct):
    """Paid over lower bound, by one latency: the price of anarchy is at most `value`.

    Attributes:
        low: Lower end of the 95 % interval over windows; None with fewer than 4 windows.
        high: Upper end of this interval.
        requests: Finished requests behind the figure.
    """

    value: float
    low: float | None
    high: float | None
    requests: int


class CurveEvidence(msgspec.Struct):
    """Samples and mean relative errors of the learned curves behind a bound."""

    prefill_samples: int
    step_samples: int
    prefill_error: float
    step_error: float


class PriceOfAnarchy(msgspec.Struct):
    """Upper ends of the price of anarchy of a model.

    Attributes:
        ttft: By the time to the first token; None where unknown.
        e2e: By the time to the last token; None where unknown.
        missing: Why both figures are missing: `no_window`, `few_requests`, `no_curves`, `no_worker`
            or `not_covered`.
        detail: What the bound refused, in words.
        windows: Windows behind the figures.
        age_s: Seconds since the newest window was computed.
        curves: What the bound rests on.
        passed_over: Requests that no window took since the start.
        history_restarts: Times that the history of blocks began again.
        history_blocks: Blocks in the history.
        cpu_s: CPU seconds since the start.
    """

    ttft: BoundFigure | None
    e2e: BoundFigure | None
    missing: str | None
    detail: str | None
    windows: int
    age_s: float | None
    curves: CurveEvidence
    passed_over: int
    history_restarts: int
    history_blocks: int
    cpu_s: float


class Pool(msgspec.Struct):
    """The workers of one model in one role, and the requests that wait for them.

    Attributes:
        misfit: Why a static rule decides in place of the price; None while the price fits.
    """

    role: str
    waiting: int
    waiting_prefill_s: float
    anarchy: Anarchy | None
    workers: list[Worker]
    misfit: str | None = None


class Model(msgspec.Struct):
    """One model with its pools and the counts of its latencies."""

    name: str
    block_size: int
    ttft_counts: list[BinCount]
    itl_counts: list[BinCount]
    price_of_anarchy: PriceOfAnarchy | None
    pools: list[Pool]


class Observation(msgspec.Struct):
    """Everything that the page shows of the fleet at one moment."""

    now_s: float
    models: list[Model]


DECODER = msgspec.json.Decoder(Observation)
