"""Leases on stages of a store that several machines share: small files, renewed at work."""

import json
import logging
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ssdet.data.storage.filesystem import Remote, RemoteError

log = logging.getLogger(__name__)

RENEW = 20.0
"""Seconds between two renewals."""
STALE = 120.0
"""Seconds without one after which a lease is nobody's; clocks must agree better than that."""
SETTLE = 0.25
"""Seconds in which the lease of another that was written at the same moment would appear."""
LOOK_AGAIN = 2.0


@dataclass
class Lease:
    """The right to work on what a file of a remote folder stands for.

    It keeps machines out of each other's way, not more: file systems behind pyarrow have no "write
    if absent", so two that ask at the same moment may both be let in. What they do must stand that.
    Processes of one machine keep apart by locks: a lease of the own `machine` is of a dead process.
    """

    remote: Remote
    name: str
    machine: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def holder(self) -> dict[str, Any] | None:
        """Who else holds it now, None where nobody does."""
        try:
            stamp, found = self.remote.stat(self.name), self._read()
        except FileNotFoundError:
            return None
        if stamp is None or found.get("machine") == self.machine:
            return None
        age = time.time() - stamp.mtime_ns / 1e9
        if age > STALE:
            host = found.get("host")
            log.warning("%s: held by %s, %.0f s without a sign of it: free", self.name, host, age)
            return None
        return found

    @contextmanager
    def held(self, wait: bool = True) -> Iterator[None]:
        """Hold the lease while the block lasts. Without `wait`, BlockingIOError where another
        machine has it."""
        self._take(wait)
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._release()

    def _take(self, wait: bool) -> None:
        while True:
            if (holder := self.holder()) is None:
                self._write()
                time.sleep(SETTLE)
                if (holder := self._read()).get("token") == self.token:
                    return
            if not wait:
                raise BlockingIOError(f"{self.name}: {holder.get('host')} is at work on it")
            time.sleep(LOOK_AGAIN)

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW):
            try:
                if not self._mine():
                    log.warning("%s: another machine works on the same now", self.name)
                    return
                self._write()
            except RemoteError as error:
                log.warning("%s: not renewed: %s", self.name, error)

    def _release(self) -> None:
        try:
            if self._mine():
                self.remote.delete(self.name)
        except RemoteError as error:
            log.warning("%s: not given back, free in %.0f s: %s", self.name, STALE, error)

    def _mine(self) -> bool:
        try:
            return bool(self._read().get("token") == self.token)
        except FileNotFoundError:
            return False

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.remote.read(self.name))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        who = {"machine": self.machine, "host": platform.node(), "token": self.token}
        self.remote.write(self.name, json.dumps({**who, "time": time.time()}).encode())
