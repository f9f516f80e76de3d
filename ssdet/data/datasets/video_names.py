"""Matching of video names in files of other tools with the ids of an annotation."""

import os
from collections.abc import Iterable, Iterator

from ssdet.data.storage.folders import EXTENSIONS
from ssdet.data.storage.text import clean

ID = "{id}"
"""Placeholder of the video id in a pattern of file names."""

PREFIX = "v_"
"""Prefix of ActivityNet's and HACS' files, which their annotations omit."""


class VideoNames:
    """Match names with annotated video ids.

    An exact id matches first. Otherwise the extension of a video file, the folder, the prefix `v_`
    and the Unicode normalisation (NFC, NFD) are ignored.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = frozenset(ids)
        self._by_form: dict[str, set[str]] = {}
        for video in self._ids:
            for form in {clean(video), _stem(clean(video))}:
                self._by_form.setdefault(form, set()).add(video)
        self._matches: dict[str, str] = {}  # successful ones only: a file may name any number

    def find(self, name: str) -> str | None:
        """Id of the video, or None if it is not annotated.

        Raises ValueError for a name that matches several annotated videos.
        """
        if name in self._ids or name in self._matches:
            return self._matches.get(name, name)
        for form in _forms(name):
            videos = sorted(self._by_form.get(form, ()))
            if len(videos) > 1:
                raise ValueError(
                    f"video {name!r} can be {' or '.join(map(repr, videos))} of the annotation: "
                    "use the ids of the annotation"
                )
            if videos:
                self._matches[name] = videos[0]
                return videos[0]
        return None


def _forms(name: str) -> Iterator[str]:
    """Forms of a name to match, from the most to the least specific."""
    whole = clean(name)
    last = whole.replace("\\", "/").rpartition("/")[2]
    for form in dict.fromkeys((whole, _stem(whole), last, _stem(last))):
        yield form
        yield form.removeprefix(PREFIX) if form.startswith(PREFIX) else PREFIX + form


def _stem(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name
