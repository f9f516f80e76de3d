"""Watching tools compared with the store, on the lab's cluster: `make watch-test`, as root.

    python tests/cluster/watching.py                          # needs Debian's prometheus
    python tests/cluster/watching.py --pictures docs/figures  # playwright and chromium as well

Compares the dashboard, Prometheus and `ssdet watch` with the store while a study runs.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from lab import ADDRESSES, ROOT, Lab, check_machine
from playwright.sync_api import Page, sync_playwright
from run import CARRY, DASHBOARD, NODES, bring_up, expect, step, take_down

STUDY = (
    "cd ~/project && python experiments/ablate_cutmix.py --preset smoke --seeds 2 --arms cls view "
    "--pretrain-steps 900 --finetune-steps 300"
)
JOB = "watched"
PROMETHEUS = "http://127.0.0.1:9090"
SERVE = (
    "prometheus --config.file=prometheus.yml --storage.tsdb.path=prometheus "
    "--web.listen-address=127.0.0.1:9090"
)
BOARD = json.loads((ROOT / "clusters" / "grafana.json").read_text())
SILENT = {"GPU memory": "the lab has no GPU"}
"""Panels of the board that cannot show anything here, and why."""
PAGES = {
    "actors": ("Class", "Running", "ablate_cutmix: "),
    "jobs": ("Submission ID", JOB, JOB),
    "cluster": ("", "", "worker2"),
    "metrics": ("", "", "Set up Prometheus and Grafana"),
}
"""Pages of the dashboard that are photographed: a filter and its value, and what must be shown."""
SHOWN = "max by (kind, arm, seed) (ray_ssdet_loss)"
LOSS = f"{PROMETHEUS}/graph?g0.tab=0&g0.range_input=10m&g0.expr={SHOWN}"
ASK_ACTOR = """
import ray, json
ray.init("auto", log_to_driver=False)
actor = ray.get_actor({name!r}, namespace="ssdet")
print(json.dumps(ray.get(actor.get.remote())))
"""
FIRST = "[ ! -e /proc/self/autogroup ] || echo -15 > /proc/self/autogroup; nice -n -15"
"""Those who look are served before those who train: all share this machine's cores."""
Check = Callable[[Lab], str]
"""Says what is not (yet) as it should be, or nothing."""


def get(lab: Lab, words: str) -> Any:
    """JSON that curl fetches on the laptop."""
    return json.loads(expect(lab.run("laptop", f"curl -sS --fail --max-time 30 {words}")))


def dashboard(lab: Lab, path: str) -> Any:
    return get(lab, f'-H "Authorization: Bearer $(cat ~/.ray/lab)" {DASHBOARD}/{path}')


def query(lab: Lab, expression: str) -> list[dict[str, Any]]:
    """The series that Prometheus answers with."""
    asked = quote(f"query={expression}")
    answer = get(lab, f"--data-urlencode {asked} {PROMETHEUS}/api/v1/query")
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def job_state(lab: Lab) -> str:
    listed = {job["submission_id"]: job["status"] for job in dashboard(lab, "api/jobs/")}
    return str(listed[JOB])


def in_store(lab: Lab) -> dict[str, str]:
    """Stages that have begun, by their files alone."""
    found = {}
    for path in (lab.storage / "runs" / "stages").glob("*-*/attempt.json"):
        found[path.parent.name] = "running"
    for path in (lab.storage / "runs" / "stages").glob("*-*/DONE"):
        found[path.parent.name] = "done"
    return found


def host(lab: Lab, stage: str) -> str:
    path = lab.storage / "runs" / "stages" / stage / "attempt.json"
    return str(json.loads(path.read_text())["host"])


def logged(lab: Lab, stage: str) -> list[dict[str, float]]:
    path = lab.storage / "runs" / "stages" / stage / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def look(lab: Lab, name: str) -> dict[str, Any]:
    """What `ssdet watch` says on a machine."""
    command = f"{FIRST} ssdet watch --once --json"
    if name == "laptop":  # which has the project, and no environment of the cluster
        command = f"{FIRST} python -m ssdet.cli watch --once --json --store /mnt/ssdet/runs"
    found: dict[str, Any] = json.loads(expect(lab.run(name, command)))
    return found


def check_watch(lab: Lab) -> str:
    before = in_store(lab)
    with ThreadPoolExecutor(len(ADDRESSES)) as pool:
        looks = dict(zip(ADDRESSES, pool.map(partial(look, lab), ADDRESSES), strict=True))
    if in_store(lab) != before:
        return "stages began or ended during the look"
    for name, now in looks.items():
        begun = {s["id"]: s["state"] for s in now["stages"] if s["state"] != "waiting"}
        if begun != before:
            return f"{name} says {begun}, the store has {before}"
        counts = {state: list(before.values()).count(state) for state in ("done", "running")}
        counts["waiting"] = len(now["stages"]) - len(before)
        if {state: n for state, n in now["counts"].items() if state in counts} != counts:
            return f"{name} counts {now['counts']}, the store has {counts}"
        if said := next(filter(None, map(partial(wrong, lab), now["stages"])), ""):
            return f"{name}: {said}"
    hosts = {stage["host"] for stage in looks["head"]["stages"] if stage["state"] == "running"}
    return "" if len(hosts) > 1 else f"all that runs is on {hosts}"


