"""Checks of facts: pure functions from the answers of a router to one finding each.

`CHECKS` lists them in the order of a report: from the process outwards to the workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from wardrop.doctor.facts import Facts, Model, Worker
from wardrop.doctor.finding import Finding
from wardrop.service.wiring import DoorName

EVENT_TOPICS = ("kv-events", "engine-events")
"""Feeds of KV events: of Dynamo's event plane, and of engines themselves."""
MAX_CLOCK_SKEW_S = 2.0
FEWEST_CONNECTIONS = 1024
MAX_HEARTBEAT_AGE_S = 30.0
AUDIT_REQUESTS = 20
"""Finished requests with a reported count from which the audit of a worker is judged."""
AUDIT_SHARE = 0.8
"""Share of the predicted cached tokens that an engine reports at least, on a healthy worker."""
OLDEST_DYNAMO = (1, 4, 2)
FIRST_UNKNOWN_DYNAMO = (2,)

Check = Callable[[Facts], Finding]


def check_versions(facts: Facts) -> Finding:
    """The router is of this version, and its Dynamo is of a version that Wardrop supports."""
    name, wiring = "versions", facts.wiring
    dynamo = wiring.dynamo_version
    if dynamo is not None:
        number = _number(dynamo)
        if not OLDEST_DYNAMO <= number < FIRST_UNKNOWN_DYNAMO:
            return Finding(
                name,
                "failure",
                f"got Dynamo {dynamo}, expected at least 1.4.2 and below 2",
                "install a supported version: pip install 'ai-dynamo>=1.4.2,<2'",
            )
    if wiring.wardrop_version != facts.doctor_version:
        return Finding(
            name,
            "warning",
            f"the router is Wardrop {wiring.wardrop_version}, this command is "
            f"{facts.doctor_version}",
            "run the doctor of the router's own installation",
        )
    behind = f"Dynamo {dynamo}" if dynamo else _BEHIND[facts.door]
    return Finding(name, "ok", f"Wardrop {wiring.wardrop_version}, {behind}")


_BEHIND: Mapping[DoorName, str] = {
    "dynamo": "frontends that the router does not start",
    "frontend": "Dynamo's frontend in the same process",
    "serve": "in front of engines",
    "picker": "beside a proxy",
    "select": "beside callers that send requests themselves",
}


def check_settings(facts: Facts) -> Finding:
    """No setting of Dynamo disables pins or KV events without notice."""
    name, switches = "settings", facts.wiring.switches
    if switches.get("DYN_DISABLE_FRONTEND_NVEXT", "").lower() in ("1", "true", "yes", "on"):
        return Finding(
            name,
            "failure",
            "DYN_DISABLE_FRONTEND_NVEXT is set: the frontends ignore the header that pins a worker",
            "unset DYN_DISABLE_FRONTEND_NVEXT and start the frontends again",
        )
    plane = switches.get("DYN_EVENT_PLANE")
    if plane is not None and plane != "zmq":
        return Finding(
            name,
            "failure",
            f"got DYN_EVENT_PLANE={plane!r}, expected 'zmq': the router reads no other event plane",
            "start workers and router with DYN_EVENT_PLANE=zmq",
        )
    return Finding(name, "ok", "no switch of Dynamo disables pins or KV events")


def check_control(facts: Facts) -> Finding:
    """Every part of the control plane works: discovery, fleet, saved state."""
    name = "control"
    if facts.door in ("picker", "select"):
        parts = facts.status.control
    elif facts.health is None:
        return Finding(
            name,
            "failure",
            "the public port does not answer GET /health",
            "check the address; a router that drains or starts does not answer yet",
        )
    else:
        parts = facts.health.control
    down = {n: part for n, part in parts.items() if not part.up}
    if not down:
        count = len(parts)
        return Finding(name, "ok", f"all {count} parts of the control plane work")
    texts = "; ".join(f"{n}: {part.error or 'no text'}" for n, part in sorted(down.items()))
    denied = any(word in texts.lower() for word in ("forbidden", "403", "401", "denied"))
    advice = (
        "the account of the router may not read discovery: grant it the rights that the text "
        "names; in Kubernetes a Role with verbs list and watch"
        if denied
        else "the router serves with its last view; mend the named part"
    )
    return Finding(name, "failure", f"parts of the control plane fail: {texts}", advice)


