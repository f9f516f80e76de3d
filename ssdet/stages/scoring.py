"""Predictions and scores of the splits of a study's untrimmed videos."""

from collections.abc import Callable
from dataclasses import asdict

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.loading.frame_readers import FrameReader
from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map
from ssdet.inference.scoring import frame_targets
from ssdet.stages.job import Job, Result


def score_splits(
    job: Job,
    reader: FrameReader,
    write: Callable[[Manifest, PredictionWriter], dict[str, str]],
) -> Result:
    """Predictions and scores of the validation videos and, but for `validate`, the test videos.

    `write` scores the videos of a split, and returns those that it cannot, and why.
    """
    result: Result = {"scores": {}, "unreadable": {}}
    for name in ("val",) if job.stage.kind == "validate" else ("val", "test"):
        manifest = job.data.split("downstream", name)
        if not manifest.videos and not manifest.missing:
            continue
        folder = job.folder / "predictions" / name
        with PredictionWriter(folder, manifest.num_classes) as writer:
            result["unreadable"] |= write(manifest, writer)
        targets = frame_targets(manifest, reader)
        result["scores"][name] = asdict(dense_map(PredictionSet.open(folder), targets))
    return result
