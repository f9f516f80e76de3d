"""`ssdet lens`: look at what a volume augmentation makes of real clips."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssdet.cli.conditions import conditions
from ssdet.cli.experiment import Options as Experiment
from ssdet.cli.experiment import data_of


@dataclass(frozen=True)
class Options:
    """Draw clips before and after an augmentation, with its masks and labels, as one picture."""

    augment: Annotated[str, tyro.conf.Positional]
    """freeze, mixup, cutmix, joint_single or joint."""
    option: tuple[str, ...] = ()
    """Options of the augmentation as NAME=VALUE, such as window=transient or segments=2."""
    seed: int = 0
    """Of the clips and the draws."""
    batch: int = 8
    """Clips that are mixed with each other; the one that changes most is shown."""
    out: Path = Path("lens.png")
    """Picture to write: png, svg or pdf."""
    data: str = "moving_shapes"
    """Format of the untrimmed videos; the clips come from --upstream, or from Moving Shapes."""
    preset: str = "tiny"
    """Length and size of clips."""
    upstream: str | None = None
    """Single-label clips: a CSV or folder of the kinetics format."""
    upstream_videos: str | None = None
    """Folder of those clips, if not beside the annotation."""
    downstream: str | None = None
    """Annotation of the untrimmed videos; needed with --data."""


def command(arguments: list[str]) -> int:
    """Run the command; exit status 0 done, 1 failed, 2 wrong usage."""
    options = tyro.cli(Options, args=arguments, prog="ssdet lens")
    from ssdet.results.figures.augmentation_lens import lens, sample
    from ssdet.studies import preset

    try:
        chosen = preset(options.preset)
        named = Experiment(
            data=options.data,
            upstream=options.upstream,
            upstream_videos=options.upstream_videos,
            downstream=options.downstream,
        )
        data = data_of(named, chosen)
        recipe = chosen.experiment.pretrain
        assert recipe is not None
        clips, targets = sample(
            data.split("upstream", "train"), data.reader("upstream"), recipe.clip, options.batch,
            options.seed,
        )  # fmt: skip
        classes = ("background", *data.manifests["upstream"].classes)
        given = conditions(options.option, ("segments", "mask", "ramp", "window", "delta", "p"))
        lens(clips, targets, options.augment, given, options.seed, options.out, classes)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written to {options.out}")
    return 0