def check_frontends(facts: Facts) -> Finding:
    """Every frontend behind the router accepts connections."""
    return _check_upstreams(
        facts,
        "frontends",
        "look at the frontends' own log lines, or at the addresses of --upstream",
    )


def check_engines(facts: Facts) -> Finding:
    """Every engine behind the router accepts connections."""
    return _check_upstreams(
        facts, "engines", "look at the engines' own log lines, or at the addresses of --worker"
    )


def _check_upstreams(facts: Facts, name: str, advice: str) -> Finding:
    """Every server to which the router sends requests accepts connections."""
    upstreams = facts.status.upstreams
    down = [one.authority for one in upstreams if not one.up]
    if not upstreams or len(down) == len(upstreams):
        return Finding(
            name,
            "failure",
            f"no {name.removesuffix('s')} accepts connections: "
            f"{', '.join(down) or 'none is known'}",
            advice,
        )
    if down:
        return Finding(
            name,
            "warning",
            f"{name} without connection: {', '.join(down)}",
            f"requests go to the other {name}; restart the named ones",
        )
    return Finding(name, "ok", f"{len(upstreams)} of {len(upstreams)} accept connections")


def check_workers(facts: Facts) -> Finding:
    """There are workers, and the router may choose each of them."""
    name, workers = "workers", list(_workers(facts))
    if not workers:
        return Finding(
            name,
            "failure",
            _NO_WORKER.get(facts.door, "no worker is known, so every request is refused"),
            _WORKER_SOURCES[facts.door],
        )
    ill = [(worker, worker.fault or "no reason") for _, worker in workers if not worker.available]
    if ill:
        listed = _listed(f"{worker.name} ({fault})" for worker, fault in ill)
        level = "failure" if len(ill) == len(workers) else "warning"
        return Finding(
            name,
            level,
            f"{len(ill)} of {len(workers)} workers are unavailable: {listed}",
            "silent: no heartbeat; failed: a request or a feed broke; refusing: the worker said no",
        )
    return Finding(name, "ok", f"{len(workers)} of {len(workers)} workers are available")


_NO_WORKER: Mapping[DoorName, str] = {
    "dynamo": "no worker is known, so Dynamo's own router gets every request",
    "frontend": "no worker is known, so Dynamo's own router gets every request",
}
_WORKER_SOURCES: Mapping[DoorName, str] = {
    "dynamo": "check namespace and discovery backend: the router logs both at start",
    "frontend": "check namespace and discovery backend: the router logs both at start",
    "serve": "name the engines with --worker, with --fleet FILE, or by the admin API",
    "picker": "name the engines under `workers` in the file of --config",
    "select": "callers register workers with POST /workers or UpsertWorker",
}
"""What to do where no worker is known."""


def check_feeds(facts: Facts) -> Finding:
    """A feed of KV events is connected for each worker whose cache matters, and loses nothing."""
    name = "feeds"
    feeds = [feed for feed in facts.status.feeds if feed.topic in EVENT_TOPICS]
    if not feeds and facts.door in _PREDICTING:
        return Finding(
            name,
            "skipped",
            "no worker has a feed of KV events: caches are predicted from placed requests",
            _PREDICTING[facts.door],
        )
    heard = {feed.instance for feed in feeds if feed.connected}
    shared = any(feed.instance is None and feed.connected for feed in feeds)
    wanted = [worker for role, worker in _workers(facts) if role != "decode"]
    deaf = [] if shared else [worker for worker in wanted if worker.instance not in heard]
    if deaf:
        return Finding(
            name,
            "failure",
            f"no connected feed of KV events for {len(deaf)} of {len(wanted)} workers: "
            f"{_listed(worker.name for worker in deaf)}",
            _PREDICTING.get(
                facts.door,
                "start the workers with KV events and DYN_EVENT_PLANE=zmq, and let the router "
                "reach their ports",
            ),
        )
    broken = [feed for feed in feeds if feed.malformed]
    if broken:
        return Finding(
            name,
            "failure",
            f"{sum(feed.malformed for feed in broken)} messages were malformed, on "
            f"{_listed(feed.endpoint for feed in broken)}",
            "the engines speak another format: compare their versions with the supported ones",
        )
    silent = [w for w in wanted if (w.heartbeat_age_s or 0.0) > MAX_HEARTBEAT_AGE_S]
    if silent:
        return Finding(
            name,
            "warning",
            f"no heartbeat for {MAX_HEARTBEAT_AGE_S:g} s from {_listed(w.name for w in silent)}",
            "the worker hangs, or its feed of forward passes is off",
        )
    ages = [feed.age_s for feed in feeds if feed.age_s is not None]
    newest = f"the newest message is {min(ages):.1f} s old" if ages else "no message came yet"
    return Finding(name, "ok", f"{len(feeds)} feeds of {len(wanted)} workers; {newest}")


