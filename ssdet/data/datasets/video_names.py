"""Match names of videos in files of other tools with the ids of an annotation."""

import os
from collections.abc import Iterable, Iterator

from ssdet.data.storage.folders import EXTENSIONS
from ssdet.data.storage.text import clean

ID = "{id}"
"""Placeholder of the video id in a pattern of file names."""

PREFIX = "v_"
"""ActivityNet's and HACS' files are named `v_ID`; their annotations use `ID`."""


class VideoNames:
    """Find the annotated video that a name means.

    The exact id comes first. Otherwise names count as equal without the extension of a video file,
    the folder, the prefix `v_`, and in either Unicode normalisation (NFC, NFD).
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = frozenset(ids)
        self._by_form: dict[str, set[str]] = {}
        for video in self._ids:
            for form in {clean(video), _stem(clean(video))}:
                self._by_form.setdefault(form, set()).add(video)
        self._found: dict[str, str] = {}  # of annotated videos alone: a file may name any number

    def find(self, name: str) -> str | None:
        """The id, or None for a video that is not annotated.

        Raises ValueError for a name that means more than one annotated video.
        """
        if name in self._ids:
            return name
        if name in self._found:
            return self._found[name]
        video = self._matched(name)
        if video is not None:
            self._found[name] = video
        return video

    def _matched(self, name: str) -> str | None:
        for form in _forms(name):
            videos = sorted(self._by_form.get(form, ()))
            if len(videos) > 1:
                raise ValueError(
                    f"video {name!r} can be {' or '.join(map(repr, videos))} of the annotation: "
                    "use the ids of the annotation"
                )
            if videos:
                return videos[0]
        return None


def _forms(name: str) -> Iterator[str]:
    """Ways to write a name, the most faithful first."""
    whole = clean(name)
    last = whole.replace("\\", "/").rpartition("/")[2]
    for form in dict.fromkeys((whole, _stem(whole), last, _stem(last))):
        yield form
        yield form.removeprefix(PREFIX) if form.startswith(PREFIX) else PREFIX + form


def _stem(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name
