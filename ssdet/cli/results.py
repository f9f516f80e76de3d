"""`ssdet results`: list, show, compare, pack and remove results in a store."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ssdet.cli import shared
from ssdet.plugins import UsageError
from ssdet.store.base import STAGE_ID

if TYPE_CHECKING:
    from ssdet.results.cleaning import Removed
    from ssdet.results.queries.results import Results
    from ssdet.store.base import Store

LISTED = 100
"""Runs that `ls` prints by default."""
SHOWN = ("id", "kind", "arms", "seed", "dense_map", "probe_map", "augment", "finished")
READOUTS = {"finetuned": "fine-tuned", "probe": "linear probe"}


@shared.report_errors()
def command(arguments: list[str]) -> int:
    """Run one of the subcommands; return the exit status."""
    commands = {
        "ls": ls, "show": show, "best": best, "compare": compare, "rescore": rescore,
        "bundle": bundle, "rm": rm, "gc": gc,
    }  # fmt: skip
    return shared.run_subcommand(commands, arguments, "ssdet results", __doc__)


def _open(store: str) -> Results:
    from ssdet.results.queries.results import Results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # printed below as plain lines
        results = Results.open(store or shared.default_store())
    if results.index.note:
        shared.note(f"note: {results.index.note}: the index was made again")
    for name, reason in results.faults.items():
        shared.note(f"warning: left out {name}: {reason}")
    return results


def _existing(store: str) -> Store:
    """The store, with its mirror up to date; the index is not written."""
    from ssdet.store.base import Store

    existing = Store.existing(store or shared.default_store())
    existing.refresh()
    return existing


def ls(
    study: str = "",
    limit: int | None = None,
    store: shared.StoreOption = "",
    as_json: shared.AsJson = False,
) -> None:
    """List finished runs, the last one to finish at the end.

    Args:
        study: Only runs of this study.
        limit: Number of runs to list, the last to finish; 0 lists all. By default 100, all with
            --json.
    """
    results = _open(store)
    runs = results.table_of_runs
    matching = runs.matching({"studies": study} if study else {})
    matching.sort(key=runs["finished"].__getitem__)
    if limit is None:
        limit = 0 if as_json else LISTED
    rows = runs.take(matching[-limit:]).rows()
    if as_json:
        print("[" + ",\n".join(json.dumps(row) for row in rows) + "]")
        return
    shared.print_table(SHOWN, [[_cell(name, row[name]) for name in SHOWN] for row in rows])
    studies = sorted({record.name for record in results.index.records.values()})
    last = f"the last {len(rows)} of " if len(rows) < len(matching) else ""
    print(f"{last}{len(matching)} runs, {len(results.index.finished)} finished stages; studies: "
          f"{', '.join(studies) or 'none'}")  # fmt: skip


def show(name: shared.Name, store: shared.StoreOption = "", as_json: shared.AsJson = False) -> None:
    """Show a run or stage by its id, or a study by its name.

    Args:
        name: Stage id, or name of a study.
    """
    results = _open(store)
    values = _stage(results, name) if STAGE_ID.fullmatch(name) else _study(results, name)
    _print_values(values, as_json)


def _stage(results: Results, name: str) -> dict[str, Any]:
    folder = results.store.folder(name)
    if name not in results.stages:
        state = "not finished" if folder.is_dir() else "not there"
        raise ValueError(f"stage {name} is {state} in {results.store.root}")
    from ssdet.results.cleaning import dependents

    children, studies = dependents(results.store, name)
    runs = results.table_of_runs
    path = folder / "provenance.json"
    return {
        **(runs.row(name) if name in runs.places else {"id": name}),
        **results.identity(name),
        "result": results.store.result(name),
        "provenance": json.loads(path.read_bytes()) if path.is_file() else None,
        "needed by": [*studies, *children],
        "folder": str(folder),
    }


def _study(results: Results, name: str) -> dict[str, Any]:
    record = results.record(name)
    tables = results.store.root / "tables" / name
    finished = results.table_of_runs
    places = [finished.places[r.predict] for r in record.runs if r.predict in finished.places]
    scores = {row["id"]: row for row in finished.take(places).rows()}
    runs = [
        {"arm": run.arm, "seed": run.seed, "id": run.predict,
         **{key: scores.get(run.predict, {}).get(key) for key in ("dense_map", "probe_map")}}
        for run in record.runs
    ]  # fmt: skip
    return {
        "study": name,
        "plan": record.digest,
        "written": _time(record.written),
        **{key: value for key, value in record.study.items() if key != "name"},
        "stages": f"{len(results.stages & record.stages.keys())} of {len(record.stages)} finished",
        "tables": str(tables) if tables.is_dir() else None,
        "runs": runs,
    }


def best(
    metric: Annotated[str, tyro.conf.Positional] = "",
    where: tuple[str, ...] = (),
    split: Literal["test", "val"] = "test",
    store: shared.StoreOption = "",
    as_json: shared.AsJson = False,
) -> None:
    """Print the best run. Scores of a run that was chosen on the test split are optimistic.

    Args:
        metric: dense_map ranks fine-tuned networks, probe_map probes, ensemble_map ensembles;
            columns of `results rescore` rank fine-tuned networks. By default the protocol of the
            study with --where studies=NAME, else dense_map.
        where: Only runs with these values: COLUMN=VALUE.
        split: Split to choose by.
    """
    from ssdet.results.queries.results import METRICS

    results = _open(store)
    if metric and metric not in (metrics := {**METRICS, **dict.fromkeys(results.metrics)}):
        raise UsageError(f"metric {metric!r}: choose from {', '.join(metrics)}")
    run = results.best(metric, split, **shared.parse_values(where, results.columns))
    values = {**run.row, "folder": str(run.folder)}
    if run.kind != "ensemble":
        with suppress(FileNotFoundError):  # scores outlive weights
            values["checkpoint"] = str(run.checkpoint)
    _print_values(values, as_json)


def compare(
    arm_a: shared.Name,
    arm_b: shared.Name,
    study: str | None = None,
    readout: Literal["finetuned", "probe"] = "finetuned",
    resamples: int = 1000,
    store: shared.StoreOption = "",
    as_json: shared.AsJson = False,
) -> None:
    """Print the difference of two arms: paired bootstrap over videos and common seeds.

    Args:
        arm_a: The arm to compare with.
        arm_b: The arm whose gain is printed.
        study: Their study, if several studies have them.
        readout: Scores to compare.
        resamples: Bootstrap resamples of videos and seeds.
    """
    result = _open(store).compare(arm_a, arm_b, study, readout, resamples)
    if as_json:
        shared.print_json(asdict(result))
        return
    d = result.bootstrap
    print(
        f"{result.arm_b} - {result.arm_a}: {100 * d.difference:+.2f} points "
        f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}], p = {d.p_value:.3g}\n"
        f"{result.arm_a} {100 * result.mean_a:.2f}, {result.arm_b} {100 * result.mean_b:.2f} "
        f"({READOUTS[result.readout]}, {result.protocol}, {result.videos_scored} of "
        f"{result.videos_expected} test videos, seeds {', '.join(map(str, result.seeds))})"
    )


def rescore(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    protocol: tuple[str, ...] = (),
    split: tuple[str, ...] = ("test",),
    store: shared.StoreOption = "",
    as_json: shared.AsJson = False,
) -> None:
    """Score finished runs under further protocols, each a new column of the runs.

    Args:
        runs: Ids of runs.
        protocol: Only these protocols; all that apply by default.
        split: Splits to score.
    """
    from ssdet.cli.evaluate import show as show_readings
    from ssdet.evaluation.protocols.registry import to_json
    from ssdet.results.queries.rescore import rescore as score_again

    results, values = _open(store), {}
    if not runs:
        raise ValueError("name the runs to score: see ssdet results ls")
    for run in runs:
        scores = score_again(results, run, protocol or None, split)
        values[run] = {name: [*map(to_json, scores.readings[name])] for name in scores.readings}
        for name, readings in () if as_json else scores.readings.items():
            print(f"{run}, split {name}")
            show_readings(readings, {}, "table")
        for name, reason in scores.refused.items():
            shared.note(f"{run}: not applicable: {name}: {reason}")
    if as_json:
        shared.print_json(values)


def bundle(
    study: shared.Name, out: Annotated[Path, tyro.conf.Positional], store: shared.StoreOption = ""
) -> None:
    """Pack the predictions and labels of a study's table into a zip file for `ssdet verify`.

    Args:
        study: Name of the study.
        out: File to write.
    """
    from ssdet.results.proof.bundle import write_bundle

    write_bundle(_open(store), study, out)
    print(f"{out}: {out.stat().st_size:,} bytes; check it with: ssdet verify {out}")


def rm(
    name: shared.Name,
    force: bool = False,
    store: shared.StoreOption = "",
    as_json: shared.AsJson = False,
) -> None:
    """Remove a study's records and tables (its stages stay until gc), or one stage.

    Args:
        name: Name of a study, NAME/PLAN for one of its records, or a stage id.
        force: Remove a stage although other results need it.
    """
    from ssdet.results.cleaning import dependents, remove_stage, remove_study

    opened = _existing(store)
    if STAGE_ID.fullmatch(name):
        children, studies = dependents(opened, name)
        for user in [*studies, *children]:
            shared.note(f"{name} is needed by {user}")
        removed = remove_stage(opened, name, force)
    else:
        removed = remove_study(opened, name)
    _print_removed(removed, "removed", as_json)


def gc(
    dry_run: bool = False, store: shared.StoreOption = "", as_json: shared.AsJson = False
) -> None:
    """Remove stages that no study and no search needs, stale partial files and locks.

    Args:
        dry_run: Only print what would be removed.
    """
    from ssdet.results.cleaning import collect

    done = "would be removed" if dry_run else "removed"
    _print_removed(collect(_existing(store), dry_run), done, as_json)


def _print_removed(removed: Removed, done: str, as_json: bool) -> None:
    if as_json:
        shared.print_json({**asdict(removed), "bytes": removed.bytes})
        return
    for path, size in removed.sizes.items():
        print(f"{size:>14,}  {path}")
    for name in removed.busy:
        print(f"{name} is being run: left alone")
    print(f"{removed.bytes:,} bytes in {len(removed.sizes)} places {done}")


def _print_values(values: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        shared.print_json(values)
        return
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{key}:")
            shared.print_table(value[0], [[_cell(k, row[k]) for k in row] for row in value])
        elif isinstance(value, Mapping | list):
            print(f"{key}: {json.dumps(value)}")
        elif value is not None:
            print(f"{key}: {_cell(key, value)}")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if "_map" in name:
        return f"{100 * value:.2f}"
    if name == "finished":
        return _time(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
