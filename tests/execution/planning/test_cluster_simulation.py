"""Plans on described clusters: bounds that any schedule obeys, figures by hand, what is refused."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from rich.console import Console

from ssdet.cli import plan as shown
from ssdet.cli.experiment import Options, main
from ssdet.cli.search import SearchOptions, command, main_search
from ssdet.execution.planning import estimate as costs
from ssdet.execution.planning.cluster_simulation import (
    DescribedCluster,
    NodeKind,
    read_nodes,
    repeated,
    schedule,
    schedule_json,
    speeds,
)
from ssdet.search.space import Search
from ssdet.search.trials import DATABASE, storage_at
from ssdet.studies.graph.identity import Stage
from ssdet.studies.study import Arm, Study
from ssdet.training.recipe import ModelRecipe

EXAMPLE = Path(__file__).resolve().parents[3] / "clusters" / "nodes_example.yaml"
KINDS = ("pretrain", "finetune", "predict", "ensemble")


def stage(kind: str, name: str, *parents: Stage) -> Stage:
    return Stage(kind, ModelRecipe(name), parents, "data")


def kind(name: str = "cpu", **fields: Any) -> NodeKind:
    return NodeKind(name, **{"count": 1, "cpus": 1, "speed": 1.0, **fields})


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Stage], dict[str, float]]:
    """Stages whose parents are earlier ones, and how long each lasts on one worker."""
    stages: list[Stage] = []
    for index in range(draw(st.integers(1, 9))):
        some = st.lists(st.sampled_from(stages), max_size=2, unique_by=lambda s: s.id)
        parents = draw(some) if stages else []
        stages.append(stage(draw(st.sampled_from(KINDS)), f"s{index}", *parents))
    return stages, {s.id: draw(st.integers(0, 500)) / 10 for s in stages}


clusters = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(1, 40)),
    min_size=1,
    max_size=3,
).map(
    lambda rows: DescribedCluster(
        tuple(
            NodeKind(f"k{i}", count, cpus, gpus, speed=tenths / 10)
            for i, (count, cpus, gpus, tenths) in enumerate(rows)
        )
    )
)


def critical_path(stages: list[Stage], lasts: dict[str, float]) -> float:
    ends: dict[str, float] = {}
    for s in stages:
        ends[s.id] = lasts[s.id] + max((ends[p.id] for p in s.parents), default=0.0)
    return max(ends.values())


@settings(max_examples=150, deadline=None)
@given(graphs(), clusters, st.integers(1, 3), st.sampled_from([0, 0.5, 1]))
def test_a_schedule_obeys_the_bounds_of_any_list_schedule(graph, cluster, workers, gpus) -> None:
    stages, seconds = graph
    speed = {k.name: k.speed for k in cluster.nodes}
    try:
        resources = cluster.fit(workers, gpus, None)
    except ValueError as error:
        assert "too small" in str(error)
        return
    found = schedule(stages, seconds, cluster, speed, resources)
    team = {s.id: workers if s.kind in KINDS[:2] else 1 for s in stages}
    best = {s.id: seconds[s.id] / (team[s.id] * max(speed.values())) for s in stages}
    total = sum(seconds.values())
    capacity = sum(k.count * k.cpus * k.speed for k in cluster.nodes)
    slack = 1e-9 * (1 + total)
    assert found.makespan >= critical_path(stages, best) - slack
    assert found.makespan >= total / capacity - slack
    assert found.makespan <= total / min(speed.values()) + slack
    assert found.spans.keys() == {s.id for s in stages}
    for s in stages:
        assert all(found.spans[p.id][1] <= found.spans[s.id][0] for p in s.parents)
    for time in [start for start, _ in found.spans.values()]:
        at_once = [s for s in stages if found.spans[s.id][0] <= time < found.spans[s.id][1]]
        assert sum(team[s.id] for s in at_once) <= sum(k.count * k.cpus for k in cluster.nodes)
        held = sum(team[s.id] * gpus for s in at_once if s.kind != "ensemble")
        assert held <= sum(k.count * k.gpus for k in cluster.nodes) + 1e-6 or not gpus
        assert len(at_once) <= resources.concurrent
    assert all(-slack <= use.busy for use in found.uses)
    assert found == schedule(stages, seconds, cluster, speed, resources)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 4))
def test_equal_cores_give_what_the_plan_says_of_this_machine(graph, cores) -> None:
    stages, seconds = graph
    cluster = DescribedCluster((kind(cpus=cores),))
    found = schedule(stages, seconds, cluster, {"cpu": 1.0}, cluster.fit(1, 0, None))
    assert found.makespan == pytest.approx(costs.makespan(stages, seconds, cores))


def test_time_use_and_money_are_those_of_a_schedule_by_hand() -> None:
    first, second = stage("pretrain", "a"), stage("pretrain", "b")
    score = stage("predict", "c", first)
    seconds = {first.id: 4000.0, second.id: 1800.0, score.id: 400.0}
    fast, slow = kind("fast", speed=4.0, price=9.0), kind("slow", count=2, price=1.0)
    cluster = DescribedCluster((slow, fast), currency="EUR")
    speed = {"fast": 4.0, "slow": 1.0}
    found = schedule([first, second, score], seconds, cluster, speed, cluster.fit(1, 0, None))
    # first on fast 0-1000, second on a slow one 0-1800, score on fast 1000-1100
    assert found.makespan == 1800
    assert found.spans[score.id] == (1000, 1100)
    told = schedule_json(cluster, found)
    assert [k["utilisation"] for k in told["kinds"]] == [0.5, pytest.approx(1100 / 1800)]
    assert told["cost"] == pytest.approx(0.5 * (2 * 1 + 9))
    assert told["cost_busy"] == pytest.approx(1800 / 3600 + 9 * 1100 / 3600)
    assert told["currency"] == "EUR"


def test_a_missing_price_is_not_taken_for_nothing() -> None:
    cluster = DescribedCluster((kind(price=2.0), kind("b")))
    one = stage("predict", "a")
    found = schedule([one], {one.id: 1.0}, cluster, {"cpu": 1, "b": 1}, cluster.fit(1, 0, None))
    told = schedule_json(cluster, found)
    assert told["cost"] is None and told["cost_busy"] is None
    assert told["kinds"][0]["cost"] == pytest.approx(2 / 3600)


def test_workers_of_a_stage_may_sit_on_several_nodes_at_the_pace_of_the_slowest() -> None:
    cluster = DescribedCluster((kind("fast", speed=3.0, cpus=2), kind("slow", cpus=2)))
    one = stage("pretrain", "a")
    resources = cluster.fit(3, 0, None)
    found = schedule([one], {one.id: 90.0}, cluster, {"fast": 3.0, "slow": 1.0}, resources)
    assert found.makespan == 30


@pytest.mark.parametrize(
    ("cluster", "asked", "message"),
    [
        (DescribedCluster((kind(cpus=8),)), (1, 1, None), "largest of 1 node has 0 GPUs"),
        (DescribedCluster((kind(gpus=1, cpus=8),)), (1, 2, None), "gpus_per_worker=1"),
        (DescribedCluster((kind(cpus=2),)), (3, 0, None), "fewer workers, or more nodes"),
        (DescribedCluster((kind(cpus=2),)), (1, 0, 3), "concurrent=2 or less"),
        (DescribedCluster((kind(memory=4.0, cpus=8),), 8.0), (1, 0, None), "the largest has 4 GB"),
        (
            DescribedCluster((kind(memory=9.0, cpus=8),), 8.0),
            (2, 0, None),
            "workers that have 8 GB",
        ),
    ],
)
def test_stages_that_fit_no_node_are_refused_with_the_reason(cluster, asked, message) -> None:
    with pytest.raises(ValueError, match=message):
        cluster.fit(*asked)


GOOD = {"name": "a", "count": 1, "cpus": 2, "speed": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [", "not YAML"),
        ("", "the file: "),
        ("nodes: []", "nodes: "),
        (json.dumps({"nodes": [GOOD | {"cpus": "two"}]}), r"nodes\[0\].cpus: .*'two'"),
        (json.dumps({"nodes": [GOOD | {"count": 0}]}), r"nodes\[0\].count: .* 0"),
        (json.dumps({"nodes": [GOOD | {"gpu": 1}]}), r"nodes\[0\].gpu: Unexpected"),
        (json.dumps({"nodes": [GOOD], "nods": []}), "nods: Unexpected"),
        (json.dumps({"nodes": [GOOD | {"speed": 0}]}), r"nodes\[0\].speed: .*greater than 0"),
        (json.dumps({"nodes": [GOOD | {"price": -1}]}), r"nodes\[0\].price"),
        (json.dumps({"nodes": [GOOD, GOOD]}), "'a': twice"),
        (json.dumps({"nodes": [GOOD | {"measured": "x"}]}), "either speed or measured"),
        (json.dumps({"nodes": [GOOD], "memory_per_worker": 2}), "memory of every node"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(tmp_path, text, message) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"nodes.yaml: .*{message}"):
        read_nodes(path)


def test_the_example_is_read_and_marks_its_figures_as_made_up() -> None:
    cluster = read_nodes(EXAMPLE)
    assert cluster.fit(1, 1, None).concurrent == sum(k.count * k.gpus for k in cluster.nodes)
    for line in EXAMPLE.read_text().splitlines():
        if line.strip().startswith(("price:", "speed:")):
            assert "EXAMPLE" in line, line


def test_a_measured_speed_is_the_mean_ratio_of_what_both_measured(tmp_path) -> None:
    rates = [
        {"label": "pretrain, x, batch 8", "seconds": 0.1},
        {"label": "finetune, x, batch 8", "seconds": 0.2},
        {"label": "another", "seconds": 5.0},
    ]
    (tmp_path / "gpu.json").write_text(json.dumps({"measured": rates}))
    cluster = DescribedCluster((kind(), kind("gpu", speed=None, measured="gpu.json")))
    here = [
        {"label": "pretrain, x, batch 8, of which 2 were tried", "seconds": 0.8},
        {"label": "finetune, x, batch 8", "seconds": 6.4},
    ]
    found = speeds(cluster, tmp_path, here)  # 8 and 32 times as fast
    assert found == {"cpu": 1.0, "gpu": pytest.approx(16.0)}
    with pytest.raises(ValueError, match="measures none of elsewhere"):
        speeds(cluster, tmp_path, [{"label": "elsewhere", "seconds": 1.0}])
    (tmp_path / "gpu.json").write_text("[]")
    with pytest.raises(ValueError, match="not what --dry-run --json prints"):
        speeds(cluster, tmp_path, here)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour for every stage, instead of measuring."""

    def hours(planned: Any) -> costs.Estimate:
        seconds = dict.fromkeys(planned.stages, 3600.0)
        return costs.Estimate(seconds, dict.fromkeys(planned.stages, 0), (), "cpu")

    monkeypatch.setattr(shown, "estimate", hours)


