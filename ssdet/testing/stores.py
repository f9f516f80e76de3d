"""Contract checks of kinds of stores."""

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssdet.store.base import Store
from ssdet.system.safe_files import LinkError, make_folder, write_bytes, write_json
from ssdet.testing.expect import expect

OpenStore = Callable[[str, str], Store]
"""(name, machine) -> the store of that name, empty at first, as the machine of that name sees it.
It must be picklable: other processes call it as well."""

STAGE = "pretrain-0123456789abcdef"
OTHER = "predict-fedcba9876543210"
LAST = "checkpoints/last.pt"
PATIENCE = 120.0
"""Seconds after which what should happen in another process is taken for lost."""
WEIGHTS = bytes(range(256)) * 1000


def check_store(open_store: OpenStore) -> None:
    """Raise AssertionError unless a kind of store keeps what `ssdet.store.base.Store` promises.

    Machines are called "a" and "b"; a store without mirrors may open the same for both.
    """
    for check in CHECKS:
        check(open_store)


def names_are_checked(open_store: OpenStore) -> None:
    """Names that are no stage's, or lead out of the store, are refused."""
    store = open_store("names", "a")
    for name in ("../../etc", "pretrain-xyz", "", f"{STAGE}/.."):
        for act in (store.folder, store.result, store.begin, store.lock_path):
            _refused(ValueError, partial(act, name), f"{act.__name__} of {name!r}")
    for name in ("..", "a/b", ""):
        for make in (store.table_folder, store.search_folder):
            _refused(ValueError, partial(make, name), f"{make.__name__} of {name!r}")
    for name in ("../x", "/x", "a/../../x"):
        _refused(ValueError, partial(store.write_shared, name, b""), f"file {name!r}")
    _refused(ValueError, lambda: store.publish_files(store.folder(STAGE)), "publishing of a stage")


def a_stage_is_seen_when_it_is_finished(open_store: OpenStore) -> None:
    """Not before; then with its result and all of its files, on every machine."""
    a, b = open_store("finished", "a"), open_store("finished", "b")
    with a.lock(STAGE):
        _write_stage(a.begin(STAGE), WEIGHTS)
        for store in (a, b):
            expect(store.result(STAGE) is None, "a stage has a result before it is finished")
        expect(a.retry_finish(STAGE) is None, "retry_finish finishes a stage without a result")
        expect(a.finish(STAGE, {"loss": 0.5}) == {"loss": 0.5}, "finish returns another result")
    for store in (a, b, Store.open(b.uri), pickle.loads(pickle.dumps(b))):
        expect(store.result(STAGE) == {"loss": 0.5}, "the result is another after finish")
        expect(store.exists(), "a store with a finished stage does not exist")
    expect((b.fetch(STAGE, LAST) / LAST).read_bytes() == WEIGHTS, "a fetched file is another")
    expect(b.has_file(STAGE, LAST) and not b.has_file(STAGE, "none"), "has_file is wrong")
    b.refresh()
    expect(b.provenance(STAGE) == {"host": "x"}, "provenance is not there after refresh")
    expect((b.folder(STAGE) / "DONE").is_file(), "no DONE in the folder after refresh")
    elsewhere = b.view_elsewhere()([STAGE, OTHER])
    expect(OTHER not in elsewhere, "view_elsewhere shows a stage that nobody began")
    expect(all(one.finished for one in elsewhere.values()), "view_elsewhere: not finished")


def readers_see_whole_stages(open_store: OpenStore) -> None:
    """While another machine finishes one stage after the other."""
    a, b = open_store("whole", "a"), open_store("whole", "b")
    stages = [f"pretrain-{number:016x}" for number in range(4)]

    def write() -> None:
        for number, stage in enumerate(stages):
            with a.lock(stage):
                _write_stage(a.begin(stage), WEIGHTS[number:])
                a.finish(stage, {"number": number})

    writer = threading.Thread(target=write)
    writer.start()
    for number, stage in enumerate(stages):
        _until(partial(_finished, b, stage), f"{stage} is never finished")
        expect(b.result(stage) == {"number": number}, f"{stage} has another result")
        read = (b.fetch(stage) / LAST).read_bytes()
        expect(read == WEIGHTS[number:], f"{stage} is finished without all of its files")
    writer.join()


