"""Read-only view of the stages that other machines publish in a remote store."""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ssdet.data.storage.filesystem import Remote, Stamp
from ssdet.store.base import StageElsewhere
from ssdet.store.leases import is_stale, read_lease
from ssdet.store.uploads import Pointer, read_pointer

AT_ONCE = 16
"""Small files that are fetched at the same time."""
SMALL = ("attempt.json", "metrics.jsonl")


class RemoteView:
    """Looks at stages again and again; pointers that have not changed are not read again."""

    def __init__(self, remote: Remote, machine: Path) -> None:
        """`machine`: file that names the mirror of this machine."""
        self.remote, self._machine = remote, machine
        self._known: dict[str, tuple[Stamp, StageElsewhere]] = {}

    def look(self, stages: Collection[str]) -> dict[str, StageElsewhere]:
        """What there is of these stages now. OSError where the store cannot be read."""
        wanted = {f"{folder}/{stage}.json" for stage in stages for folder in ("done", "resume")}
        listed = self.remote.list("done") | self.remote.list("resume")
        there = {name: listed[name] for name in wanted & listed.keys()}
        leases = self.remote.list("leases")
        self._known = {n: known for n, known in self._known.items() if there.get(n) == known[0]}
        new = sorted(there.keys() - self._known.keys())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, stage in zip(new, pool.map(self._read, new), strict=True):
                if stage is not None:
                    self._known[name] = there[name], stage
        seen: dict[str, StageElsewhere] = {}
        for name in sorted(self._known, reverse=True):  # done/ after resume/, which it replaces
            seen[Path(name).stem] = self._known[name][1]
        for name in {f"leases/{stage}.json" for stage in stages} & leases.keys():
            stage_id = Path(name).stem
            shown = seen.get(stage_id, StageElsewhere())
            if not shown.finished:
                seen[stage_id] = self._leased(name, leases[name], shown)
        return seen

    def _read(self, name: str) -> StageElsewhere | None:
        """The content of a pointer; None where it is gone by now."""
        finished = name.startswith("done/")
        try:
            if (pointer := read_pointer(self.remote, name)) is None:
                return None
            return _of_done(pointer) if finished else self._of_resume(pointer)
        except FileNotFoundError:
            return None
        except ValueError as error:
            return StageElsewhere(finished=finished, fault=str(error))

    def _of_resume(self, pointer: Pointer) -> StageElsewhere:
        names = [name for name in SMALL if name in pointer.files]
        files = {name: pointer.files[name].read(self.remote) for name in names}
        return StageElsewhere(files, uploaded=pointer.mtime_ns / 1e9)

    def _leased(self, name: str, lease: Stamp, shown: StageElsewhere) -> StageElsewhere:
        """A stage that a machine works on, or did when it vanished."""
        try:
            holder = read_lease(self.remote, name)
        except FileNotFoundError:
            holder = {}
        # A lease of this machine, where no process has the lock, is a dead process's.
        mine = self._machine.is_file() and self._machine.read_text() == holder.get("machine")
        working, host = not mine and not is_stale(lease), str(holder.get("host", ""))
        return replace(shown, working=working, host=host, seen=lease.mtime_ns / 1e9)


def _of_done(pointer: Pointer) -> StageElsewhere:
    files = {n: f.text.encode() for n, f in pointer.files.items() if n == "provenance.json"}
    return StageElsewhere({**files, "DONE": json.dumps(pointer.result).encode()}, finished=True)
