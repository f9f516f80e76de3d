"""Checking proof bundles: recomputing the table from the predictions and labels inside."""

import hashlib
import itertools
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ssdet
from ssdet.data.loading.recipe import DENSE
from ssdet.evaluation import PredictionSet, dense_map
from ssdet.evaluation.source import source_digest
from ssdet.results.proof.bundle import FORMAT, StoredTargets, annotation_of
from ssdet.results.tables.result_table import result_table, write_csv
from ssdet.store.base import Store
from ssdet.studies.graph.record import parse_record
from ssdet.system.safe_files import write_json

STAGE = r"[a-z_]+-[0-9a-f]{16}"
MEMBER = re.compile(
    rf"(annotation|manifest|record|targets)\.json|targets\.bits|table\.csv|(results|provenance)/{STAGE}\.json"
    r"|predictions/[0-9a-f]{16}/[A-Za-z0-9][A-Za-z0-9_-]*\.(f16|json)"
)
REQUIRED = {"record.json", "targets.json", "targets.bits", "table.csv"}
MAX_RESAMPLES = 100_000
BROKEN_ZIP = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, OverflowError,
    UnicodeError,
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """Result of checking a bundle."""

    study: str
    sets: int
    """Prediction sets that were scored."""
    runs: int
    differences: tuple[str, ...]
    """Differences between the bundle and the recomputation; none where the table holds."""
    warnings: tuple[str, ...]
    table: str
    """The recomputed table, CSV."""

    @property
    def holds(self) -> bool:
        """Whether the recomputed table is byte for byte the table inside."""
        return not self.differences

    @property
    def summary(self) -> str:
        """The outcome in words."""
        if self.holds:
            return (
                f"{self.study}: the table holds. {self.runs} scores were computed again from "
                f"{self.sets} prediction sets, and the table is the same byte for byte"
            )
        return "\n".join([f"{self.study}: the table does NOT hold", *self.differences])


