"""Real videos through an experiment: single-label clips upstream, segments downstream."""

import csv
import json
from pathlib import Path

from ssdet.cli.experiment import Options, main
from ssdet.studies import Arm, Study, Table, augmented, classification


def write_annotations(data: Path, folder: Path) -> tuple[Path, Path]:
    """A table of a few UT-Interaction clips, and three videos of FIR-Action."""
    clips, videos = folder / "up" / "clips.csv", folder / "annotations.json"
    clips.parent.mkdir()
    with open(clips, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split"])
        for path in sorted((data / "ut-interaction").glob("*.avi"))[:24]:
            _, sequence, label = path.stem.split("_")
            writer.writerow([path.name, f"class {label}", "val" if int(sequence) > 8 else "train"])
    entries = json.loads((data / "fir-action" / "annotations.json").read_text())
    training = [name for name, e in entries.items() if e["subset"] == "training"]
    testing = [name for name, e in entries.items() if e["subset"] == "testing"]
    chosen = sorted(training, key=lambda n: entries[n]["duration"])[:2] + testing[:1]
    videos.write_text(json.dumps({name: entries[name] for name in chosen}))
    (folder / "classes.txt").write_text((data / "fir-action" / "classes.txt").read_text())
    return clips, videos


def test_from_real_videos_to_a_table(shared_data, shapes, ray_session, tmp_path) -> None:
    data = shared_data / "video"
    clips, videos = write_annotations(data, tmp_path)
    arms = (Arm("cls", classification), Arm("window", augmented("cutmix", window="transient")))
    options = Options(
        data="segments",
        preset="small",
        seeds=1,
        store=str(tmp_path / "store"),
        pretrain_steps=3,
        finetune_steps=3,
        upstream=str(clips),
        upstream_videos=str(data / "ut-interaction"),
        downstream=str(videos),
        downstream_videos=str(data / "fir-action"),
    )
    assert main(Study("real", arms, table=Table(baseline="cls")), options) == 0
    text = (tmp_path / "store" / "tables" / "real" / "table.md").read_text()
    assert "dense_map/v1" in text and "1 of 1 videos, 1892 frames" in text