def a_stage_is_run_once(open_store: OpenStore) -> None:
    """Of two processes that finish the same stage the first counts for both."""
    context: Any = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_run_stage, args=(open_store, "once", machine, start, answers))
        for machine in "ab"
    ]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=PATIENCE) for _ in workers]
    for worker in workers:
        worker.join()
    ran = [machine for machine, mine, _ in results if mine]
    expect(len(ran) == 1, f"{len(ran)} of two processes ran the same stage: {results}")
    expect(all(result == {"by": ran[0]} for _, _, result in results), f"results: {results}")
    for machine in "ab":
        log = open_store("once", machine).fetch(STAGE, "by.txt") / "by.txt"
        expect(log.read_text() == ran[0], "the files are not those of the result that counts")


def a_second_result_does_not_replace_the_first(open_store: OpenStore) -> None:
    """Two machines that both did the work, as after a lost connection, agree on one result."""
    a, b = open_store("second", "a"), open_store("second", "b")
    for store, name in ((a, "a"), (b, "b")):
        _write_stage(store.begin(STAGE), WEIGHTS)
        expect(store.finish(STAGE, {"by": name}) == {"by": "a"}, f"{name}: another result")
    for store in (a, b):
        expect(store.result(STAGE) == {"by": "a"}, "the second result replaces the first")


def a_killed_process_leaves_its_work_and_no_lock(open_store: OpenStore) -> None:
    """On its machine: what it wrote is there, unfinished, and another process may go on."""
    _in_process(_die, open_store, "killed")
    store = open_store("killed", "a")
    expect(not store.busy(STAGE), "the lock of a dead process is held")
    with store.lock(STAGE, wait=False):
        expect(store.result(STAGE) is None, "the stage of a killed process is finished")
        folder = store.begin(STAGE)
        expect((folder / LAST).read_bytes() == WEIGHTS, "the work of a killed process is lost")
        store.finish(STAGE, {})
    expect(open_store("killed", "b").result(STAGE) == {}, "it cannot be finished afterwards")


def locks_exclude_processes_and_machines(open_store: OpenStore) -> None:
    """Of stages, searches and records, whoever asks; they are free when they are given back."""
    context: Any = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    worker = context.Process(target=_hold, args=(open_store, "locks", held, done))
    worker.start()
    expect(held.wait(PATIENCE), "a process does not get locks that are free")
    stores = open_store("locks", "a"), open_store("locks", "b")
    try:
        for store in stores:
            expect(store.busy(STAGE) and not store.busy(OTHER), "busy is wrong")
            expect(store.search_busy("s") and not store.search_busy("t"), "search_busy is wrong")
            for lock in (partial(store.lock, STAGE, wait=False), partial(store.search_lock, "s")):
                _refused(BlockingIOError, partial(_enter, lock()), f"{lock} while held")
            with store.lock(OTHER, wait=False), store.search_lock("t"):
                pass
        entered = [threading.Event() for _ in stores]
        waiting = [
            threading.Thread(target=_enter_all, args=(store, event))
            for store, event in zip(stores, entered, strict=True)
        ]
        for thread in waiting:
            thread.start()
        expect(not entered[0].wait(1) and not entered[1].is_set(), "two hold the recording lock")
    finally:
        done.set()
        worker.join()
    for thread in waiting:
        thread.join(PATIENCE)
    expect(all(event.is_set() for event in entered), "a lock that was given back is not free")
    expect(not any(store.busy(STAGE) or store.search_busy("s") for store in stores), "still busy")


