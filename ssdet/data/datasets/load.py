"""`load_manifest`: read annotations of any registered format, local or remote."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssdet.data.datasets.manifest import AnyPath, Manifest
from ssdet.data.datasets.registry import FORMATS
from ssdet.data.storage.cache import local_mirror, mirrored_uri
from ssdet.data.storage.filesystem import is_remote
from ssdet.data.storage.folders import quarantine_beside, read_quarantine


def load_manifest(
    format: str,
    path: AnyPath | Sequence[AnyPath],
    videos: AnyPath | None = None,
    split: str | None = None,
    quarantine: AnyPath | bool = True,
) -> Manifest:
    """Load annotations of a registered format, joined with the files in the folder `videos`.

    | format | path |
    |---|---|
    | segments | JSON `id: {subset, duration, actions: [[class, start, end], ...]}` |
    | charades | the official CSV files, the folder with both, or the JSON |
    | multithumos | the JSON, classes from 1 |
    | tsu | the JSON of Toyota Smarthome Untrimmed, times in frames |
    | activitynet | JSON `database: id: {subset, duration, annotations: [{segment, label}]}` |
    | kinetics | published CSV files, CSV `file,label[,split]`, lists of `path number`, the folder
      with such lists, or `[split/]class/` folders |
    | moving_shapes | the rendered folder; `split` is `upstream` or `downstream` |

    Other formats are registered with `ssdet.data.datasets.registry` (docs/extending.md).

    Paths may be URIs such as `s3://bucket/folder` (docs/storage.md); their videos are files.
    Otherwise a video is a file or a folder of numbered JPEG files. Without `videos`, kinetics
    searches beside the annotation and the others load annotations only (empty paths). `split`
    selects the train, val or test videos. Videos listed in `quarantine.json` beside the annotation
    (or in the file `quarantine`; False: none) count as missing, with its reasons, when files are
    searched for.

    Raises ValueError, naming file, video and field, for an inconsistent annotation.
    """
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    deep = format == "kinetics"
    paths = [local_mirror(part, deep) for part in given]
    if not paths:
        raise ValueError("no annotation given, expected a file or folder")
    if format == "moving_shapes" and split is not None:
        from ssdet.data.datasets import moving_shapes

        return moving_shapes.manifest(paths[0], split)
    folder = None if videos is None else local_mirror(videos, deep=True)
    manifest = FORMATS[format](paths, folder)
    if any(is_remote(os.fspath(part)) for part in [*given, *([videos] if videos else [])]):
        with_uris = (replace(video, path=mirrored_uri(video.path)) for video in manifest.videos)
        manifest = replace(manifest, videos=tuple(with_uris))
    if quarantine is not False and any(video.path for video in manifest.videos):
        if quarantine is True:
            reasons = quarantine_beside(paths[0])
        else:
            reasons = read_quarantine(Path(quarantine))
        manifest = manifest.without(reasons)
    return manifest if split is None else manifest.split(split)