def verify(path: Path) -> Verification:
    """Recompute the table of a bundle on the CPU, without its store and data.

    Nothing in the file is executed, nothing is written outside a temporary folder. ValueError for
    a file that is damaged, altered, or no bundle; OSError where it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="ssdet-verify-") as work:
        root = Path(work)
        try:
            manifest = _unpack(path, root)
            return _recomputed(root, manifest)
        except BROKEN_ZIP as error:
            raise ValueError(f"{path}: damaged ({error}): get it again") from error
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, MemoryError) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
            raise ValueError(f"{path}: {kind}{error}".replace(f"{root}/", "")) from error


def _unpack(path: Path, root: Path) -> dict[str, Any]:
    """Check names, sizes and hashes, write the members below `root`, and return the manifest."""
    with zipfile.ZipFile(path) as file:
        infos = {info.filename: info for info in file.infolist()}
        _check_members(file.infolist(), path.stat().st_size)
        manifest = json.loads(file.read("manifest.json")) if "manifest.json" in infos else {}
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"no manifest of format {FORMAT}: not a proof bundle")
        members = manifest["members"]
        if missing := sorted(REQUIRED - members.keys()):
            raise ValueError(f"{', '.join(missing)} is not in it: the bundle is incomplete")
        if odd := sorted((infos.keys() - {"manifest.json"}) ^ members.keys()):
            raise ValueError(f"members and manifest differ in {', '.join(odd[:5])}")
        for name, expected in members.items():
            if infos[name].file_size != expected["size"]:
                raise ValueError(f"{name}: {infos[name].file_size} bytes, not {expected['size']}")
            _unpack_member(file, name, expected["sha256"], root / name)
    return manifest


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> None:
    names = [info.filename for info in infos]
    if len({*names}) < len(names):
        raise ValueError("two members share a name")
    for info in infos:
        if not MEMBER.fullmatch(info.filename):
            raise ValueError(f"member {info.filename[:80]!r} does not belong in a bundle")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"member {info.filename} is compressed: bundles store their members")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("its members would unpack to more bytes than the file has")


def _unpack_member(file: zipfile.ZipFile, name: str, sha256: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with file.open(name) as source, open(target, "xb") as sink:
        while block := source.read(1 << 20):
            digest.update(block)
            sink.write(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{name} was altered: its SHA-256 is not the manifest's")


def _recomputed(root: Path, manifest: Mapping[str, Any]) -> Verification:
    record = parse_record((root / "record.json").read_bytes(), {*manifest["without_paths"]})
    targets, classes = _targets(root)
    store = Store.open(root / "store")
    for stage in record.stages:
        store.folder(stage).mkdir()
        reported = root / "results" / f"{stage}.json"
        store.finish(stage, json.loads(reported.read_bytes()) if reported.exists() else {})
    ends = {stage for run in record.runs for stage in (run.predict, run.probe) if stage is not None}
    differences = []
    for stage in sorted(ends):
        differences += _score(root, store, stage, manifest["predictions"][stage], targets)
    resamples = manifest["resamples"]
    if type(resamples) is not int or not 1 <= resamples <= MAX_RESAMPLES:
        raise ValueError(f"resamples={resamples!r}: expected 1 to {MAX_RESAMPLES}")
    path = root / "annotation.json"
    segments = annotation_of(json.loads(path.read_bytes())) if path.is_file() else None
    plan = record.plan(StoredTargets(targets, classes, segments))
    write_csv(result_table(plan, store, resamples), root / "recomputed.csv")
    inside, again = (root / "table.csv").read_bytes(), (root / "recomputed.csv").read_bytes()
    if inside != again:
        differences.append(_first_difference(inside, again))
    sets = len({manifest["predictions"][stage] for stage in ends})
    return Verification(
        record.name, sets, len(ends), tuple(differences), _warnings(manifest), again.decode()
    )


def _targets(root: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Dense labels bool [T, K] by video, and the classes by role."""
    listed = json.loads((root / "targets.json").read_bytes())
    bits = np.fromfile(root / "targets.bits", np.uint8)
    classes = {role: listed["classes"][role] for role in ("upstream", "downstream")}
    numbers = [*classes.values(), *(frames for _, frames in listed["videos"])]
    if not all(type(number) is int and 0 <= number <= 8 * len(bits) for number in numbers):
        raise ValueError(
            "targets.json: expected counts of classes and frames within the size of targets.bits"
        )
    count, start, targets = classes["downstream"], 0, {}
    for video, frames in listed["videos"]:
        stop = start + -(-frames * count // 8)
        rows = np.unpackbits(bits[start:stop], count=frames * count).astype(bool)
        targets[video], start = rows.reshape(frames, count), stop
    if start != len(bits):
        raise ValueError(f"targets.bits: {len(bits)} bytes, expected {start} from targets.json")
    return targets, classes


def _score(
    root: Path, store: Store, stage: str, name: str, targets: Mapping[str, np.ndarray]
) -> list[str]:
    """Score a stage's predictions, store the result in place of the reported one, and return the
    differences."""
    folder = root / "predictions" / name
    if folder.parent != root / "predictions" or not folder.is_dir():
        raise ValueError(f"{stage}: its prediction set {name!r} is not in the bundle")
    predictions = PredictionSet.open(folder)
    predictions.verify()
    result = store.result(stage) or {}
    reported = result["scores"]["test"]
    if reported["protocol"] != DENSE:
        raise ValueError(f"{stage}: reported {reported['protocol']!r}, expected {DENSE!r}")
    score = json.loads(json.dumps(asdict(dense_map(predictions, targets))))
    (store.folder(stage) / "predictions").mkdir()
    (store.folder(stage) / "predictions" / "test").symlink_to(folder, target_is_directory=True)
    write_json(store.folder(stage) / "DONE", {**result, "scores": {"test": score}})
    return [
        f"{stage}: {field} is {score[field]!r}, reported was {reported.get(field)!r}"
        for field in score
        if score[field] != reported.get(field)
    ]


def _first_difference(inside: bytes, again: bytes) -> str:
    lines = itertools.zip_longest(inside.splitlines(), again.splitlines(), fillvalue=b"nothing")
    number, (old, new) = next(
        ((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, (b"", b""))
    )
    return f"table.csv line {number}: {old[:300]!r}, recomputed {new[:300]!r}"


def _warnings(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    warnings = []
    if manifest["scorer"] != (own := source_digest()):
        warnings.append(
            f"the scorer differs: packed with ssdet {manifest['ssdet']}, source "
            f"{manifest['scorer']}; this is ssdet {ssdet.__version__}, source {own}"
        )
    if manifest["without_paths"]:
        warnings.append(
            f"{len(manifest['without_paths'])} recipes name files, whose folders were left out: "
            "their ids cannot be checked"
        )
    return tuple(warnings)
