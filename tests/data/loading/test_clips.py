"""Training clips: what is shown depends on seed and position alone, and labels on what is shown.

Most videos here say who they are: red is the video's number, green the frame's, blue the column's.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssdet.data import CorruptVideo, Manifest, Segment, Video, load_manifest
from ssdet.data.loading.batches import Batch, batches
from ssdet.data.loading.clips import ClipRecipe, Clips, centre_clips, normalise
from ssdet.data.loading.frame_readers import Decoder
from ssdet.data.loading.sampling import window
from ssdet.data.video.clock import Clock

SIZE = 8
RECIPE = ClipRecipe(frames=4, stride=2, size=SIZE, short_side=(SIZE, SIZE))
LENGTHS = (40, 33, 5, 17, 9, 26, 3)
CPU = torch.device("cpu")


class Telling:
    """Reader of videos whose pixels tell video, frame and column."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken, self.asked = set(broken), 0

    def frames(self, video: Video) -> int:
        self.asked += 1
        if video.id in self.broken:
            raise CorruptVideo(video.path, f"{video.id} is broken")
        return LENGTHS[int(video.id)]

    def fps(self, video: Video) -> float:
        return 10.0

    def clock(self, video: Video) -> Clock:
        frames = self.frames(video)
        return Clock.regular(frames, frames / video.duration if video.duration else self.fps(video))

    def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
        assert max(indices) < self.frames(video)
        pictures = np.empty((len(indices), SIZE, SIZE, 3), np.uint8)
        pictures[..., 0] = int(video.id)
        pictures[..., 1] = np.asarray(indices)[:, None, None]
        pictures[..., 2] = np.arange(SIZE)
        return pictures


def segment(label: int, first: int, stop: int) -> Segment:
    """Frames first to stop - 1, at 10 frames a second."""
    return Segment(label, (first - 0.5) / 10, (stop - 0.5) / 10)


