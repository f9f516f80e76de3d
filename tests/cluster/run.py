"""cluster.yaml brought up for real by `ray up`, on one machine: `make cluster-test`, as root.

Four network namespaces stand for a laptop, a head and two workers. What depends on the cloud is
replaced (provider, keys, image, network storage, downloads); the mounts, the environment, the
token, the installation and the start commands are those of the file that users run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ADDRESSES = {
    "laptop": "10.77.0.9",
    "head": "10.77.0.10",
    "worker1": "10.77.0.11",
    "worker2": "10.77.0.12",
}
TOOLS = {"ip": "iproute2", "rsync": "rsync", "ssh": "openssh-client", "sshd": "openssh-server"}
DASHBOARD = "http://127.0.0.1:8265"
SMALL = "--num-cpus=1 --object-store-memory=100000000 --memory=2000000000"

SSHD = """HostKey {lab}/host_key
AuthorizedKeysFile {lab}/key.pub
StrictModes no
PasswordAuthentication no
UsePAM no
PidFile none
MaxSessions 100
MaxStartups 100
"""
PIP = "[install]\nno-index = true\nno-deps = true\nno-build-isolation = false\n"


class Lab:
    """The four machines; `with Lab() as lab` has them up, and leaves nothing behind."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ssdet-lab-", dir="/var/tmp"))
        self.spaces = {name: f"{self.folder.name}-{name}" for name in ("switch", *ADDRESSES)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cluster = self.folder / "cluster.yaml"

    def __enter__(self) -> "Lab":
        try:
            self._write_files()
            self._wire()
            for name in ADDRESSES:
                self._boot(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name, process in self.processes.items():
            if process.poll() is None:
                first = Path(f"/proc/{self._first(name)}")
                process.kill()  # the machine's first process goes with it, and then all others
                process.wait()
                while first.exists():
                    time.sleep(0.05)
        for space in self.spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        shutil.rmtree(self.folder)

    def run(self, name: str, command: str, seconds: int = 300) -> tuple[int, str]:
        """Exit status (124: out of time) and output of a command in a login shell on a machine."""
        words = self._enter(name, f"timeout --kill-after=5 {seconds} bash -c {quote(command)}")
        done = subprocess.run(words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True)
        return done.returncode, done.stdout

    def start(self, name: str, command: str) -> None:
        """Leave a command running on a machine; it ends with the machine."""
        subprocess.Popen(self._enter(name, command), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)

    def _enter(self, name: str, command: str) -> list[str]:
        path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
        clean = ["env", "-i", "HOME=/srv", path, "RAY_UP_enable_autoscaler_v2=0"]
        folder = ROOT if name == "laptop" else "/srv"
        login = f"cd {folder}; [ ! -f ~/.ssdet_env ] || . ~/.ssdet_env; {command}"
        return ["nsenter", "--all", f"--target={self._first(name)}", *clean, "bash", "-c", login]

    def _first(self, name: str) -> int:
        """Process id, seen from here, of a machine's first process."""
        parent = self.processes[name].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def _write_files(self) -> None:
        (self.folder / "storage").mkdir()
        (self.folder / "sshd_config").write_text(SSHD.format(lab=self.folder))
        (self.folder / "pip.conf").write_text(PIP)
        known = {"localhost": "127.0.0.1"} | ADDRESSES
        (self.folder / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in known.items()))
        for key in ("key", "host_key"):
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        config = lab_config((ROOT / "cluster.yaml").read_text(), self.folder / "key")
        self.cluster.write_text(yaml.safe_dump(config))

    def _wire(self) -> None:
        switch = self.spaces["switch"]
        for space in self.spaces.values():
            call("ip", "netns", "add", space)
            call("ip", "-n", space, "link", "set", "lo", "up")
        call("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        call("ip", "-n", switch, "link", "set", "bridge", "up")
        for name, address in ADDRESSES.items():
            space = self.spaces[name]
            pair = ["type", "veth", "peer", "name", "eth0", "netns", space]
            call("ip", "-n", switch, "link", "add", name, *pair)
            call("ip", "-n", switch, "link", "set", name, "master", "bridge", "up")
            call("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            call("ip", "-n", space, "link", "set", "eth0", "up")

    def _boot(self, name: str) -> None:
        isolate = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc"]
        init = ["bash", str(HERE / "node.sh"), name, str(self.folder)]
        command = ["ip", "netns", "exec", self.spaces[name], "unshare", *isolate, *init]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        while not (self.folder / name / "ready").exists():
            if self.processes[name].poll() is not None:
                raise RuntimeError((self.folder / f"{name}.log").read_text())
            time.sleep(0.05)


def lab_config(text: str, key: Path) -> dict[str, Any]:
    """cluster.yaml for the lab: only what a cloud would provide is replaced."""
    config: dict[str, Any] = yaml.safe_load(text)
    for section in ("available_node_types", "head_node_type"):
        del config[section]
    workers = [ADDRESSES["worker1"], ADDRESSES["worker2"]]
    config["provider"] = {"type": "local", "head_ip": ADDRESSES["head"], "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    config["min_workers"] = config["max_workers"] = len(workers)
    config["initialization_commands"] = []
    venv = config["setup_commands"].index("python3 -m venv ~/venv")
    config["setup_commands"][venv] = f"bash {HERE}/venv.sh {sys.executable}"
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[start][-1] += f" {SMALL} --node-ip-address=$(hostname -I | cut -d' ' -f1)"
    return config


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


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
        raise SystemExit(f"exit status {code} (expected {status}), expected {part!r} in:\n{said}")
    return said


def check_probe(said: str, driver: str) -> list[str]:
    report = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    hosts = ["head", "worker1", "worker2"]
    assert [visit["host"] for visit in report["visits"]] == hosts, report
    assert report["store"] == [f"seen-{host}" for host in hosts], report
    assert report["driver"] == driver and report["concurrent"] == 3, report
    for visit in report["visits"]:
        assert visit["RAY_AUTH_MODE"] == "token" and visit["OMP_NUM_THREADS"] == "1", visit
        assert visit["ssdet"] == "/srv/project/ssdet/__init__.py", visit
    return [report["summary"], f"ran on {', '.join(hosts)}"]


def bring_up(lab: Lab) -> str:
    """`ray up`; the token that it made, after a look at where it is and where it is not."""
    with step("ray up") as notes:
        said = expect(lab.run("laptop", f"ray up --yes --no-config-cache {lab.cluster}", 600))
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
        for name in ("head", "worker1", "worker2"):
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
        carry = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/lab"
        said = expect(lab.run("laptop", f"{carry}; {submit}"), "succeeded")
        notes += check_probe(said, "head")


def check_refusals(lab: Lab) -> None:
    driver = "python -c 'from ssdet.studies.session import connect as c;c().__enter__();print(1)'"
    driver = f"export RAY_ADDRESS={ADDRESSES['head']}:6379; {driver}"
    with step("a driver on a node, with the token"):
        expect(lab.run("worker1", driver), "1\n")
    for title, change in {
        "without a token": "export RAY_AUTH_MODE=disabled",
        "with another token": "export RAY_AUTH_TOKEN=0123456789abcdef",
    }.items():
        with step(f"the same {title}") as notes:
            code, said = lab.run("worker1", f"{change}; {driver}", seconds=200)
            assert code != 0 and "InvalidAuthToken" in last_line(said), said
            notes.append(last_line(said))
    with step("the dashboard from another machine") as notes:
        code, said = lab.run("laptop", f"curl -sS -m 5 http://{ADDRESSES['head']}:8265")
        assert code == 7, said  # connection refused: nothing listens there
        notes.append(last_line(said))


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1][:160]


def take_down(lab: Lab) -> None:
    with step("ray down"):
        expect(lab.run("laptop", f"ray down --yes {lab.cluster}"))
        expect(lab.run("head", "pgrep -c 'gcs_server|raylet'"), "0", status=1)
    # With fixed addresses `ray down` leaves the workers' Ray to their owners.
    for name in ("worker1", "worker2"):
        expect(lab.run(name, "ray stop"))


def check_machine() -> None:
    if os.geteuid() != 0:
        sys.exit("the lab makes network namespaces: run it as root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted(package for tool, package in TOOLS.items() if not shutil.which(tool))
    if missing:
        sys.exit(f"the lab needs packages: apt-get install {' '.join(missing)}")
    for folder in ("/mnt/ssdet", "/tmp/ray"):
        Path(folder).mkdir(parents=True, exist_ok=True)


def main() -> None:
    check_machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with Lab() as lab:
        token = bring_up(lab)
        check_programs(lab, token)
        check_jobs(lab)
        check_refusals(lab)
        take_down(lab)
    print("the cluster of cluster.yaml came up, worked, refused strangers and went down")


if __name__ == "__main__":
    main()
