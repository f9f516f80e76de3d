"""What `ssdet doctor` says: made-up machines for each problem, and one real node of Ray."""

import json
import time
from collections.abc import Callable
from typing import Any

import av
import pytest

from ssdet.cli import doctor as command_line
from ssdet.cli.doctor import command
from ssdet.studies import doctor
from ssdet.studies.doctor import Finding, clock_finding, examine, fingerprint, judge

MACHINE: dict[str, Any] = {
    "versions": {"python": "3.11.7", "ssdet": "1 aaaa", "torch": "2.14.1", "av": "18.1.0"},
    "CPUs": 8,
    "GPUs": ["A10G", "A10G"],
    "memory": 32e9,
    "/dev/shm": 8e9,
    "free disk": 90e9,
    "video": "H.264 written and read",
    "store": "read and written",
    "data": "5 entries, 1234",
}
RAY = {"CPU": 8.0, "GPU": 2.0, "object_store_memory": 6e9}


def problems(found: list[Finding]) -> dict[str, Finding]:
    bad = {f.check: f for f in found if not f.ok}
    assert all(f.way_out and f.found for f in bad.values())
    return bad


def of_node(declared: dict[str, float] = RAY, **seen: Any) -> dict[str, Finding]:
    return problems(judge("node", MACHINE | seen, MACHINE, declared))


def test_a_node_like_the_driver_has_no_problem() -> None:
    assert not of_node() and not problems(judge("this machine", MACHINE))
    told = {f.check: f.found for f in judge("node", MACHINE, MACHINE, RAY)}
    assert told["GPUs"] == "2 × A10G" and told["object store"] == "6.0 GB"


@pytest.mark.parametrize(
    ("seen", "check", "found", "way_out"),
    [
        ({"GPUs": ["A10G"]}, "GPUs", "1 × A10G; Ray was told of 2", "nvidia-smi"),
        ({"GPUs": []}, "GPUs", "none; Ray was told of 2", "--num-gpus"),
        ({"GPUs": {"error": "CUDA error: out of memory"}}, "GPUs", "CUDA error", "nvidia-smi"),
        ({"memory": 1e9}, "memory", "1.0 GB, 2 GB are needed", "with more"),
        ({"/dev/shm": 64e6}, "/dev/shm", "0.1 GB", "--shm-size"),
        ({"free disk": 1e9}, "free disk", "1.0 GB, 5 GB", "SSDET_CACHE"),
        ({"free disk": {"error": "PermissionError: /x"}}, "free disk", "Permission", "SSDET_CACHE"),
        ({"video": {"error": "ValueError: off by 90"}}, "video", "off by 90", "PyAV"),
        ({"store": {"error": "FileNotFoundError: x"}}, "store", "FileNotFound", "same storage"),
        ({"store": {"error": "PermissionError: x"}}, "store", "Permission", "read and write"),
        ({"data": {"error": "FileNotFoundError: x"}}, "data", "FileNotFound", "same storage"),
        ({"data": "4 entries, 99"}, "data", "driver sees 5 entries, 1234", "same storage"),
    ],
)
def test_each_problem_of_a_node_is_told_with_its_way_out(seen, check, found, way_out) -> None:
    bad = of_node(**seen)
    assert check in bad and set(bad) <= {check, "object store"}
    assert found in bad[check].found and way_out in bad[check].way_out


@pytest.mark.parametrize("name", sorted(MACHINE["versions"]))
def test_versions_must_be_the_drivers(name) -> None:
    other = MACHINE["versions"] | {name: "0.0.1"}
    bad = of_node(versions=other)
    assert set(bad) == {name} and bad[name].found == "0.0.1"
    assert MACHINE["versions"][name] in bad[name].way_out


def test_an_object_store_larger_than_shared_memory_lies_on_disk() -> None:
    bad = of_node(RAY | {"object_store_memory": 9e9})
    assert set(bad) == {"object store"} and "/dev/shm 8.0 GB" in bad["object store"].found


