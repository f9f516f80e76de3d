"""The data sets of a study and how their frames are read.

Their content decides stage ids; the paths of the files do not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssdet.data.datasets.manifest import Manifest
    from ssdet.data.datasets.moving_shapes import Config
    from ssdet.data.loading.frame_readers import FrameReader
    from ssdet.evaluation.protocols.registry import Material

ROLES = ("upstream", "downstream")
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Source:
    """A data set on disk: arguments of `load_manifest`."""

    format: str
    path: str
    videos: str | None = None


@dataclass(frozen=True)
class Data:
    """Clips to pretrain on and videos to fine-tune and score on."""

    upstream: Source
    downstream: Source
    decode_size: int | None = None
    """Short side in pixels to which decoded frames are scaled; None: not scaled."""
    cache: bool = True
    """Decode all frames once into memory-mapped files; they must fit on the disk."""
    cache_folder: str = ""
    """Folder of these files; by default that of rendered data sets."""
    limit: int | None = None
    """Use only the first videos of each split, by id, at most this many; None: all."""
    fps: float = 0.0
    """Frames per second at which untrimmed videos are read, labelled and scored, whatever the rate
    of the file (24 for Charades, 10 for MultiTHUMOS); 0: every frame of a file."""

    @cached_property
    def manifests(self) -> "dict[str, Manifest]":
        """Manifest by role."""
        from ssdet.data.datasets.load import load_manifest

        sources = {"upstream": self.upstream, "downstream": self.downstream}
        loaded = {
            role: load_manifest(source.format, source.path, videos=source.videos)
            for role, source in sources.items()
        }
        if self.limit is None:
            return loaded
        return {role: manifest.first(self.limit) for role, manifest in loaded.items()}

    @cached_property
    def splits(self) -> "dict[tuple[str, str], Manifest]":
        """Manifest by role and split."""
        names = ("train", "val", "test")
        return {(r, name): m.split(name) for r, m in self.manifests.items() for name in names}

    def split(self, role: str, name: str) -> "Manifest":
        """Videos of one split; empty where the data set does not have that split."""
        return self.splits[role, name]

    def truth(self, split: str) -> "Material":
        """Labels and annotation that predictions of the untrimmed videos of a split are scored
        against."""
        from ssdet.studies.truth import truth

        return truth(self, split)

    def reader(self, role: str, progress: Progress = no_progress) -> "FrameReader":
        """Reader of the frames of a role's videos; fills the cache first where one is used."""
        from ssdet.data.loading.frame_rate import ResampledReader
        from ssdet.data.loading.frame_readers import Decoder, open_cache
        from ssdet.data.storage.cache import cache_folder

        reader: FrameReader
        if self.cache:
            root = Path(self.cache_folder) if self.cache_folder else cache_folder()
            reader = open_cache(self.manifests[role], self.decode_size, root, progress)
        else:
            reader = Decoder(self.decode_size)
        resample = self.fps and role == "downstream"
        return ResampledReader(reader, self.fps) if resample else reader


def check_decoders(data: Data, loaders: int, decoders: int) -> None:
    """Raise ValueError if decoders are combined with loaders or with cached frames."""
    if decoders and loaders:
        raise ValueError(
            f"loaders={loaders} and decoders={decoders}: batches come either from processes on the "
            "trainer's machine or from Ray tasks; set one of the two"
        )
    if decoders and data.cache:
        raise ValueError(
            f"decoders={decoders}: the frames of these videos are cached on every node "
            "(cache=True): leave the decoders out, or use a preset that decodes (paper, released)"
        )


def moving_shapes(
    config: "Config",
    decode_size: int | None = None,
    cache: bool = True,
    progress: Progress = no_progress,
) -> Data:
    """The embedded data set; rendered on first use."""
    from ssdet.data.datasets.moving_shapes import prepare

    root = prepare(config, progress=progress)
    clips, videos = root / "upstream", root / "downstream"
    return Data(
        Source("kinetics", str(clips / "annotations.csv"), str(clips / "videos")),
        Source("segments", str(videos / "annotations.json"), str(videos / "videos")),
        decode_size,
        cache,
    )
