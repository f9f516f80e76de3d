"""Writing proof bundles: self-contained files from which a study's table can be recomputed.

A zip file whose members are stored, not compressed: its bytes depend on nothing but the content,
and what it unpacks to is no larger than itself. `manifest.json` names every member with its size
and SHA-256; `record.json` is the plan with all recipes; `results/ID.json` and `provenance/ID.json`
are what stages reported and how they ran; `predictions/SET` the scores of every test frame, a set
once however many runs have it; `targets.json` and `targets.bits` the dense labels; `table.csv` the
table. For a study of another protocol than dense mAP `annotation.json` has the segments. It names
no machine and no folder.
"""

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ssdet
from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.data.loading.recipe import DENSE
from ssdet.data.video.clock import Clock
from ssdet.evaluation.protocols.charades_official import POINTS, OfficialTruth
from ssdet.evaluation.protocols.registry import Material
from ssdet.evaluation.source import source_digest
from ssdet.inference.scoring import frame_targets
from ssdet.results.tables.result_table import TEST, result_table, write_csv
from ssdet.store.base import Store
from ssdet.studies.graph.record import StudyRecord
from ssdet.studies.truth import annotated
from ssdet.system.safe_files import replacing

if TYPE_CHECKING:
    from ssdet.results.queries.results import Results

FORMAT = "ssdet-bundle/1"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every member, which the zip format requires."""
PROVENANCE = (
    "ssdet", "revision", "python", "packages", "processor", "gpu", "started", "seconds",
    "gpu_seconds", "workers", "threads", "loaders",
)  # fmt: skip
"""Fields of a stage's provenance in the bundle, without the host's name."""
PATH = re.compile(r"""(?<![\w./])/(?:[^\s/'",;:()]+/)+([^\s/'",;:()]*)""")


class StoredTargets:
    """Stands where a plan's `Data` stands: dense labels of the test split, without any video, and
    the annotation where a protocol needs it."""

    def __init__(
        self,
        targets: Mapping[str, np.ndarray],
        classes: Mapping[str, int],
        annotation: Material | None = None,
    ) -> None:
        self._truth = replace(annotation or Material(), labels=targets)
        self._frames = {video: len(rows) for video, rows in targets.items()}
        names = tuple(map(str, range(classes["downstream"])))
        videos = tuple(Video(video, "", "test") for video in targets)
        self._manifest = _Labels("stored", names, videos, rows=targets)
        upstream = Manifest("stored", tuple(map(str, range(classes["upstream"]))), ())
        self.manifests = {"upstream": upstream, "downstream": self._manifest}

    def split(self, role: str, name: str) -> Manifest:
        """The test videos of the downstream data; ValueError for any other split."""
        if (role, name) != ("downstream", "test"):
            raise ValueError(f"the labels of {role} {name} are not in a bundle")
        return self._manifest

    def truth(self, split: str) -> Material:
        """What predictions of the test videos are scored against."""
        self.split("downstream", split)
        return self._truth

    def reader(self, role: str) -> "StoredTargets":
        """This object, which gives the frames of videos."""
        return self

    def frames(self, video: Video) -> int:
        return self._frames[video.id]

    def fps(self, video: Video) -> float:
        return 1.0

    def clock(self, video: Video) -> Clock:
        return Clock.regular(self.frames(video), 1.0)


@dataclass(frozen=True)
class _Labels(Manifest):
    """A manifest with dense labels in place of segments."""

    rows: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)
    """Labels bool [T, K] by video."""

    def targets_at(self, video: Video, times_T: np.ndarray) -> np.ndarray:
        return self.rows[video.id].T


def write_bundle(results: "Results", study: str, out: Path) -> Path:
    """Pack the last plan of a study with the results, predictions and labels of its table.

    Equal content gives equal bytes. ValueError where the study is unknown or not finished,
    FileNotFoundError where its data, from which the labels are read, are missing.
    """
    record, store = results.record(study), results.store
    data = record.plan().study.data
    targets = frame_targets(data.split("downstream", "test"), data.reader("downstream"))
    classes = {role: manifest.num_classes for role, manifest in data.manifests.items()}
    segments = None if record.study["protocol"] == DENSE else annotated(data, "test")
    private = [store.root, Path.home(), *_paths(record.data)]
    packed = _without_paths(record, private)
    members: dict[str, bytes | Path] = {
        "record.json": _bytes(asdict(packed)),
        **_targets_members(targets, classes),
    }
    if segments is not None:
        members["annotation.json"] = _bytes(annotation_json(segments))
    for stage in record.stages:
        members |= _stage_members(store, stage, private)
    ends = [stage for run in record.runs for stage in (run.predict, run.probe) if stage is not None]
    sets = {stage: store.fetch(stage, TEST) / TEST for stage in dict.fromkeys(ends)}
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "table.csv"
        plan = packed.plan(StoredTargets(targets, classes, segments))
        table = result_table(plan, store)
        write_csv(table, path)
        members["table.csv"] = path.read_bytes()
    named = {stage: _set_name(folder) for stage, folder in sets.items()}
    for stage, folder in sets.items():
        members |= {f"predictions/{named[stage]}/{p.name}": p for p in _shards(folder)}
    manifest = {
        "format": FORMAT,
        "study": study,
        "protocol": record.study["protocol"],
        "resamples": table.resamples,
        "ssdet": ssdet.__version__,
        "scorer": source_digest(),
        "without_paths": sorted(k for k, v in packed.stages.items() if v != record.stages[k]),
        "predictions": named,
        "members": {name: _described(member) for name, member in sorted(members.items())},
    }
    return _write_zip(out, {"manifest.json": _bytes(manifest), **dict(sorted(members.items()))})


