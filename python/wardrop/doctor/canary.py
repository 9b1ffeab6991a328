"""Canaries: short prompts of random token ids, whose answers and receipts prove the live wiring.

A canary of the blocks sends one new prompt twice. The first answer fills the cache of a worker, and
its KV events reach the index. The second prediction must then equal the engine's own count of
cached tokens. The same prompt under another salt or adapter must find nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Set
from typing import Any, Protocol, cast

from wardrop.doctor.facts import Model, Status
from wardrop.doctor.finding import Finding
from wardrop.service.wiring import DoorName

CANARY_BLOCKS = 8
"""Full blocks of a canary. Half a block follows, which no cache may hold."""
LOWEST_TOKEN, HIGHEST_TOKEN = 300, 3000
"""Range of the token ids: ordinary tokens in the vocabulary of every model."""
EVENT_WAIT_S = 5.0
RECEIPT_WAIT_S = 5.0
_POLL_S = 0.05
Key = tuple[int, int]
"""Instance and rank of a worker."""
_TRIES = 8
"""Second prompts until one reaches the worker of the first."""


class Router(Protocol):
    """The requests that canaries make."""

    def complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Answer a completion: the request id and the body."""
        ...

    def receipt(self, request_id: str) -> dict[str, Any] | None:
        """The receipt of a request."""
        ...

    def status(self) -> Status:
        """The present status."""
        ...


class CanaryError(RuntimeError):
    """A canary got no answer, or no receipt."""


class Sent:
    """One canary with its answer and its receipt."""

    def __init__(self, answer: dict[str, Any], receipt: dict[str, Any]) -> None:
        legs = receipt["legs"]
        self.abstained: str | None = receipt["abstained"]
        self.worker = _key(legs[0]["worker"]) if legs else None
        self.last_worker = _key(legs[-1]["worker"]) if legs else None
        outcome = receipt["outcome"]
        self.predicted: int = outcome["predicted_cached_tokens"]
        self.reported: int | None = outcome["cached_tokens"]
        self.counted: int | None = receipt.get("input_tokens")
        """Prompt tokens by the router's count."""
        self.engine_counted: int | None = outcome.get("input_tokens")
        """Prompt tokens by the engine's count."""
        nvext = cast(dict[str, Any], answer.get("nvext") or {})
        served = cast(dict[str, Any], nvext.get("worker_id") or {})
        self.served = (served.get("prefill_worker_id"), served.get("decode_worker_id"))


def run_canaries(router: Router, model: Model, door: DoorName = "dynamo") -> list[Finding]:
    """The canaries of one model: pin, blocks, salt, adapters, and tokens of a text.

    Args:
        router: The router.
        model: The model whose workers answer.
        door: The command that runs the router. It decides the canaries that say something.
    """
    prompt = new_prompt(model.block_size)
    before = last_events(router.status(), model)
    try:
        first = send(router, model.name, prompt)
    except CanaryError as error:
        return [Finding("canary", "failure", f"{model.name}: {error}", _CANARY_ADVICE)]
    if first.worker is None:
        return [
            Finding(
                "canary",
                "failure",
                f"{model.name}: the router chose no worker for the canary: {first.abstained}",
                "the table of reasons in the gateway reference explains each",
            )
        ]
    findings: list[Finding] = []
    try:
        if door in ("dynamo", "frontend"):
            findings.append(check_pin(model, first))
        elif door == "picker":
            findings.append(_destination(router, model, first, before))
        findings.append(_blocks(router, model, prompt, first))
        if door != "select":  # Hashes of a caller carry its salts and adapters.
            findings.append(_salt(router, model, prompt))
            findings.append(_adapter(router, model, prompt))
        if door in ("serve", "picker"):
            findings.append(_tokens(router, model))
    except CanaryError as error:
        findings.append(Finding("canary", "failure", f"{model.name}: {error}", _CANARY_ADVICE))
    return findings


_CANARY_ADVICE = "the canary is a completion of token ids; look at the router's log for its id"


def new_prompt(block_size: int) -> list[int]:
    """Token ids that no cache holds."""
    span = HIGHEST_TOKEN - LOWEST_TOKEN
    length = CANARY_BLOCKS * block_size + block_size // 2
    return [LOWEST_TOKEN + secrets.randbelow(span) for _ in range(length)]


def send(router: Router, model: str, prompt: list[int] | str, salt: str | None = None) -> Sent:
    """Send a canary and wait for its receipt.

    Raises:
        CanaryError: No answer, or no receipt with an outcome.
    """
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 1}
    body["nvext"] = {"extra_fields": ["worker_id"]}
    if salt is not None:
        body["cache_salt"] = salt
    request_id, answer = router.complete(body)
    found: list[dict[str, Any]] = []

    def has_ended() -> bool:
        receipt = router.receipt(request_id)
        found[:] = [receipt] if receipt is not None else []
        return receipt is not None and receipt["outcome"] is not None

    if not _wait(has_ended, RECEIPT_WAIT_S):
        raise CanaryError(
            f"no finished receipt of request {request_id}; start the router with --receipts 1000, "
            "or set receipts: 1000 in its file"
        )
    return Sent(answer, found[0])


