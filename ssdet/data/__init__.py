"""Videos and their annotation: reading, sampling, clips."""

from typing import TYPE_CHECKING

from ssdet.lazy import attach

if TYPE_CHECKING:
    from ssdet.data.manifest import Manifest, Segment, Video, load_manifest
    from ssdet.data.video import CorruptVideo, VideoInfo, probe, read_clip

attach(
    __name__,
    {
        "manifest": ["Manifest", "Segment", "Video", "load_manifest"],
        "video": ["CorruptVideo", "VideoInfo", "probe", "read_clip"],
    },
)
