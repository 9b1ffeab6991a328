"""The discovery backend of fleets of engines: members, what they report, and their feeds.

`FleetSource` follows the texts of `--worker`, a YAML file, workers that the admin API added, the
addresses behind names, and selectors of a Kubernetes cluster. It reads the file again after each
change. It probes each member. Its views hold the members that answered once. A member that stops
answering stays in the view and is reported as unreachable, so that its cache is known when it comes
back.

A file that cannot be read leaves the last fleet in force, as any outage of a discovery backend.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from wardrop.decoding import shown
from wardrop.dynamo.daemon_thread import run_in_thread
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.errors import InputError
from wardrop.fleet.member import Member, members_of, stable_id
from wardrop.fleet.probe import Probe
from wardrop.fleet.spec import (
    FleetSpec,
    WorkerSpec,
    check_fleet,
    http_address,
    read_fleet,
)
from wardrop.fleet.view import ProbedMember, fleet_view
from wardrop.kubernetes.endpoints import EndpointFollowers
from wardrop.kubernetes.environment import own_namespace
from wardrop.kubernetes.reflector import Timing

log = logging.getLogger("wardrop.fleet")

_RELOAD_EVERY_S = 1.0
_RESOLVE_EVERY_S = 5.0


class FleetSource:
    """A discovery backend, as `wardrop.dynamo.discovery.source.Source` describes it.

    Args:
        spec: Workers and models of the command line.
        file: YAML file with more, read again after each change; None for none.
        poll_interval_s: Time between two readings of an engine's metrics.
        tokenizer: Folder of the models that name none.
        environment: Variables of the process, with which it finds a cluster.
        timing: Deadlines and pauses of the requests to a cluster.
        ca_file: PEM file with the authorities of `https://` servers; None for those of the system.

    Raises:
        InputError: A worker cannot be followed, or a file cannot be read.
    """

    def __init__(
        self,
        spec: FleetSpec,
        file: Path | None = None,
        poll_interval_s: float = 0.5,
        tokenizer: str | None = None,
        environment: Mapping[str, str] | None = None,
        timing: Timing | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._tls = _authorities(ca_file)
        self.on_report: Callable[[str], object] = lambda _reports_json: None
        """Called with `Gateway.report_engines`' argument after each round of readings."""
        self.on_members: Callable[[list[Member]], object] = lambda _members: None
        """Called with the members in the view, before the view is yielded."""
        self._error: str | None = None
        self._spec = spec
        self._file = file
        self._poll_interval_s = poll_interval_s
        self._tokenizer = tokenizer
        self._added: dict[str, WorkerSpec] = {}
        self._of_file = FleetSpec()
        self._file_mark: object = None
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._resolved_at_s = float("-inf")
        self._probed: dict[int, ProbedMember] = {}
        self._changed = asyncio.Event()
        environment = environment or {}
        self._cluster = EndpointFollowers(
            environment, own_namespace(environment), self._changed.set, timing
        )
        if file is not None:
            self._of_file = read_fleet(file)
            self._file_mark = _mark(file)
        check_fleet(self.fleet, "the fleet")

    @property
    def name(self) -> str:
        """What is followed, for logs."""
        parts = [f"{len(self.fleet.workers)} workers"] if self.fleet.workers else []
        parts += [selector.what for selector in self.fleet.kubernetes]
        parts += [str(self._file)] if self._file else []
        return ", ".join(parts)

    @property
    def last_error(self) -> str | None:
        """Why a file, a name or a cluster cannot be read now; None when all are followed."""
        return self._error or self._cluster.error

    @property
    def answered_unix_s(self) -> float | None:
        """Up to when the endpoints of a cluster are known to be fresh; None without a cluster."""
        return self._cluster.answered_unix_s

    @property
    def fleet(self) -> FleetSpec:
        """Models and workers of all sources."""
        return FleetSpec(
            (*self._spec.models, *self._of_file.models),
            (*self._spec.workers, *self._of_file.workers, *self._added.values()),
            (*self._spec.kubernetes, *self._of_file.kubernetes),
        )

    def frontends_restarted(self) -> None:
        """There are no frontends here."""

    def add_worker(self, worker: WorkerSpec) -> None:
        """Follow a further worker, until `remove_worker` or the end of the process.

        Raises:
            InputError: The worker is there already, or cannot be followed.
        """
        fleet = self.fleet
        check_fleet(replace_workers(fleet, (*fleet.workers, worker)), "the fleet")
        self._added[worker.url.rstrip("/")] = worker
        self._changed.set()

    def remove_worker(self, url: str) -> None:
        """Leave a worker that `add_worker` added.

        Raises:
            InputError: There is no such worker.
        """
        if self._added.pop(url.rstrip("/"), None) is None:
            raise InputError(
                f"got the worker {url!r}, expected one that was added here; a worker of a file or "
                "of the command line leaves with its line"
            )
        self._changed.set()

    def members(self) -> list[Member]:
        """The members in the view: each has answered at least once."""
        return [each.member for each in self._probed.values() if each.probe.served is not None]

    def served_names(self) -> set[str]:
        """Names of the models that members serve."""
        return {name for each in self._probed.values() if (name := each.model_name()) is not None}

    def describe(self) -> list[dict[str, Any]]:
        """Every member with its state, for the admin API."""
        return [
            {
                "url": each.member.url,
                "instance": each.member.instance,
                "models": list(each.probe.served.names) if each.probe.served else [],
                "role": each.member.spec.role,
                "is_reachable": each.probe.is_reachable,
                "error": each.probe.error,
                "events": each.member.spec.events,
                "replay": each.member.spec.replay,
                "is_added": each.member.url in self._added,
            }
            for each in self._probed.values()
        ]

    async def views(self) -> AsyncIterator[FleetView]:
        """Views without end. The first one comes at once and is empty: nothing has answered."""
        timeout = aiohttp.ClientTimeout(total=10.0)
        connector = aiohttp.TCPConnector(limit=256, ssl=self._tls)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            reports = asyncio.create_task(self._report(), name="reports of engines")
            try:
                last: tuple[FleetView, list[Member]] | None = None
                while True:
                    await self._follow_file()
                    await self._resolve_names()
                    self._cluster.follow(self.fleet.kubernetes)
                    self._follow_members(session)
                    members = self.members()
                    view = fleet_view(
                        self._probed.values(),
                        self.fleet.models,
                        self._tokenizer,
                        self._cluster.problems,
                    )
                    # The view has neither the connector nor the certificate's name of a member.
                    if (view, members) != last:
                        self.on_members(members)
                        yield view
                        last = (view, members)
                    try:
                        async with asyncio.timeout(_RELOAD_EVERY_S):
                            await self._changed.wait()
                    except TimeoutError:
                        pass
                    self._changed.clear()
            finally:
                reports.cancel()
                await self._cluster.close()
                tasks = [each.task for each in self._probed.values()]
                for task in tasks:
                    task.cancel()
                self._probed.clear()
                await asyncio.gather(reports, *tasks, return_exceptions=True)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
            reports = [
                {
                    "model": model,
                    "role": each.member.spec.role,
                    "instance": each.member.instance,
                    "is_reachable": each.probe.is_reachable,
                    "ranks": [
                        {
                            "dp_rank": rank,
                            "running_requests": load.running,
                            "waiting_requests": load.waiting,
                            "kv_usage": load.kv_usage,
                        }
                        for rank, load in each.probe.metrics.ranks.items()
                        if each.probe.is_reachable
                    ],
                }
                for each in self._probed.values()
                # A single miss says nothing: the engine neither answered nor is it given up.
                if (model := each.model_name()) is not None
                and (not each.probe.error or not each.probe.is_reachable)
            ]
            try:
                self.on_report(json.dumps(reports))
            except Exception as error:
                log.error("the reports of engines are not taken: %s", error)

    async def _follow_file(self) -> None:
        if self._file is None:
            return
        mark = await run_in_thread(partial(_mark, self._file))
        if mark == self._file_mark:
            return
        self._file_mark = mark
        before = self._of_file
        try:
            self._of_file = await run_in_thread(partial(read_fleet, self._file))
            check_fleet(self.fleet, "the fleet")
        except (InputError, OSError) as error:
            self._of_file = before
            self._error = str(error)
            return
        self._error = None
        log.info("read %s: %d workers", self._file, len(self._of_file.workers))

    async def _resolve_names(self) -> None:
        """Find the addresses of the names that stand for several servers."""
        now_s = asyncio.get_running_loop().time()
        names = {
            http_address(worker.url, "url").host for worker in self.fleet.workers if worker.dns
        }
        for name in self._addresses.keys() - names:
            del self._addresses[name]
            if self._error and repr(name) in self._error:
                self._error = None
        is_due = now_s - self._resolved_at_s >= _RESOLVE_EVERY_S
        if not names or (names <= self._addresses.keys() and not is_due):
            return
        self._resolved_at_s = now_s
        for name in sorted(names):
            try:
                found = await asyncio.wait_for(run_in_thread(partial(_resolve, name)), 5.0)
            except (OSError, TimeoutError) as error:
                # The last known addresses stay: an outage of the name server empties no fleet.
                self._addresses.setdefault(name, ())
                self._error = f"the name {name!r} cannot be resolved: {error}"
            else:
                self._addresses[name] = found
                if self._error and repr(name) in self._error:
                    self._error = None

    def _follow_members(self, session: aiohttp.ClientSession) -> None:
        """Start probes of members that joined, and end those of members that left."""
        wanted = {member.instance: member for member in self._wanted()}
        for instance in [i for i in self._probed if i not in wanted]:
            self._probed.pop(instance).task.cancel()
        for instance, member in wanted.items():
            known = self._probed.get(instance)
            if known is not None and known.member.is_same_server(member):
                known.member = member
                continue
            if known is not None:
                known.task.cancel()
            probe = Probe(member.url, self._poll_interval_s, self._changed.set, member.server_name)
            task = asyncio.create_task(probe.run(session), name=f"probe of {member.url}")
            self._probed[instance] = ProbedMember(member, probe, task)

    def _wanted(self) -> list[Member]:
        members: list[Member] = []
        for worker in self.fleet.workers:
            host = http_address(worker.url, "url").host
            members += members_of(worker, self._addresses.get(host, ()))
        for selector, endpoints in self._cluster.endpoints.items():
            for endpoint in endpoints:
                found = selector.worker(endpoint)
                members.append(Member(stable_id(found.url), found.url, found, endpoint.uid))
        return list({member.instance: member for member in members}.values())


def replace_workers(fleet: FleetSpec, workers: tuple[WorkerSpec, ...]) -> FleetSpec:
    """The fleet with other workers."""
    return FleetSpec(fleet.models, workers, fleet.kubernetes)


def _mark(file: Path) -> object:
    """A value that changes when the file does."""
    try:
        state = file.stat()
    except OSError as error:
        return str(error)
    return state.st_mtime_ns, state.st_size, state.st_ino


def _authorities(ca_file: Path | None) -> ssl.SSLContext:
    """The TLS settings, with the authorities whose certificates are accepted.

    Raises:
        InputError: The file cannot be read, or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"upstream.ca_file: got {shown(str(ca_file))}, expected a PEM file with the "
            f"certificates of the authorities: {error}"
        ) from error


def _resolve(name: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return tuple(sorted({str(entry[4][0]) for entry in found}))