def wrong(lab: Lab, stage: Mapping[str, Any]) -> str:
    """What is not true of a stage that runs."""
    if stage["state"] != "running":
        return ""
    if stage["host"] != host(lab, stage["id"]):
        return f"{stage['id']} runs on {stage['host']!r}, not {host(lab, stage['id'])!r}"
    if stage["kind"] not in ("pretrain", "finetune"):
        return ""
    shown = {name: stage["figures"].get(name) for name in ("step", "loss")}
    known = [{name: line.get(name) for name in shown} for line in logged(lab, stage["id"])]
    return "" if shown in known else f"{stage['id']} shows {shown}, not one of {known[-3:]}"


def check_actors(lab: Lab) -> str:
    """An actor by the name of each stage that runs, which tells its arm, seed and stage."""
    before, now = in_store(lab), look(lab, "laptop")
    names = {arm["title"]: arm["name"] for arm in now["arms"]}
    expected = {
        f"{now['study']}: {s['kind']} {'+'.join(names[a] for a in s['arms'])} seed {s['seed']}": s
        for s in now["stages"]
        if s["state"] == "running"
    }
    listed = dashboard(lab, "logical/actors?nocache=1")["data"]["actors"].values()
    alive = {a["name"] for a in listed if a["state"] == "ALIVE" and a["name"].startswith("ablate")}
    if in_store(lab) != before or len(expected) < 2:
        return "stages began or ended during the look, or only one runs"
    if alive != expected.keys():
        return f"listed are {sorted(alive)}, expected {sorted(expected)}"
    name, stage = next(iter(expected.items()))
    code, said = lab.run("worker1", f"{FIRST} python -c {quote(ASK_ACTOR.format(name=name))}")
    if code != 0:
        return f"{name} does not answer: {said[-300:]}"
    told = json.loads(said.strip().splitlines()[-1])
    labels = {label: told.get(label) for label in ("study", "kind", "arm", "seed", "stage")}
    good = stage["id"] == labels["stage"] and f"{stage['seed']}" == labels["seed"]
    return "" if good and labels["arm"] in name else f"{name} tells {labels}"


def check_targets(lab: Lab) -> str:
    up = {series["metric"]["instance"].split(":")[0] for series in query(lab, "up == 1")}
    missing = {ADDRESSES[name] for name in NODES} - up
    return f"not scraped: {missing}, only {up}" if missing else ""


def check_gauges(lab: Lab) -> str:
    """Gauges of stages on several nodes, their values those that the stages logged."""
    shown: dict[str, dict[str, float]] = {}
    for name in ("step", "loss"):
        for series in query(lab, f"max by (stage) (ray_ssdet_{name})"):
            shown.setdefault(series["metric"]["stage"], {})[name] = float(series["value"][1])
    hosts = {host(lab, stage) for stage in shown}
    if len(hosts) < 2:
        return f"gauges of stages on {hosts or 'no node'} only"
    for stage, figures in shown.items():
        for name, value in figures.items():
            known = [line[name] for line in logged(lab, stage) if name in line]
            if value not in known:
                return f"{stage}: {name} {value}, not one of {known[-3:]}"
    return ""


def check_panel(expression: str, lab: Lab) -> str:
    """A query of the board, with all values of its variables, as Grafana sends it."""
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert asked, variable
            values = {s["metric"][asked[2]] for s in query(lab, asked[1])}
            escaped = [re.escape(value).replace("\\", "\\\\") for value in sorted(values)]
            expression = expression.replace(f"${variable['name']}", f"({'|'.join(escaped)})")
    return "" if query(lab, expression) else f"no answer to {expression}"


def serve(lab: Lab) -> None:
    """Prometheus on the head; tunnels to it and to the dashboard; the token on the laptop."""
    with step("Prometheus on the head by ray exec, tunnels, the token"):
        send = f"ray rsync-up {lab.cluster} clusters/prometheus.yml '~/prometheus.yml'"
        expect(lab.run("laptop", send))
        lab.start("laptop", f"ray exec --port-forward 9090 {lab.cluster} {quote(SERVE)}")
        lab.start("laptop", f"ray dashboard {lab.cluster}")
        wait = "curl -sS -o /dev/null --retry 60 --retry-delay 1 --retry-all-errors"
        for address in (DASHBOARD, PROMETHEUS):
            expect(lab.run("laptop", f"{wait} {address}"))
        fetch = f"mkdir -p ~/.ray && ray rsync-down {lab.cluster} '~/.ray/auth_token' ~/.ray/lab"
        expect(lab.run("laptop", fetch))


