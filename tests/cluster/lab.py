"""Four simulated machines in namespaces of this one, and a cluster.yaml for them.

Only the parts of a cloud are replaced (provider, keys, image, network storage, downloads); mounts,
environment, token, installation and start commands are those of the project's cluster.yaml.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
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
TOOLS = {
    "curl": "curl",
    "ip": "iproute2",
    "pgrep": "procps",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}
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
# Everything is there already; "no-build-isolation = false" is how pip spells "do not isolate".
PIP = "[install]\nno-index = true\nno-deps = true\nno-build-isolation = false\n"
PREFIX = "ssdet-lab-"
LOCK = Path("/var/tmp/ssdet-lab.lock")
"""Shared by all labs that run on this machine."""
MOUNT_POINTS = (Path("/mnt/ssdet"), Path("/tmp/ray"))
# The newer autoscaler takes the head of a `local` cluster for a worker and starts one too few.
AUTOSCALER = "RAY_UP_enable_autoscaler_v2=0"
STORAGE = "1g"
"""Size of what all machines share."""


class Lab:
    """The four machines; `with Lab() as lab` has them up, and leaves nothing behind."""

    def __init__(self) -> None:
        self.lock = LOCK.open("w")
        with suppress(BlockingIOError):
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep()
        fcntl.flock(self.lock, fcntl.LOCK_SH)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=LOCK.parent))
        self.spaces = {name: f"{self.folder.name}-{name}" for name in ("switch", *ADDRESSES)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cluster = self.folder / "cluster.yaml"
        self.storage = self.folder / "storage"
        self.made = [path for path in MOUNT_POINTS if not path.exists()]

    def __enter__(self) -> "Lab":
        try:
            for path in self.made:
                path.mkdir(parents=True)
            self._write_files()
            self._wire()
            for name in ADDRESSES:
                self._boot(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.processes:
            self.crash(name)
        self._unwire()
        with suppress(BlockingIOError):  # another lab runs: removing a folder ends its mounts there
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self.made:
                with suppress(OSError):  # somebody uses it by now
                    path.rmdir()
        self.lock.close()

    def _unwire(self) -> None:
        for space in self.spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["umount", self.storage], capture_output=True)
        shutil.rmtree(self.folder)

    def run(self, name: str, command: str, seconds: int = 600) -> tuple[int, str]:
        """Exit status (124: out of time) and output of a command in a login shell on a machine."""
        words = self._enter(name, f"timeout --kill-after=5 {seconds} bash -c {quote(command)}")
        # A session of its own has its own share of the cores, as a machine of its own would.
        done = subprocess.run(
            words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True
        )
        return done.returncode, done.stdout

    def crash(self, name: str) -> None:
        """A machine's power fails: all of its processes are gone at once."""
        process = self.processes[name]
        if process.poll() is not None:
            return
        first = Path(f"/proc/{self._first(name)}")
        process.kill()  # the machine's first process goes with it, and then all others
        process.wait()
        while first.exists():
            time.sleep(0.05)

    def reboot(self, name: str) -> None:
        """A machine crashes and comes back with its disk."""
        self.crash(name)
        self._boot(name)

    def replace(self, name: str) -> None:
        """A new machine at the address of one that crashed, its disk empty."""
        self.crash(name)
        shutil.rmtree(self.folder / name)
        self._boot(name)

    def plug(self, name: str, there: bool) -> None:
        """Put a machine's network cable in, or pull it out."""
        call("ip", "-n", self.spaces["switch"], "link", "set", name, "up" if there else "down")

    def start(self, name: str, command: str) -> None:
        """Leave a command running on a machine; it ends with the machine."""
        subprocess.Popen(self._enter(name, command), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)

    def _enter(self, name: str, command: str) -> list[str]:
        path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
        clean = ["env", "-i", "HOME=/srv", path, AUTOSCALER]
        folder = ROOT if name == "laptop" else "/srv"
        login = f"cd {folder}; [ ! -f ~/.ssdet_env ] || . ~/.ssdet_env; {command}"
        return ["nsenter", "--all", f"--target={self._first(name)}", *clean, "bash", "-c", login]

    def _first(self, name: str) -> int:
        """Process id, seen from here, of a machine's first process."""
        parent = self.processes[name].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def _write_files(self) -> None:
        self.storage.mkdir()
        call("mount", "-t", "tmpfs", "-o", f"size={STORAGE}", "tmpfs", str(self.storage))
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
        (self.folder / name / "ready").unlink(missing_ok=True)
        isolate = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc"]
        init = ["bash", str(HERE / "node.sh"), name, str(self.folder)]
        mortal = ["setpriv", "--pdeathsig", "KILL"]  # no machine survives this process
        space = ["ip", "netns", "exec", self.spaces[name]]
        command = [*mortal, *space, "unshare", *isolate, *init]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True
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
        ray = f"{config[start][-1]} {SMALL} --node-ip-address=$(hostname -I | cut -d' ' -f1)"
        # Ray's workers give way to other programs, which here are those of the other machines.
        config[start][-1] = f"export RAY_worker_niceness=0; {ray}"
    return config


def sweep() -> None:
    """Remove what is left of labs whose own process was killed; none may be running."""
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split()
    for space in (name for name in spaces if name.startswith(PREFIX)):
        call("ip", "netns", "del", space)
    for folder in LOCK.parent.glob(f"{PREFIX}*/"):
        subprocess.run(["umount", folder / "storage"], capture_output=True)
        shutil.rmtree(folder)


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _terminated(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clearing up
    sys.exit("terminated")


def check_machine() -> None:
    """Exit with the way out where a lab cannot be; from now on SIGTERM ends one in good order."""
    if os.geteuid() != 0:
        sys.exit("the lab makes network namespaces: run it as root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted(package for tool, package in TOOLS.items() if not shutil.which(tool))
    if missing:
        sys.exit(f"the lab needs packages: apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, _terminated)
