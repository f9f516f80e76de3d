"""A study as a graph of unique stages: what several arms share exists once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ssdet.studies.data import Data
from ssdet.studies.experiment import Experiment
from ssdet.studies.graph.builder import StageGraph
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.studies.presets import with_defaults
from ssdet.studies.study import Arm, Study
from ssdet.training.pretrained_weights import starting_weights


@dataclass(frozen=True)
class Run:
    """An arm with a seed, and the stages that score it."""

    arm: str
    seed: int
    predict: Stage
    probe: Stage | None

    @property
    def ends(self) -> tuple[Stage, ...]:
        """The stages that score the run: `predict`, and `probe` if there is one."""
        return (self.predict,) if self.probe is None else (self.predict, self.probe)


@dataclass(frozen=True)
class Plan:
    """The runs of a study and their stages."""

    study: Study
    runs: tuple[Run, ...]

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Unique stages by id, parents first, in the order of seeds and arms."""
        unique: dict[str, Stage] = {}

        def visit(stage: Stage) -> None:
            if stage.id not in unique:
                for parent in stage.parents:
                    visit(parent)
                unique[stage.id] = stage

        for run in self.runs:
            for stage in run.ends:
                visit(stage)
        return unique

    @cached_property
    def unshared(self) -> list[Stage]:
        """All stages if no two runs shared any; the read-outs of one run share its pretraining."""
        runs = ({s.id: s for end in run.ends for s in ancestry(end)} for run in self.runs)
        return [stage for stages in runs for stage in stages.values()]

    def of(self, arm: str) -> list[Run]:
        """Runs of one arm in the order of seeds."""
        return list(self._by_arm.get(arm, ()))

    @cached_property
    def _by_arm(self) -> dict[str, list[Run]]:
        runs: dict[str, list[Run]] = {}
        for run in self.runs:
            runs.setdefault(run.arm, []).append(run)
        return runs

    def missing(self, arm: Arm) -> str:
        """Networks that an arm waits for, separated by commas; empty for an arm that runs."""
        return "" if self.of(arm.name) else self.study.needs(arm)


def plan(study: Study) -> Plan:
    """Resolve every arm and seed into stages; nothing is trained.

    A study without base or data gets those of the preset `tiny`; Moving Shapes is rendered on first
    use. The files of the data must exist: their content is part of the ids of stages. An arm whose
    network is not available has no runs. ValueError if that arm is the baseline, if the recipes of
    an arm contradict each other, or if the data cannot be scored under the study's protocol.
    """
    from ssdet.studies.scoring import check_protocol  # imports the protocols

    study = with_defaults(study)
    base = study.arm(study.baseline)
    if not study.can_run(base):
        raise ValueError(f"baseline {base.name!r} needs {study.needs(base)}: not built yet")
    arms = [arm for arm in study.arms if study.can_run(arm)]
    assert study.base is not None
    _check_start(study.base, study.data)
    check_protocol(study.protocol, study.data)
    graph = StageGraph(study.data)
    runs: dict[tuple[str, int], Run] = {}
    for seed in study.seeds:
        for arm in arms:
            if not arm.members and not arm.seeds_of:
                experiment = arm.change(study.base).with_seed(seed)
                runs[arm.name, seed] = _run(graph, arm, seed, experiment)
    for arm in arms:
        for seed, members in _members(study, arm):
            ensemble = graph.ensemble(runs[member].predict for member in members)
            runs[arm.name, seed] = Run(arm.name, seed, ensemble, None)
    planned = Plan(study, tuple(runs.values()))
    for by, split in {
        (stage.recipe.validate_by, stage.recipe.validate_on)
        for stage in planned.stages.values()
        if stage.kind in ("finetune", "fit_head") and stage.recipe.validations
    }:
        check_protocol(by, study.data, split)
    return planned


def _run(graph: StageGraph, arm: Arm, seed: int, experiment: Experiment) -> Run:
    try:
        return Run(arm.name, seed, graph.scoring(experiment), graph.probe(experiment))
    except ValueError as error:
        raise ValueError(f"arm {arm.name!r}: {error}") from error


def _members(study: Study, arm: Arm) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """Every run of an ensemble: its seed, and (arm, seed) of each member; empty for other arms.

    An ensemble of seeds has one run for each distinct set of seeds. ValueError for too few seeds.
    """
    count = len(study.seeds)
    if arm.seeds_of and count < arm.size:
        raise ValueError(
            f"an ensemble of {arm.size} seeds needs {arm.size} seeds, the study has {count}: give "
            "more seeds, or leave the arm out"
        )
    for index, seed in enumerate(study.seeds):
        if arm.members:
            yield seed, [(member, seed) for member in arm.members]
        elif arm.seeds_of and (count > arm.size or index == 0):
            rotated = study.seeds[index:] + study.seeds[:index]
            yield seed, [(arm.seeds_of, other) for other in rotated[: arm.size]]


def _check_start(base: Experiment, data: Data) -> None:
    """Raise ValueError or FileNotFoundError if the initial weights of the base cannot be used."""
    if base.pretrainings:
        first = base.pretrainings[0]
        starting_weights(first, first.head_classes(data.manifests["upstream"].num_classes))


def stage_labels(plan: Plan) -> dict[str, tuple[str, list[str], int]]:
    """Kind, arms and seed by stage id."""
    labels: dict[str, tuple[str, list[str], int]] = {}

    def visit(stage: Stage, arm: str, seed: int) -> None:
        _, arms, _ = labels.setdefault(stage.id, (stage.kind, [], seed))
        if arm not in arms:
            arms.append(arm)
        if stage.kind != "ensemble":
            for parent in stage.parents:
                visit(parent, arm, seed)

    for run in plan.runs:
        for stage in run.ends:
            visit(stage, run.arm, run.seed)
    return labels


def stage_titles(plan: Plan) -> dict[str, str]:
    """Readable name of each stage: kind, arms that use it, seed."""
    return {
        stage: f"{kind} {'+'.join(arms)} seed {seed}"
        for stage, (kind, arms, seed) in stage_labels(plan).items()
    }
