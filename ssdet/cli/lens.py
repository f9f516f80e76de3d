"""`ssdet lens`: draw real clips before and after a volume augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssdet.cli.experiment import Options as Experiment
from ssdet.cli.experiment import data_of
from ssdet.cli.shared import Name, parse, parse_values, report_errors, wrong_usage


@dataclass(frozen=True)
class Options:
    """Draw clips before and after an augmentation, with its masks and labels, as one picture."""

    augment: Name
    """freeze, mixup, cutmix, joint_single or joint."""
    option: tuple[str, ...] = ()
    """Options of the augmentation as NAME=VALUE, such as window=transient or segments=2."""
    seed: int = 0
    """Seed of the clips and of the draws."""
    batch: int = 8
    """Clips that are mixed with each other; the one that changes the most is drawn."""
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


@report_errors()
@wrong_usage(ValueError, TypeError, OSError)
def command(arguments: list[str]) -> None:
    """Draw the picture."""
    options = parse(Options, arguments, "ssdet lens")
    from ssdet.results.figures.augmentation_lens import lens, sample
    from ssdet.studies import preset

    chosen = preset(options.preset)
    source = Experiment(
        data=options.data,
        upstream=options.upstream,
        upstream_videos=options.upstream_videos,
        downstream=options.downstream,
    )
    data, recipe = data_of(source, chosen), chosen.experiment.pretrain
    assert recipe is not None
    clips, targets = sample(
        data.split("upstream", "train"), data.reader("upstream"), recipe.clip, options.batch,
        options.seed,
    )  # fmt: skip
    classes = ("background", *data.manifests["upstream"].classes)
    values = parse_values(options.option, ("segments", "mask", "ramp", "window", "delta", "p"))
    lens(clips, targets, options.augment, values, options.seed, options.out, classes)
    print(f"written to {options.out}")