def check_pin(model: Model, sent: Sent) -> Finding:
    """The worker that served a canary is the worker that the router chose."""
    name = "pin"
    if sent.served == (None, None):
        return Finding(
            name,
            "failure",
            f"{model.name}: the answer names no worker: the frontend ignores nvext, so pins too",
            "unset DYN_DISABLE_FRONTEND_NVEXT on the frontends and start them again",
        )
    chosen = (_instance(sent.worker), _instance(sent.last_worker))
    if chosen != sent.served:
        return Finding(
            name,
            "failure",
            f"{model.name}: chosen worker {chosen[0]}, served by {sent.served[0]}",
            "the frontend overrides pins: look at its router mode and at its version",
        )
    return Finding(name, "ok", f"{model.name}: worker {chosen[0]} was chosen and served")


def last_events(status: Status, model: Model) -> dict[Key, int | None]:
    """Number of the last KV event by worker of a model; None for a worker without an event."""
    pools = [pool for one in status.models if one.name == model.name for pool in one.pools]
    workers = [worker for pool in pools for worker in pool.workers]
    return {(worker.instance, worker.dp_rank): worker.last_event_id for worker in workers}


def _destination(
    router: Router, model: Model, first: Sent, before: dict[Key, int | None]
) -> Finding:
    after = dict(before)

    def any_moved() -> bool:
        after.update(last_events(router.status(), model))
        return after != before

    _wait(any_moved, EVENT_WAIT_S)
    moved = {worker for worker, number in after.items() if number != before.get(worker)}
    has_feeds = any(feed.topic == "engine-events" for feed in router.status().feeds)
    return check_destination(model, first, moved, has_feeds)


def check_destination(model: Model, first: Sent, moved: Set[Key], has_feeds: bool) -> Finding:
    """The worker that the picker chose is the worker that stored the blocks of the canary.

    Args:
        model: The model.
        first: A canary with a new prompt.
        moved: Workers with a new KV event since the canary was sent.
        has_feeds: Whether the picker follows KV events of some worker.
    """
    name = "pin"
    if not has_feeds:
        return Finding(
            name,
            "skipped",
            f"{model.name}: without KV events no worker shows that it served the canary",
            "start the engines with KV events, and name their socket under `events` of a worker",
        )
    chosen = first.worker
    if moved and chosen not in moved:
        others = ", ".join(f"{instance}/{rank}" for instance, rank in sorted(moved))
        return Finding(
            name,
            "failure",
            f"{model.name}: chosen worker {_shown(chosen)}, blocks stored by {others}: the proxy "
            "ignores the destination",
            "let the proxy's cluster obey x-gateway-destination-endpoint: override_host, or "
            "ORIGINAL_DST with use_http_header",
        )
    if not moved:
        return Finding(
            name,
            "warning",
            f"{model.name}: chosen worker {_shown(chosen)}, and no worker sent a KV event",
            "turn on prefix caching and KV events in the engines",
        )
    return Finding(name, "ok", f"{model.name}: worker {_shown(chosen)} was chosen and served")


def _tokens(router: Router, model: Model) -> Finding:
    if not model.has_tokeniser:
        return Finding(
            "tokens", "skipped", f"{model.name}: the router has no tokeniser to compare with"
        )
    return check_tokens(model, send(router, model.name, f"{_TEXT} {secrets.token_hex(8)}"))


_TEXT = "How many tokens are in this short text? Röslein, 42 €, 東京!"
"""Text of the canary of token counts: letters, digits, and characters of several bytes."""


def check_tokens(model: Model, sent: Sent) -> Finding:
    """Router and engine count the same tokens in one text.

    Args:
        model: The model.
        sent: A canary with a text as its prompt.
    """
    name = "tokens"
    if sent.engine_counted is None:
        return Finding(
            name,
            "skipped",
            f"{model.name}: the engine reports no count of prompt tokens",
            "let the engine report usage.prompt_tokens",
        )
    if sent.counted != sent.engine_counted:
        return Finding(
            name,
            "failure",
            f"{model.name}: the router counts {sent.counted} tokens in a text, the engine "
            f"{sent.engine_counted}",
            "tokenisers differ: give the router the folder of the model that the engine serves",
        )
    return Finding(
        name, "ok", f"{model.name}: router and engine count {sent.counted} tokens in a text"
    )


