"""The lens shows what the augmentation did: checked against the formulas and the definitions."""

import pytest
import torch

from ssdet import augment
from ssdet.cli.experiment import Options, resolve
from ssdet.data.loading.clips import ClipRecipe
from ssdet.results.figures.augmentation_lens import augment_clip, lens, sample
from ssdet.studies import Arm, Study

BATCH, FRAMES, CLASSES = 4, 8, 5


@pytest.fixture
def clips() -> torch.Tensor:
    """Clip b is grey 50 b everywhere: a mixed pixel says what it is made of."""
    grey = torch.arange(BATCH, dtype=torch.uint8) * 50
    return grey[:, None, None, None, None].expand(BATCH, 3, FRAMES, 16, 16)


@pytest.fixture
def targets() -> torch.Tensor:
    """Clip b has class b + 1; class 0 is the background."""
    return torch.eye(CLASSES)[1:, :, None].expand(BATCH, CLASSES, FRAMES)


OPTIONS = [
    ("freeze", {}),
    ("freeze", {"segments": 2, "background": "zero"}),
    ("mixup", {}),
    ("mixup", {"mask": "step"}),
    ("mixup", {"mask": "half"}),
    ("cutmix", {"window": "view"}),
    ("cutmix", {"window": "transient"}),
    ("joint_single", {}),
    ("joint", {"p": 0.9}),
    ("none", {}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_shares_say_what_the_pixels_are_made_of(clips, targets, name, options, seed) -> None:
    view = augment_clip(clips, targets, augment.create(name, **options), seed)
    shares = torch.stack(list(view.shares_T.values()))
    assert torch.allclose(shares.sum(0), torch.ones(FRAMES), atol=1e-6)
    greys = torch.tensor([50 * clip / 255 for clip in view.before_CTHW])
    mean_T = view.after_CTHW.mean((0, 2, 3))
    # The view's soft edge may favour one side by half a column; its labels are half and half.
    assert torch.allclose(mean_T, (greys[:, None] * shares).sum(0), atol=0.03)
    for clip, share_T in view.shares_T.items():
        moving = ~view.frozen_T
        assert torch.allclose(view.targets_KT[clip + 1, moving], share_T[moving], atol=1e-6)


def test_frozen_frames_are_those_of_the_draws(clips, targets) -> None:
    mixing = augment.create("freeze")
    draws = mixing.draw(BATCH, FRAMES, 16, torch.Generator().manual_seed(7))
    view = augment_clip(clips, targets, mixing, 7, clip=2)
    start, length = int(draws.starts[2, 0]), int(draws.lengths[2, 0])
    expected = [start <= t < start + length for t in range(FRAMES)]
    assert view.frozen_T.tolist() == expected
    assert view.targets_KT[0].tolist() == [float(frozen) for frozen in expected]


def test_the_clip_that_changes_most_is_shown(clips, targets) -> None:
    mixing = augment.create("mixup")
    for seed in range(5):
        chosen = augment_clip(clips, targets, mixing, seed)
        own = next(iter(chosen.shares_T))
        most = max(FRAMES - float(augment_clip(clips, targets, mixing, seed, b).shares_T[b].sum())
                   for b in range(BATCH))  # fmt: skip
        assert FRAMES - float(chosen.shares_T[own].sum()) == pytest.approx(most)


@pytest.mark.parametrize(("name", "options"), [("freeze", {}), ("joint", {"p": 1.0})])
def test_pictures_are_the_same_bytes(clips, targets, name, options, tmp_path) -> None:
    paths = [lens(clips, targets, name, options, 3, tmp_path / f"{n}.png") for n in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_pictures_name_clips_classes_and_options(clips, targets, tmp_path) -> None:
    path = tmp_path / "lens.svg"
    names = ["background", "walk", "run", "jump", "fall"]
    lens(clips, targets, "freeze", {"segments": 2}, 0, path, names, clip=1)
    text = path.read_text()
    for said in ("freeze(segments=2), seed 0", "clip 1, before", "run", "clip 1, after",
                 "(dashed: frozen)", "background", "share of"):  # fmt: skip
        assert said in text
    assert "walk" not in text  # no clip of this class is in the picture


def test_long_clips_show_every_nth_frame(targets, tmp_path) -> None:
    clips = torch.rand(BATCH, 1, 40, 8, 12)
    labels = targets[..., :1].expand(-1, -1, 40)
    assert lens(clips, labels, "mixup", {}, 0, tmp_path / "long.png").stat().st_size > 10_000


def test_normalised_clips_are_refused(clips, targets, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"values -2 to .*that are not normalised"):
        lens(clips.float() / 100 - 2, targets, "mixup", {}, 0, tmp_path / "x.png")
    with pytest.raises(ValueError, match="did you mean 'mask'"):
        lens(clips, targets, "mixup", {"msk": "half"}, 0, tmp_path / "x.png")


def test_real_clips_of_a_data_set(shapes) -> None:
    study = resolve(Study("s", (Arm("a"),)), Options(preset="smoke", seeds=1))
    manifest, reader = study.data.split("upstream", "train"), study.data.reader("upstream")
    clips, targets = sample(manifest, reader, ClipRecipe(), 4, 0)
    assert clips.shape == (4, 3, 16, 24, 24) and clips.dtype == torch.uint8
    assert targets.shape == (4, manifest.num_classes + 1, 16)
    assert (targets.sum(1) == 1).all() and not targets[:, 0].any()