def progress_moves_between_machines(open_store: OpenStore) -> None:
    """A published checkpoint is gone on with elsewhere; a newer one is not replaced."""
    a, b = open_store("progress", "a"), open_store("progress", "b")
    with a.lock(STAGE):
        _write_stage(a.begin(STAGE), b"step 1")
        a.publish_progress(STAGE)
    expect((b.begin(STAGE) / LAST).read_bytes() == b"step 1", "begin brings no checkpoint")
    _write_stage(a.folder(STAGE), b"step 2")
    a.publish_progress(STAGE)
    b.fetch_progress(STAGE)
    expect((b.folder(STAGE) / LAST).read_bytes() == b"step 2", "an older checkpoint stays")
    _write_stage(b.folder(STAGE), b"step 3")
    b.fetch_progress(STAGE)
    expect((b.folder(STAGE) / LAST).read_bytes() == b"step 3", "a newer checkpoint is replaced")
    for store in (a, b):
        store.fetch_progress(STAGE, exactly=True)
    same = (a.folder(STAGE) / LAST).read_bytes() == (b.folder(STAGE) / LAST).read_bytes()
    expect(same, "after fetch_progress(exactly=True) two machines have different checkpoints")
    expect(b.result(STAGE) is None, "a stage with a checkpoint is finished")
    with a.keep_progress_published(STAGE):
        _write_stage(a.folder(STAGE), b"step 4")

        def arrives() -> bool:
            b.fetch_progress(STAGE)
            return (b.folder(STAGE) / LAST).read_bytes() == b"step 4"

        _until(arrives, "a checkpoint that is written meanwhile is not published")
    a.finish(STAGE, {})
    expect((b.fetch(STAGE, LAST) / LAST).read_bytes() == b"step 4", "finished with an older file")


def stages_are_removed_whole(open_store: OpenStore) -> None:
    """Not while a process works on them; then for every machine, with lock, progress and scores."""
    a, b = open_store("removed", "a"), open_store("removed", "b")
    for stage in (STAGE, OTHER):
        _write_stage(a.begin(stage), WEIGHTS)
        a.publish_progress(stage)
    a.finish(STAGE, {})
    b.refresh()
    with a.lock(STAGE):
        for store in (a, b):
            _refused(BlockingIOError, partial(store.remove, STAGE), "removal at work")
    expect(b.result(STAGE) == {}, "a refused removal removes")
    for stage in (STAGE, OTHER):
        b.remove(stage)
        b.refresh()
        a.refresh()
    for store in (a, b):
        expect(store.result(STAGE) is None, "a removed stage has a result")
        expect(not store.folder(STAGE).exists(), "a removed stage has a folder")
        left = store.remote_sizes().keys() & {STAGE, OTHER}
        expect(not left, f"files of {left} are left elsewhere")
        expect(not [*store.root.glob("trash/*")], "the trash is not empty")
        expect(not store.busy(STAGE), "a removed stage is busy")
    folder = a.begin(STAGE)
    expect(a is b or not [*folder.iterdir()], "a removed stage begins with old files")


def records_are_shared(open_store: OpenStore) -> None:
    """Records of studies are listed and read at once, in the folder after refresh, and removed."""
    a, b = open_store("records", "a"), open_store("records", "b")
    name = "studies/s/plan.json"
    for content in (b'{"n": 1}', b'{"number": 2}'):
        with a.recording_lock():
            write_bytes(make_folder(a.studies, "s") / "plan.json", content)
            a.publish_files(a.root / name)
        listed = [path for path in b.list_shared("studies") if path.endswith(".json")]
        expect(listed == [name], f"records {listed}, expected [{name!r}]")
        expect(b.read_shared(name) == content, "a record that is read has another content")
        b.refresh()
        expect((b.root / name).read_bytes() == content, "refresh leaves an older record")
    stamp = b.list_shared("studies")[name]
    expect(stamp.size == len(b'{"number": 2}'), f"the stamp says {stamp.size} bytes")
    b.remove_files(b.root / name)
    a.refresh()
    expect(not (a.root / name).exists() and name not in a.list_shared("studies"), "not removed")
    _refused(FileNotFoundError, lambda: a.read_shared(name), "reading a removed record")


