"""What is found wrong with made-up machines."""

from typing import Any

import pytest

from ssdet.execution.doctor.findings import Finding, clock_finding, compare

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
    return problems(compare("node", MACHINE | seen, MACHINE, declared))


def test_a_node_like_the_driver_has_no_problem() -> None:
    assert not of_node() and not problems(compare("this machine", MACHINE))
    told = {f.check: f.found for f in compare("node", MACHINE, MACHINE, RAY)}
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
    (found,) = compare("node", {"error": "none within 60 s"}, MACHINE, RAY)
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
