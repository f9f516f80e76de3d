"""The data of a study: which files, read how. What they hold goes into stage ids, where they lie
does not."""

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


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


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
    """Short side in pixels at which frames are decoded; None: as they are."""
    cache: bool = True
    """Decode everything once into memory-mapped files: right where all frames fit on disk."""
    cache_folder: str = ""
    limit: int | None = None
    """Most videos of each split, the first by id; None takes all."""
    fps: float = 0.0
    """Rate at which the untrimmed videos are read, labelled and scored, whatever their own (24 for
    Charades, 10 for MultiTHUMOS); 0 takes every frame of a file."""

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
        """Videos of one split; none where the data set lacks it."""
        return self.splits[role, name]

    def truth(self, split: str) -> "Material":
        """What predictions of the untrimmed videos of a split are scored against."""
        from ssdet.studies.truth import truth

        return truth(self, split)

    def reader(self, role: str, progress: Progress = silent) -> "FrameReader":
        """Frames of one role's videos; fills the cache first where one is used."""
        from ssdet.data.loading.frame_rate import ResampledReader

        reader = self._stored(role, progress)
        resample = self.fps and role == "downstream"
        return ResampledReader(reader, self.fps) if resample else reader

    def _stored(self, role: str, progress: Progress) -> "FrameReader":
        from ssdet.data.loading.frame_readers import Decoder, open_cache
        from ssdet.data.storage.cache import cache_folder

        if not self.cache:
            return Decoder(self.decode_size)
        root = Path(self.cache_folder) if self.cache_folder else cache_folder()
        return open_cache(self.manifests[role], self.decode_size, root, progress)


def check_decoders(data: Data, loaders: int, decoders: int) -> None:
    """ValueError where decoders cannot be of use."""
    if decoders and loaders:
        raise ValueError(
            f"loaders={loaders} and decoders={decoders}: batches come from processes beside the "
            "trainer or from tasks of Ray, give one of them"
        )
    if decoders and data.cache:
        raise ValueError(
            f"decoders={decoders}: these videos are kept decoded (cache=True), and each node has "
            "its own copy: leave the decoders out, or use a preset that decodes (paper, released)"
        )


def moving_shapes(
    config: "Config",
    decode_size: int | None = None,
    cache: bool = True,
    progress: Progress = silent,
) -> Data:
    """The embedded data set, rendered first where it is not there yet."""
    from ssdet.data.datasets.moving_shapes import prepare

    root = prepare(config, progress=progress)
    clips, videos = root / "upstream", root / "downstream"
    return Data(
        Source("kinetics", str(clips / "annotations.csv"), str(clips / "videos")),
        Source("segments", str(videos / "annotations.json"), str(videos / "videos")),
        decode_size,
        cache,
    )
