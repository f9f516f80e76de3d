"""`ray up` with cluster.yaml on one machine: `make cluster-test`, as root."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from lab import ADDRESSES, HERE, ROOT, Lab, check_machine

DASHBOARD = "http://127.0.0.1:8265"
NODES = ("head", "worker1", "worker2")
EXPERIMENT = "cd ~/project && python experiments/ablate_cutmix.py --preset tiny"
TABLE = "runs/tables/ablate_cutmix/table.csv"
CARRY = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/lab"
"""On the laptop, after `ray rsync-down` of the token to this file."""
LOAD = """
import ssdet
found = ssdet.Detector("best/finetune").detect("clip.mp4")
print(tuple(found.probabilities.shape), len(found.classes))
"""


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Print a title, the seconds that the block took, and the notes it left."""
    print(f"{title} ...", flush=True)
    notes: list[str] = []
    began = time.monotonic()
    yield notes
    print("\n".join([f"  ok, {time.monotonic() - began:.0f} s", *(f"  {note}" for note in notes)]))


def expect(outcome: tuple[int, str], part: str = "", status: int = 0) -> str:
    code, said = outcome
    if code != status or part not in said:
        raise SystemExit(
            f"exit status {code} (expected {status}), expected {part!r} in:\n{said[-3000:]}"
        )
    return said


def check_probe(said: str, driver: str) -> list[str]:
    report = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert [visit["host"] for visit in report["visits"]] == list(NODES), report
    assert report["store"] == [f"seen-{host}" for host in NODES], report
    assert report["driver"] == driver and report["concurrent"] == 3, report
    for visit in report["visits"]:
        assert visit["RAY_AUTH_MODE"] == "token" and visit["OMP_NUM_THREADS"] == "1", visit
        assert visit["ssdet"] == "/srv/project/ssdet/__init__.py", visit
    return [report["summary"], f"ran on {', '.join(NODES)}"]


def bring_up(lab: Lab) -> str:
    """`ray up`; the token that it made, after a look at where it is and where it is not."""
    with step("ray up") as notes:
        said = expect(lab.run("laptop", f"ray up --yes --no-config-cache {lab.cluster}"))
        token = expect(lab.run("head", "cat ~/.ray/auth_token")).strip()
        assert token and token not in said + lab.cluster.read_text()
        assert token not in expect(lab.run("head", "cat ~/ray_bootstrap_config.yaml"))
        notes.append("the token is not in the output, nor in any cluster file")
    return token


def check_programs(lab: Lab, token: str) -> None:
    with step("ray submit: connect() on the head, a task on every node") as notes:
        said = expect(lab.run("laptop", f"ray submit {lab.cluster} {HERE}/probe.py"))
        notes += check_probe(said, "head")
    with step("the token on the nodes"):
        for name in NODES:
            expect(lab.run(name, "stat -c %a ~/.ray/auth_token; cat ~/.ray/auth_token"), "600\n")
            expect(lab.run(name, "cat ~/.ray/auth_token"), token)


def check_jobs(lab: Lab) -> None:
    lab.start("laptop", f"ray dashboard {lab.cluster}")
    with step("ray dashboard, token by ray rsync-down"):
        wait = "curl -sS -o /dev/null --retry 60 --retry-delay 1 --retry-connrefused"
        expect(lab.run("laptop", f"{wait} {DASHBOARD}"))
        fetch = f"mkdir -p ~/.ray && ray rsync-down {lab.cluster} '~/.ray/auth_token' ~/.ray/lab"
        expect(lab.run("laptop", fetch))
    submit = f"ray job submit --address {DASHBOARD} --working-dir {HERE} -- python probe.py"
    with step("ray job submit without the token") as notes:
        code, said = lab.run("laptop", f"RAY_AUTH_MODE=disabled {submit}")
        assert code != 0 and "authentication" in said.lower(), said
        notes.append(last_line(said))
    with step("ray job submit with it") as notes:
        said = expect(lab.run("laptop", f"{CARRY}; {submit}"), "succeeded")
        notes += check_probe(said, "head")


