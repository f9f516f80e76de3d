"""Cleaning a store: a dry run writes nothing, and no symbolic link leads out of the store."""

from pathlib import Path

import pytest

from ssdet.cli.__main__ import main
from ssdet.results.cleaning import collect, remove_stage, remove_study
from ssdet.results.report.writer import write_report
from ssdet.results.tables.render import write_markdown
from ssdet.results.tables.result_table import result_table, write_csv
from ssdet.studies.graph.record import write_record
from ssdet.system.drawing import save
from ssdet.system.safe_files import LinkError

UNNEEDED = "predict-0123456789abcdef"
LOCK = "predict-00000000000000aa.lock"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside of the store, with a file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "keep.json").write_text("{}")
    return folder


def listing(root: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.lstat() for path in [root, *root.rglob("*")]}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def littered(store) -> list[str]:
    """Leave what `gc` removes; the names."""
    (store.folder(UNNEEDED) / "checkpoints").mkdir(parents=True)
    (store.root / "stages" / LOCK).touch()
    (store.root / "trash" / "old").mkdir(parents=True)
    (store.studies / "ablate_cutmix" / "x.json.1.partial").write_text("{")
    return [f"stages/{UNNEEDED}", f"stages/{LOCK}", "trash/old",
            "studies/ablate_cutmix/x.json.1.partial"]  # fmt: skip


def test_a_dry_run_writes_nothing_and_tells_what_gc_removes(finished, capsys) -> None:
    store = finished.store
    names = littered(store)
    before = listing(store.root)
    assert main(["results", "gc", "--dry-run", "--store", str(store.root)]) == 0
    told = capsys.readouterr().out
    assert listing(store.root) == before
    assert [name for name in names if name in told] == names
    assert sorted(collect(store).sizes) == sorted(names)
    assert not any((store.root / name).exists() for name in names)


def test_a_dry_run_leaves_out_what_is_at_work_and_waits_for_searches(finished) -> None:
    store = finished.store
    littered(store)
    with store.lock(UNNEEDED):
        removed = collect(store, dry_run=True)
    assert removed.busy == (UNNEEDED,) and f"stages/{UNNEEDED}" not in removed.sizes
    (store.search_folder("s") / "optuna.db").touch()
    with store.search_lock("s"), pytest.raises(ValueError, match="search 's' is running"):
        collect(store, dry_run=True)


@pytest.mark.parametrize(
    "place",
    ["trash", f"stages/{UNNEEDED}", f"stages/{LOCK}", "ensembles/e", "trash/old",
     f"stages/{UNNEEDED}/DONE.partial", "studies/ablate_cutmix/x.partial"],
)  # fmt: skip
def test_gc_stops_at_links(finished, outside, place) -> None:
    store = finished.store
    (outside / "ensemble.json").write_text('{"members": [["predict-0000000000000000", null]]}')
    link = store.root / place
    if place.endswith("DONE.partial"):  # in a stage that is needed
        link = store.folder(finished.id("cls")) / "DONE.partial"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside / "keep.json" if "partial" in place or "lock" in place else outside)
    before = listing(outside)
    with pytest.raises(LinkError, match=f"{link} is a symbolic link to {outside}.*Remove the link"):
        collect(store)
    assert listing(outside) == before and link.is_symlink()


def test_rm_stops_at_links(finished, outside, capsys) -> None:
    store, stage = finished.store, finished.id("cls")
    moved = outside / "stage"
    store.folder(stage).rename(moved)
    store.folder(stage).symlink_to(moved)
    (store.root / "tables").mkdir()
    (store.root / "tables" / "ablate_cutmix").symlink_to(outside)
    before = listing(outside)
    with pytest.raises(LinkError, match=f"stages/{stage} is a symbolic link"):
        remove_stage(store, stage, force=True)
    assert main(["results", "rm", "ablate_cutmix", "--store", str(store.root)]) == 1
    assert "tables/ablate_cutmix is a symbolic link" in capsys.readouterr().err
    assert listing(outside) == before and [*(store.studies / "ablate_cutmix").glob("*.json")]


def test_records_are_neither_written_nor_removed_through_a_link(finished, outside) -> None:
    store = finished.store
    folder = store.studies / "ablate_cutmix"
    records = outside / "records"
    folder.rename(records)
    folder.symlink_to(records)
    before = listing(outside)
    with pytest.raises(LinkError, match="studies/ablate_cutmix is a symbolic link"):
        remove_study(store, "ablate_cutmix")
    with pytest.raises(LinkError, match="studies/ablate_cutmix is a symbolic link"):
        write_record(store, finished.plan)
    assert listing(outside) == before


def test_tables_and_reports_are_not_written_through_links(finished, outside, tmp_path) -> None:
    from matplotlib.figure import Figure

    store = finished.store
    table = result_table(finished.plan, store, resamples=20)
    writers = {
        "table.md": lambda path: write_markdown(table, path),
        "table.csv": lambda path: write_csv(table, path),
        "figure.png": lambda path: save(Figure(), path),
        "report.html": lambda path: write_report(finished.plan, store, path, 0, resamples=20),
    }
    before = listing(outside)
    for name, write in writers.items():
        link = store.table_folder("ablate_cutmix") / name
        link.symlink_to(outside / "keep.json")
        with pytest.raises(LinkError, match=f"{link} is a symbolic link"):
            write(link)
        assert listing(outside) == before and link.is_symlink()
        link.unlink()
        write(link)
        assert link.stat().st_size > 0 and not [*link.parent.glob("*.partial")]