def dry_run(store: Path, shapes: Path, out: Console, **options: Any) -> int:
    asked = Options(preset="smoke", seeds=1, store=str(store), dry_run=True, **options)
    return main(Study("described", (Arm("det"),)), asked, out)


def test_a_dry_run_tells_of_a_described_cluster(tmp_path, shapes, estimated, capsys) -> None:
    nodes = tmp_path / "nodes.yaml"
    rows = [GOOD | {"cpus": 4, "speed": 2, "price": 3}]
    nodes.write_text(json.dumps({"nodes": rows, "currency": "USD"}))
    assert dry_run(tmp_path, shapes, Console(), json=True, assume=str(nodes)) == 0
    told = json.loads(capsys.readouterr().out)
    chain = ["pretrain", "finetune", "predict"]  # the probe runs beside finetune
    found = told["assumed"]
    assert found["makespan_seconds"] == len(chain) * 1800
    assert found["cost"] == pytest.approx(3 * 1.5)
    assert found["kinds"][0]["utilisation"] == pytest.approx(told["stages"] / (3 * 4))
    assert dry_run(tmp_path, shapes, Console(width=300), assume=str(nodes)) == 0
    assert "1 h 30 min; cost 4.50 USD" in capsys.readouterr().out


def search(trials: int, store: Path, out: Console, scheduler: Any = None, **options: Any) -> int:
    asked = SearchOptions(preset="smoke", store=str(store), **options)
    declared = Search("described", {"finetune_lr": [0.1, 0.2]}, trials=trials, scheduler=scheduler)
    return main_search(declared, asked, out)