def check_refusals(lab: Lab) -> None:
    driver = "python -c 'from ssdet.execution.session import connect as c;c().__enter__();print(1)'"
    driver = f"export RAY_ADDRESS={ADDRESSES['head']}:6379; {driver}"
    with step("a driver on a node, with the token"):
        expect(lab.run("worker1", driver), "1\n")
    for title, change in {
        "without a token": "export RAY_AUTH_MODE=disabled",
        "with another token": "export RAY_AUTH_TOKEN=0123456789abcdef",
    }.items():
        with step(f"the same {title}") as notes:
            code, said = lab.run("worker1", f"{change}; {driver}")
            assert code != 0 and "InvalidAuthToken" in last_line(said), said
            notes.append(last_line(said))
    with step("the dashboard from another machine") as notes:
        code, said = lab.run("laptop", f"curl -sS -m 5 http://{ADDRESSES['head']}:8265")
        assert code == 7, said  # connection refused: nothing listens there
        notes.append(last_line(said))


def check_experiment(lab: Lab) -> None:
    """The demonstration as a job; then `ray exec` of the same finds all of it done."""
    hour = 3600
    with step("ray job submit: the demonstration, as a job") as notes:
        submit = f"ray job submit --address {DASHBOARD} -- bash -c {quote(EXPERIMENT)}"
        said = expect(lab.run("laptop", f"{CARRY}; {submit}", hour), "succeeded")
        notes += [line for line in said.splitlines() if " stages in " in line]
        notes.append(hosts(lab))
        table = (lab.storage / TABLE).read_bytes()
        notes += table.decode().splitlines()
    with step("ray exec: the same command, nothing is run again") as notes:
        before = marks(lab)
        said = expect(lab.run("laptop", f"ray exec {lab.cluster} {quote(EXPERIMENT)}", hour))
        assert marks(lab) == before
        assert (lab.storage / TABLE).read_bytes() == table


def check_doctor(lab: Lab) -> None:
    with step("ssdet doctor --cluster: nothing wrong but the lab's small disk") as notes:
        ask = f"ray exec {lab.cluster} 'ssdet doctor --cluster'"
        said = expect(lab.run("laptop", ask), "PROBLEM", status=1)
        problems = [line.strip() for line in said.splitlines() if line.startswith("PROBLEM")]
        named = [line.split(",")[0].split()[1] for line in problems]
        assert sorted(named) == ["driver", *NODES], said
        assert all("free disk" in line for line in problems), problems
        notes += problems


def hosts(lab: Lab) -> str:
    """Stages by the machine that finished them; asserts that they were spread."""
    written = lab.storage.glob("runs/stages/*/provenance.json")
    found = [json.loads(path.read_text())["host"] for path in written]
    assert len(set(found)) == len(NODES), found
    return ", ".join(f"{found.count(node)} stages on {node}" for node in NODES)


def marks(lab: Lab) -> dict[str, int]:
    """When each stage was done."""
    return {str(path): path.stat().st_mtime_ns for path in lab.storage.glob("runs/stages/*/DONE")}


def check_best(lab: Lab) -> None:
    """What a laptop without the storage does: ask for the best checkpoint, fetch it, use it."""
    with step("the best checkpoint, from outside") as notes:
        ask = "ssdet results best dense_map --split val --json"
        said = expect(lab.run("laptop", f"ray exec {lab.cluster} {quote(ask)}"))
        best = json.loads(said[said.index("\n{") : said.rindex("}") + 1])
        folder = str(Path(best["checkpoint"]).parents[1])
        fetch = f"mkdir -p ~/best && ray rsync-down {lab.cluster} {folder}/ ~/best/finetune"
        expect(lab.run("laptop", fetch))
        video = next(lab.storage.glob("cache/**/*.mp4"))
        use = f"cd ~ && cp {video} clip.mp4 && PYTHONPATH={ROOT} python -c {quote(LOAD)}"
        said = expect(lab.run("laptop", use))
        notes.append(f"{best['id']}, mAP {best['dense_map_val']:.4f} (validation): {folder}")
        notes.append(f"on the laptop, [frames, classes] and names: {last_line(said)}")


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1][:160]


def take_down(lab: Lab) -> None:
    with step("ray down"):
        expect(lab.run("laptop", f"ray down --yes {lab.cluster}"))
        expect(lab.run("head", "pgrep -c 'gcs_server|raylet'"), "0", status=1)
    # With fixed addresses `ray down` leaves the workers' Ray to their owners.
    for name in NODES[1:]:
        expect(lab.run(name, "ray stop"))


def main() -> None:
    check_machine()
    with Lab() as lab:
        token = bring_up(lab)
        check_programs(lab, token)
        check_jobs(lab)
        check_refusals(lab)
        check_doctor(lab)
        check_experiment(lab)
        check_best(lab)
        take_down(lab)
    print("the cluster of cluster.yaml came up, worked, refused strangers and went down")


if __name__ == "__main__":
    main()
