"""Faults injected into a study on the lab's cluster: `make fault-test`, as root.

    python tests/cluster/faults.py                       # all
    python tests/cluster/faults.py --only driver store   # some

Each fault hits the same study, in a separate store, while it trains. The study must end with the
table of an undisturbed run, byte for byte, with every stage done once. Prints the seconds from the
fault to the next progress of the interrupted stage, and to the end.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from broken import STEPS_OF_THE_DYING
from lab import ADDRESSES, HERE, Lab, check_machine
from run import NODES, bring_up, expect, step

STUDY = (
    "experiments/ablate_cutmix.py --preset tiny --seeds 1 --pretrain-steps 120 --finetune-steps 60 "
    "--arms cls det view"
)
TEAMS = STUDY.replace("cls det view", "cls") + " --workers 2"
PATIENCE = 1200
"""Seconds within which anything has to happen."""
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
API = "http://127.0.0.1:8265/api/jobs/"


@dataclass
class Run:
    """A study under way in a store of its own, started by a job on the head."""

    lab: Lab
    name: str
    command: str
    jobs: list[str] = field(default_factory=list)
    ended: dict[str, set[int]] = field(default_factory=dict)
    """Moments at which each stage was seen to be done: more than one, and it was done again."""

    @property
    def store(self) -> Path:
        return self.lab.storage / self.name

    def submit(self) -> str:
        """Start it, or go on: the same command."""
        entry = f"cd ~/project && python {self.command} --store /mnt/ssdet/{self.name}"
        said = self._ask(f"-d {quote(json.dumps({'entrypoint': entry}))}")
        self.jobs.append(json.loads(said)["submission_id"])
        return self.jobs[-1]

    def state(self, job: str = "") -> str:
        return str(json.loads(self._ask("", job or self.jobs[-1]))["status"])

    def log(self, job: str = "") -> str:
        return str(json.loads(self._ask("", f"{job or self.jobs[-1]}/logs"))["logs"])

    def _ask(self, options: str, path: str = "") -> str:
        token = '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
        return expect(self.lab.run("head", f"curl -sS -f --retry 5 {token} {options} {API}{path}"))

    def stages(self) -> dict[str, int]:
        """Steps that each stage has reached; -1 for a finished one."""
        found = {}
        for folder in (self.store / "stages").glob("*-*/"):
            log, done = folder / "metrics.jsonl", folder / "DONE"
            text = log.read_text() if log.exists() else ""
            found[folder.name] = max([0, *(int(n) for n in re.findall(r'"step": (\d+)', text))])
            if done.exists():
                self.ended.setdefault(folder.name, set()).add(done.stat().st_mtime_ns)
                found[folder.name] = -1
        return found

    def host(self, stage: str) -> str:
        path = self.store / "stages" / stage / "attempt.json"
        return str(json.loads(path.read_text())["host"]) if path.exists() else ""

    def half_done(self, hosts: tuple[str, ...] = NODES) -> str:
        """A stage that trains on one of these machines, when there is one, and its steps."""

        def look() -> str:
            trained = (
                name
                for name, steps in self.stages().items()
                if name.startswith("pretrain") and 20 <= steps < 100
            )
            return next((name for name in trained if self.host(name) in hosts), "")

        return self.until(look, f"a stage that trains on {' or '.join(hosts)}")

    def moves_on(self, stages: dict[str, int]) -> float:
        """Seconds until one of these stages has got further than it was."""
        began = time.monotonic()

        def further() -> bool:
            now = self.stages()
            return any(now[n] == -1 or now[n] > steps for n, steps in stages.items())

        self.until(further, f"progress of {', '.join(stages)}")
        return time.monotonic() - began

    def until(self, look: Callable[[], Any], what: str) -> Any:
        """What `look` returns as soon as it is true; exits with the log where it never is."""
        deadline = time.monotonic() + PATIENCE
        while not (found := look()):
            if time.monotonic() > deadline:
                sys.exit(f"{self.name}: waited for {what} in vain\n{self.log()[-4000:]}")
            time.sleep(0.5)
        return found

    def end(self, expected: str = "SUCCEEDED") -> None:
        """Wait for the end of the last job."""

        def over() -> bool:
            self.stages()
            return self.state() in OVER

        self.until(over, "the end")
        if self.state() != expected:
            sys.exit(f"{self.name}: {self.state()}\n{self.log()[-6000:]}")

    def table(self) -> bytes:
        path = self.store / "tables" / "ablate_cutmix" / "table.csv"
        if not path.exists():
            sys.exit(f"{self.name}: no table\n{self.log()[-4000:]}")
        return path.read_bytes()

    def attempts(self) -> int:
        """Attempts beyond the first, over all stages."""
        found = self.store.glob("stages/*/provenance.json")
        return sum(json.loads(path.read_text())["attempts"] - 1 for path in found)


@dataclass(frozen=True)
class Fault:
    """What happens to a run; `strike` returns the seconds until what it hit had moved on."""

    title: str
    strike: Callable[[Run], float]
    command: str = STUDY


def kill(run: Run, host: str, pattern: str) -> None:
    expect(run.lab.run(host, f"pkill -KILL -f '{pattern}'"))


def strike_driver(run: Run) -> float:
    hit = run.half_done()
    kill(run, "head", f"[e]xperiments/.*{run.name}")
    began = time.monotonic()
    run.until(lambda: run.state() == "FAILED", "the job's failure")
    now = run.stages()  # its trials are gone, too
    run.submit()
    run.moves_on({hit: now[hit]})
    return time.monotonic() - began


def strike_trial(run: Run) -> float:
    hit = run.half_done(("worker1", "worker2"))
    kill(run, run.host(hit), "[r]ay::ImplicitFunc")
    return run.moves_on({hit: run.stages()[hit]})


def strike_worker(run: Run) -> float:
    hit = run.half_done()
    for host in ("worker1", "worker2"):
        if run.lab.run(host, "pkill -KILL -f '[r]ay::.*TrainWorker'")[0] == 0:
            return run.moves_on({hit: run.stages()[hit]})
    raise SystemExit("no Train worker ran on a worker machine")


def strike_cable(run: Run, seconds: float) -> float:
    hit = run.half_done(("worker1",))
    run.lab.plug("worker1", there=False)
    time.sleep(seconds)
    run.lab.plug("worker1", there=True)
    moved = run.moves_on({hit: run.stages()[hit]})
    nodes_back(run)
    return moved


def strike_machine(run: Run) -> float:
    hit = run.half_done(("worker1",))
    run.lab.crash("worker1")
    moved = run.moves_on({hit: run.stages()[hit]})
    run.lab.replace("worker1")
    ray_up(run.lab, "--no-restart")
    nodes_back(run)
    return moved


def strike_notice(run: Run) -> float:
    """As a spot machine goes: told so, it has half a minute; then it is gone, and another comes."""
    hit = run.half_done(("worker1",))
    drain = "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot"
    drain += f" --deadline-remaining-seconds 30 --address {ADDRESSES['head']}:6379"
    expect(run.lab.run("worker1", drain))
    began, now = time.monotonic(), run.stages()
    run.until(lambda: run.host(hit) != "worker1", f"another machine to go on with {hit}")
    left = json.loads((run.store / "stages" / hit / "attempt.json").read_text())
    moved = time.monotonic() - began + run.moves_on({hit: now[hit]})
    print(f"  left at step {now[hit]} or later, went on as attempt {left['number']}")
    time.sleep(max(0.0, 30 - (time.monotonic() - began)))
    run.lab.crash("worker1")
    run.lab.replace("worker1")
    ray_up(run.lab, "--no-restart")
    nodes_back(run)
    return moved


def strike_head(run: Run, new: bool) -> float:
    hit = run.half_done()
    if new:
        run.lab.replace("head")
    else:
        run.lab.reboot("head")
    began, now = time.monotonic(), run.stages()
    if new:  # the launcher believes that the machine has all that it gave the old one
        expect(run.lab.run("laptop", f"ray down --yes {run.lab.cluster}"))
    ray_up(run.lab)
    nodes_back(run)
    run.submit()
    run.moves_on({hit: now[hit]})
    return time.monotonic() - began


def strike_store(run: Run) -> float:
    hit = run.half_done()
    fill = run.lab.storage / "filling"
    with open(fill, "wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    run.until(lambda: run.state() == "FAILED", "the job's failure")
    (said, *_) = (line for line in run.log().splitlines() if line.startswith("FAILED"))
    print(f"  {said}")
    assert "No space left on device" in said, run.log()
    fill.unlink()
    began, now = time.monotonic(), run.stages()
    run.submit()
    run.moves_on({hit: now[hit]})
    return time.monotonic() - began


def strike_twice(run: Run) -> float:
    first = run.jobs[-1]
    run.submit()
    run.until(lambda: run.state(first) in OVER, "the end of the first driver")
    if run.state(first) != "SUCCEEDED":
        sys.exit(run.log(first)[-4000:])
    return 0.0


def ray_up(lab: Lab, *options: str) -> None:
    words = " ".join(options)
    expect(lab.run("laptop", f"ray up --yes --no-config-cache {words} {lab.cluster}"))


def nodes_back(run: Run) -> None:
    """Wait until Ray has all nodes again."""
    look = "ray status | awk '/^Active:/{a=1} /^Pending:/{a=0} a{n+=$1} END{print n}'"
    began = time.monotonic()
    run.until(lambda: run.lab.run("head", look)[1].strip() == str(len(NODES)), "three nodes")
    print(f"  three nodes again after {time.monotonic() - began:.0f} s")


FAULTS = {
    "driver": Fault("driver killed, job submitted again", strike_driver),
    "trial": Fault("process of a trial killed", strike_trial),
    "worker": Fault("one of two Train workers killed", strike_worker, TEAMS),
    "flicker": Fault("network of a worker down for 10 s", partial(strike_cable, seconds=10)),
    "cable": Fault("network of a worker down for 90 s", partial(strike_cable, seconds=90)),
    "machine": Fault("worker crashed, a new one joined", strike_machine),
    "notice": Fault("notice that a worker goes, a new one joined", strike_notice),
    "head": Fault(
        "head crashed and up again, job submitted again", partial(strike_head, new=False)
    ),
    "newhead": Fault("another machine for the head, job again", partial(strike_head, new=True)),
    "store": Fault("storage full, freed, job submitted again", strike_store),
    "twice": Fault("two drivers at once", strike_twice),
}


def suffer(lab: Lab, name: str, fault: Fault, quiet: Run) -> str:
    """A row of the table."""
    run = Run(lab, name, fault.command)
    with step(fault.title) as notes:
        began = time.monotonic()
        run.submit()
        recovery = fault.strike(run)
        run.end()
        took = time.monotonic() - began
        check(run, quiet)
        notes.append(f"same table, {len(run.ended)} stages, {run.attempts()} begun again")
    return f"| {fault.title} | {recovery:.0f} | {took:.0f} | {run.attempts()} | {len(run.jobs)} |"


def check(run: Run, quiet: Run) -> None:
    done, expected = run.stages(), quiet.stages()
    assert set(done.values()) == {-1}, done
    assert done.keys() == expected.keys(), done.keys() ^ expected.keys()
    again = [name for name, moments in run.ended.items() if len(moments) > 1]
    assert not again, f"done more than once: {again}"
    assert run.table() == quiet.table(), f"{run.table().decode()}\n{quiet.table().decode()}"


def undisturbed(lab: Lab, name: str, command: str) -> Run:
    run = Run(lab, name, command)
    with step(f"undisturbed: {command}") as notes:
        run.submit()
        run.end()
        notes.append(run.table().decode())
    return run


def check_broken(lab: Lab) -> None:
    """Stages that fail always end as such, their errors kept, and the others are done."""
    command = f"{HERE}/broken.py --preset tiny --seeds 1 --pretrain-steps 120 --finetune-steps 30"
    run = Run(lab, "broken", command)
    killed: set[str] = set()
    with step("an arm that diverges, and one whose process is killed every time") as notes:
        run.submit()
        while run.state() not in OVER:
            for path in run.store.glob("stages/pretrain-*/attempt.json"):
                recipe = json.loads((path.parent / "recipe.json").read_text())
                dying = f'"steps": {STEPS_OF_THE_DYING}' in json.dumps(recipe)
                if dying and run.stages()[path.parent.name] > 0 and path.read_text() not in killed:
                    killed.add(path.read_text())
                    kill(run, run.host(path.parent.name), "[r]ay::ImplicitFunc")
            time.sleep(0.5)
        errors = [path.read_text() for path in run.store.glob("stages/*/error.txt")]
        log = run.log()
        assert run.state() == "FAILED" and len(errors) == 2, (run.state(), errors, log[-3000:])
        assert any("loss is nan" in error or "loss is inf" in error for error in errors), errors
        assert any("died again" in error for error in errors), errors
        done = [name for name, steps in run.stages().items() if steps == -1]
        assert len(killed) == 4 and len(done) == 8, (killed, run.stages())
        notes += [line for line in log.splitlines() if "error" in line][-4:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[*FAULTS, "broken"])
    wanted = parser.parse_args().only
    check_machine()
    rows = []
    with Lab() as lab:
        bring_up(lab)
        began = time.monotonic()
        quiet = {STUDY: undisturbed(lab, "quiet", STUDY)}
        rows.append(f"| none | | {time.monotonic() - began:.0f} | 0 | 1 |")
        for name in (name for name in FAULTS if name in wanted):
            fault = FAULTS[name]
            if fault.command not in quiet:
                quiet[fault.command] = undisturbed(lab, f"quiet-{name}", fault.command)
            rows.append(suffer(lab, name, fault, quiet[fault.command]))
            print(rows[-1], flush=True)
        if "broken" in wanted:
            check_broken(lab)
    print(
        "| fault | seconds to progress | to the end | begun again | jobs |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
