"""Videos and their annotation: reading, sampling, clips."""

from ssdet.data.manifest import Manifest, Segment, Video, load_manifest
from ssdet.data.video import CorruptVideo, VideoInfo, probe, read_clip

__all__ = [
    "CorruptVideo",
    "Manifest",
    "Segment",
    "Video",
    "VideoInfo",
    "load_manifest",
    "probe",
    "read_clip",
]