def test_a_search_is_all_of_its_trials_on_a_described_cluster(
    tmp_path, shapes, estimated, capsys
) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text(json.dumps({"nodes": [GOOD | {"speed": 2, "price": 3}], "currency": "USD"}))
    given = {"dry_run": True, "assume": str(nodes)}
    assert search(5, tmp_path, Console(), json=True, **given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trials"] == {"asked": 5, "left": 5, "scheduler": None}
    # Half an hour for each of three stages, two trials at a time: the fifth is alone.
    assert told["assumed"]["makespan_seconds"] == 3 * told["stages"] * 1800 and told["stages"] == 3
    assert told["assumed"]["kinds"][0]["utilisation"] == pytest.approx(5 / 6)
    assert told["assumed"]["cost"] == pytest.approx(3 * 4.5)
    assert search(5, tmp_path, Console(width=400), "asha", **given) == 0
    text = capsys.readouterr().out
    assert "5 left" in text and "upper bound (asha may stop some sooner" in text
    assert "4 h 30 min; cost 13.50 USD" in text


def test_trials_that_have_ended_are_not_planned_again(tmp_path, shapes, estimated, capsys) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text(json.dumps({"nodes": [GOOD]}))
    folder = tmp_path / "searches" / "described"
    folder.mkdir(parents=True)
    study = optuna.create_study(
        storage=storage_at(folder / DATABASE), study_name="described", direction="maximize"
    )
    study.set_user_attr("declaration", {"protocol": "dense_map/v1"})
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING):
        value = 0.5 if state == TrialState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, value=value))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["map"])
    given = {"dry_run": True, "assume": str(nodes), "json": True}
    for trials, left in ((5, 3), (2, 0)):
        assert search(trials, tmp_path, Console(), **given) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["trials"]["left"] == left
        assert (told["assumed"]["makespan_seconds"] > 0) == (left > 0)