_PREDICTING: Mapping[DoorName, str] = {
    "serve": "start the engines with KV events, and name their socket: --worker URL,events=tcp://…",
    "picker": "start the engines with KV events, and name their socket under `events` of a worker",
    "select": "start the engines with KV events, and register kv_events_endpoints of the worker",
}
"""What to do where a worker without a feed is no fault of the event plane, because its cache is
predicted."""
_FOUND_SHARE = 0.8
"""Share of the listed blocks that an engine must find. Below this share the index misleads."""


def check_trust(facts: Facts) -> Finding:
    """The index is believed as it is about every worker."""
    name, workers = "trust", list(_workers(facts))
    suspect = [worker for _, worker in workers if worker.feed_state == "suspect"]
    if suspect:
        return Finding(
            name,
            "failure",
            "blocks in the index may be stale for "
            + _listed(f"{w.name} ({w.event_gaps} gaps, {w.events_lost} lost)" for w in suspect),
            "wait for the next dump; if it repeats, events are lost between worker and router",
        )
    fallen = [worker for _, worker in workers if worker.trust_mode != "exact"]
    if fallen:
        # An index that lists too little costs reuse. One that lists too much misleads.
        misleads = any(worker.trust_found_share < _FOUND_SHARE for worker in fallen)
        return Finding(
            name,
            "failure" if misleads else "warning",
            "the index is not believed as it is about "
            + _listed(
                f"{w.name} ({w.trust_mode}, score {w.trust_score:.2f}, "
                f"{w.trust_found_share:.0%} of its blocks found)"
                for w in fallen
            ),
            "read the checks feeds and blocks: lost events, another block size, salt or tokeniser"
            if misleads
            else "the engine finds cached tokens that the index does not list: lost events, or an "
            "engine that ignores the salt of a request (check salt)",
        )
    lost = sum(worker.events_lost for _, worker in workers)
    if lost:
        return Finding(
            name,
            "warning",
            f"{lost} KV events were lost since the start; dumps have replaced the blocks",
            "raise the buffers of the engines, or look for a network that drops connections",
        )
    return Finding(name, "ok", "the index is believed as it is about every worker")


def check_prompts(facts: Facts) -> Finding:
    """The router has tokeniser and template of each model, so prompts have a prefix to look up."""
    name = "prompts"
    for model in facts.status.models:
        if model.problems or not model.has_tokeniser:
            reason = "; ".join(model.problems) or "no tokeniser was found"
            return Finding(
                name,
                "failure",
                f"prompts of {model.name!r} are routed by load: {reason}",
                "give the router the model's folder, or let it read the card that workers publish",
            )
        if not model.has_template:
            return Finding(
                name,
                "warning",
                f"{model.name!r} has no chat template: chats are routed by load",
                "completions are routed by prefix; add a template to the model's folder",
            )
    count = len(facts.status.models)
    return Finding(name, "ok", f"tokeniser and template of {count} models are there")


def check_token_ids(facts: Facts) -> Finding:
    """The router makes the same token ids as the engine's own frontend."""
    name = "token-ids"
    unknown: list[str] = []
    for model in facts.status.models:
        if model.handover is None:
            unknown.append(model.name)
        elif model.handover.difference is not None:
            return Finding(
                name,
                "failure",
                f"token ids of {model.name!r} differ from Dynamo's: {model.handover.difference}",
                "tokenisers differ: give router and workers the same files of the model",
            )
    if unknown:
        return Finding(
            name,
            "skipped",
            f"not compared yet: {_listed(unknown)}",
            "the first comparison follows the first answer of a frontend; "
            "--no-prompt-handover turns it off",
        )
    return Finding(name, "ok", "the router's token ids equal Dynamo's own")