def drawn(number: int) -> list[tuple[int, int, int]]:
    length = LENGTHS[number]
    return [(number % 3, 1, length // 2 + 1), ((number + 1) % 3, length // 3, length)]


LONG = Manifest("long", ("a", "b", "c"), tuple(
    Video(str(n), f"{n}.mp4", "train", segments=tuple(segment(*s) for s in drawn(n)))
    for n in range(len(LENGTHS))
))  # fmt: skip
TRIMMED = replace(LONG, name="trimmed", videos=tuple(
    replace(video, segments=(), label=n % 3) for n, video in enumerate(LONG.videos)
))  # fmt: skip


def stream(seed: int = 0, recipe: ClipRecipe = RECIPE, broken: Sequence[str] = ()) -> Clips:
    return Clips(LONG, Telling(broken), recipe, seed)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
        for key, value in first.items()
    )


def test_a_position_is_a_clip_in_whatever_order() -> None:
    clips, again = stream(), stream()
    first = {position: clips[position] for position in range(30)}
    torch.manual_seed(1)
    for position in reversed(range(30)):
        assert same(again[position], first[position])
    differ = [not same(stream(seed=1)[position], first[position]) for position in range(30)]
    assert sum(differ) > 20


def test_every_epoch_visits_every_video_once() -> None:
    clips, count = stream(), len(LENGTHS)
    orders = []
    for epoch in range(6):
        shown = [clips[epoch * count + place]["clip"] for place in range(count)]
        orders.append(tuple(int(clip[0, 0, 0, 0]) for clip in shown))
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len(set(orders)) == 6


def test_epochs_draw_other_windows() -> None:
    clips, count = stream(), len(LENGTHS)
    starts = set()
    for position in range(20 * count):
        clip = clips[position]["clip"]
        if clip[0, 0, 0, 0] == 0:
            starts.add(int(clip[0, 0, 0, 1]))
    assert len(starts) > 10 and min(starts) < 6 and max(starts) > 28


def gathered(*arguments: int) -> list[Batch]:
    return list(batches(stream(), *arguments))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_shares_of_the_workers_make_the_batch(world) -> None:
    shares = [gathered(6, 2, 7, rank, world) for rank in range(world)]
    whole = gathered(6, 2, 7, 0, 1)
    for step, batch in enumerate(whole):
        assert batch.positions_B.tolist() == list(range(6 * (step + 2), 6 * (step + 3)))
        for rank in range(world):
            part, expected = shares[rank][step], batch.split(world)[rank]
            assert torch.equal(part.positions_B, expected.positions_B)
            assert torch.equal(part.clips_BTHWC, expected.clips_BTHWC)
            assert torch.equal(part.targets_BKF, expected.targets_BKF)
            assert torch.equal(part.mask_BF, expected.mask_BF)
    assert all(len(share) == 5 for share in shares)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch 25.*3 workers"):
        batches(stream(), 25, 0, 1, 0, 3)


def test_a_later_start_is_the_same_stream() -> None:
    for later, batch in zip(gathered(4, 3, 8, 0, 1), gathered(4, 0, 8, 0, 1)[3:], strict=True):
        assert torch.equal(later.clips_BTHWC, batch.clips_BTHWC)
        assert torch.equal(later.positions_B, batch.positions_B)


def test_loaders_change_nothing(shapes: Path) -> None:
    train = load_manifest("moving_shapes", shapes, split="downstream").split("train")
    recipe = ClipRecipe(frames=8, stride=3, size=16, short_side=(18, 24), flip=0.5)
    found = []
    for loaders in (0, 1, 2):
        torch.manual_seed(loaders)
        clips = Clips(train, Decoder(), recipe, seed=3)
        found.append(list(batches(clips, 4, 0, 4, 0, 1, loaders=loaders)))
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            assert torch.equal(first.clips_BTHWC, second.clips_BTHWC)
            assert torch.equal(first.targets_BKF, second.targets_BKF)
            assert torch.equal(first.mask_BF, second.mask_BF)
            assert torch.equal(first.positions_B, second.positions_B)


@given(st.integers(1, 90), st.integers(2, 16), st.integers(1, 9), st.floats(0, 1, exclude_max=True))
def test_a_window_fits_or_goes_round(length: int, frames: int, stride: int, draw: float) -> None:
    indices = window(length, frames, stride, draw)
    assert len(indices) == frames and all(0 <= index < length for index in indices)
    steps = {(after - before) % length for before, after in itertools.pairwise(indices)}
    assert steps == {stride % length}
    span = (frames - 1) * stride + 1
    assert indices[0] == 0 if length <= span else indices[-1] == indices[0] + span - 1


def test_every_start_that_fits_is_as_likely() -> None:
    starts = [window(20, 4, 3, (i + 0.5) / 1100)[0] for i in range(1100)]
    assert np.bincount(starts).tolist() == [100] * 11


def test_labels_are_those_of_the_frames_that_are_shown() -> None:
    clips = stream()
    for position in range(4 * len(LENGTHS)):
        sample = clips[position]
        number, shown = int(sample["clip"][0, 0, 0, 0]), sample["clip"][:, 0, 0, 1].tolist()
        length = LENGTHS[number]
        for label in range(3):
            active = {f for k, a, b in drawn(number) if k == label for f in range(a, b)}
            columns = [(shown[0] + f) % length in active for f in range(8)]
            assert sample["targets"][label].tolist() == columns
        assert [(shown[0] + 2 * t) % length for t in range(4)] == shown
        assert sample["mask"].tolist() == [shown[0] + f < length for f in range(8)]


def test_short_videos_are_repeated_and_masked() -> None:
    clips = stream()
    found = {int(sample["clip"][0, 0, 0, 0]): sample for sample in map(clips.__getitem__, range(7))}
    assert found[2]["clip"][:, 0, 0, 1].tolist() == [0, 2, 4, 1]
    assert found[2]["mask"].tolist() == [True] * 5 + [False] * 3
    assert found[6]["clip"][:, 0, 0, 1].tolist() == [0, 2, 1, 0]
    assert found[6]["mask"].tolist() == [True] * 3 + [False] * 5


def test_a_clip_with_one_label_has_one_column() -> None:
    clips = Clips(TRIMMED, Telling(), RECIPE, 0)
    for position in range(7):
        sample = clips[position]
        label = int(sample["clip"][0, 0, 0, 0]) % 3
        assert sample["targets"].tolist() == [[float(k == label)] for k in range(3)]
        assert sample["mask"].tolist() == [True]


def test_flips_mirror_the_columns() -> None:
    plain, mirror, either = (stream(recipe=replace(RECIPE, flip=p)) for p in (0.0, 1.0, 0.5))
    flipped = 0
    for position in range(200):
        clip = plain[position]["clip"]
        assert clip[0, 0, :, 2].tolist() == list(range(SIZE))
        assert torch.equal(mirror[position]["clip"], clip.flip(2))
        chosen = either[position]["clip"]
        flipped += int(torch.equal(chosen, clip.flip(2)))
        assert torch.equal(chosen, clip) or torch.equal(chosen, clip.flip(2))
    assert 70 < flipped < 130


@pytest.mark.parametrize("asked", [0, 12])
def test_the_window_says_where_a_clip_may_start(asked) -> None:
    recipe = replace(RECIPE, window=asked)
    clips = stream(recipe=recipe)
    span = asked or 7
    starts: dict[int, set[int]] = {}
    for position in range(500 * len(LENGTHS)):
        clip = clips[position]["clip"]
        starts.setdefault(int(clip[0, 0, 0, 0]), set()).add(int(clip[0, 0, 0, 1]))
    for number, length in enumerate(LENGTHS):
        assert starts[number] == set(range(max(1, length - span + 1)))


def test_short_videos_are_dropped_where_the_recipe_says_so() -> None:
    clips = stream(recipe=replace(RECIPE, window=17, short_videos="drop"))
    shown, dropped = set(), {}
    for position in range(20 * len(LENGTHS)):
        sample = clips[position]
        shown.add(int(sample["clip"][0, 0, 0, 0]))
        dropped |= sample["replaced"]
        assert sample["mask"].all()
    assert shown == {n for n, length in enumerate(LENGTHS) if length >= 17}
    assert dropped.keys() == {"2", "4", "6"}
    assert dropped["2"] == "5 frames, the recipe's window is 17: left out"


@pytest.mark.parametrize("length", [7, 8, 9, 33, 40])
def test_validation_clips_are_the_first_the_middle_and_the_last(length) -> None:
    video = next(v for v, n in zip(LONG.videos, LENGTHS, strict=True) if n == max(LENGTHS))
    reader = Telling()
    reader.frames = lambda video: length
    three = centre_clips(video, reader, RECIPE, 3)[:, :, 0, 0, 1].tolist()
    room = length - 7
    assert [clip[0] for clip in three] == [0, room // 2, room]
    assert all(clip == [clip[0] + 2 * t for t in range(4)] for clip in three)
    (one,) = centre_clips(video, reader, RECIPE)[:, :, 0, 0, 1].tolist()
    assert one == window(length, 4, 2, 0.5)


def test_broken_videos_are_replaced_and_named() -> None:
    broken = ["0", "3", "5"]
    clips, whole = stream(broken=broken), stream()
    seen, stand_ins = set(), set()
    for position in range(12 * len(LENGTHS)):
        sample, other = clips[position], whole[position]
        assert same(sample, stream(broken=broken)[position])
        shown, meant = (str(int(s["clip"][0, 0, 0, 0])) for s in (sample, other))
        assert shown not in broken and sample["position"] == position
        if meant in broken:
            assert sample["replaced"][meant] == f"{meant} is broken"
            assert sample["replaced"].keys() <= set(broken)
            stand_ins.add(shown)
        else:
            assert same(sample, other) and not sample["replaced"]
        seen |= sample["replaced"].keys()
    assert seen == set(broken) and stand_ins == {"1", "2", "4", "6"}


def test_a_batch_names_what_it_had_to_replace() -> None:
    batch = next(batches(stream(broken=["1", "4"]), 14, 0, 1, 0, 1))
    assert batch.replaced == {"1": "1 is broken", "4": "4 is broken"} and len(batch) == 14


@pytest.mark.timeout(60)
def test_a_hundred_in_a_row_end_it() -> None:
    clips = stream(broken=[str(n) for n in range(len(LENGTHS))])
    with pytest.raises(RuntimeError, match=r"'long'.*100 videos in a row.*'2': '2 is broken'"):
        clips[0]
    assert clips.reader.asked == 100


def test_a_split_without_videos_is_refused() -> None:
    with pytest.raises(ValueError, match="'long' has no videos"):
        Clips(LONG.split("test"), Telling(), RECIPE, 0)


def test_other_errors_are_not_swallowed() -> None:
    class Failing(Telling):
        def read(self, video: Video, indices: Sequence[int]) -> np.ndarray:
            raise PermissionError(video.path)

    with pytest.raises(PermissionError):
        Clips(LONG, Failing(), RECIPE, 0)[0]


def test_normalised_is_the_formula_in_the_layout_of_the_network() -> None:
    recipe = ClipRecipe(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    clips = torch.randint(0, 256, (2, 4, 6, 5, 3), dtype=torch.uint8)
    before = clips.clone()
    out = normalise(clips, recipe, CPU)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (recipe.mean, recipe.std))
    expected = ((clips.double() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    assert out.shape == (2, 3, 4, 6, 5) and out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(clips, before)


def test_parts_of_a_batch_are_interleaved() -> None:
    batch = next(batches(stream(broken=["1"]), 12, 0, 1, 0, 1))
    parts = batch.split(3)
    assert [part.positions_B.tolist() for part in parts] == [
        [r, r + 3, r + 6, r + 9] for r in range(3)
    ]
    for rank, part in enumerate(parts):
        assert torch.equal(part.clips_BTHWC, batch.clips_BTHWC[rank::3])
        assert torch.equal(part.targets_BKF, batch.targets_BKF[rank::3])
        assert part.replaced == batch.replaced and len(part) == 4


@pytest.mark.parametrize("wrong", [
    {"frames": 1}, {"stride": 0}, {"short_side": (20, 30)}, {"short_side": (40, 30)},
    {"window": 15}, {"scales": (0.5, 1.5)},
])  # fmt: skip
def test_recipes_that_cut_nothing_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"frames|short_side|scales"):
        ClipRecipe(**wrong)