def tables_estimates_and_scores_are_shared(open_store: OpenStore) -> None:
    """What is written beside the stages and published is there on other machines after refresh."""
    a, b = open_store("tables", "a"), open_store("tables", "b")
    expect(a.estimate("abc") is None, "an estimate that nobody kept")
    a.keep_estimate("abc", {"stages": 3})
    write_bytes(a.table_folder("s") / "table.csv", b"1")
    a.publish_files(a.table_folder("s"))
    _write_stage(a.begin(STAGE), WEIGHTS)
    a.finish(STAGE, {})
    with a.lock(STAGE):
        write_json(make_folder(a.folder(STAGE), "scores") / "wap.json", {})
        a.publish_files(a.folder(STAGE) / "scores" / "wap.json")
    b.refresh()
    expect(b.estimate("abc") == {"stages": 3}, "the estimate is another")
    expect((b.table_folder("s") / "table.csv").read_bytes() == b"1", "the table is another")
    expect((b.folder(STAGE) / "scores" / "wap.json").is_file(), "the scores are not there")
    b.remove_files(b.root / "tables" / "s")
    a.refresh()
    expect(not (a.root / "tables" / "s" / "table.csv").exists(), "a removed table is there")
    write_bytes(b.root / "estimates" / "abc.json", b"[1]")
    _refused(ValueError, lambda: b.estimate("abc"), "a damaged estimate")


def small_files_are_seen_at_once(open_store: OpenStore) -> None:
    """`write_shared` replaces; `remove_shared` removes and may be repeated."""
    a, b = open_store("small", "a"), open_store("small", "b")
    for content in (b"1", b"22"):
        a.write_shared("doctor/x", content)
        expect(b.read_shared("doctor/x") == content, "read_shared gives another content")
    for _ in range(2):
        b.remove_shared("doctor/x")
    _refused(FileNotFoundError, lambda: a.read_shared("doctor/x"), "reading a removed file")


def looking_writes_nothing(open_store: OpenStore) -> None:
    """Questions about stages leave the folder as it is."""
    store = open_store("looking", "a")
    with store.lock(STAGE):
        _write_stage(store.begin(STAGE), WEIGHTS)
    store.finish(STAGE, {})
    look = store.view_elsewhere()

    def ask() -> None:
        look([STAGE, OTHER])
        for stage in (STAGE, OTHER):
            store.busy(stage), store.works_here(stage), store.result(stage)
        store.search_busy("s"), store.list_shared("studies"), store.remote_sizes()
        store.remove_unreferenced(0.0, (), dry_run=True)

    ask()  # the first question may give a mirror its name
    before = _listing(store.root)
    ask()
    expect(_listing(store.root) == before, "a question changes files of the store")


def substores_are_apart(open_store: OpenStore) -> None:
    """A store inside of another has its own stages, found again by its URI."""
    store = open_store("outer", "a")
    inner = store.substore("inner")
    _write_stage(inner.begin(STAGE), WEIGHTS)
    inner.finish(STAGE, {"n": 1})
    expect(store.result(STAGE) is None, "a stage of a substore is its parent's as well")
    for again in (store.substore("inner"), Store.open(inner.uri), Store.open(inner)):
        expect(again.result(STAGE) == {"n": 1}, "a substore is not found again")


def damage_is_an_error(open_store: OpenStore) -> None:
    """A result that cannot be read is not taken for a stage that has not run."""
    store = open_store("damage", "a")
    _write_stage(store.begin(STAGE), WEIGHTS)
    store.finish(STAGE, {})
    for content in (b"", b"{", b"[1]", b"null"):
        (store.folder(STAGE) / "DONE").write_bytes(content)
        _refused(ValueError, lambda: store.result(STAGE), f"the result {content!r}")


def links_do_not_lead_out(open_store: OpenStore) -> None:
    """Nothing is written, emptied or removed through a symbolic link in the store's folder."""
    with TemporaryDirectory() as folder:
        for number, place in enumerate(("stages/" + STAGE, f"stages/{STAGE}.lock", "trash",
                                        "tables/s", "studies/s", "searches/s")):  # fmt: skip
            outside = Path(folder) / str(number)
            outside.mkdir()
            (outside / "file").write_text("outside")
            _link_is_refused(open_store(f"link{number}", "a"), place, outside)
            expect([path.name for path in outside.iterdir()] == ["file"], f"{place} leads out")
            expect((outside / "file").read_text() == "outside", f"{place}: a file is overwritten")


