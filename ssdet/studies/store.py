"""The folder that stages write to and tables are made from."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

STAGE_ID = re.compile(r"[a-z_]+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Store:
    """Stage folders `stages/ID` with `recipe.json`, `metrics.jsonl`, `checkpoints/`,
    `predictions/SPLIT/`, `provenance.json` and, written last, `DONE`; tables in `tables/STUDY`."""

    root: Path

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> "Store":
        """Store at a path or file:// URI, created if absent. ValueError for other schemes."""
        parts = urlsplit(str(uri))
        if parts.scheme not in ("", "file"):
            raise ValueError(
                f"store {uri!r}: stages are locked and written through a file system; "
                "mount the bucket (or NFS) and give its folder"
            )
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"store {uri!r}: file://{parts.netloc} is another machine; mount it")
        path = Path(unquote(parts.path) if parts.scheme else str(uri)).expanduser().absolute()
        (path / "stages").mkdir(parents=True, exist_ok=True)
        return cls(path)

    def folder(self, stage_id: str) -> Path:
        """Folder of a stage; ValueError for what is no stage id."""
        if not STAGE_ID.fullmatch(stage_id):
            raise ValueError(f"{stage_id!r} is no stage id (kind-16 hex digits)")
        return self.root / "stages" / stage_id

    def result(self, stage_id: str) -> dict[str, Any] | None:
        """What a finished stage reported, None for one that is not finished.

        ValueError for a file that holds no result: the stage must then be removed by hand.
        """
        path = self.folder(stage_id) / "DONE"
        try:
            result = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove the folder, and it runs again"
            ) from error
        if not isinstance(result, dict):
            raise ValueError(f"{path} is damaged: remove the folder, and it runs again")
        return result

    @contextmanager
    def lock(self, stage_id: str) -> Iterator[None]:
        """Wait until no other process works on the stage, and keep others out.

        The system releases the lock of a process that dies.
        """
        path = self.folder(stage_id).with_suffix(".lock")
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def finish(self, stage_id: str, result: Mapping[str, Any]) -> None:
        """Mark a stage as finished, with its result."""
        write_json(self.folder(stage_id) / "DONE", result)

    def table_folder(self, study: str) -> Path:
        """Folder of a study's tables, created if absent."""
        folder = self.root / "tables" / study
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that readers see the old or the new one, whole."""
    work = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(work, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)
