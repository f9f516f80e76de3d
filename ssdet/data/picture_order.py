"""Picture order counts of H.264 and HEVC streams: whether frames are lost or the picture paused."""

import re
from collections.abc import Iterator

import av.logging
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.video.stream import VideoStream

_COUNT = re.compile(r"\d* *(?:slice_)?pic_order_cnt_lsb\s+[01]+ = (\d+)")
_STEP = {"h264": 2, "hevc": 1}
"""Step of the counts from one frame to the next that encoders take (H.264 counts fields)."""


def frames_lost(container: InputContainer, stream: VideoStream, since: int) -> bool:
    """Whether pictures are missing between those of the last group from time `since` on.

    Encoders count pictures in the order in which they are shown, whatever their times: the counts
    of neighbours differ by the same step, unless one between them is missing. `since` is the time
    of a keyframe, better of the last but one: the group before shows the step. Codecs whose packets
    lie in the order in which they are shown have no reason for a gap among the last: True.
    """
    if stream.codec_context.name not in _STEP:
        return True
    groups = [np.array(sorted(group)).T for group in _groups(container, stream, since)]
    # The stored counts are cut to so many bits.
    modulus = max(16, 1 << max(int(count_N.max()) for _, count_N in groups).bit_length())
    steps = [np.diff(count_N) % modulus for _, count_N in groups]
    usual = np.concatenate(steps)
    usual = usual[usual > 0]
    step = int(usual.min()) if len(usual) > 2 else _STEP[stream.codec_context.name]
    return bool(steps[-1].max(initial=0) > step)


def _groups(
    container: InputContainer, stream: VideoStream, since: int
) -> list[list[tuple[int, int]]]:
    """(time, stored count) of the pictures of each group that a keyframe begins."""
    groups: list[list[tuple[int, int]]] = []
    for pts, keyframe, count in _counts(container, stream):
        if pts == since or (groups and keyframe):
            groups.append([])
        if groups:
            groups[-1].append((pts, count))
    return groups


def _counts(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, bool, int]]:
    """Time, whether it is a keyframe, and stored count of every picture in decoding order."""
    level = av.logging.get_level()
    # FFmpeg prints the headers that it parses, and offers them in no other way.
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture(local=True) as lines:
            headers = BitStreamFilterContext("trace_headers", stream)
            for packet in container.demux(stream):
                if not packet.size or packet.pts is None:
                    continue
                pts, keyframe = packet.pts, packet.is_keyframe
                lines.clear()
                headers.filter(packet)
                found = (match for line in lines if (match := _COUNT.match(line[2])))
                count = next(found, None)
                # The pictures at which HEVC begins to count anew have none.
                yield pts, keyframe, int(count[1]) if count else 0
    finally:
        av.logging.set_level(level)
