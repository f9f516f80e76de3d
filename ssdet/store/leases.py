"""Leases, by which machines that share a remote store keep out of each other's way."""

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

from ssdet.data.storage.filesystem import Remote, RemoteError, Stamp

log = logging.getLogger(__name__)

RENEW = 20.0
"""Seconds between two renewals."""
STALE = 120.0
"""Seconds without one after which a lease is nobody's; clocks must agree better than that."""
SETTLE = 0.25
"""Seconds in which the lease of another that was written at the same moment would appear."""
LOOK_AGAIN = 2.0


def read_lease(remote: Remote, name: str) -> dict[str, Any]:
    """Content of a lease's file, empty for a damaged one. FileNotFoundError where there is none."""
    try:
        content = json.loads(remote.read(name))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def is_stale(stamp: Stamp) -> bool:
    """Whether a lease has not been renewed for so long that its machine is taken for lost."""
    return time.time() - stamp.mtime_ns / 1e9 > STALE


@dataclass
class Lease:
    """The right to work on a stage, or on something else: a small remote file that is renewed.

    File systems behind pyarrow have no "write if absent", so two machines that ask at the same
    moment may both get the lease; what they do under it must stay whole then. Processes of one
    machine exclude each other by locks, so a lease of the own `machine` is a dead process's.
    """

    remote: Remote
    name: str
    machine: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def holder(self) -> dict[str, Any] | None:
        """The other machine that holds it now (`host`, `machine`, `token`), None without one."""
        try:
            stamp, holder = self.remote.stat(self.name), read_lease(self.remote, self.name)
        except FileNotFoundError:
            return None
        if stamp is None or holder.get("machine") == self.machine:
            return None
        if is_stale(stamp):
            log.warning("%s: held by %s, which has not renewed it for more than %.0f s: free",
                        self.name, holder.get("host"), STALE)  # fmt: skip
            return None
        return holder

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
                if (holder := self._current()).get("token") == self.token:
                    return
                if not holder:
                    continue  # whoever held it before has just removed it
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
        return bool(self._current().get("token") == self.token)

    def _current(self) -> dict[str, Any]:
        try:
            return read_lease(self.remote, self.name)
        except FileNotFoundError:
            return {}

    def _write(self) -> None:
        who = {"machine": self.machine, "host": platform.node(), "token": self.token}
        self.remote.write(self.name, json.dumps({**who, "time": time.time()}).encode())