def follow(lab: Lab, checks: Mapping[str, Check]) -> None:
    """Make every check until it is satisfied, while the study runs."""
    submit = f"ray job submit --address {DASHBOARD} --no-wait --submission-id {JOB} --"
    left, complaints = dict(checks), dict[str, str]()
    with step(f"ray job submit: {STUDY}") as notes:
        expect(lab.run("laptop", f"{CARRY}; {submit} bash -c {quote(STUDY)}"))
        began = time.monotonic()
        while (state := job_state(lab)) in ("PENDING", "RUNNING"):
            for title in [*left] if state == "RUNNING" and in_store(lab) else ():
                complaints[title] = left[title](lab)
                if not complaints[title]:
                    del left[title]
                    print(f"  after {time.monotonic() - began:.0f} s: {title}", flush=True)
            time.sleep(1)
        log = dashboard(lab, f"api/jobs/{JOB}/logs")["logs"]
        if state != "SUCCEEDED":
            sys.exit(f"the job: {state}\n{log[-4000:]}")
        if left:
            sys.exit("\n".join(f"never seen: {title}: {complaints.get(title)}" for title in left))
        notes += [f"Jobs: {JOB} RUNNING, then {state}"]
        notes += [line for line in log.splitlines() if " stages in " in line]


def photograph(folder: Path, lab: Lab) -> str:
    """Pictures of the dashboard's pages, once three stages train."""
    if len(query(lab, "max by (stage) (ray_ssdet_loss)")) < len(NODES):
        return "fewer than three stages train"
    with browser(lab) as tab:
        tab.goto(DASHBOARD)
        token = expect(lab.run("laptop", "cat ~/.ray/lab")).strip()
        tab.get_by_placeholder("Enter your authentication token").fill(token)
        with tab.expect_navigation():  # the page loads again, with a cookie
            tab.keyboard.press("Enter")
        for page, (field, typed, awaited) in PAGES.items():
            tab.goto(f"{DASHBOARD}/#/{page}")
            if field:
                tab.get_by_label(field, exact=True).fill(typed)
            tab.get_by_text(awaited).first.wait_for()
            shoot(tab, folder / f"ray-dashboard-{page}.png")
    return ""


def photograph_loss(folder: Path, lab: Lab) -> None:
    with browser(lab) as tab:
        tab.goto(LOSS)
        tab.get_by_text("Remove Panel").or_(tab.get_by_text("Remove Graph")).first.wait_for()
        shoot(tab, folder / "prometheus-loss.png")


def shoot(tab: Page, path: Path) -> None:
    tab.wait_for_timeout(2000)  # for what moves into its place
    tab.screenshot(path=path, full_page=True)


@contextmanager
def browser(lab: Lab) -> Iterator[Page]:
    """A page of a Chromium whose network is the laptop's."""
    inside = lab.folder / "chromium"
    inside.write_text(f'#!/bin/sh\nexec ip netns exec {lab.spaces["laptop"]} chromium "$@"\n')
    inside.chmod(0o755)
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=inside, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": 1400, "height": 300})
        tab.set_default_timeout(120_000)
        yield tab
        opened.close()


def all_checks() -> dict[str, Check]:
    checks: dict[str, Check] = {
        "Prometheus scrapes all nodes": check_targets,
        "gauges of stages on several nodes, as logged": check_gauges,
        "ssdet watch is right on all four machines": check_watch,
        "Actors: one for each stage that runs": check_actors,
    }
    for panel in BOARD["panels"]:
        if panel["title"] not in SILENT:
            [target] = panel["targets"]
            title = f"the board's panel {panel['title']!r} has an answer"
            checks[title] = partial(check_panel, target["expr"])
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, help="folder of pictures to make of the pages")
    folder = parser.parse_args().pictures
    check_machine()
    needed = ["prometheus", *(["chromium"] if folder else [])]
    if missing := [tool for tool in needed if not shutil.which(tool)]:
        sys.exit(f"watching needs packages: apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with Lab() as lab:
        bring_up(lab)
        serve(lab)
        pictures = {"pictures of the dashboard": partial(photograph, folder)} if folder else {}
        follow(lab, pictures | all_checks())
        if folder:
            photograph_loss(folder, lab)
        for title, why in SILENT.items():
            print(f"  not seen: the board's panel {title!r}: {why}")
        take_down(lab)
    print("the dashboard, Prometheus, the board and ssdet watch told what the store holds")


if __name__ == "__main__":
    main()
