"""`ssdet results`: list, show, compare, pack and remove what a store holds."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ssdet.cli.conditions import conditions
from ssdet.store.base import STAGE_ID

if TYPE_CHECKING:
    from ssdet.results.cleaning import Removed
    from ssdet.results.queries.results import Results
    from ssdet.store.base import Store

Named = Annotated[str, tyro.conf.Positional]
AsJson = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")]
Where = Annotated[
    str, tyro.conf.arg(help="Folder or file:// URI of the store (SSDET_STORE, else ./runs).")
]
LISTED = 100
"""Runs that `ls` prints by default."""
SHOWN = ("id", "kind", "arms", "seed", "dense_map", "probe_map", "augment", "finished")


def command(arguments: list[str]) -> int:
    """Run one of the subcommands; exit status 0 done, 1 failed, 2 wrong usage."""
    commands: dict[str, Callable[..., None]] = {
        "ls": ls, "show": show, "best": best, "compare": compare, "rescore": rescore,
        "bundle": bundle, "rm": rm, "gc": gc,
    }  # fmt: skip
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments,
            prog="ssdet results",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _store() -> str:
    return os.environ.get("SSDET_STORE", "runs")


def _open(store: str) -> Results:
    from ssdet.results.queries.results import Results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told here in plain lines
        results = Results.open(store or _store())
    if results.index.note:
        print(f"note: {results.index.note}: the index was made again", file=sys.stderr)
    for name, why in results.faults.items():
        print(f"warning: left out {name}: {why}", file=sys.stderr)
    return results


def _existing(store: str) -> Store:
    from ssdet.store.base import Store

    existing = Store.existing(store or _store())
    existing.refresh()
    return existing


def ls(
    study: str = "", limit: int | None = None, store: Where = "", as_json: AsJson = False
) -> None:
    """List finished runs, the last one to finish at the end.

    Args:
        study: Only runs of this study.
        limit: Most runs to list, those that finished last; 0 lists all. By default 100, all with
            --json.
    """
    results = _open(store)
    runs = results.table_of_runs
    found = runs.matching({"studies": study} if study else {})
    found.sort(key=runs["finished"].__getitem__)
    most = (0 if as_json else LISTED) if limit is None else limit
    rows = runs.take(found[-most:]).rows()
    if as_json:
        print("[" + ",\n".join(json.dumps(row) for row in rows) + "]")
        return
    _print_table(SHOWN, [[_cell(name, row[name]) for name in SHOWN] for row in rows])
    studies = sorted({record.name for record in results.index.records.values()})
    more = f"the last {len(rows)} of " if len(rows) < len(found) else ""
    print(f"{more}{len(found)} runs, {len(results.index.finished)} finished stages; studies: "
          f"{', '.join(studies) or 'none'}")  # fmt: skip


def show(name: Named, store: Where = "", as_json: AsJson = False) -> None:
    """Show a run or stage by its id, or a study by its name.

    Args:
        name: Stage id, or name of a study.
    """
    results = _open(store)
    told = _stage(results, name) if STAGE_ID.fullmatch(name) else _study(results, name)
    if as_json:
        _print_json(told)
    else:
        for key, value in told.items():
            _print_entry(key, value)


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
    store: Where = "",
    as_json: AsJson = False,
) -> None:
    """The best run. To choose by the test split is not a rule to report scores with.

    Args:
        metric: dense_map ranks fine-tuned networks, probe_map probes, ensemble_map ensembles; a
            column of `results rescore` fine-tuned networks by it. By default the protocol of the
            study with --where studies=NAME, else dense_map.
        where: Only runs with these values: COLUMN=VALUE.
        split: Split to choose by.
    """
    from ssdet.results.queries.results import METRICS

    results = _open(store)
    if metric and metric not in (known := {**METRICS, **dict.fromkeys(results.metrics)}):
        print(f"error: metric {metric!r}: choose from {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    run = results.best(metric, split, **conditions(where, results.columns))
    told = {**run.row, "folder": str(run.folder)}
    if run.kind != "ensemble":
        with suppress(FileNotFoundError):  # scores outlive weights
            told["checkpoint"] = str(run.checkpoint)
    if as_json:
        _print_json(told)
    else:
        for key, value in told.items():
            _print_entry(key, value)


def compare(
    arm_a: Named,
    arm_b: Named,
    study: str | None = None,
    readout: Literal["finetuned", "probe"] = "finetuned",
    resamples: int = 1000,
    store: Where = "",
    as_json: AsJson = False,
) -> None:
    """Difference of two arms: paired bootstrap over videos and common seeds.

    Args:
        arm_a: The arm to compare with.
        arm_b: The arm whose gain is asked for.
        study: Their study, where several have them.
        readout: Scores to compare.
        resamples: How often videos and seeds are drawn.
    """
    found = _open(store).compare(arm_a, arm_b, study, readout, resamples)
    if as_json:
        _print_json(asdict(found))
        return
    d = found.bootstrap
    print(
        f"{found.arm_b} - {found.arm_a}: {100 * d.difference:+.2f} points "
        f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}], p = {d.p_value:.3g}\n"
        f"{found.arm_a} {100 * found.mean_a:.2f}, {found.arm_b} {100 * found.mean_b:.2f} "
        f"({READ[found.readout]}, {found.protocol}, {found.videos_scored} of "
        f"{found.videos_expected} test videos, seeds {', '.join(map(str, found.seeds))})"
    )


def rescore(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    protocol: tuple[str, ...] = (),
    split: tuple[str, ...] = ("test",),
    store: Where = "",
    as_json: AsJson = False,
) -> None:
    """Score finished runs under further protocols; the numbers become columns of their own.

    Args:
        runs: Ids of runs.
        protocol: Only these protocols; all that apply by default.
        split: Splits to score.
    """
    from ssdet.cli.evaluate import show as show_readings
    from ssdet.evaluation.protocols.registry import to_json
    from ssdet.results.queries.rescore import rescore as score_again

    results, told = _open(store), {}
    if not runs:
        raise ValueError("name the runs to score: see ssdet results ls")
    for run in runs:
        found = score_again(results, run, protocol or None, split)
        told[run] = {name: [to_json(one) for one in of] for name, of in found.readings.items()}
        for name, readings in () if as_json else found.readings.items():
            print(f"{run}, split {name}")
            show_readings(readings, {}, "table")
        for name, why in found.refused.items():
            print(f"{run}: not applicable: {name}: {why}", file=sys.stderr)
    if as_json:
        _print_json(told)


READ = {"finetuned": "fine-tuned", "probe": "linear probe"}


def bundle(study: Named, out: Annotated[Path, tyro.conf.Positional], store: Where = "") -> None:
    """Pack what a study's table follows from into a zip file for `ssdet verify`.

    Args:
        study: Name of the study.
        out: File to write.
    """
    from ssdet.results.proof.bundle import write_bundle

    write_bundle(_open(store), study, out)
    print(f"{out}: {out.stat().st_size:,} bytes; check it with: ssdet verify {out}")


def rm(name: Named, force: bool = False, store: Where = "", as_json: AsJson = False) -> None:
    """Remove a study's records and tables (its stages stay until gc), or one stage.

    Args:
        name: Name of a study, NAME/PLAN for one of its records, or a stage id.
        force: Remove a stage that kept results need.
    """
    from ssdet.results.cleaning import dependents, remove_stage, remove_study

    place = _existing(store)
    if STAGE_ID.fullmatch(name):
        children, studies = dependents(place, name)
        for needing in [*studies, *children]:
            print(f"{name} is needed by {needing}", file=sys.stderr)
        _told(remove_stage(place, name, force), "removed", as_json)
    else:
        _told(remove_study(place, name), "removed", as_json)


def gc(dry_run: bool = False, store: Where = "", as_json: AsJson = False) -> None:
    """Remove stages that no study and no search needs, stale partial files and locks.

    Args:
        dry_run: Only print what would be removed.
    """
    from ssdet.results.cleaning import collect

    done = "would be removed" if dry_run else "removed"
    _told(collect(_existing(store), dry_run), done, as_json)


def _told(removed: Removed, done: str, as_json: bool) -> None:
    if as_json:
        _print_json({**asdict(removed), "bytes": removed.bytes})
        return
    for path, size in removed.sizes.items():
        print(f"{size:>14,}  {path}")
    for name in removed.busy:
        print(f"{name} is being run: left alone")
    print(f"{removed.bytes:,} bytes in {len(removed.sizes)} places {done}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def _print_entry(key: str, value: Any) -> None:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        print(f"{key}:")
        _print_table(tuple(value[0]), [[_cell(k, row[k]) for k in row] for row in value])
    elif isinstance(value, Mapping | list):
        print(f"{key}: {json.dumps(value)}")
    elif value is not None:
        print(f"{key}: {_cell(key, value)}")


def _print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    from ssdet.system.console import plain_console

    table = Table(*names)
    for row in rows:
        table.add_row(*row)
    plain_console(200).print(table)


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