def test_more_gpus_than_ray_uses_are_no_problem() -> None:
    assert not of_node(RAY | {"GPU": 1.0})


def test_a_node_that_does_not_answer_is_one_problem() -> None:
    (found,) = judge("node", {"error": "none within 60 s"}, MACHINE, RAY)
    assert (found.check, found.ok) == ("answer", False) and "ray status" in found.way_out


@pytest.mark.parametrize(
    ("samples", "fine", "told"),
    [
        ([(100.0, 100.5, 101.0)], True, "+0.00 s ± 0.50"),
        # 30 s ahead, seen best on the quickest round trip
        ([(100.0, 140.0, 120.0), (200.0, 230.1, 200.2)], False, "+30.00 s ± 0.10"),
        ([(100.0, 88.0, 100.2)], False, "-12.10 s ± 0.10"),
        # 15 s behind in a round trip of 20 s: perhaps only 5 s
        ([(100.0, 95.0, 120.0)], True, "-15.00 s ± 10.00"),
    ],
)
def test_clocks_are_compared_less_the_round_trip(samples, fine, told) -> None:
    found = clock_finding("node", samples)
    assert (found.ok, found.found) == (fine, told)
    assert fine or "NTP" in found.way_out


def test_data_is_the_same_where_names_and_content_are(tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.csv").write_text("1")
        (folder / "b.csv").write_text("2")
    assert fingerprint(str(one)) == fingerprint(str(two))
    assert fingerprint(str(one / "a.csv")) != fingerprint(str(one / "b.csv"))
    (two / "a.csv").write_text("3")
    assert fingerprint(str(one)) != fingerprint(str(two))
    (one / "c.csv").touch()
    assert "3 entries" in fingerprint(str(one))
    with pytest.raises(FileNotFoundError):
        fingerprint(str(tmp_path / "three"))


def test_this_machine_decodes_and_leaves_nothing_in_the_store(tmp_path) -> None:
    found = {f.check: f for f in examine(str(tmp_path / "store"))}
    assert found["video"].ok and found["store"].found == "read and written"
    assert found["av"].found == av.__version__
    assert not list((tmp_path / "store").iterdir())


def test_a_decoder_that_shows_other_pictures_is_found_out(monkeypatch) -> None:
    from ssdet.data import video

    read = video.read_clip
    monkeypatch.setattr(video, "read_clip", lambda *_: 255 - read(*_))
    with pytest.raises(ValueError, match="off by"):
        doctor.decode()


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
    ask = doctor._ask
    monkeypatch.setattr(
        doctor, "_ask", lambda nodes, asked, limit: ask(nodes, (str(there), *asked[1:]), limit)
    )
    bad = problems(examine(str(here), cluster=True, limit=500))
    assert set(bad) == {"store"} and bad["store"].node != "driver"
    assert "same storage" in bad["store"].way_out


def test_what_only_a_node_sees_of_the_store_is_found_out(
    ray_session, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(
        doctor, "_ask", lambda nodes, *_: {n: MACHINE | {"store": "node-lost"} for n in nodes}
    )
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

    monkeypatch.setattr(command_line, "_found", broken)
    assert command([]) == 1
    assert "way out: pip install" in capsys.readouterr().err


def test_a_node_that_is_too_slow_is_left_alone_after_the_limit(ray_session, monkeypatch) -> None:
    def asleep(*_: Any) -> dict[str, Any]:
        time.sleep(600)
        return {}

    monkeypatch.setattr(doctor, "survey", asleep)
    began = time.monotonic()
    (answer,) = doctor._ask(doctor._alive(), ("", "", None), 2.0).values()
    assert answer == {"error": "none within 2 s"} and time.monotonic() - began < 300


def test_what_a_node_raises_is_its_answer(ray_session, monkeypatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise ModuleNotFoundError("No module named 'ssdet'")

    monkeypatch.setattr(doctor, "survey", broken)
    (answer,) = doctor._ask(doctor._alive(), ("", "", None), 500.0).values()
    assert "No module named 'ssdet'" in answer["error"]
