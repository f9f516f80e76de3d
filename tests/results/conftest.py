"""A finished study made by hand: real recipes, prediction sets and checkpoints, nothing trained."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ssdet.studies import Arm, Data, Plan, Store, Study, Table, augmented, classification, scratch

ARMS = (
    Arm("cls", classification, "classification"),
    Arm("view", augmented("cutmix", window="view")),
    Arm("fresh", scratch),
    Arm("pair", members=("cls", "view")),
)
NOISE = {"cls": 1.0, "view": 0.6, "fresh": 2.0, "pair": 0.4}
EVIL = '</script><script>document.title = "broken"</script><b id="evil">&amp;'


@dataclass(frozen=True)
class Finished:
    plan: Plan
    store: Store
    targets: dict[str, dict[str, np.ndarray]]
    """Dense labels by split and video."""

    def id(self, arm: str, seed: int = 0, readout: str = "predict") -> str:
        """Id of the stage that scores an arm."""
        run = next(run for run in self.plan.runs if (run.arm, run.seed) == (arm, seed))
        return getattr(run, readout).id

    def score(self, stage, noise: float, seed: int) -> None:
        """Write predictions, the truth under noise, and what follows from them."""
        from ssdet.evaluation import PredictionSet, PredictionWriter, dense_map

        scores = {}
        for split, targets in self.targets.items():
            rng = np.random.default_rng([seed, len(stage.kind), len(split)])
            folder = self.store.folder(stage.id) / "predictions" / split
            with PredictionWriter(folder, next(iter(targets.values())).shape[1]) as writer:
                for video, truth in targets.items():
                    noisy = truth + noise * rng.normal(size=truth.shape)
                    writer.add(video, 1 / (1 + np.exp(-noisy)), 12)
            scores[split] = asdict(dense_map(PredictionSet.open(folder), targets))
        self.store.finish(stage.id, {"scores": scores, "unreadable": {}})


@pytest.fixture(scope="session")
def shown(shapes) -> tuple[Data, dict[str, dict[str, np.ndarray]]]:
    """The smallest Moving Shapes, and its dense labels."""
    from ssdet.studies import preset
    from ssdet.studies.data import moving_shapes
    from ssdet.training.inference import frame_targets

    chosen = preset("smoke")
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    reader = data.reader("downstream")
    splits = ("val", "test")
    return data, {s: frame_targets(data.split("downstream", s), reader) for s in splits}


@pytest.fixture(scope="session")
def made(shown, tmp_path_factory) -> Finished:
    """Three arms and an ensemble, three seeds, all finished and recorded as study
    `ablate_cutmix`; tests only read it."""
    from ssdet.studies import plan, preset
    from ssdet.studies.record import write_record
    from ssdet.studies.store import write_json

    data, targets = shown
    table = Table("Small", "cls", {"view": 18.99}, "Table 1.")
    study = Study("ablate_cutmix", ARMS, table=table, base=preset("smoke").experiment, data=data)
    made = Finished(plan(study), Store.open(tmp_path_factory.mktemp("made")), targets)
    write_record(made.store, made.plan)
    for number, stage in enumerate(made.plan.stages.values()):
        folder = made.store.folder(stage.id)
        folder.mkdir()
        write_json(folder / "recipe.json", stage.identity)
        how = {"host": "alices-laptop", "revision": "abc", "started": 1000.0 + number}
        write_json(folder / "provenance.json", {**how, "seconds": 2.0, "workers": 1})
        if stage.kind in ("pretrain", "finetune"):
            made.store.finish(stage.id, {"steps": 4, "replaced": {}})
    for run in made.plan.runs:
        for stage in filter(None, (run.predict, run.probe)):
            made.score(stage, NOISE[run.arm], run.seed)
    return made


@pytest.fixture
def finished(made, tmp_path) -> Finished:
    """A copy of it that a test may change."""
    shutil.copytree(made.store.root, tmp_path / "store")
    return replace(made, store=Store(tmp_path / "store"))


@pytest.fixture(scope="session")
def logged(made, tmp_path_factory) -> Store:
    """The finished study with full provenance and logs; tests only read it."""
    from ssdet.studies.store import write_json

    root = tmp_path_factory.mktemp("report") / "store"
    shutil.copytree(made.store.root, root)
    found = Store(root)
    for number, (name, stage) in enumerate(made.plan.stages.items()):
        how = {"revision": "abc", "packages": {"torch": "2"}, "processor": "P", "gpu": None,
               "workers": 1, "threads": 1, "host": "alices-laptop", "attempts": 1}  # fmt: skip
        times = {"started": 1000.0 + number, "seconds": 2.0, "gpu_seconds": 0.0}
        write_json(found.folder(name) / "provenance.json", {**how, **times})
        if stage.kind in ("pretrain", "finetune"):
            lines = [{"step": step, "loss": 1 / step, "validation": 0.1 * step} for step in (2, 4)]
            log = found.folder(name) / "metrics.jsonl"
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


@pytest.fixture(scope="session")
def odd(made) -> Plan:
    """The same plan, every text that users give as hostile as it can be: `table.source` is what
    all of them hold."""
    study = made.plan.study
    data = replace(study.data, cache=False)
    named = {
        role: replace(one, classes=tuple(f"{k} {EVIL}" for k in range(one.num_classes)))
        for role, one in study.data.manifests.items()
    }
    data.__dict__["manifests"] = named
    arms = tuple(replace(arm, title=f"{arm.name} {EVIL}") for arm in study.arms)
    table = replace(study.table, title=f"Title {EVIL}", source=EVIL)
    return Plan(replace(study, arms=arms, data=data, table=table), made.plan.runs)


@pytest.fixture(scope="session")
def page(odd, logged, tmp_path_factory) -> Path:
    """The report of it."""
    from ssdet.results.report import write_report

    return write_report(
        odd, logged, tmp_path_factory.mktemp("page") / "r.html", 3, resamples=20
    ).path
