"""A Slurm cluster of several nodes on one machine: real daemons, each node in namespaces of its own.

A node has its own address, host name and process tree, so that killing it is a crash of a node. Nothing outside the
given folder is touched but a network bridge and the nodes' network namespaces, which go with the cluster. Needs root,
and Debian's packages slurmctld, slurmd, slurm-client, munge and iproute2 (installed where they are missing).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "pkill": "procps",
}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def install() -> None:
    """Debian's packages of what is not on the path."""
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=PATH) is None})
    if missing:
        quiet = {
            "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            "check": True,
            "stdout": subprocess.DEVNULL,
        }
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], **quiet)


class Cluster:
    """`nodes` nodes of `cores` declared cores each; `environment` is what a shell that uses it needs."""

    def __init__(self, folder: Path, nodes: int = 2, cores: int = 4) -> None:
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._cores = cores
        self._tag = f"m{os.getpid() % 10000}"
        self._network = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        install()
        for name in ("state", "log", "munge", *(f"spool.{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        self._start_munge()
        self._make_network()
        (self.folder / "slurm.conf").write_text(self._conf())
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self._run(
            "slurmctld", ["unshare", "--uts", "bash", "-c", f"hostname control; exec slurmctld -D -f {self._file}"]
        )
        _wait(lambda: self.ask("scontrol", "ping", check=False).count(" is UP") == 1, "slurmctld")
        for node in self.nodes:
            self.start_node(node)
        _wait(
            lambda: self.ask("sinfo", "-hN", "-p", "main", "-o", "%T").split() == ["idle"] * len(self.nodes),
            "idle nodes",
        )

    def start_node(self, node: str) -> None:
        """Boot a node, or boot it again after `crash`."""
        inside = (
            f"hostname {node}; mount --bind {self.folder}/hosts /etc/hosts; "
            # No name server can be reached from in there: where none is named, a rendezvous does not wait 10 s for one.
            "mount --bind /dev/null /etc/resolv.conf; mount -t tmpfs tmpfs /sys/fs/cgroup; "
            f"exec slurmd -D -N {node} -f {self._file}"
        )
        own = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", inside]
        self._run(node, ["nsenter", f"--net=/run/netns/{self._tag}{node}", *own])

    def crash(self, node: str) -> None:
        """End a node at once, with everything that runs on it."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    def inside(self, node: str, *command: str) -> None:
        """Run a command with the mounts of a node, as root."""
        mounts = f"--mount=/proc/{self._processes[node].pid}/ns/mnt"
        subprocess.run(["nsenter", mounts, *command], check=True, timeout=60)

    def stop(self) -> None:
        for name in [*self.nodes, "slurmctld", "munged"]:
            process = self._processes.pop(name, None)
            if process is not None:
                process.kill()
                process.wait()
        for node in self.nodes:
            self._ip("netns", "delete", f"{self._tag}{node}", check=False)
        self._ip("link", "delete", self._tag, check=False)

    @property
    def address(self) -> str:
        """Where nodes reach this machine."""
        return f"{self._network}.1"

    def ask(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        said = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if check and said.returncode:
            raise RuntimeError(f"{' '.join(command)}: {said.stderr}")
        return said.stdout

    @property
    def _file(self) -> Path:
        return self.folder / "slurm.conf"

    def _run(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _start_munge(self) -> None:
        place = self.folder / "munge"
        place.chmod(0o755)
        key = place / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        named = {"key-file": key, "socket": place / "socket", "log-file": place / "log", "pid-file": place / "pid"}
        named["seed-file"] = place / "seed"
        self._run("munged", ["munged", "--foreground", "--force", *(f"--{key}={file}" for key, file in named.items())])
        _wait((place / "socket").exists, "munged")

    def _make_network(self) -> None:
        self._ip("link", "add", self._tag, "type", "bridge")
        self._ip("addr", "add", f"{self._network}.1/24", "dev", self._tag)
        self._ip("link", "set", self._tag, "up")
        hosts = ["127.0.0.1 localhost", f"{self._network}.1 control"]
        for number, node in enumerate(self.nodes, 11):
            space, port = f"{self._tag}{node}", f"{self._tag}v{number}"
            self._ip("netns", "add", space)
            self._ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", port, "master", self._tag, "up")
            for words in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{self._network}.{number}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("route", "add", "default", "via", f"{self._network}.1"),
            ):
                self._ip("-n", space, *words)
            hosts.append(f"{self._network}.{number} {node}")
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def _ip(self, *words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], env=self.environment, check=check, capture_output=not check)

    def _conf(self) -> str:
        folder, ports = self.folder, 20000 + os.getpid() % 5000 * 2
        lines = [
            "ClusterName=test",
            f"SlurmctldHost=control({self._network}.1)",
            "SlurmUser=root",
            "SlurmdUser=root",
            f"SlurmctldPort={ports}",
            f"SlurmdPort={ports + 1}",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",  # else a job queued again waits two minutes
            "CryptoType=crypto/munge",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool.%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd.%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld.log",
            f"SlurmdLogFile={folder}/log/slurmd.%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "ReturnToService=2",
            "SlurmdTimeout=10",
            "SlurmctldTimeout=10",
            "InactiveLimit=0",
            "KillWait=10",
            "MinJobAge=600",
            "JobRequeue=1",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,requeue_delay=1",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SlurmdParameters=config_overrides",  # more cores are declared than there are
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "AccountingStorageType=accounting_storage/none",
            f"NodeName=DEFAULT CPUs={self._cores} Sockets=1 CoresPerSocket={self._cores} ThreadsPerCore=1 "
            "RealMemory=4000 State=UNKNOWN",
        ]
        for number, node in enumerate(self.nodes, 11):
            lines.append(f"NodeName={node} NodeAddr={self._network}.{number} NodeHostname={node}")
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1")
        lines.append("PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10")
        return "\n".join(lines) + "\n"


def _wait(ready: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} after {seconds:g} s")
        time.sleep(0.1)