def _stage_members(store: Store, stage: str, private: Sequence[Path]) -> dict[str, bytes | Path]:
    result = dict(store.result(stage) or {})
    if "test" in result.get("scores", {}):
        result["scores"] = {"test": result["scores"]["test"]}
    members: dict[str, bytes | Path] = {f"results/{stage}.json": _bytes(_scrubbed(result, private))}
    path = store.folder(stage) / "provenance.json"
    if path.is_file():
        provenance = json.loads(path.read_bytes())
        packed = {name: provenance[name] for name in PROVENANCE if name in provenance}
        members[f"provenance/{stage}.json"] = _bytes(_scrubbed(packed, private))
    return members


def _targets_members(
    targets: Mapping[str, np.ndarray], classes: Mapping[str, int]
) -> dict[str, bytes | Path]:
    """Videos in order with their numbers of frames, and labels [T, K] of each as bits, padded to
    whole bytes per video."""
    videos = [[video, len(rows)] for video, rows in targets.items()]
    bits = b"".join(np.packbits(rows.ravel()).tobytes() for rows in targets.values())
    return {"targets.json": _bytes({"classes": classes, "videos": videos}), "targets.bits": bits}


def annotation_json(material: Material) -> dict[str, Any]:
    """Format, names of classes, and duration and segments (class, start, end) of every video; with
    labels at the 25 points (point, class) where the official CSV has its own."""
    manifest, truth = material.annotated, material.truth
    videos = [
        [video.id, video.duration, [[s.label, s.start, s.end] for s in video.segments]]
        for video in manifest.videos
    ]
    found: dict[str, Any] = {
        "format": material.format,
        "classes": manifest.classes,
        "videos": videos,
    }
    if truth is not None:
        points = {video: np.argwhere(hits).tolist() for video, hits in truth.hits.items()}
        found |= {"points": points, "lengths": dict(truth.lengths)}
    return found


def annotation_of(values: Mapping[str, Any]) -> Material:
    """The annotation from `annotation_json`; ValueError, TypeError or KeyError for what is none."""
    classes, truth = tuple(map(str, values["classes"])), None
    videos = tuple(
        Video(id, "", "test", None, tuple(Segment(*one) for one in segments), duration)
        for id, duration, segments in values["videos"]
    )
    if "points" in values:
        hits = {video: np.zeros((POINTS, len(classes)), bool) for video in values["points"]}
        for video, pairs in values["points"].items():
            for point, k in pairs:
                hits[video][point, k] = True
        truth = OfficialTruth(hits, values["lengths"], len(classes))
    manifest = Manifest("stored", classes, videos)
    return Material(manifest=manifest, truth=truth, format=values["format"])


def _paths(data: Mapping[str, Any]) -> list[Path]:
    """Folders of a record's data."""
    sources = [value for value in data.values() if isinstance(value, Mapping)]
    named = [source.get(key) for source in sources for key in ("path", "videos")]
    return [Path(name).absolute().parent for name in named if name]


def _without_paths(record: StudyRecord, private: Sequence[Path]) -> StudyRecord:
    """The record without paths and times."""
    formats = {
        role: {"format": source["format"]}
        for role, source in record.data.items()
        if isinstance(source, Mapping) and "format" in source
    }
    return replace(
        record,
        study=_scrubbed(record.study, private),
        arms=tuple(_scrubbed(arm, private) for arm in record.arms),
        stages=_scrubbed(record.stages, private),
        data=formats,
        written=0.0,
    )


def _scrubbed(value: Any, private: Sequence[Path]) -> Any:
    """JSON values in whose texts every path is replaced by its last part."""
    if isinstance(value, Mapping):
        return {_scrubbed(k, private): _scrubbed(v, private) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, private) for item in value]
    if not isinstance(value, str):
        return value
    for folder in private:
        if folder != folder.parent:
            value = value.replace(f"{folder}/", "").replace(str(folder), folder.name)
    return PATH.sub(r"\1", value)


def _shards(folder: Path) -> list[Path]:
    return sorted(path for end in ("f16", "json") for path in folder.glob(f"*.{end}"))


def _set_name(folder: Path) -> str:
    """Name of a prediction set: a digest of its content."""
    content = _bytes([[p.name, _described(p)] for p in _shards(folder)])
    return hashlib.sha256(content).hexdigest()[:16]


def _described(member: bytes | Path) -> dict[str, Any]:
    if isinstance(member, bytes):
        return {"size": len(member), "sha256": hashlib.sha256(member).hexdigest()}
    with open(member, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": member.stat().st_size, "sha256": digest}


def _bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _write_zip(out: Path, members: Mapping[str, bytes | Path]) -> Path:
    with replacing(out) as work, zipfile.ZipFile(work, "w", zipfile.ZIP_STORED) as file:
        for name, member in members.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16
            with file.open(info, "w", force_zip64=True) as sink:
                if isinstance(member, bytes):
                    sink.write(member)
                else:
                    with open(member, "rb") as source:
                        shutil.copyfileobj(source, sink, 1 << 20)
    return out
