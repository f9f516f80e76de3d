"""What `ssdet doctor` says: of this machine, and of one real node of Ray."""

import json
import time
from collections.abc import Callable
from typing import Any

import av
import pytest

from ssdet.cli import doctor as command_line
from ssdet.cli.doctor import command
from ssdet.execution.doctor import checks as doctor
from ssdet.execution.doctor.checks import examine
from ssdet.execution.doctor.findings import Finding
from ssdet.execution.doctor.node import survey


def problems(found: list[Finding]) -> dict[str, Finding]:
    bad = {f.check: f for f in found if not f.ok}
    assert all(f.way_out and f.found for f in bad.values())
    return bad


def test_this_machine_decodes_and_leaves_nothing_in_the_store(tmp_path) -> None:
    found = {f.check: f for f in examine(str(tmp_path / "store"))}
    assert found["video"].ok and found["store"].found == "read and written"
    assert found["av"].found == av.__version__
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize("place", ["file", "bucket"])
def test_a_store_that_cannot_be_written_is_a_problem(tmp_path, bucket, place) -> None:
    (tmp_path / "file").touch()
    gone = bucket.uri().replace(bucket.name, "absent")
    (found,) = [
        f
        for f in examine(str(tmp_path / "file" / "store") if place == "file" else gone)
        if f.check == "store"
    ]
    assert not found.ok and found.way_out


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_node_reads_what_the_driver_wrote_and_the_other_way_round(
    ray_session, tmp_path, bucket, place
) -> None:
    store = str(tmp_path / "store") if place == "folder" else bucket.uri("runs")
    data = tmp_path / "data.csv"
    data.write_text("x")
    found = examine(store, str(data), cluster=True, limit=500)
    nodes = list(dict.fromkeys(f.node for f in found))
    assert nodes[0] == "driver" and len(nodes) == 2
    seen = {f.check: f for f in found if f.node == nodes[1]}
    assert {"clock", "object store", "store", "data", "ssdet"} <= seen.keys()
    assert seen["store"].found == "read and written" and seen["data"].ok
    assert abs(float(seen["clock"].found.split()[0])) < 5
    # Not the digest of the code: it differs where files are edited while the test runs.
    assert not problems([seen[name] for name in ("python", "torch", "ray", "clock", "store")])
    if place == "folder":
        assert not list((tmp_path / "store").iterdir())
    else:
        left = bucket.client().list_objects_v2(Bucket=bucket.name)
        assert not [o for o in left.get("Contents", []) if not o["Key"].endswith("/")]


def test_a_node_with_a_store_of_its_own_is_found_out(ray_session, tmp_path, monkeypatch) -> None:
    """The driver looks into another folder than the node, as where nothing is mounted."""
    here, there = tmp_path / "here", tmp_path / "there"
    ask = doctor._survey_nodes
    monkeypatch.setattr(
        doctor,
        "_survey_nodes",
        lambda nodes, asked, limit: ask(nodes, (str(there), *asked[1:]), limit),
    )
    bad = problems(examine(str(here), cluster=True, limit=500))
    assert set(bad) == {"store"} and bad["store"].node != "driver"
    assert "same storage" in bad["store"].way_out


def test_what_only_a_node_sees_of_the_store_is_found_out(
    ray_session, tmp_path, monkeypatch
) -> None:
    lost = survey(str(tmp_path), "none", None, 0) | {"store": "node-lost"}
    monkeypatch.setattr(doctor, "_survey_nodes", lambda nodes, *_: {n: {**lost} for n in nodes})
    bad = problems(examine(str(tmp_path), cluster=True, limit=500))
    assert "the driver does not see" in bad["store"].found


@pytest.fixture
def findings(monkeypatch) -> Callable[[list[Finding]], None]:
    """Makes the command find this, without looking."""
    return lambda found: monkeypatch.setattr(doctor, "examine", lambda *_, **__: found)


FINE = Finding("this machine", "memory", "8.0 GB")
BAD = Finding("worker7", "clock", "+99.00 s ± 0.01", False, "set the clocks")


def test_exit_status_and_json_say_whether_all_is_well(findings, capsys) -> None:
    findings([FINE])
    assert command(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    findings([FINE, BAD])
    assert command(["--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False and told["findings"][1]["way_out"] == "set the clocks"


def test_problems_are_told_below_a_table_that_shows_bad_nodes_first(findings, capsys) -> None:
    many = [Finding(f"node{i}", "memory", "8.0 GB") for i in range(20)]
    findings([FINE, *many, BAD])
    assert command([]) == 1
    told = capsys.readouterr().out
    assert "PROBLEM worker7, clock: +99.00 s" in told and "way out: set the clocks" in told
    assert "16 more nodes" in told and "node19" not in told


@pytest.mark.parametrize(
    "arguments",
    [["--cluster"], ["--timeout", "0"], ["--store", "ftp://x/y"], ["--address", "ray://x:1"]],
)
def test_wrong_usage_ends_with_2(arguments, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # other tests use that Ray
    assert command([*(["--store", str(tmp_path)] if "--store" not in arguments else []),
                    *arguments]) == 2  # fmt: skip
    assert "error:" in capsys.readouterr().err


def test_the_command_asks_a_cluster_that_it_joined(ray_session, tmp_path, capsys) -> None:
    status = command(["--address", "local", "--store", str(tmp_path), "--json", "--timeout", "500"])
    told = json.loads(capsys.readouterr().out)
    assert status == (0 if told["ok"] else 1)
    assert {"driver"} < {f["node"] for f in told["findings"]}


def test_a_missing_package_is_a_problem_and_no_traceback(monkeypatch, capsys) -> None:
    def broken(_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'av'")

    monkeypatch.setattr(command_line, "_findings", broken)
    assert command([]) == 1
    assert "way out: pip install" in capsys.readouterr().err


def test_a_node_that_is_too_slow_is_left_alone_after_the_limit(ray_session, monkeypatch) -> None:
    def asleep(*_: Any) -> dict[str, Any]:
        time.sleep(600)
        return {}

    monkeypatch.setattr(doctor, "survey", asleep)
    began = time.monotonic()
    (answer,) = doctor._survey_nodes(doctor._alive(), ("", "", None), 2.0).values()
    assert answer == {"error": "none within 2 s"} and time.monotonic() - began < 300


def test_what_a_node_raises_is_its_answer(ray_session, monkeypatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise ModuleNotFoundError("No module named 'ssdet'")

    monkeypatch.setattr(doctor, "survey", broken)
    (answer,) = doctor._survey_nodes(doctor._alive(), ("", "", None), 500.0).values()
    assert "No module named 'ssdet'" in answer["error"]
