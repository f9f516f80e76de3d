"""Detection with trained networks on any video: segments, subtitles, overlays."""

from typing import TYPE_CHECKING

from ssdet.system.lazy import attach

if TYPE_CHECKING:
    from ssdet.detection.detector import Detector
    from ssdet.detection.records import srt
    from ssdet.detection.segments import (
        Detection,
        SegmentRule,
    )

attach(
    __name__,
    {
        "ssdet.detection.detector": ["Detector"],
        "ssdet.detection.records": ["srt"],
        "ssdet.detection.segments": ["Detection", "SegmentRule"],
    },
)