def test_a_search_that_runs_takes_no_description_and_a_tuning_has_no_dry_run(
    tmp_path, capsys
) -> None:
    assert search(1, tmp_path, Console(), assume="nodes.yaml") == 2
    assert "--dry-run" in capsys.readouterr().err
    experiment = str(EXAMPLE.parents[1] / "experiments" / "ablate_cutmix.py")
    with pytest.raises(SystemExit) as ended:
        command(["tune", experiment, "--dry-run"])
    assert ended.value.code == 2


@settings(max_examples=40, deadline=None)
@given(graphs(), st.integers(0, 4))
def test_copies_of_a_graph_share_nothing_and_last_as_long(graph, times) -> None:
    stages, seconds = graph
    found, lasts = repeated(stages, seconds, times)
    assert len({s.id for s in found} | seconds.keys()) == len(stages) * (times + 1)
    for index, copy in enumerate(found):
        like = stages[index % len(stages)]
        assert (copy.kind, copy.recipe, lasts[copy.id]) == (
            like.kind,
            like.recipe,
            seconds[like.id],
        )
        own = {s.id for s in found[index - index % len(stages) : index]}
        assert {p.id for p in copy.parents} <= own and len(copy.parents) == len(like.parents)


def test_wrong_uses_of_a_description_are_told_before_anything_is_measured(
    tmp_path, shapes, capsys
) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text(json.dumps({"nodes": [GOOD]}))
    out = Console()
    assert dry_run(tmp_path, shapes, out, assume=str(tmp_path / "none.yaml")) == 2
    assert dry_run(tmp_path, shapes, out, assume=str(nodes), gpus_per_worker=1) == 2
    assert "largest of 1 node has 0 GPUs" in capsys.readouterr().err
    running = Options(preset="smoke", store=str(tmp_path), assume=str(nodes))
    assert main(Study("described", (Arm("det"),)), running, out) == 2
    assert "--dry-run" in capsys.readouterr().err