def _link_is_refused(store: Store, place: str, outside: Path) -> None:
    """A link at a place of a store is refused by all that writes or removes there."""
    _write_stage(store.begin(OTHER), WEIGHTS)
    link = store.root / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside / "file" if place.endswith(".lock") else outside)
    acts: dict[str, list[Callable[[], object]]] = {
        f"stages/{STAGE}": [lambda: store.begin(STAGE), lambda: store.remove(STAGE),
                            lambda: store.finish(STAGE, {}), lambda: store.discard(link)],
        f"stages/{STAGE}.lock": [lambda: _enter(store.lock(STAGE)), lambda: store.busy(STAGE)],
        "trash": [lambda: store.discard(store.folder(OTHER)), lambda: store.remove(OTHER)],
        "tables/s": [lambda: store.table_folder("s"), lambda: store.remove_files(link),
                     lambda: store.remove_files(link / "file")],
        "studies/s": [lambda: store.remove_files(link), lambda: store.remove_files(link / "file")],
        "searches/s": [lambda: _enter(store.search_lock("s"))],
    }  # fmt: skip
    for act in acts[place]:
        _refused(LinkError, act, f"{place} as a link")
    expect(link.is_symlink(), f"the link {place} is gone")
    expect((store.folder(OTHER) / LAST).read_bytes() == WEIGHTS, f"{place}: a stage is lost")


CHECKS: tuple[Callable[[OpenStore], None], ...] = (
    names_are_checked,
    a_stage_is_seen_when_it_is_finished,
    readers_see_whole_stages,
    a_stage_is_run_once,
    a_second_result_does_not_replace_the_first,
    a_killed_process_leaves_its_work_and_no_lock,
    locks_exclude_processes_and_machines,
    progress_moves_between_machines,
    stages_are_removed_whole,
    records_are_shared,
    tables_estimates_and_scores_are_shared,
    small_files_are_seen_at_once,
    looking_writes_nothing,
    substores_are_apart,
    damage_is_an_error,
    links_do_not_lead_out,
)


def _write_stage(folder: Path, weights: bytes) -> None:
    """Files of a stage, the checkpoint written beside and renamed as trainings do."""
    write_json(folder / "recipe.json", {"kind": "pretrain", "parents": []})
    write_json(folder / "provenance.json", {"host": "x"})
    write_bytes(make_folder(folder, "checkpoints") / "last.pt", weights)


def _run_stage(open_store: OpenStore, name: str, machine: str, start: Any, answers: Any) -> None:
    """Run a stage unless it is finished, as a process of its own."""
    store = open_store(name, machine)
    start.wait(PATIENCE)
    with store.lock(STAGE):
        result, mine = store.result(STAGE), False
        if result is None:
            mine = True
            write_bytes(store.begin(STAGE) / "by.txt", machine.encode())
            result = store.finish(STAGE, {"by": machine})
    answers.put((machine, mine, result))


def _die(open_store: OpenStore, name: str) -> None:
    """Begin a stage and end without any clean-up."""
    store = open_store(name, "a")
    with store.lock(STAGE):
        _write_stage(store.begin(STAGE), WEIGHTS)
        os._exit(0)


def _hold(open_store: OpenStore, name: str, held: Any, done: Any) -> None:
    """Hold one lock of each kind until told."""
    store = open_store(name, "a")
    with store.lock(STAGE), store.search_lock("s"), store.recording_lock():
        held.set()
        done.wait(PATIENCE)


def _in_process(work: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join(PATIENCE)
    expect(process.exitcode == 0, f"{work.__name__} ends with {process.exitcode}")


def _enter(lock: AbstractContextManager[None]) -> None:
    with lock:
        pass


def _enter_all(store: Store, entered: threading.Event) -> None:
    with store.lock(STAGE), store.recording_lock():
        entered.set()


def _refused(error: type[Exception], act: Callable[[], object], what: str) -> None:
    """Expect an error of this type, with a message."""
    try:
        act()
    except error as raised:
        expect(str(raised), f"{what}: {error.__name__} without a message")
        return
    expect(False, f"{what}: no {error.__name__}")


def _finished(store: Store, stage: str) -> bool:
    return store.result(stage) is not None


def _until(holds: Callable[[], bool], message: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        expect(time.monotonic() < end, message)
        time.sleep(0.05)


def _listing(root: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.lstat() for path in root.rglob("*")}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}
