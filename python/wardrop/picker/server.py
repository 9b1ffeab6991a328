"""One run of `wardrop picker`: the native picker, and the file that it follows.

The models and workers of the file are handed over at start and after each change of the file. A
file that cannot be used leaves the last fleet in force. Other settings need a new start.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import cast

import msgspec

from wardrop._core import Picker
from wardrop.errors import InputError
from wardrop.picker.file import PickerFile, read_file

log = logging.getLogger("wardrop.picker")

_LOOK_EVERY_S = 0.5
_FLEET_KEYS = ("models", "workers")


class StartError(RuntimeError):
    """The picker cannot listen; the text names the address or the file."""


class PickerServer:
    """One run of `wardrop picker`.

    Args:
        path: The file, which is followed.
        file: Its content.

    Raises:
        InputError: A setting, model or worker cannot be used.
    """

    def __init__(self, path: Path, file: PickerFile) -> None:
        self._path = path
        self._file = file
        self._mark = _mark(path)
        self._stop = threading.Event()
        self._failures = 0
        self._feeds: dict[int, str] = {}
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
        while not self._stop.wait(_LOOK_EVERY_S):
            self.follow_file()
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
            self._failures += 1
            log.error("the last fleet stays in force: %s", error)
            self._report(str(error))
            return
        if _settings(file) != _settings(self._file):
            log.warning("%s: settings beside models and workers need a new start", self._path)
        self._file = file
        self._report("")
        log.info("%s: %d models, %d workers", self._path, len(file.models), len(file.workers))

    def _apply(self, file: PickerFile) -> None:
        """Hand models and workers over.

        Raises:
            ValueError: A model or worker is refused.
        """
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

    def _report(self, error: str) -> None:
        part = {"up": not error, "failures": self._failures, "error": error[:300]}
        self.picker.set_parts(json.dumps({"file": part}))

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