def check_audit(facts: Facts) -> Finding:
    """Past answers report as many cached tokens as the index predicted."""
    name, judged = "audit", 0
    for _, worker in _workers(facts):
        predicted = worker.predicted_cached_tokens
        if worker.audited_requests < AUDIT_REQUESTS or not predicted:
            continue
        judged += 1
        if worker.reported_cached_tokens < AUDIT_SHARE * predicted:
            share = worker.reported_cached_tokens / predicted
            return Finding(
                name,
                "failure",
                f"worker {worker.name} reports {100 * share:.0f} % of the predicted cached tokens "
                f"over {worker.audited_requests} requests, expected at least "
                f"{100 * AUDIT_SHARE:.0f} %",
                "the index holds blocks that the worker does not: look at events and block size",
            )
    if not judged:
        return Finding(name, "skipped", f"no worker has {AUDIT_REQUESTS} audited requests yet")
    return Finding(name, "ok", f"reported cached tokens match the predictions on {judged} workers")


def check_clock(facts: Facts) -> Finding:
    """The clocks of the router and of this machine agree, so times in logs can be compared."""
    skew_s = facts.clock_skew_s
    if abs(skew_s) > MAX_CLOCK_SKEW_S:
        return Finding(
            "clock",
            "warning",
            f"the clock of the router is {skew_s:+.1f} s off, expected within "
            f"{MAX_CLOCK_SKEW_S:g} s",
            "start a time service on both machines",
        )
    return Finding("clock", "ok", f"the clocks agree within {MAX_CLOCK_SKEW_S:g} s")


def check_descriptors(facts: Facts) -> Finding:
    """The process may open enough files for its connections."""
    name, limits, resources = "descriptors", facts.status.limits, facts.status.resources
    if limits is None or limits.connections is None or resources is None:
        return Finding(name, "skipped", "this door reports no limit of connections")
    descriptors = resources.descriptors
    if limits.connections < FEWEST_CONNECTIONS:
        return Finding(
            name,
            "warning",
            f"got {descriptors} file descriptors, which leaves {limits.connections} connections",
            "raise the limit: ulimit -n 65536, or LimitNOFILE=65536 in a systemd unit",
        )
    return Finding(
        name, "ok", f"{descriptors} file descriptors for {limits.connections} connections"
    )


CHECKS: tuple[Check, ...] = (
    check_versions,
    check_settings,
    check_control,
    check_frontends,
    check_engines,
    check_descriptors,
    check_clock,
    check_workers,
    check_feeds,
    check_trust,
    check_prompts,
    check_token_ids,
    check_audit,
)


_DOORS: Mapping[Check, frozenset[DoorName]] = {
    # The native frontend shows its models and feeds, and nothing of its process.
    check_versions: frozenset({"dynamo", "serve", "picker", "select"}),
    check_clock: frozenset({"dynamo", "serve", "picker", "select"}),
    check_control: frozenset({"dynamo", "serve", "picker", "select"}),
    check_settings: frozenset({"dynamo"}),
    check_frontends: frozenset({"dynamo"}),
    check_engines: frozenset({"serve"}),
    check_descriptors: frozenset({"dynamo", "serve"}),
    # Callers of the selection service give token ids. Dynamo tokenises inside its own frontend.
    check_prompts: frozenset({"dynamo", "serve", "picker"}),
    check_token_ids: frozenset({"dynamo"}),
    # Dynamo's own subscription feeds the native frontend, whose status lists no feeds.
    check_feeds: frozenset({"dynamo", "serve", "picker", "select"}),
}
"""Doors of the checks that do not apply to every door."""


def checks_of(door: DoorName) -> list[Check]:
    """The checks of facts that apply to a door, in order."""
    return [check for check in CHECKS if door in _DOORS.get(check, {door})]


def run_checks(facts: Facts) -> list[Finding]:
    """Every check of facts that applies to the door, in order."""
    return [check(facts) for check in checks_of(facts.door)]


def _workers(facts: Facts) -> Iterable[tuple[str, Worker]]:
    for model in facts.status.models:
        yield from _workers_of(model)


def _workers_of(model: Model) -> Iterable[tuple[str, Worker]]:
    for pool in model.pools:
        for worker in pool.workers:
            yield pool.role, worker


def _listed(names: Iterable[str], most: int = 4) -> str:
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def _number(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: `1.6.1rc2` gives (1, 6, 1)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
