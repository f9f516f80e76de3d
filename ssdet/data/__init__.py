"""Videos and their annotation: reading, manifests, clips, checks."""

from typing import TYPE_CHECKING

from ssdet.system.lazy import attach

if TYPE_CHECKING:
    from ssdet.data.datasets.load import load_manifest
    from ssdet.data.datasets.manifest import Manifest, Segment, Video
    from ssdet.data.loading.frame_rate import ResampledReader
    from ssdet.data.loading.frame_readers import Decoder, dense_targets
    from ssdet.data.loading.recipe import ClipRecipe
    from ssdet.data.maintenance.check import check
    from ssdet.data.maintenance.convert import convert, convert_video
    from ssdet.data.video.clock import Clock
    from ssdet.data.video.frame_index import CorruptVideo
    from ssdet.data.video.image_folders import image_folder
    from ssdet.data.video.reader import VideoInfo, probe, read_clip
    from ssdet.data.video.stream import video_clock

attach(
    __name__,
    {
        "ssdet.data.datasets.manifest": ["Manifest", "Segment", "Video"],
        "ssdet.data.datasets.load": ["load_manifest"],
        "ssdet.data.loading.frame_rate": ["ResampledReader"],
        "ssdet.data.loading.frame_readers": ["Decoder", "dense_targets"],
        "ssdet.data.loading.recipe": ["ClipRecipe"],
        "ssdet.data.maintenance.check": ["check"],
        "ssdet.data.maintenance.convert": ["convert", "convert_video"],
        "ssdet.data.video.clock": ["Clock"],
        "ssdet.data.video.frame_index": ["CorruptVideo"],
        "ssdet.data.video.image_folders": ["image_folder"],
        "ssdet.data.video.reader": ["VideoInfo", "probe", "read_clip"],
        "ssdet.data.video.stream": ["video_clock"],
    },
)
