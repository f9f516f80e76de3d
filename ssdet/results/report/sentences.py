"""Text of the report: what was compared, outcomes, warnings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssdet.results.tables.columns import difference_text, label_against
from ssdet.results.tables.result_table import READOUTS, ResultTable
from ssdet.store.base import Store
from ssdet.studies.graph.audit import Audit
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.studies.graph.plan import Plan

TRIAL_STEPS = 10
"""Trainings of so few steps are test runs."""
SHORT_PASSES = 10.0
"""Epochs below which a schedule is reported as short: on Moving Shapes 3 and 9 epochs of
pretraining rank the arms differently; the paper's pretraining takes some 80."""


@dataclass(frozen=True)
class Finding:
    """Outcome of one arm."""

    label: str
    difference: str
    verdict: str


@dataclass(frozen=True)
class Outcome:
    """Arms of one read-out by their verdict."""

    readout: str
    better: tuple[Finding, ...]
    worse: tuple[Finding, ...]
    undecided: tuple[Finding, ...]
    detectable: tuple[float, float] | None
    """Smallest and largest detectable difference of the rows, in points."""

    @property
    def power(self) -> str:
        """The detectable differences as text; with few seeds they may exceed 100 points."""
        if self.detectable is None:
            return ""
        low, high = (f"{x:.1f}" if x <= 100 else "more than 100" for x in self.detectable)
        return low if low == high else f"{low} to {high}"

    @property
    def sentence(self) -> str:
        groups = {"better": self.better, "worse": self.worse, "undecided": self.undecided}
        return ", ".join(f"{len(found)} {name}" for name, found in groups.items())


def compared(plan: Plan, table: ResultTable) -> list[str]:
    """Sentences on what was compared, and how."""
    study = plan.study
    ensembles = sum(row.ensemble for row in table.rows)
    arms = _count(len(table.rows) - ensembles, "arm")
    if ensembles:
        arms += f" and {_count(ensembles, 'ensemble')}"
    seeds = ", ".join(map(str, study.seeds))
    base = next(row.label for row in table.rows if row.arm == table.baseline)
    data = study.data
    return [
        f"{arms}, {_count(len(study.seeds), 'seed')} ({seeds}), compared with the baseline "
        f"“{base}”.",
        *_others(table),
        f"Protocol {table.protocol} on the test split: {table.videos_scored:,} of "
        f"{table.videos_expected:,} videos, {table.frames:,} frames, "
        f"{data.manifests['downstream'].num_classes} classes. Trained on "
        f"{len(data.split('upstream', 'train').videos):,} clips of "
        f"{data.manifests['upstream'].num_classes} classes (pretraining) and "
        f"{len(data.split('downstream', 'train').videos):,} videos (fine-tuning).",
        f"Intervals: paired bootstrap, {table.resamples:,} resamples of videos and seeds; p-values "
        "after Holm's correction over the rows of a read-out"
        f"{', whatever they are compared with' if table.several_baselines else ''}.",
        *_schedules(plan),
    ]


def _others(table: ResultTable) -> Iterator[str]:
    """Sentences on arms that are compared with another arm than the baseline."""
    for other in table.rows:
        rows = [row.label for row in table.rows if row.against == other.arm]
        if rows and other.arm != table.baseline:
            yield f"Compared with “{other.label}” in place of the baseline: {'; '.join(rows)}."


def outcomes(table: ResultTable) -> list[Outcome]:
    """Outcomes of the read-outs in which arms are compared."""
    result = []
    for readout, name in READOUTS.items():
        rows = [row for row in table.rows if readout in row.cells]
        cells = [(label_against(table, row), row.cells[readout]) for row in rows]
        findings = [Finding(n, difference_text(c), c.verdict) for n, c in cells if c.difference]
        if findings:
            better, worse = (
                tuple(f for f in findings if f.verdict == word) for word in ("better", "worse")
            )
            left = tuple(f for f in findings if f not in (*better, *worse))
            spans = [100 * c.detectable for _, c in cells if c.detectable is not None]
            span = (min(spans), max(spans)) if spans else None
            result.append(Outcome(name, better, worse, left, span))
    return result


def warnings(plan: Plan, table: ResultTable, audit: Audit, store: Store) -> list[str]:
    """Warnings on the validity of the numbers, the most severe first."""
    study = plan.study
    texts = list(_schedule_faults(plan))
    if len(study.seeds) == 1:
        texts.append("One seed: no difference can be told from the noise between seeds.")
    if study.data.limit is not None:
        texts.append(f"Only the first {study.data.limit} videos of each split were used.")
    if not audit.fair:
        texts.append(
            f"Not a fair comparison: {_count(len(audit.notes), 'difference')} between arms that "
            f"they do not declare, such as: {audit.notes[0]}."
        )
    if table.videos_scored < table.videos_expected:
        missing = table.videos_expected - table.videos_scored
        texts.append(f"{missing:,} of {table.videos_expected:,} test videos have no score.")
    if table.unreadable:
        texts.append(f"{_count(len(table.unreadable), 'video')} could not be read.")
    texts += [f"{row.label}: not run, it needs {row.needs}." for row in table.rows if row.needs]
    provenance = [store.provenance(stage) or {} for stage in plan.stages]
    if any(str(values.get("revision")).endswith("+changes") for values in provenance):
        texts.append("Some stages ran with code that differs from its recorded revision.")
    return texts


def passes(plan: Plan, stage: Stage) -> float:
    """Epochs of a training: how often it sees each clip or video of its split."""
    role = "upstream" if stage.kind == "pretrain" else "downstream"
    optim = stage.recipe.optim
    return float(
        optim.steps * optim.batch / max(1, len(plan.study.data.split(role, "train").videos))
    )


def _trainings(plan: Plan) -> dict[tuple[str, int, float], list[str]]:
    """Labels of the arms by kind, steps and epochs of their trainings."""
    found: dict[tuple[str, int, float], list[str]] = {}
    for run in plan.runs:
        if run.predict.kind == "ensemble":
            continue
        for stage in ancestry(run.predict):
            if stage.kind in ("pretrain", "finetune"):
                key = stage.kind, stage.recipe.optim.steps, passes(plan, stage)
                arms = found.setdefault(key, [])
                label = plan.study.arm(run.arm).label
                arms += [] if label in arms else [label]
    return found


def _schedules(plan: Plan) -> list[str]:
    trainings = _trainings(plan)
    texts = []
    for kind, name in (("pretrain", "pretraining"), ("finetune", "fine-tuning")):
        ways = sorted({(steps, seen) for k, steps, seen in trainings if k == kind})
        if ways:
            listed = " or ".join(f"{steps:,} steps ({seen:.3g} passes)" for steps, seen in ways)
            texts.append(f"{name} {listed}")
    return [f"Schedules: {'; '.join(texts)}."]


def _schedule_faults(plan: Plan) -> Iterator[str]:
    trainings = _trainings(plan)
    fewest = min((steps for _, steps, _ in trainings), default=0)
    if fewest <= TRIAL_STEPS:
        yield (
            f"Trial run: trainings of {fewest} steps show that everything works. The numbers mean "
            "nothing."
        )
        return
    short = {key: arms for key, arms in trainings.items() if key[2] < SHORT_PASSES}
    for (kind, steps, seen), arms in short.items():
        yield (
            f"Short schedule: {kind} of {steps:,} steps sees its data {seen:.2g} times "
            f"({_listed(arms)}). Longer schedules may change the order of arms."
        )


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
