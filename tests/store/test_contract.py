"""Every kind of store keeps the contract that additions are tested with."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ssdet import plugins
from ssdet.store.base import Store, register
from ssdet.store.local import LocalStore
from ssdet.system.safe_files import write_json
from ssdet.testing import check_store
from ssdet.testing import stores as contract
from ssdet.testing.stores import CHECKS, OpenStore

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "storage.md"


def open_on(machine_folder: str, uri: str, name: str, machine: str) -> Store:
    """The store `uri`/`name` of a machine with a cache folder of its own."""
    os.environ["SSDET_CACHE"] = f"{machine_folder}/{machine}"
    base, mark, query = uri.partition("?")
    return Store.open(f"{base}/{name}{mark}{query}")


KINDS = ("folder", "mirrored", pytest.param("s3", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=KINDS)
def open_store(request, tmp_path_factory) -> OpenStore:
    root = tmp_path_factory.mktemp("stores")
    here = {"folder": f"{root}/there", "mirrored": f"fsspec+file://{root}/there"}
    uri = here.get(request.param) or request.getfixturevalue("new_bucket")().uri("there")
    return partial(open_on, str(root / "machines"), uri)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_store_keeps_the_contract(
    open_store: OpenStore, check: Callable[[OpenStore], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSDET_CACHE", "")  # restored afterwards: machines have caches of their own
    check(open_store)


class Overwriting(LocalStore):
    """A store in a folder whose last result counts."""

    def finish(self, stage_id, result):
        write_json(self.folder(stage_id) / "DONE", result)
        return dict(result)


class Careless(LocalStore):
    """One that removes what is at work."""

    def remove(self, stage_id):
        self.discard(self.folder(stage_id))


class Following(LocalStore):
    """One that follows links."""

    def begin(self, stage_id):
        self.folder(stage_id).mkdir(exist_ok=True)
        return self.folder(stage_id)


def open_as(kind: type[LocalStore], root: Path, name: str, machine: str) -> Store:
    return kind(Store.open(root / name).root)


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        (Overwriting, "a_second_result_does_not_replace_the_first", "another result"),
        (Careless, "stages_are_removed_whole", "no BlockingIOError"),
        (Following, "links_do_not_lead_out", "no LinkError"),
    ],
)
def test_faults_do_not_pass(tmp_path, kind, check, message) -> None:
    (run,) = [one for one in CHECKS if one.__name__ == check]
    run(partial(open_as, LocalStore, tmp_path / "sound"))
    (tmp_path / "faulty").mkdir()
    with pytest.raises(AssertionError, match=message):
        run(partial(open_as, kind, tmp_path / "faulty"))


def test_a_registered_function_opens_its_scheme(tmp_path) -> None:
    with plugins.restored():

        @register
        def attic(uri: str) -> Store:
            return LocalStore(tmp_path / uri.removeprefix("attic://"))

        assert Store.open("attic://runs").root == tmp_path / "runs"
        assert Store.open("attic://runs").exists()
    with pytest.raises(ValueError, match="attic:// is not supported"):
        Store.open("attic://runs")


def test_check_store_runs_every_check(monkeypatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(contract, "CHECKS", [lambda opened, n=n: ran.append(n) for n in "ab"])
    check_store(lambda name, machine: None)
    assert ran == ["a", "b"]


def test_the_example_of_the_guide_keeps_the_contract(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LAB_MOUNT", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    opening, testing = (block for block in blocks if "lab" in block)
    space: dict[str, Any] = {"__name__": "acme.lab"}
    with plugins.restored():
        exec(compile(opening, str(GUIDE), "exec"), space)
        exec(compile(testing, str(GUIDE), "exec"), space)
        assert callable(space["test_lab"])
        contract.a_stage_is_seen_when_it_is_finished(space["open_lab"])
        assert (tmp_path / "finished" / "stages" / contract.STAGE / "DONE").is_file()
