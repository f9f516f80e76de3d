"""Real videos: pretraining of a head on frozen features.

    python experiments/real_videos.py --clips clips.csv --clips-folder ut-interaction \\
        --videos fir-action/annotations.json --videos-folder fir-action

Features of clips and videos are extracted once by I3D with its Kinetics-400 weights (`ssdet weights
get i3d-kinetics400`). A small temporal head is pretrained on the clips, by classification or by
detection with augmentations of the features, fine-tuned on the untrimmed videos of all groups but
one, and scored on that group. docs/real_video.md has the results: about ten minutes for the
features and ten for 5 seeds, on one core.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.progress import track

from ssdet.cli.streams import standard_streams

ARMS = {
    "scratch": "no pretraining",
    "cls": "classification",
    "none": "detection, no augmentation",
    "freeze": "detection, freeze",
    "mixup": "detection, MixUp",
}
Group = Literal["video", "day"]


@dataclass(frozen=True)
class Options:
    """Data and size of the study."""

    clips: Path
    """CSV `file,label` of single-label clips."""
    clips_folder: str
    videos: Path
    """Annotation of the untrimmed videos (`segments`)."""
    videos_folder: str
    features: Annotated[Path | None, tyro.conf.arg(help="Folder; the cache by default.")] = None
    groups: tuple[Group, ...] = ("video", "day")
    """Groups to leave out: single videos, or all videos whose names begin with the same date."""
    seeds: int = 5
    pretrain_steps: int = 120
    finetune_steps: int = 120
    out: Path = Path("real_video.csv")


def main(options: Options) -> None:
    """Extract features, train heads, and write the table, once after each kind of group."""
    import torch

    from ssdet.cli.experiment_files import experiments_folder, load

    heads = load(str(experiments_folder() / "_feature_heads.py"))

    torch.set_num_threads(1)
    data, table = heads.material(options), []
    for group in options.groups:
        runs = {
            arm: [
                heads.cross_validated(data, options, arm, group, seed)
                for seed in track(range(options.seeds), f"{group}: {title}")
            ]
            for arm, title in ARMS.items()
        }
        table += heads.rows(data, group, runs)
        heads.write(table, options.out)


def command(arguments: list[str] | None = None) -> int:
    """Run the study with the options of the command line; returns the exit status."""
    main(tyro.cli(Options, args=arguments, prog="real_videos.py", description=__doc__))
    return 0


if __name__ == "__main__":
    with standard_streams():
        sys.exit(command())