def _blocks(router: Router, model: Model, prompt: list[int], first: Sent) -> Finding:
    """Send the prompt again until the worker of the first canary gets it."""
    heard = _wait(lambda: _last_event(router.status(), first.worker) is not None, EVENT_WAIT_S)
    second = first
    for _ in range(_TRIES):
        second = send(router, model.name, prompt)
        if second.worker == first.worker:
            break
    return check_blocks(model, first, second, heard)


def check_blocks(model: Model, first: Sent, second: Sent, heard: bool) -> Finding:
    """Prediction and report of the second canary agree.

    Args:
        model: The model.
        first: The first canary.
        second: The same prompt again.
        heard: Whether the worker has sent a KV event.
    """
    name = "blocks"
    full = CANARY_BLOCKS * model.block_size
    if first.predicted:
        return Finding(
            name,
            "failure",
            f"{model.name}: {first.predicted} cached tokens were predicted for a new prompt",
            "two prompts have one hash: compare the block size of router and engine",
        )
    if second.reported is None:
        return Finding(
            name,
            "skipped",
            f"{model.name}: {second.predicted} cached tokens predicted; the engine reports none",
            "let the engine report usage.prompt_tokens_details.cached_tokens",
        )
    slack = model.block_size  # An engine computes the last block again.
    if second.worker != first.worker and not second.predicted:
        return Finding(
            name,
            "failure" if not heard else "warning",
            f"{model.name}: the second canary went to another worker in {_TRIES} tries"
            + ("" if heard else ", and the first worker sent no KV event"),
            _NO_EVENTS if not heard else "load outweighs the prefix now; run the doctor again",
        )
    if not second.predicted and not second.reported:
        return Finding(
            name,
            "failure",
            f"{model.name}: nothing is cached after the first canary, "
            + ("although events came" if heard else "and no KV event came"),
            "turn on prefix caching and KV events in the engine",
        )
    if not second.predicted:
        why = (
            "KV events came, and their hashes do not match: block size, salt or hash seed differ"
            if heard
            else "no KV event came"
        )
        return Finding(
            name,
            "failure",
            f"{model.name}: 0 cached tokens predicted, {second.reported} reported; {why}",
            "give engine and router the same block size" if heard else _NO_EVENTS,
        )
    if abs(second.predicted - second.reported) > slack:
        return Finding(
            name,
            "failure",
            f"{model.name}: {second.predicted} cached tokens predicted, {second.reported} "
            f"reported, expected {full} within {slack}",
            "the index holds blocks that the engine does not: compare block size and versions",
        )
    return Finding(
        name,
        "ok",
        f"{model.name}: {second.predicted} cached tokens predicted, {second.reported} reported",
    )


_NO_EVENTS = "start the workers with KV events on, and check their event plane"


def _salt(router: Router, model: Model, prompt: list[int]) -> Finding:
    return check_isolation(
        "salt", model, send(router, model.name, prompt, salt=secrets.token_hex(8)), "another salt"
    )


def _adapter(router: Router, model: Model, prompt: list[int]) -> Finding:
    if not model.loras:
        return Finding("lora", "skipped", f"{model.name}: no adapter is registered")
    return check_isolation(
        "lora", model, send(router, model.loras[0], prompt), f"the adapter {model.loras[0]!r}"
    )


def check_isolation(name: str, model: Model, sent: Sent, under: str) -> Finding:
    """A prompt that is cached under one salt or model is new under another.

    Args:
        name: Name of the check.
        model: The model.
        sent: The cached prompt, sent under another salt or model.
        under: The other salt or model, in words.
    """
    if sent.predicted:
        return Finding(
            name,
            "failure",
            f"{model.name}: the index predicts {sent.predicted} cached tokens under {under}",
            "report this as a fault of the router: tenants share a namespace",
        )
    if sent.reported:
        return Finding(
            name,
            "warning",
            f"{model.name}: the engine reports {sent.reported} cached tokens under {under}: it "
            "shares its cache",
            "an engine that ignores salts lets tenants see by timing what others asked",
        )
    return Finding(name, "ok", f"{model.name}: a cached prompt is new under {under}")


def _last_event(status: Status, worker: Key | None) -> int | None:
    for model in status.models:
        for pool in model.pools:
            for one in pool.workers:
                if (one.instance, one.dp_rank) == worker:
                    return one.last_event_id
    return None


def _shown(worker: Key | None) -> str:
    return "none" if worker is None else f"{worker[0]}/{worker[1]}"


def _key(worker: dict[str, Any]) -> Key:
    return int(worker["instance"]), int(worker["dp_rank"])


def _instance(worker: Key | None) -> int | None:
    return None if worker is None else worker[0]


def _wait(check: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until `check` is true; whether it became true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
