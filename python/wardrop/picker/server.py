"""One run of `wardrop picker`: the native picker, and the file and cluster that it follows.

The models and workers of the file are handed over at start and after each change of the file. The
endpoints that its selectors find in a cluster are handed over after each change. A
file that cannot be used leaves the last fleet in force. Other settings need a new start.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from wardrop._core import Picker
from wardrop.errors import InputError
from wardrop.kubernetes.selector import Endpoint
from wardrop.picker.file import KubernetesSpec, PickerFile, read_file

if TYPE_CHECKING:
    from wardrop.kubernetes.reflector import Timing
    from wardrop.picker.cluster import Cluster

log = logging.getLogger("wardrop.picker")

_LOOK_EVERY_S = 0.5
_FLEET_KEYS = ("models", "workers", "kubernetes")
_MAX_ERROR_CHARACTERS = 300


class StartError(RuntimeError):
    """The picker cannot listen; the text names the address or the file."""


class PickerServer:
    """One run of `wardrop picker`.

    Args:
        path: The file, which is followed.
        file: Its content.
        environment: Variables of the process, with which it finds a cluster.
        timing: Deadlines and pauses of the requests to a cluster.

    Raises:
        InputError: A setting, model or worker cannot be used.
    """

    def __init__(
        self,
        path: Path,
        file: PickerFile,
        environment: Mapping[str, str] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._path = path
        self._file = file
        self._mark = _mark(path)
        self._stop = threading.Event()
        self._parts: dict[str, dict[str, Any]] = {}
        self._environment = environment or {}
        self._timing = timing
        self._cluster: Cluster | None = None
        self._cluster_error: str | None = None
        self._problems: tuple[str, ...] = ()
        self._feeds: dict[int, str] = {}
        self._endpoints: dict[KubernetesSpec, tuple[Endpoint, ...]] = {}
        try:
            self.picker = Picker(file.native_json())
            self._apply(file)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Returns:
            Exit code: 0 after a complete drain, 1 when requests were cut off.

        Raises:
            StartError: An address is in use, or a file of TLS cannot be read.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self.picker.start()
        except (RuntimeError, ValueError) as error:
            raise StartError(str(error)) from error
        status = json.loads(self.picker.status())
        log.info(
            "external processing on %s, metrics on %s, %d workers from %s",
            status["address"],
            status["http_address"] or "no port",
            len(self._file.workers),
            self._path,
        )
        self.follow_selectors()
        while not self._stop.wait(_LOOK_EVERY_S):
            self.follow_file()
            self.follow_cluster()
        if self._cluster is not None:
            self._cluster.close()
        drained = self.picker.drain(self._file.drain_timeout_s)
        self.picker.stop()
        return 0 if drained else 1

    def follow_file(self) -> None:
        """Read the file again when it changed, and hand its models and workers over."""
        mark = _mark(self._path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            file = read_file(self._path)
            self._apply(file)
        except ValueError as error:
            log.error("the last fleet stays in force: %s", error)
            self._report("file", str(error))
            return
        if _settings(file) != _settings(self._file):
            log.warning("%s: settings beside models and workers need a new start", self._path)
        self._file = file
        self.follow_selectors()
        self._report("file", "")
        log.info("%s: %d models, %d workers", self._path, len(file.models), len(file.workers))

    def follow_selectors(self) -> None:
        """Follow the selectors of the file. The first one starts a thread."""
        if self._cluster is None and self._file.kubernetes:
            # Imported here: a picker without selectors needs no HTTP client.
            from wardrop.picker.cluster import Cluster

            self._cluster = Cluster(self._environment, self._timing)
        if self._cluster is not None:
            self._cluster.follow(self._file.kubernetes)

    def follow_cluster(self) -> None:
        """Hand the endpoints of the cluster over when they changed, and report its state."""
        if self._cluster is None or not (self._file.kubernetes or self._endpoints):
            return
        found = self._cluster.found
        if found.problems != self._problems:
            self._problems = found.problems
            for problem in found.problems:
                log.warning("cluster: %s", problem)
        if found.error != self._cluster_error:
            self._cluster_error = found.error
            if found.error:
                log.warning("cluster: %s; the last endpoints stay in force", found.error)
            else:
                log.info("cluster: the API server answers again")
        error = found.error or ""
        if dict(found.endpoints) != self._endpoints:
            try:
                self._apply(self._file, found.endpoints)
            except ValueError as refused:
                error = str(refused)
            else:
                total = sum(len(each) for each in found.endpoints.values())
                log.info("cluster: %d endpoints", total)
        self._report("cluster", error, found.answered_unix_s)

    def _apply(
        self,
        file: PickerFile,
        endpoints: Mapping[KubernetesSpec, tuple[Endpoint, ...]] | None = None,
    ) -> None:
        """Hand models and workers over.

        Args:
            file: The file.
            endpoints: Endpoints of the cluster; by default those of the last call.

        Raises:
            ValueError: A model or worker is refused.
        """
        endpoints = self._endpoints if endpoints is None else dict(endpoints)
        wanted = {each: found for each, found in endpoints.items() if each in file.kubernetes}
        file = file.with_endpoints(wanted)
        for model in file.models_json():
            self.picker.upsert_model(model)
        self.picker.set_endpoints(file.endpoints_json())
        feeds = file.feeds()
        for number, feed in self._feeds.items():
            if feeds.get(number) != feed:
                self.picker.unsubscribe(number)
        for number, feed in feeds.items():
            if self._feeds.get(number) != feed:
                self.picker.subscribe(feed)
        self._feeds = feeds
        names = {model.name for model in file.models}
        for model in self._file.models:
            if model.name not in names:
                self.picker.remove_model(model.name)
        self._endpoints = wanted

    def _report(self, name: str, error: str, answered_unix_s: float | None = None) -> None:
        """Show the state of a part in `/metrics`."""
        before = self._parts.get(name, {"up": True, "failures": 0})
        error = error[:_MAX_ERROR_CHARACTERS]
        is_new = bool(error) and (before["up"] or before["error"] != error)
        part = {"up": not error, "failures": before["failures"] + is_new, "error": error}
        if answered_unix_s is not None:
            # A whole number of seconds: the state changes once a second at most.
            part["answered_unix_s"] = float(int(answered_unix_s))
        if part != before:
            self._parts[name] = part
            self.picker.set_parts(json.dumps(self._parts))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def _settings(file: PickerFile) -> dict[str, object]:
    content = cast(dict[str, object], msgspec.to_builtins(file))
    return {key: value for key, value in content.items() if key not in _FLEET_KEYS}


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever the file is replaced or written; None while there is no file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size, state.st_ino)
