"""Leave one group out: `real_end_to_end.py` once for every group of videos, scored together.

    python experiments/real_folds.py --folds 4 --store runs --seeds 2 \\
        --upstream clips.csv --upstream-videos ut-interaction \\
        --downstream fir-action/annotations.json --downstream-videos fir-action

Each fold fine-tunes on all videos but one group and tests on that group; the folds share
pretraining. Differences are bootstrapped over the pooled scores of all videos. The table also has
the mean over folds, which does not rank scores of different networks together.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.table import Table

from ssdet.cli.experiment import Options, main, resolve
from ssdet.cli.experiment_files import load
from ssdet.cli.streams import standard_streams
from ssdet.studies import Plan, Store, Study, plan
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    import numpy as np

    Scores = dict[str, np.ndarray]

END_TO_END: Study = load("real_end_to_end").STUDY


@dataclass(frozen=True)
class Folds(Options):
    """Options of an experiment, and the number of groups."""

    folds: int = 4
    """Groups: video i, in the order of names, is in group i mod folds."""


def split(annotation: Path, fold: int, folds: int, folder: Path) -> Path:
    """Write the annotation with one group of videos as test split, the others as training split."""
    videos = json.loads(annotation.read_text(encoding="utf-8"))
    for number, name in enumerate(sorted(videos)):
        videos[name]["subset"] = "testing" if number % folds == fold else "training"
    path = folder / f"fold{fold}of{folds}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(videos, sort_keys=True), encoding="utf-8")
    return path


def pooled(planned: list[Plan], store: Store, arm: str) -> dict[int, Scores]:
    """Scores of the test videos of all folds, by seed."""
    from ssdet.results.tables.result_table import predictions

    scores: dict[int, Scores] = {}
    for fold in planned:
        for seed, predicted in predictions(fold, store, arm, "finetuned").items():
            scores.setdefault(seed, {}).update({video: predicted[video] for video in predicted})
    return scores


def chance(targets: Scores) -> float:
    """Expected mAP of random scores: the mean share of positive frames over classes that occur."""
    import numpy as np

    shares = np.concatenate([*targets.values()]).mean(axis=0)
    return float(100 * shares[shares > 0].mean())


def report(planned: list[Plan], store: Store, out: Console) -> None:
    """Print the pooled scores of every arm, and their difference from the baseline."""
    import numpy as np

    from ssdet.evaluation import dense_map, holm, paired_bootstrap
    from ssdet.inference.scoring import frame_targets

    folds: list[Scores] = []
    for fold in planned:
        data = fold.study.data
        folds.append(frame_targets(data.split("downstream", "test"), data.reader("downstream")))
    targets = {video: rows for fold in folds for video, rows in fold.items()}
    study = planned[0].study
    scores = {arm.name: pooled(planned, store, arm.name) for arm in study.arms}
    base = scores[study.baseline]
    others = [name for name in scores if name != study.baseline]
    differences = {
        name: paired_bootstrap([*base.values()], [*scores[name].values()], targets)
        for name in others
    }
    p_values = holm([difference.p_value for difference in differences.values()])
    adjusted = dict(zip(others, p_values, strict=True))
    table = Table("arm", "mean of folds", "pooled", "difference of pooled [95 %]", "p (Holm)")
    table.add_row("chance", f"{np.mean([*map(chance, folds)]):.1f}", f"{chance(targets):.1f}")
    for arm in study.arms:
        runs = scores[arm.name].values()
        means = [
            np.mean([100 * dense_map({v: run[v] for v in fold}, fold).value for fold in folds])
            for run in runs
        ]
        values = [100 * dense_map(run, targets).value for run in runs]
        comparison = ["", ""]
        if arm.name in adjusted:
            result = differences[arm.name]
            low, middle, high = (100 * v for v in (result.low, result.difference, result.high))
            comparison = [f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]", f"{adjusted[arm.name]:.3f}"]
        cells = (", ".join(f"{value:.1f}" for value in values) for values in (means, values))
        table.add_row(arm.label, *cells, *comparison)
    frames = sum(len(rows) for rows in targets.values())
    out.print(table)
    out.print(f"dense_map/v1 by seed, {len(targets)} videos, {frames} frames, {len(planned)} folds")


def run(options: Folds) -> int:
    """Run all folds in turn and print the pooled table; return the exit status."""
    out, planned = plain_console(), []
    options = replace(options, preset="small", data="segments")
    if options.downstream is None:
        print("error: give --downstream, the annotation of the videos", file=sys.stderr)
        return 2
    for fold in range(options.folds):
        folder = Path(options.store) / "folds"
        annotation = split(Path(options.downstream), fold, options.folds, folder)
        study = replace(END_TO_END, name=f"{END_TO_END.name}_{fold}of{options.folds}")
        one = replace(options, downstream=str(annotation))
        if status := main(study, one, out):
            return status
        planned.append(plan(resolve(study, one)))
    report(planned, Store.open(options.store), out)
    return 0


def command(arguments: list[str] | None = None) -> int:
    """Run the folds that the command line asks for; returns the exit status."""
    return run(tyro.cli(Folds, args=arguments, prog="real_folds.py", description=__doc__))


if __name__ == "__main__":
    with standard_streams():
        sys.exit(command())
