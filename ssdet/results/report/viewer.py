"""Data of the timeline viewer: truth, scores and thumbnails of some test videos."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.loading.frame_readers import FrameReader, dense_targets
from ssdet.data.video.reader import CorruptVideo
from ssdet.evaluation import PredictionSet
from ssdet.results.report.stage_entries import labels
from ssdet.results.tables.result_table import predictions
from ssdet.store.base import Store
from ssdet.studies.graph.plan import Plan

STEPS = 256
"""Maximum frames per video; of longer videos every n-th is shown."""
CLASSES = 16
"""Maximum classes per video."""
THUMBS, SIDE = 24, 96
"""Maximum number of thumbnails per video, and their maximum height in pixels."""
QUALITY = 70


@dataclass(frozen=True)
class Viewer:
    """Data of the viewer, and counts of videos that are shown in part or not at all."""

    data: Mapping[str, Any]
    videos: int
    of: int
    """Videos that have scores."""
    for_size: int
    """Videos left out because the page would be too large."""
    without_pictures: int
    """Shown videos without thumbnails: too large, or unreadable."""
    stepped: int
    """Videos with frames left out."""
    classes_left_out: int
    """Videos with classes left out."""


def viewer(plan: Plan, store: Store, arm: str, videos: int, room: int) -> Viewer:
    """Scores of all runs in `videos` test videos, evenly spread over the sorted ids, in at most
    `room` bytes: first scores, then thumbnails. The viewer opens with `arm` and its baseline.

    Scores are quantised to 1/255. Videos that do not fit are left out from the end.
    """
    data = plan.study.data
    manifest, reader = data.split("downstream", "test"), data.reader("downstream")
    runs, sets = _runs(plan, store)
    scored = sorted(set.intersection(*(set(one) for one in sets)))
    wanted = [scored[i * len(scored) // videos] for i in range(videos)] if videos else []
    wanted = list(dict.fromkeys(wanted))
    by_id = {video.id: video for video in manifest.videos}
    shown: list[dict[str, Any]] = []
    for name in wanted:
        entry = _scores(by_id[name], manifest, reader, sets)
        room -= _size(entry)
        if room < 0:
            break
        shown.append(entry)
    room = max(0, room) if len(shown) == len(wanted) else 0
    for entry in shown:
        pictures = _pictures(by_id[entry["id"]], reader, entry)
        if pictures is not None and (size := len(pictures["uri"])) <= room:
            entry["pictures"], room = pictures, room - size
    names = labels(plan.study)
    base = plan.study.baseline_of(arm) or arm
    first = {"arm": names[arm], "baseline": names[base]}
    return Viewer(
        {"classes": list(manifest.classes), "runs": runs, "videos": shown, **first},
        len(shown), len(scored), len(wanted) - len(shown),
        sum(entry["pictures"] is None for entry in shown),
        sum(entry["step"] > 1 for entry in shown),
        sum(len(entry["classes"]) < manifest.num_classes for entry in shown),
    )  # fmt: skip


def _runs(plan: Plan, store: Store) -> tuple[list[dict[str, Any]], list[PredictionSet]]:
    """Every arm and seed with the indices of an ensemble's members, and the predictions."""
    runs: list[dict[str, Any]] = []
    sets: list[PredictionSet] = []
    names = labels(plan.study)
    for arm in plan.study.arms:
        predicted = predictions(plan, store, arm.name, "finetuned")
        for run in plan.of(arm.name):
            members = run.predict.parents if run.predict.kind == "ensemble" else ()
            runs.append({
                "arm": names[arm.name], "seed": run.seed, "id": run.predict.id,
                "members": [parent.id for parent in members],
            })  # fmt: skip
            sets.append(predicted[run.seed])
    first = {run["id"]: index for index, run in reversed([*enumerate(runs)])}
    for values in runs:
        values["members"] = sorted(first[name] for name in values["members"])
    return runs, sets


def _scores(
    video: Video, manifest: Manifest, reader: FrameReader, sets: Sequence[PredictionSet]
) -> dict[str, Any]:
    truth_TK = dense_targets(manifest, video, reader).T
    scores_RTK = [np.asarray(one[video.id], np.float32) for one in sets]
    classes = _shown_classes(truth_TK, scores_RTK)
    step = -(-len(truth_TK) // STEPS)
    clock = reader.clock(video)
    return {
        "id": video.id,
        "times": [round(float(time), 3) for time in clock.times_T[::step]],
        "end": round(clock.end, 3),
        "frames": len(truth_TK),
        "step": step,
        "classes": classes,
        "truth": _text(truth_TK[::step][:, classes].astype(np.uint8)),
        "scores": [_text(quantised(scores_TK[::step][:, classes])) for scores_TK in scores_RTK],
        "pictures": None,
    }


def _shown_classes(truth_TK: np.ndarray, scores_RTK: Sequence[np.ndarray]) -> list[int]:
    """Classes to show: those of the truth, then those with the highest scores of any run."""
    top_K = np.max([scores_TK.max(0) for scores_TK in scores_RTK], axis=0)
    order = sorted(range(len(top_K)), key=lambda k: (not truth_TK[:, k].any(), -top_K[k], k))
    return sorted(order[:CLASSES])


def quantised(scores_TK: np.ndarray) -> np.ndarray:
    """Probabilities as uint8: nearest of 0/255 … 255/255."""
    return np.rint(np.clip(scores_TK, 0, 1) * 255).astype(np.uint8)


def _text(values_TK: np.ndarray) -> str:
    """Values class by class as bytes in base 64."""
    return base64.b64encode(np.ascontiguousarray(values_TK.T).tobytes()).decode()


def _size(entry: Mapping[str, Any]) -> int:
    return 200 + len(entry["truth"]) + sum(map(len, entry["scores"]))


def _pictures(video: Video, reader: FrameReader, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Thumbnails side by side in one JPEG; None for a file that cannot be read."""
    from PIL import Image

    count = min(THUMBS, entry["frames"])
    indices = [i * entry["frames"] // count for i in range(count)]
    try:
        frames_THWC = reader.read(video, indices)
    except CorruptVideo:
        return None
    small = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames_THWC]
    height = min(SIDE, small[0].height)
    width = max(1, round(small[0].width * height / small[0].height))
    strip = Image.new("RGB", (width * count, height))
    for place, picture in enumerate(small):
        strip.paste(picture.resize((width, height), Image.Resampling.BOX), (place * width, 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=QUALITY)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"uri": uri, "count": count, "width": width, "height": height}
